"""What `plan` counts is what a step takes, and what it says is what the stages will do."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch.utils.flop_counter import FlopCounterMode

from be import config, datasets, plan
from be.config import ConfigError
from be.objectives import OBJECTIVES

METHODS = {config.load(name).method: name for name in reversed(config.experiments())}


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
    plan.plan(*(config.load("demo-moco-be", words, stage) for stage in ("pretrain", "finetune")))
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
    with pytest.raises(datasets.DatasetMissing, match="your own"):  # nobody knows how many
        plan.look_for_data(dataclasses.replace(cfg, dataset="plain"))


def test_a_batch_that_does_not_divide_is_found_before_anything_starts(tiny, tmp_path):
    cfg = tiny_config("demo-moco-be", f"data={tiny}", f"out={tmp_path}", "accumulate=3")
    with pytest.raises(ConfigError, match="accumulate=3"):
        plan.plan(cfg, cfg)


def test_only_the_stages_to_come(tiny, tmp_path, capsys):
    words = [*TINY, f"data={tiny}", f"out={tmp_path}", "pretrained=none"]
    plan.plan(*(config.load("demo-random", words, stage) for stage in ("pretrain", "finetune")))
    said = capsys.readouterr().out
    assert "pretrain: not needed, the backbone comes from 'none'" in said and said.count("epochs of") == 1


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
