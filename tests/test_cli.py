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
         "status", "export", "report", "scenebias", "biasset"]  # fmt: skip


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
    (["synth", "root=x", "workers=-1"], "workers=-1 is too small"),
    (["prepare", "--cfg", "ucf101", "gop=0"], "gop=0 is too small, expected at least 1"),
    (["prepare", "--cfg", "ucf101", "short_side=-4"], "short_side=-4 is too small"),
    (["pretrain", "--cfg"], "--cfg needs a name behind it"),
    (["pretrain", "--cfg", "demo-moco", "--cfg=demo-random"], "--cfg is given twice"),
    (["pretrain", "--cfg", "demo-moco", "lr=1", "lr=1e-3"], "lr is given twice, lr=1 and lr=1e-3"),
    (["list", "names=a", "names=b"], "names is given twice"),
    (["pretrain", "--cfg", "demo-moco", "learning_rate=1"], "unknown key 'learning_rate'; nearest: lr"),
    (["pretrain", "--cfg", "demo-moco", "name=../x"], "name=../x is no name of a folder"),
    (["show-batch", "--cfg", "demo-moco-be", "out=/dev/null/x"], "/dev/null/x: Not a directory"),
    (["steps", "target=table1", "words=data='x"], "No closing quotation"),
    (["steps", "target=table1-mocobe"], "unknown target 'table1-mocobe'; nearest: table1-moco-be"),
    (["report", "names=nothing-*"], "there is no run named nothing-*"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words, message, tiny):
    data = [f"data={tiny}"] if words[:1] in (["pretrain"], ["show-batch"]) and len(words) > 3 else []
    done = run(*words, *data, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_missing_dataset_is_explained(tmp_path):
    said = run("finetune", "--cfg", "table1-random", f"data={tmp_path}", code=2).stderr
    for part in (str(tmp_path / "ucf101"), "trainlist01.txt", "make demo"):
        assert part in said
    assert "Traceback" not in said


@pytest.mark.parametrize("text", ["finetune: {lr: fast}", "retrieve: {memory_gb: 0}", "finetune: {warmup: 1000}"])
def test_all_stages_are_right_before_the_first(text, tiny, tmp_path):
    """Else fine-tuning would be found wrong after days of pre-training."""
    (tmp_path / "mine.yaml").write_text(f"from: demo-moco-be\n{text}")
    said = run("pretrain", "--cfg", tmp_path / "mine.yaml", f"data={tiny}", f"out={tmp_path / 'runs'}", code=2).stderr
    assert text.split("{")[1].split(":")[0] in said and len(said.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("error, message", [
    (RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left on device"), "--ipc=host"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. ... out of shared memory"), "workers=0"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "fewer workers="),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "accumulate=2"),
    (NotADirectoryError(20, "Not a directory", "/dev/null/x"), "/dev/null/x: Not a directory"),
])  # fmt: skip
def test_what_ends_a_run_from_outside_is_one_line(monkeypatch, capsys, error, message):
    def end():
        raise error

    monkeypatch.setattr("be.config.show_list", end)
    assert importlib.import_module("run").main(["list"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    error = RuntimeError("a fault of the program")
    with pytest.raises(RuntimeError, match="a fault"):
        importlib.import_module("run").main(["list"])


def test_what_the_machine_lacks_is_one_line():
    """Windows has no fcntl; an old Python cannot read the program."""
    start = "import runpy, sys; sys.argv = ['run.py', 'status']; "
    for first, message in (("sys.modules['fcntl'] = None", "WSL"), ("sys.version_info = (3, 8)", "Python 3.10")):
        code = f"{start}{first}; runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_head_has_seen_enough():
    words = f"{sys.executable} {ROOT / 'run.py'} list | head -n 1"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1 and not done.stderr


def test_list_shows_all_with_the_papers_numbers():
    said = run("list").stdout
    assert "table1-moco-be " in said and "ucf101 86.8, hmdb51 55.4" in said and "demo-moco-be" in said
    assert "demo" not in run("list", "names=table1-*").stdout
