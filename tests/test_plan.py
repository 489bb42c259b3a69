"""What `plan` counts is what a step takes, and what it says is what the stages will do."""

import dataclasses
import json
import re
import shlex
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch.utils.flop_counter import FlopCounterMode

from be import config, datasets, plan, retrieve, weights
from be.config import ConfigError
from be.objectives import OBJECTIVES

METHODS = {config.load(name).method: name for name in reversed(config.experiments())}


def planned(name, *words):
    plan.plan(*(config.load(name, words, stage) for stage in config.STAGES))


def tiny_config(name="demo-moco-be", *words, stage="pretrain"):
    return config.load(name, [*TINY, "precision=fp32", *words], stage)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_counted_memory_and_arithmetic_are_those_of_a_real_step(method):
    """Byte by byte and operation by operation: the step with numbers in it, watched in the same two ways."""
    cfg = tiny_config(METHODS[method], "bn_group=4", "backbone=r3d18")
    counted = plan.count(cfg, 5, clips=4)
    objective, arguments = plan.prepare(cfg, 5, clips=4)
    with FlopCounterMode(display=False) as flops:
        objective(*arguments())[0].backward()
    objective.zero_grad()
    weights, live = watch(objective, arguments)
    learned = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert counted.flop == flops.get_total_flops() > 1e6
    assert counted.memory == pytest.approx(live.peak + 4 * learned, abs=64)  # a scalar may live a moment longer
    assert counted.state == weights + 4 * learned


def watch(objective, arguments):
    """Bytes of the weights, and what was alive in a real step."""
    with plan.Live() as live:
        live.hold(*objective.parameters(), *objective.buffers())
        weights = live.now
        objective(*arguments())[0].backward()
    return weights, live


