"""The Makefile's targets: every printed command means something, and rehearsed on stand-ins they go through."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from torch.utils.flop_counter import FlopCounterMode

from be import config, plan, synthetic, targets
from be.backbones import BACKBONES
from be.datasets import DATASETS
from be.objectives import OBJECTIVES

sys.path.insert(0, str(ROOT))
run = importlib.import_module("run")
ALL = [name for name in config.experiments() if not name.startswith("demo")] + list(targets.GROUPS)


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
    verb, rest = run.split_verb(words)
    module, function, stage, _ = run.VERBS[verb]
    cfg, overrides = run.split_words(rest)
    if stage == "runs":
        for path in map(Path, cfg.split(",")):
            assert path.parent.name in config.experiments() and re.fullmatch(r"(pretrain|finetune)-.*seed\d", path.name)
            config.load(path.parent.name, overrides)
    elif stage:
        assert cfg in config.experiments()
        for one in stage.split(","):
            config.load(cfg, overrides, one)
    else:
        assert cfg is None
        config.arguments(getattr(importlib.import_module(module), function), overrides)


@pytest.mark.parametrize("synth, names", [("", ALL), ("1", targets.GROUPS)])
def test_every_target_prints_commands_that_parse(synth, names, tmp_path):
    lines = make("-n", *names, f"DATA={tmp_path}", f"OUT={tmp_path}", f"SYNTH={synth}", "SEED=0 1", "GPUS=2")
    commands = [words_of(line) for line in lines]
    for words in {tuple(words) for words in commands}:
        check(list(words))
    for line, words in zip(lines, commands, strict=True):
        spread = words[0] in targets.TRAIN + targets.SPREAD
        assert ("accelerate.commands.launch --multi_gpu --num_processes 2" in line) == spread
    assert sum(words[0] == "report" for words in commands) == len(names)
    assert any(words[0] == "synth" for words in commands) == bool(synth)
    assert all(("synthetic=true" in words) == bool(synth) for words in commands if words[0] in targets.TRAIN)
    assert {w for words in commands for w in words if w.startswith("seed=")} >= {"seed=0", "seed=1"}


def test_targets_of_the_makefile():
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("GROUPS :="))
    assert line.split()[2:] == list(targets.GROUPS)
    assert "No rule to make target 'table1-moko'" in make("table1-moko", code=2)[-1]
    assert make("-n", "table1-moco", "SPLIT=one")[-1] == "false"  # what steps refuses does not pass for done


def test_a_row_is_all_stages_on_all_splits(tmp_path):
    lines = [words_of(line) for line in make("-n", "table1-moco-be", f"OUT={tmp_path}", "SET=accumulate=8 bn_group=8")]
    assert [words[0] for words in lines] == ["pretrain", *["finetune", "evaluate"] * 6, "report"]
    told = [[w for w in words if w.startswith(("dataset=", "split="))] for words in lines[1:-1]]
    expected = [[f"dataset={d}", f"split={s}"] for d in ("ucf101", "hmdb51") for s in (1, 2, 3) for _ in range(2)]
    assert told == expected and all("accumulate=8" in words for words in lines[:-1])


def test_what_two_rows_need_is_done_once(tmp_path):
    for target in ("table1", "figure5", "figure6"):
        lines = make("-n", target, f"OUT={tmp_path}")
        assert len(lines) == len(set(lines))
    verbs = [words_of(line)[0] for line in make("-n", "figure4", f"OUT={tmp_path}", "SEED=0 1", "SPLIT=1")]
    assert verbs.count("pretrain") == 4 and verbs[-2:] == ["gain", "report"]  # a picture shows the runs of all seeds
    once = [words_of(line)[2] for line in make("-n", "table4", f"OUT={tmp_path}") if " pretrain " in line]
    assert len(once) == len(set(once)) == 6 and "table1-moco-be-i3d-ucf101" in once  # the row that is Table 1's


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Smaller ones than the Makefile's, in the layouts of all data sets; those of HMDB51 are in its place."""
    data = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("ucf101", "hmdb51", "kinetics400", "diving48")):
        synthetic.make(data / name, name, train=2, test=1, frames=20, height=24, width=24, seed=seed, workers=1)
    return data


SMALL = " ".join([*TINY, "epochs=1", "batch_size=8", "K=16"])  # as many as there are videos


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
    assert "16/16" not in page and page.count("8/8") >= 2 and "synthetic videos" in page

    settings = ["-n", target, "SYNTH=1", f"DATA={stand_ins}", f"OUT={tmp_path}", f"SET={SMALL}"]
    time.sleep(1)  # FORCE counts in whole seconds
    lines = make(*settings, "FORCE=1")
    removed = [line for line in lines if line.startswith("rm -r ")]
    assert {Path(line.split()[-1]) for line in removed} == set((tmp_path / target).iterdir())
    again = [words_of(line)[0] for line in lines if line not in removed]
    assert again == ["pretrain", "finetune", "evaluate", "finetune", "evaluate", "report"]
    assert [words_of(line)[0] for line in make(*settings)] == ["report"]
    other = [words_of(line) for line in make(*settings[:-1], f"SET={SMALL} lr=0.7")]  # the verb refuses, and says why
    assert [words[0] for words in other] == ["pretrain", "finetune", "finetune", "report"]
    assert run.main(other[0]) == 2 and "-> 0.7)" in capsys.readouterr().err
    assert words_of(make(*settings[:-1], f"SET={SMALL} name=strong")[-1])[1] == "names=strong"
    with pytest.raises(config.ConfigError, match="SEED="):
        targets.steps(target, words="seed=3")
    with pytest.raises(config.ConfigError, match="unknown split 4"):
        targets.steps(target, splits=[1, 4])


