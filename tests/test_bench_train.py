"""The benchmark compares what it says: the loops compute BE, the released way differs from ours in price alone."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from be import backbones, bench_train, objectives
from be.augment import Draws
from be.config import ConfigError
from be.erase import intra_video_frame


def test_the_loops_compute_be():
    x = torch.randn(3, 3, 5, 8, 8)
    fast, slow = intra_video_frame(x, Draws(1, 2), 0.3), bench_train.erase_by_loops(x, Draws(1, 2), 0.3)
    torch.testing.assert_close(fast, slow)
    assert not torch.allclose(fast, x)


def test_three_passes_with_gradient():
    """The same loss, and the backward arithmetic of three passes. Ours has two here, as the query encodes h, too."""
    cost, losses = {}, {}
    views = [torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    options = dict(frames=8, stride=1, K=6, erase_side="query", hard_negative_encoder="query")
    for way, make in (("released", bench_train.Released), ("ours", objectives.MoCo)):
        torch.manual_seed(0)
        model = objectives.construct(make, backbones.build("c3d", 4), options)
        for part in ("forward", "backward"):
            with FlopCounterMode(display=False) as flops:
                if part == "forward":
                    loss, _ = model(views, None, torch.arange(2), Draws(0, 0))
                else:
                    loss.backward()
            cost[way, part] = flops.get_total_flops()
        losses[way] = loss.item()
    assert losses["released"] == pytest.approx(losses["ours"], rel=1e-4)
    assert cost["released", "forward"] == pytest.approx(cost["ours", "forward"], rel=0.01)
    assert cost["released", "backward"] == pytest.approx(1.5 * cost["ours", "backward"], rel=0.02)


def test_a_small_one(capsys):
    bench_train.bench("c3d", size=28, frames=8, width=2, rounds=1, device="cpu")
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")][2:]
    assert [row[:2] for row in rows] == [["MoCo", "be"], ["MoCo+BE", "be"], ["MoCo+BE", "released"],
                                         ["fine-tuning", "be"]]
    for row in rows:
        shares = [float(cell.rstrip("%")) for cell in row[3:8]]
        assert sum(shares) == pytest.approx(100, abs=0.3) and min(shares) > 0 and float(row[2]) > 0
    flop = [float(row[9]) for row in rows]
    assert re.search(r"matrix product \d+ GFLOP/s, convolution \d+ GFLOP/s", said) and flop[0] <= flop[1] <= flop[2]
    assert re.search(r"MoCo\+BE over MoCo \d+\.\d\d; released over be \d+\.\d\d; BE \d+\.\d+% of the step", said)


def test_mistakes():
    with pytest.raises(ConfigError, match="clips=1 must be at least 2"):
        bench_train.bench(clips=1)
    with pytest.raises(ConfigError, match="'c3x'; nearest: c3d"):
        bench_train.bench("c3x", size=28, frames=8, width=2, device="cpu")
