"""What a person sees who types run.py: help at once, one clear line for a mistake, no traceback."""

import importlib
import inspect
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from be.config import STAGES, experiments

sys.path.insert(0, str(ROOT))
VERBS, MAIN = importlib.import_module("run").VERBS, importlib.import_module("run").main
NAMES = ["list", "steps", "synth", "prepare", "masks", "actors", "plan", "pretrain", "finetune", "evaluate",
         "retrieve", "robustness", "figure4", "gain", "figure5", "bars", "cam", "show-batch",
         "strip", "status", "export", "report", "scenebias", "biasset"]  # fmt: skip


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
    (["pretrain", "--cfg", "demo-moco", "epochs=many"], "epochs='many' is a text, expected a whole number"),
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
    (["show-batch", "--cfg", "demo-moco", "out=/dev/null/x"], "/dev/null/x: Not a directory"),
    (["steps", "target=table1", "words=data='x"], "No closing quotation"),
    (["steps", "target=table1-mocobe"], "unknown target 'table1-mocobe'; nearest: table1-moco-be"),
    (["report", "names=nothing-*"], "there is no run named nothing-*"),
    (["list", "names=tabel1-moco"], "no experiment is named tabel1-moco; nearest: table1-moco"),
    (["list", "table1"], "'table1' is not of the form key=value"),
    (["status", "out=/no"], "there is no run named * in /no, which is no folder"),
    (["status", "names=nothing-*"], "there is no run named nothing-* in runs"),
    (["export", "run=/no", "to=x"], "run=/no is no folder; `run.py status` lists the runs"),
    (["steps", "target=table1", "words=lr=1 lr=2"], "words=lr=1 lr=2: a key is given twice"),
    (["pretrain", "--cfg="], "unknown experiment ''; choices: demo-random, demo-moco, demo-moco-be, table1-random"),
    (["pretrain", "--cfg", "demo-moco", "LR=1"], "unknown key 'LR'; nearest: lr"),
    (["pretrain", "--cfg", "demo-moco", "lr="], "lr= is empty, expected a number"),
    (["pretrain", "--cfg", "demo-moco", "lr=0"], "lr=0.0 is too small"),
    (["pretrain", "--cfg", "demo-moco", "classes=[]"], "classes=[] names no class"),
    (["pretrain", "--cfg", "demo-moco", "method=rotnet", "erase_side=both", "data=/no"],
     "erase_side=both is for methods with a query and a key: moco, triplet"),
    (["pretrain", "--cfg", "demo-moco", "batch_size=64"], "the training list has 32 videos, less than one batch"),
    (["finetune", "--cfg", "demo-moco", "pretrained=/no.pth"], "/no.pth does not exist"),
    (["finetune", "--cfg", "demo-moco"], "pre-training of demo-moco has not been run"),
    (["evaluate", "--cfg", "demo-moco", "split=2"], "the stage that writes it has not been run"),
    (["plan", "--cfg", "demo-moco", "flip=0.5"], "flip=0.5: these drawn videos can tell left from right"),
    (["cam", "--cfg", "runs/A,runs/B"], "cannot read runs/A/config.yaml: No such file"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words, message, tiny, tmp_path, capsys, monkeypatch):
    """Whatever can be typed: the message names the value, and the choices where there are some."""
    monkeypatch.chdir(tmp_path)
    keys = [word.split("=")[0] for word in words]
    added = [f"{key}={value}" for key, value in (("data", tiny), ("out", tmp_path)) if key not in keys]
    assert MAIN([*words, *(added if "demo-moco" in words and words[0] != "report" else ())]) == 2
    said = capsys.readouterr()
    assert message in said.err and len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize("part, message", [
    ("finetune: {dataset: ucf-101}", "unknown dataset 'ucf-101'; nearest: ucf101"),
    ("finetune: {backbone: resnet}", "unknown backbone 'resnet'; choices: c3d"),
    ("finetune: {method: clasify}", "unknown method 'clasify'; nearest: classify"),
    ("retrieve: {erase: intra}", "unknown erase 'intra'; nearest: intra-video-frame"),
    ("finetune: {lr: fast}", "finetune: lr='fast' is a text, expected a number"),
    ("retrieve: {memory_gb: 0}", "retrieve: memory_gb=0.0 is too small"),
    ("finetune: {warmup: 1000}", "warmup=1000 takes the whole run"),
    ("paper: 86.8", "mine.yaml: paper cannot be 86.8"), ("about: [a]", "mine.yaml: about cannot be ['a']"),
    ("against: 3", "mine.yaml: against cannot be 3"), ("same_runs_as: nobody", "unknown experiment 'nobody'"),
])  # fmt: skip
def test_all_of_an_entry_is_right_before_its_first_stage(part, message, tiny, tmp_path, capsys):
    """Else fine-tuning would be found wrong after days of pre-training."""
    (tmp_path / "mine.yaml").write_text(f"from: demo-moco-be\n{part}")
    words = ["pretrain", "--cfg", tmp_path / "mine.yaml", f"data={tiny}", f"out={tmp_path / 'runs'}"]
    assert MAIN([*map(str, words)]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_of_several_processes_one_speaks_and_at_the_end(tmp_path, monkeypatch, capsys):
    """torchrun shows what stands in its file below its own report; the others are ended while they wait."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    for rank, file in (0, None), (0, tmp_path / "a"), (1, tmp_path / "b"):
        monkeypatch.setenv("RANK", str(rank))
        if file:
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        assert MAIN(["pretrian"]) == 2
        said = "unknown verb 'pretrian'"
        assert (said in capsys.readouterr().err) == (file is None)
        failure = file and ProcessFailure(rank, 1, 2, str(file))
        assert not file or said in ChildFailedError("run.py", {rank: failure}).format_msg().splitlines()[-2]
    assert len(waited) == 1


def test_a_missing_dataset_is_explained(tmp_path, capsys):
    assert MAIN(["finetune", "--cfg", "table1-random", f"data={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in (str(tmp_path / "ucf101"), "does not exist", "make demo"))


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

    monkeypatch.setattr("run.show_list", end)
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


def test_list_shows_all_with_the_papers_numbers(capsys, monkeypatch):
    """On a terminal in 100 columns, a block for each table; in a pipe a line for each experiment, for grep."""
    assert MAIN(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line] == [*experiments()]
    (row,) = (line for line in lines if line.startswith("table1-moco-be "))
    assert row.endswith("MoCo + BE, I3D pre-trained on Kinetics-400  [ucf101 86.8, hmdb51 55.4]")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert MAIN(["list", "names=*-moco*"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 100
    assert [block.split("-")[0] for block in blocks] == [*dict.fromkeys(n.split("-")[0] for n in experiments()
                                                                        if "-moco" in n)]
