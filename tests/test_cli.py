"""What a person sees who types run.py: help at once, one clear line for a mistake, no traceback."""

import importlib
import inspect
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run

from be.config import STAGES

sys.path.insert(0, str(ROOT))
VERBS = importlib.import_module("run").VERBS
NAMES = ["list", "steps", "synth", "prepare", "actors", "plan", "pretrain", "finetune", "evaluate", "retrieve",
         "robustness", "errors", "inspect", "figure4", "gain", "figure5", "bars", "cam", "show-batch", "strip",
         "status", "export", "report", "scenebias"]  # fmt: skip


@pytest.mark.parametrize("words", [[], ["--help"], *([verb, "--help"] for verb in NAMES)])
def test_help_answers_without_torch(words):
    """In a second, which is to say: without importing torch."""
    code = f"import sys; sys.argv = ['run.py', *{words}]; sys.path.insert(0, {str(ROOT)!r}); import run; " \
           "code = run.main(sys.argv[1:]); assert not {'torch', 'av'} & set(sys.modules); sys.exit(code)"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run.py" in done.stdout and len(done.stdout.splitlines()) >= 5
    assert time.perf_counter() - began < 5  # a second where nothing else runs


def test_every_verb_exists_and_has_an_example():
    for verb in NAMES:
        module, function, stage, example = VERBS[verb]
        call = getattr(importlib.import_module(module), function)
        assert inspect.getdoc(call) and f"run.py {verb}" in example
        parameters = list(inspect.signature(call).parameters)
        assert (parameters == ["cfg"]) == (stage in STAGES) and (parameters == ["runs"]) == (stage == "runs")


@pytest.mark.parametrize("words, message", [
    (["pretrian"], "unknown verb 'pretrian'; choices: pretrain"),
    (["pretrain"], "pretrain needs --cfg NAME, as in: "),
    (["pretrain", "--cfg", "table1-moco-bee"], "unknown experiment 'table1-moco-bee'; nearest: table1-moco-be"),
    (["pretrain", "--cfg", "demo-moco", "gama=1"], "unknown key 'gama'; nearest: gamma"),
    (["pretrain", "--cfg", "demo-moco", "epochs=many"], "epochs='many' is str, expected int"),
    (["pretrain", "--cfg", "demo-moco", "--lr", "1"], "unknown option '--lr'"),
    (["pretrain", "--cfg", "demo-moco", "backbone=resnet"], "unknown backbone 'resnet'"),
    (["pretrain", "--cfg", "demo-moco", "method=mocov9"], "unknown method 'mocov9'; nearest: moco"),
    (["pretrain", "--cfg", "demo-moco", "erase=intra"], "unknown erase 'intra'; nearest: intra-video-frame"),
    (["pretrain", "--cfg", "demo-moco", "dataset=ucf-101"], "unknown dataset 'ucf-101'; nearest: ucf101"),
    (["report", "--cfg", "demo-moco"], "report takes no --cfg"),
    (["synth", "root=x", "scene_bais=1"], "unknown key 'scene_bais'; nearest: scene_bias"),
    (["synth", "root=x", "scene_bias=7"], "scene_bias=7.0 is too large, expected at most 1"),
    (["synth"], "synth needs root"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words, message, tiny):
    data = [f"data={tiny}"] if words[:1] == ["pretrain"] and len(words) > 3 else []
    done = run(*words, *data, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_missing_dataset_is_explained(tmp_path):
    said = run("finetune", "--cfg", "table1-random", f"data={tmp_path}", code=2).stderr
    for part in (str(tmp_path / "ucf101"), "trainlist01.txt", "make demo"):
        assert part in said
    assert "Traceback" not in said


def test_list_shows_all_with_the_papers_numbers():
    said = run("list").stdout
    assert "table1-moco-be " in said and "ucf101 86.8, hmdb51 55.4" in said and "demo-moco-be" in said
    assert "demo" not in run("list", "names=table1-*").stdout
