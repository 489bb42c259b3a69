"""The Makefile's targets: every printed command means something, and rehearsed on stand-ins they go through."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, TINY, latest

from be import config, datasets, synthetic
from be import prepare as targets

sys.path.insert(0, str(ROOT))
run = importlib.import_module("run")
GROUPS = next(line for line in (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
              if line.startswith("GROUPS :=")).split()[2:]
ALL = [name for name in config.experiments() if not name.startswith("demo")] + GROUPS


def make(*words, code=0):
    """Runs make with the Python of the tests; returns the lines it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MAKEFLAGS": ""}
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    return (done.stdout or done.stderr).splitlines()


def words_of(line):
    """The words behind run.py of a printed command."""
    words = shlex.split(line)
    return words[words.index("run.py") + 1 :]


def check(words):
    """Does what run.py does with a command before it starts anything."""
    verb, *rest = words
    module, function, stage, _ = run.VERBS[verb]
    cfg, overrides = run.split_words(rest)
    if stage == "runs":
        for path in map(Path, cfg.split(",")):
            assert path.parent.name in config.experiments() and re.fullmatch(r"(pretrain|finetune)-.*seed\d", path.name)
            config.load(path.parent.name, overrides)
    elif stage == "dataset":
        assert cfg in datasets.DATASETS
        config.arguments(getattr(importlib.import_module(module), function), [f"dataset={cfg}", *overrides])
    elif stage:
        assert cfg in config.experiments()
        for one in stage.split(","):
            config.load(cfg, overrides, one)
    else:
        assert cfg is None
        config.arguments(getattr(importlib.import_module(module), function), overrides)


@pytest.mark.parametrize("synth", [False, True])
@pytest.mark.parametrize("target", ALL)
def test_every_target_prints_commands_that_parse(target, synth, tmp_path, capsys):
    targets.steps(target, f"data={tmp_path} out={tmp_path}", [1], [0, 1], synth, launch="launched run.py")
    lines = capsys.readouterr().out.splitlines()
    commands = [words_of(line) for line in lines]
    for line, words in zip(lines, commands, strict=True):
        check(words)
        assert line.startswith("launched") == (words[0] in targets.TRAIN + targets.SPREAD)
    assert commands[-1][0] == "report" and any(words[0] == "synth" for words in commands) == synth
    assert all(("synthetic=true" in words) == synth for words in commands if words[0] in targets.TRAIN)
    seeds = {word for words in commands if words[0] != "synth" for word in words if word.startswith("seed=")}
    assert seeds == {"seed=0", "seed=1"} and len(lines) == len(set(lines))


def test_make_prints_them_for_many_gpus(tmp_path):
    lines = make("-n", "table2-moco", f"DATA={tmp_path}", f"OUT={tmp_path}", "SEED=0 1", "GPUS=2")
    spread = [line for line in lines if words_of(line)[0] in targets.TRAIN + targets.SPREAD]
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2"
    assert len(spread) == 6 and all(launch in line for line in spread)
    assert all(f"data={tmp_path}" in words_of(line) for line in spread)


def test_make_alone_prints_a_map():
    """In 100 columns; every target on it exists."""
    lines = make()
    assert max(map(len, lines)) <= 100 and lines == make("help")
    shown = re.findall(r"^  make ([a-z0-9-]+)", "\n".join(lines), re.M)
    assert {*shown} - {*ALL} == {"test", "demo", "list"} and len({*shown} & {*ALL}) >= 3


def test_a_target_that_does_not_exist():
    assert "Error 2" in make("table1-moko", code=2)[-1]
    assert make("-n", "table1-moco", "SPLIT=one")[-1] == "exit 2"  # what steps refuses does not pass for done


def test_a_row_is_all_stages_on_all_splits(tmp_path):
    lines = [words_of(line) for line in make("-n", "table1-moco-be", f"OUT={tmp_path}", "SET=accumulate=8 bn_group=8")]
    assert [words[0] for words in lines] == ["pretrain", *["finetune", "evaluate"] * 6, "report"]
    told = [[w for w in words if w.startswith(("dataset=", "split="))] for words in lines[1:-1]]
    expected = [[f"dataset={d}", f"split={s}"] for d in ("ucf101", "hmdb51") for s in (1, 2, 3) for _ in range(2)]
    assert told == expected and all("accumulate=8" in words for words in lines[:-1])