def test_flop_by_hand():
    """A forward pass of C3D is its eight convolutions; backward is twice that, but for the pixels' gradient."""
    cfg = tiny_config("demo-moco-be", "backbone=c3d", "width=4", "bn_group=0", stage="finetune")
    counted = plan.count(cfg, 5, clips=3).flop
    layers = [(3, 4, 1), (4, 8, 4), (8, 16, 32), (16, 16, 32), (16, 32, 256), (32, 32, 256)] + 2 * [(32, 32, 2048)]
    forward = [2 * 27 * i * o * 3 * max(1, 8 * 16 * 16 // cells) for i, o, cells in layers]  # T, S, S = 8, 16, 16
    assert counted == pytest.approx(3 * sum(forward) - forward[0], rel=0.01)


def test_checkpointing_is_counted():
    """Less is kept, and some of it is computed twice."""
    cfg = tiny_config("demo-moco-be", "width=8", "frames=16", "size=32", "short_side=32", "bn_group=4")
    plain = plan.count(cfg, 5, clips=8)
    cfg = dataclasses.replace(cfg, checkpointing=True)
    thrifty = plan.count(cfg, 5, clips=8)
    assert thrifty.memory < 0.6 * plain.memory and thrifty.flop > 1.1 * plain.flop
    weights, live = watch(*plan.prepare(cfg, 5, clips=8))
    assert thrifty.memory == pytest.approx(live.peak + thrifty.state - weights, rel=1e-3)


def test_what_it_says(tiny, tmp_path, capsys):
    words = [*TINY, "precision=fp32", f"data={tiny}", f"out={tmp_path}", "epochs=6", "accumulate=2", "bn_group=4"]
    planned("demo-moco-be", *words)
    said = capsys.readouterr().out
    assert said.count("ucf101, split 1 in") == 2 and "32 videos, about" in said
    assert said.count("6 epochs of 4: 24") == 2
    assert said.count("8 = 1 device(s) x 2 part(s) x 4 clips, BatchNorm over 4") == 2
    assert "0.01 for the batch of 8, on any number of devices, times 0.1 after epochs 1" in said
    assert len(re.findall(r"time +[\d.]+ (s|min|h) here: [\d.e-]+ s a step", said)) == 2
    assert said.count("not begun") == 2 and "A100" in said and "GiB free" in said
    assert not list(tmp_path.iterdir())  # a plan leaves nothing behind


def test_data_that_are_not_there(tmp_path, capsys):
    cfg = config.load("table1-moco-be", [f"data={tmp_path}"])
    assert plan.look_for_data(cfg)[:2] == (246534, 400)
    assert "MISSING in" in plan.look_for_data(cfg)[2]
    with pytest.raises(datasets.DatasetMissing, match="what plain is"):  # nobody knows how many
        plan.look_for_data(dataclasses.replace(cfg, dataset="plain"))


def test_a_batch_that_does_not_divide_is_found_before_anything_starts(tiny, tmp_path):
    cfg = tiny_config("demo-moco-be", f"data={tiny}", f"out={tmp_path}", "accumulate=3")
    with pytest.raises(ConfigError, match="accumulate=3"):
        plan.plan(cfg, cfg, cfg)


def test_only_the_stages_to_come(tiny, tmp_path, capsys):
    words = [*TINY, f"data={tiny}", f"out={tmp_path}", "pretrained=random"]
    planned("demo-random", *words)
    said = capsys.readouterr().out
    assert "pretrain: not needed, the backbone is random" in said and said.count("epochs of") == 1
    assert "retrieve" not in said
    planned("demo-random", *words[:-1], "pretrained=torchvision:googlenet")
    assert "pretrain: not needed, the backbone is torchvision:googlenet" in capsys.readouterr().out
    with pytest.raises(weights.WeightsError, match="theirs.pth does not exist"):
        planned("demo-random", *words[:-1], f"pretrained={tmp_path}/theirs.pth")


@pytest.mark.parametrize("name", ["table2-moco-be", "table2-moco-be-i3d-ucf101"])
def test_a_backbone_that_another_experiment_makes(name, tiny, tmp_path, capsys):
    """Whether it is there, and else the command that makes it, with what was typed that it depends on."""
    words = [*TINY, "backbone=c3d", f"data={tiny}", f"out={tmp_path}", "seed=3", "dataset=ucf101"]
    planned(name, *words)
    said = capsys.readouterr().out
    file = tmp_path / name.replace("table2", "table1") / "pretrain-seed3/backbone.safetensors"
    assert f"{file}: MISSING" in said and "finetune: classify on c3d" in said
    command = shlex.split(re.search(r"python run.py pretrain --cfg (.*)", said)[1])
    cfg = config.load(command[0], command[1:])
    assert config.run_dir(cfg, "pretrain") == file.parent and cfg.dataset == config.load(command[0]).dataset
    assert (cfg.data, cfg.backbone, cfg.width) == (str(tiny), "c3d", 4)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    planned(name, *words)
    said = capsys.readouterr().out
    assert f"{file}: there" in said and "run.py pretrain" not in said


@pytest.mark.parametrize("protocol", ["paper", "gap"])
def test_a_row_of_table_3_retrieves(protocol, tiny, tmp_path, capsys):
    """No fine-tuning is planned, and the features are as many and as large as those that it then writes."""
    words = [*TINY, "stride=1", "dataset=ucf101", f"data={tiny}", f"out={tmp_path}", "pretrained=random",
             f"protocol={protocol}"]
    planned("table3-moco-be-c3d", *words)
    said = capsys.readouterr().out
    assert "finetune" not in said and "not begun" in said and not list(tmp_path.iterdir())
    rows, numbers = map(int, re.search(r"about (\d+) rows of (\d+) numbers", said).groups())
    cfg = config.load("table3-moco-be-c3d", words, "retrieve")
    retrieve.retrieve(cfg)
    path = config.run_dir(cfg, "retrieve")
    made = json.loads((path / f"recall-{protocol}-test.json").read_text())
    assert (rows, numbers) == (made["gallery"] + made["n_scored"], made["numbers"])
    assert rows == (3 if protocol == "paper" else 1) * (32 + 16)
    assert 2 * rows * numbers == sum(file.stat().st_size for file in path.glob("*.f16"))
    planned("table3-moco-be-c3d", *words)
    assert f"{path}: done" in capsys.readouterr().out


def test_the_features_of_the_paper(tmp_path, monkeypatch, capsys):
    """Without the data, from the official numbers: about 28,500 clips of 100,352 numbers, 5.7 GB."""
    monkeypatch.setattr(plan, "forward", lambda *_: (1.0, 1e9, 100352))
    planned("table3-moco-be-i3d", f"data={tmp_path}", f"out={tmp_path}")
    said = capsys.readouterr().out
    assert said.count("MISSING in") == 2 and "officially 3570 videos" in said and "officially 1530 videos" in said
    assert "about 28560 rows of 100352 numbers" in said and "5.34 GiB" in said


def test_a_gpu_takes_what_fits(monkeypatch):
    """The search for a batch that fits, on a GPU that holds 5 clips."""
    cfg, gpu = tiny_config(), SimpleNamespace(device=torch.device("cuda"))
    tried = []
    def timed(cfg, classes, clips, accelerator):
        tried.append(clips)
        if clips > holds:
            raise torch.OutOfMemoryError
        return 0.5, 1e9
    monkeypatch.setattr(plan, "timed", timed)
    answers = {"reset_peak_memory_stats": None, "empty_cache": None, "max_memory_allocated": 3 * 2**30}
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    holds = 5
    seconds, said = plan.measure(cfg, 5, 16, gpu, None)
    assert tried == [16, 8, 4] and seconds == 2.0
    assert said == "measured 3.0 GiB on 4 clips, 16 DO NOT FIT: raise accumulate"
    assert plan.measure(cfg, 5, 4, gpu, None) == (0.5, "measured 3.0 GiB on 4 clips")
    holds = 0
    seconds, said = plan.measure(cfg, 5, 16, gpu, None)
    assert seconds != seconds and "not even 2 clips" in said


def test_every_method_is_planned():
    assert METHODS.keys() == OBJECTIVES.keys()
