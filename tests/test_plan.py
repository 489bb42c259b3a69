"""What `plan` counts is what a step takes, and what it says is what the stages will do."""

import dataclasses

import pytest
from conftest import TINY
from torch.utils.flop_counter import FlopCounterMode

from be import config, datasets, train
from be.config import ConfigError
from be.runs import make_accelerator


def planned(name, *words):
    train.plan(*(config.load(name, words, stage) for stage in ("pretrain", "finetune")))


def tiny_config(name="demo-moco-be", *words, stage="pretrain"):
    return config.load(name, [*TINY, "precision=fp32", *words], stage)


@pytest.mark.parametrize("name", ["table1-k400", "table1-moco-be", "more-byol-be", "table1-puzzles-be",
                                  "more-order-verification-be"])
def test_counted_memory_and_arithmetic_are_those_of_a_real_step(name):
    """Byte by byte and operation by operation: the step with numbers in it, watched in the same two ways."""
    cfg = tiny_config(name, "bn_group=4", "backbone=r3d18")
    flop, memory, state = train.count_step(cfg, 5, clips=4)
    objective, arguments = train.random_step(cfg, 5, clips=4)
    with FlopCounterMode(display=False) as flops:
        objective(*arguments())[0].backward()
    objective.zero_grad()
    weights, live = watch(objective, arguments)
    learned = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert flop == flops.get_total_flops() > 1e6
    assert memory == pytest.approx(live.peak + 4 * learned, abs=64)  # a scalar may live a moment longer
    assert state == weights + 4 * learned


def watch(objective, arguments):
    """Bytes of the weights, and what was alive in a real step."""
    with train.Live() as live:
        live.hold([*objective.parameters(), *objective.buffers()])
        weights = live.now
        objective(*arguments())[0].backward()
    return weights, live


def test_flop_by_hand():
    """A forward pass of C3D is its eight convolutions; backward is twice that, but for the pixels' gradient."""
    cfg = tiny_config("demo-moco-be", "backbone=c3d", "width=4", "bn_group=0", stage="finetune")
    counted, *_ = train.count_step(cfg, 5, clips=3)
    layers = [(3, 4, 1), (4, 8, 4), (8, 16, 32), (16, 16, 32), (16, 32, 256), (32, 32, 256)] + 2 * [(32, 32, 2048)]
    forward = [2 * 27 * i * o * 3 * max(1, 8 * 16 * 16 // cells) for i, o, cells in layers]  # T, S, S = 8, 16, 16
    assert counted == pytest.approx(3 * sum(forward) - forward[0], rel=0.01)


def test_checkpointing_is_counted():
    """Less is kept, and some of it is computed twice."""
    cfg = tiny_config("demo-moco-be", "width=8", "frames=16", "size=32", "short_side=32", "bn_group=4")
    flop, memory, _ = train.count_step(cfg, 5, clips=8)
    cfg = dataclasses.replace(cfg, checkpointing=True)
    more, less, state = train.count_step(cfg, 5, clips=8)
    assert less < 0.6 * memory and more > 1.1 * flop
    weights, live = watch(*train.random_step(cfg, 5, clips=8))
    assert less == pytest.approx(live.peak + state - weights, rel=1e-3)


def test_what_it_says(tiny, tmp_path, capsys):
    words = [*TINY, "precision=fp32", f"data={tiny}", f"out={tmp_path}", "epochs=6", "accumulate=2", "bn_group=4"]
    planned("demo-moco-be", *words)
    said = capsys.readouterr().out
    assert said.count("ucf101, split 1 in") == 2 and "32 videos" in said
    assert said.count("6 epochs of 4: 24") == 2
    assert said.count("8 = 1 device(s) x 2 part(s) x 4, BatchNorm over 4") == 2
    assert "0.01 for the batch of 8, on any number of devices, times 0.1 after epochs 1\n" in said
    flop, memory, _ = train.count_step(tiny_config("demo-moco-be", *words), 8, 4)
    assert f"{2 * flop / 1e12:.3g} TFLOP a step" in said and f"memory   {memory / 2**30:.1f} GiB a device" in said
    assert "A100" in said and not list(tmp_path.iterdir())  # a plan leaves nothing behind


def test_hours_by_hand(monkeypatch, tmp_path, capsys):
    """2 x 10^12 FLOP a step, 149 steps an epoch, 50 epochs, at 3 % of 312 TFLOP/s: 1592 s."""
    monkeypatch.setattr(train, "count_step", lambda *_: (2e12, 2**30, 2**30))
    planned("table1-moco-be-i3d-ucf101", f"data={tmp_path}", f"out={tmp_path}")
    said = capsys.readouterr().out
    assert "50 epochs of 149: 7450" in said and "A100 27 min" in said and "1.00 GiB a checkpoint, of which 2" in said


@pytest.mark.parametrize("name, steps", [("table1-moco-be", 192_600), ("table1-moco-be-i3d-ucf101", 476_800),
                                         ("table2-moco-be-i3d-diving48", 18_780)])
def test_steps_of_the_released_rows(name, steps, monkeypatch, tmp_path, capsys):
    """As FingerRec/BE's scripts: 50 x 3852, 200 x 2384, 10 x 1878."""
    monkeypatch.setattr(train, "count_step", lambda *_: (2e12, 2**30, 2**30))
    planned(name, "recipe=released", f"data={tmp_path}", f"out={tmp_path}")
    said = capsys.readouterr().out
    assert f": {steps}\n" in said and "MISSING in" in said and "warning" not in said


def test_data_that_are_not_there(tmp_path):
    cfg = config.load("table1-moco-be", [f"data={tmp_path}"])
    assert train.count_videos(cfg) == (246534, 400, None)
    said = train.describe("pretrain", dataclasses.replace(cfg, warmup=2), 246534, make_accelerator(cfg))
    assert "is MISSING in" in said and "after epochs 10, 20, 30, 40, warm-up over 2 epochs\n" in said
    with pytest.raises(datasets.DatasetMissing, match="what plain is"):  # nobody knows how many
        train.count_videos(dataclasses.replace(cfg, dataset="plain"))


def test_a_batch_that_does_not_divide_is_found_before_anything_starts(tiny, tmp_path):
    cfg = tiny_config("demo-moco-be", f"data={tiny}", f"out={tmp_path}", "accumulate=3")
    with pytest.raises(ConfigError, match="accumulate=3"):
        train.plan(cfg, cfg)


def test_only_the_stages_to_come(tiny, tmp_path, capsys):
    words = [*TINY, f"data={tiny}", f"out={tmp_path}"]
    planned("demo-random", *words)
    said = capsys.readouterr().out
    assert "pretrain: not needed, the backbone is random\n" in said and said.count("epochs of") == 1
    planned("table2-moco-be", *words, "backbone=c3d", "dataset=ucf101")
    said = capsys.readouterr().out
    assert "backbone is table1-moco-be; " in said and "`run.py plan --cfg table1-moco-be` says what it costs" in said