def test_what_two_rows_need_is_done_once(tmp_path):
    verbs = [words_of(line)[0] for line in make("-n", "figure4", f"OUT={tmp_path}", "SEED=0 1", "SPLIT=1")]
    assert verbs.count("pretrain") == 4 and verbs[-2:] == ["figure4", "report"]  # a picture shows the runs of all seeds
    once = [words_of(line)[2] for line in make("-n", "table4", f"OUT={tmp_path}") if " pretrain " in line]
    assert len(once) == len(set(once)) == 6 and "table1-moco-be-i3d-ucf101" in once  # the row that is Table 1's


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Smaller ones than the Makefile's, in the layouts of all data sets; those of HMDB51 are in its place."""
    data = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("ucf101", "hmdb51", "kinetics400", "diving48")):
        synthetic.synth(data / name, name, train=2, test=1, frames=20, height=24, width=24, seed=seed, workers=1)
    return data


SMALL = " ".join(latest(*TINY, "epochs=1", "batch_size=8", "K=16"))  # as many as there are videos


def rehearse(target, data, out, stop=None):
    """Runs what `make TARGET SYNTH=1` prints, here and smaller, up to a command of the verb `stop`."""
    did = []
    for line in make("-n", target, "SYNTH=1", f"DATA={data}", f"OUT={out}", f"SET={SMALL}"):
        words = words_of(line)
        if words[0] == stop:
            break
        assert run.main(words) == 0, line
        did.append(words[0])
    return did


def test_a_row_that_was_interrupted_goes_on_and_what_is_done_is_left(stand_ins, tmp_path, capsys):
    """A pretext task, by the commands of the Makefile, in pieces; and FORCE."""
    target = "table1-clip-order-be"
    assert rehearse(target, stand_ins, tmp_path, stop="evaluate") == ["pretrain", "finetune"]
    assert rehearse(target, stand_ins, tmp_path) == ["evaluate", "finetune", "evaluate", "report"]
    assert rehearse(target, stand_ins, tmp_path) == ["report"]
    page = (tmp_path / "report.md").read_text()
    assert "16/16" not in page and "scored 8/8" in page and "synthetic videos" in page

    settings = ["-n", target, "SYNTH=1", f"DATA={stand_ins}", f"OUT={tmp_path}", f"SET={SMALL}"]
    lines = make(*settings, "FORCE=1")
    removed = [line for line in lines if line.startswith("rm -r ")]
    assert {Path(line.split()[-1]) for line in removed} == set((tmp_path / target).iterdir())
    again = [words_of(line)[0] for line in lines if line not in removed]
    assert again == ["pretrain", "finetune", "evaluate", "finetune", "evaluate", "report"]
    assert [words_of(line)[0] for line in make(*settings)] == ["report"]
    other = [words_of(line) for line in make(*settings[:-1], f"SET={SMALL} lr=0.7")]  # the verb refuses, and says why
    assert [words[0] for words in other] == ["pretrain", "finetune", "finetune", "report"]
    assert run.main(other[0]) == 2 and "-> 0.7)" in capsys.readouterr().err
    with pytest.raises(config.ConfigError, match="SEED="):
        targets.steps(target, words="seed=3")
    with pytest.raises(config.ConfigError, match="unknown split of ucf101: 4"):
        targets.steps(target, splits=[1, 4])


@pytest.mark.parametrize("target, then, adds", [("table2-moco", "table2-moco", []), ("figure5", "figure5", []),
                                                ("figure4", "analyses", ["robustness"]),
                                                ("figure6", "figure7", ["pretrain"] * 3 + ["cam"])])
def test_rehearsals(target, then, adds, stand_ins, tmp_path, monkeypatch):
    """A contrastive row whose pre-training is another's, the figures and the analyses; of two, the shared runs once."""
    monkeypatch.setattr("be.analysis.draw", lambda *_: None)  # slow; tests/test_analysis.py has it
    monkeypatch.setattr("be.report.curves", lambda *_: [])  # and tests/test_report.py has this
    rehearse(target, stand_ins, tmp_path)
    assert rehearse(then, stand_ins, tmp_path) == [*adds, "report"]  # Figure 7's networks know Kinetics-400
    assert rehearse(target, stand_ins, tmp_path) == rehearse(then, stand_ins, tmp_path) == ["report"]
    if target == "table2-moco":
        assert (tmp_path / "table2-moco/finetune-diving48-split1-seed0/result-test.json").exists()