@pytest.mark.parametrize("target, then, adds", [("table2-moco", "table2-moco", []), ("figure5", "figure5", []),
                                                ("figure4", "analyses", ["robustness", "errors"]),
                                                ("figure6", "figure7", ["pretrain"] * 3 + ["cam"])])
def test_rehearsals(target, then, adds, stand_ins, tmp_path, monkeypatch):
    """A contrastive row whose pre-training is another's, the figures and the analyses; of two, the shared runs once."""
    monkeypatch.setattr("be.analysis.draw", lambda *_: None)  # slow; tests/test_analysis.py has it
    rehearse(target, stand_ins, tmp_path)
    assert rehearse(then, stand_ins, tmp_path) == [*adds, "report"]  # Figure 7's networks know Kinetics-400
    assert rehearse(target, stand_ins, tmp_path) == rehearse(then, stand_ins, tmp_path) == ["report"]
    if target == "table2-moco":
        assert (tmp_path / "table2-moco/finetune-diving48-split1-seed0/result-test.json").exists()


def test_make_itself(tmp_path):
    """One target as a person types it, from nothing to the report, and typed again."""
    name, settings = "table2-moco-be-i3d-diving48", [f"DATA={tmp_path}/data", f"OUT={tmp_path}/runs"]
    words = [name, "SYNTH=1", "SET=workers=0", *settings]
    first = make(*words)
    assert sum("run.py synth" in line for line in first) == 1 and any(f"| {name}" in line for line in first[-5:])
    assert (tmp_path / f"runs/{name}/finetune-diving48-split1-seed0/result-test.json").exists()
    assert [words_of(line)[0] for line in make("-n", *words)] == ["report"]


# ---- cost


def test_stated_costs_are_what_plan_counts():
    """Passes and FLOP, within a fifth: good enough to choose what to run."""
    assert plan.SHARE * plan.GPUS["A100"] * 1e12 == targets.FLOPS
    for name, stage in (("table1-moco-be-i3d-ucf101", "pretrain"), ("table1-moco-c3d-ucf101", "pretrain"),
                        ("table1-rotnet-be", "pretrain"), ("table2-moco-be-r3d18-ucf101", "finetune")):
        cfg = config.load(name, ["batch_size=2", "bn_group=2"], stage)
        counted = plan.count(cfg, 101, 2).flop / 2 * cfg.epochs * targets.VIDEOS[cfg.dataset][0] / targets.FLOPS / 3600
        assert targets.cost(stage, cfg) == pytest.approx(counted, rel=1 / 5), name


def test_stated_numbers_of_videos_are_the_official_ones():
    for name, (train, test) in targets.VIDEOS.items():
        expected = DATASETS[name].expected
        assert (expected["train", 1], expected.get(("test", 1), expected.get(("val", 1)))) == (train, test)
        assert (name in targets.ONE_SPLIT) == (("train", 2) not in expected)


def test_stated_arithmetic_of_the_backbones():
    for name, make in BACKBONES.items():
        side = targets.SIDE.get(name, 224)
        with torch.device("meta"), FlopCounterMode(display=False) as flops:
            make()(torch.empty(1, 3, 16, side, side))
        assert targets.FORWARD[name] == pytest.approx(flops.get_total_flops(), rel=0.01), name


def test_every_method_has_a_cost():
    assert targets.PASSES.keys() == OBJECTIVES.keys()
    for name in ALL:
        assert float(targets.hours(name).split()[0]) > 0


def test_what_is_new_costs_a_question_mark(monkeypatch, capsys):
    """A method, a backbone and data that nobody has counted are as good a target as any."""
    mine = {"from": "more-byol-be", "about": "mine", "pretrain": {"method": "mine"}}
    registry = config.registry() | {"more-mine": mine}
    monkeypatch.setattr(config, "registry", lambda: registry)
    targets.show_list("more*")
    said = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines()}
    assert said["more-mine"] == said["more"] == ["?", "GPU-h"] and float(said["more-byol-be"][0]) > 0
    for name, words in (("more-mine", ""), ("more", ""), ("table1-moco-be", "backbone=mine"),
                        ("table1-moco-be", "dataset=plain"), ("table3-moco-c3d", "backbone=mine")):
        targets.steps(name, words, splits=[1])
        assert f"run.py pretrain --cfg {name}" in capsys.readouterr().out or not name.endswith(("be", "mine"))
    with pytest.raises(config.ConfigError, match="unknown stand-in for dataset 'plain'; .*ucf101"):
        mine["pretrain"]["dataset"] = "plain"
        targets.steps("more-mine", synth=True)