def test_make_itself(tmp_path):
    """One target as a person types it, from nothing to the report, and typed again."""
    name, settings = "table2-moco-be-i3d-diving48", [f"DATA={tmp_path}/data", f"OUT={tmp_path}/runs"]
    words = [name, "SYNTH=1", "SET=workers=0 epochs=1", *settings]
    first = make(*words)
    assert sum("run.py synth" in line for line in first) == 1 and any(f"| {name}" in line for line in first[-5:])
    assert (tmp_path / f"runs/{name}/finetune-diving48-split1-seed0/result-test.json").exists()
    assert [words_of(line)[0] for line in make("-n", *words)] == ["report"]


def test_an_entry_of_ones_own(monkeypatch, capsys):
    """It is fine-tuned and tested on what `paper` names, or else on its own data set; other names are errors."""
    mine = {"from": "table1-moco-be", "finetune": {"dataset": "ssv2"}, "paper": {"ssv2": 50}}
    ssv2 = replace(datasets.DATASETS["diving48"], name="ssv2", expected={("train", 1): 3, ("val", 1): 2}, test="val")
    monkeypatch.setitem(datasets.DATASETS, "ssv2", ssv2)
    registry = {**config.registry(), "mine": mine, "more-byol-mine": {"from": "more-byol-be"}}
    monkeypatch.setattr(config, "registry", lambda: registry)
    targets.steps("mine", splits=[1, 2, 3])
    commands = [words_of(line) for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in commands] == ["pretrain", "finetune", "evaluate", "report"]  # one official split
    assert {"dataset=ssv2", "split=1", "subset=val"} <= set(commands[2])
    targets.steps("more-byol-mine", splits=[1])
    assert [w for words in map(words_of, capsys.readouterr().out.splitlines()) for w in words if "dataset=" in w] == [
        "dataset=ucf101"] * 2
    mine["paper"] = {"ssv3": 50}
    with pytest.raises(config.ConfigError, match="unknown data set under `paper` of mine: 'ssv3'; nearest: ssv2"):
        targets.steps("mine")


def test_a_named_variant_is_its_own_to_the_end(capsys):
    """Its fine-tuning starts from its own pre-training, not from that of the row it borrows from; one name, one row."""
    targets.steps("table2-moco-be", "recipe=strong name=mine", [1])
    pretrain, finetune, *_ = (words_of(line) for line in capsys.readouterr().out.splitlines())
    assert pretrain[:3] == ["pretrain", "--cfg", "table1-moco-be"] and "name=mine" in pretrain
    cfg = config.load(finetune[2], finetune[3:], "finetune")
    assert (cfg.name, cfg.pretrained, cfg.recipe) == ("mine", "self", "strong")
    with pytest.raises(config.ConfigError, match="table4 has 6 rows, which cannot all have name=mine; give out="):
        targets.steps("table4", "name=mine", [1])


def test_a_batch_that_does_not_divide_runs_on_one_device(capsys):
    """The released recipe on 8 GPUs: 64 clips to pre-train, 4 to fine-tune."""
    launch = "python -m accelerate.commands.launch --multi_gpu --num_processes 8 run.py"
    targets.steps("table1-moco-be", "recipe=released", [1], launch=launch)
    lines = {words_of(line)[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "--num_processes 8" in lines["pretrain"] and "--num_processes 8" in lines["evaluate"]
    assert "--num_processes" not in lines["finetune"]


def test_a_rehearsal_keeps_the_data_set_that_was_typed(capsys):
    targets.steps("table1-moco-be-i3d-ucf101", "recipe=released dataset=hmdb51", [1], synth=True)
    pretrain = next(w for w in map(words_of, capsys.readouterr().out.splitlines()) if w[0] == "pretrain")
    assert config.load(pretrain[2], pretrain[3:]).dataset == "hmdb51"


def test_the_evidence_draws_its_videos_first(capsys):
    targets.steps("evidence-methods", splits=[1])
    commands = [words_of(line) for line in capsys.readouterr().out.splitlines()]
    assert commands[0] == ["scenebias", "data=data", "size=tiny"]
    assert [words[0] for words in commands].count("scenebias") == 1
    assert commands[-1] == ["report", "names=evidence-methods-*", "out=runs"]
