"""Maps by loops, and of networks that are known to look at motion or not; the numbers of `errors` by slow forms."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY
from networks import clips, tuned
from PIL import Image

from be import analysis, bias, config, datasets, evaluate, synthetic
from be.analysis import INPUTS, MEASURES, activation, between, calibration, moving_pixels, share
from be.augment import denormalise, normalise
from be.runs import RunError, make_accelerator
from be.video import even_clips


def test_a_batch_and_the_same_distracted(tiny, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(analysis, "save", lambda figure, path: shown.append((figure, path)))
    for draws in (1, analysis.DRAWS):
        monkeypatch.setattr(analysis, "DRAWS", draws)
        analysis.show_batch(config.load("demo-moco-be", [*TINY, f"data={tiny}", f"out={tmp_path}"]))
    (first, _), (figure, path) = shown
    assert path == tmp_path / "what-the-network-sees.png" and len(figure.axes) == 6 * 8
    names = [axis.get_ylabel() for axis in figure.axes[::8]]
    assert [name.split("\n")[0] for name in names] == ["original", "distracted"] * 3 and len({*names}) == 6
    weak, rows = (np.reshape([axis.images[0].get_array() for axis in of.axes], (6, 8, 16, 16, 3))
                  for of in (first, figure))
    assert np.square(rows[::2] - rows[1::2]).mean() > np.square(weak[::2] - weak[1::2]).mean()  # the strongest of all
    assert all(0.005 < np.abs(rows[i] - rows[i + 1]).mean() < 0.3 for i in (0, 2, 4))
    moves = np.abs(np.diff(rows, axis=1)).mean((1, 2, 3, 4))
    assert all(moves[i + 1] < moves[i] for i in (0, 2, 4))  # (1 - lam) of the motion stays


def resized(line, n):
    """Linear interpolation of n values from a line of m, places being centres of cells; beyond the ends they repeat."""
    m, out = len(line), []
    for i in range(n):
        place = min(max((i + 0.5) * m / n - 0.5, 0), m - 1)
        left = min(int(place), m - 2) if m > 1 else 0
        out.append(line[left] + (place - left) * (line[min(left + 1, m - 1)] - line[left]))
    return np.array(out)


def test_the_map_by_loops():
    features = torch.rand(2, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    heat = activation(features, 8, 6)
    assert heat.shape == (2, 8, 6, 6)
    for k in range(2):
        slow = features[k].numpy().mean(0)
        for axis, n in enumerate((8, 6, 6)):
            slow = np.apply_along_axis(resized, axis, slow, n)
        np.testing.assert_allclose(heat[k].numpy(), slow, atol=1e-6)


def test_share_on_constructed_maps():
    mask = torch.zeros(2, 4, 6, 6, dtype=torch.bool)
    mask[:, :, :3] = True
    mask[0, 0] = False
    flat = torch.ones(2, 4, 6, 6)
    assert share(flat, mask).item() == pytest.approx((3 / 8 + 1 / 2) / 2)  # the share of the area
    assert share(mask.float(), mask).item() == pytest.approx(1) and share((~mask).float(), mask).item() == 0
    assert share(torch.where(mask, 3.0, 1.0)[1:], mask[1:]).item() == pytest.approx(3 / 4)
    assert share(0 * flat, mask).item() == 0 and share(flat, mask & False).item() == 0
    assert share(7 * flat, mask).item() == pytest.approx(share(flat, mask).item())


def test_moving_pixels_by_loops():
    pixels = torch.rand(1, 3, 5, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.3
    moved = moving_pixels(normalise(pixels))
    for t, i, j in np.ndindex(5, 4, 4):
        steps = [(pixels[0, :, t, i, j] - pixels[0, :, s, i, j]).abs().max() for s in (t - 1, t + 1) if 0 <= s < 5]
        assert moved[0, t, i, j] == (max(steps) > 0.15)
    assert 0.1 < moved.float().mean() < 0.9
    assert not moving_pixels(normalise(pixels[:, :, :1].expand(-1, -1, 6, -1, -1))).any()


class Mover(torch.nn.Module):
    """Sees nothing but change: the difference from the frame before, at full resolution."""

    def forward(self, x):
        step = denormalise(x).diff(dim=2).abs().amax(1, keepdim=True)
        return torch.nn.functional.pad(step, (0, 0, 0, 0, 1, 0))


class Looker(torch.nn.Module):
    """Sees every frame alone: what is bright."""

    def forward(self, x):
        return denormalise(x).mean(1, keepdim=True)


def test_numbers_of_networks_that_are_known(tiny, tmp_path):
    _, cfg, _ = tuned(tiny, tmp_path, scene="rendered")
    samples, accelerator = datasets.load("ucf101", tiny, "test", 1), make_accelerator(cfg)
    sampler = partial(even_clips, K=3, T=8, stride=2)
    lenders, _ = bias.lend(samples, cfg, accelerator)
    look = partial(bias.shots, lenders=lenders)
    found, ok = analysis.measure([Mover(), Looker()], samples, look, sampler, cfg, accelerator)
    assert found.shape == (16, 3, 4, 4) and ok.all()
    at = {name: n for n, name in enumerate(INPUTS)}
    response, moving, actor, body = (found[..., MEASURES.index(m)] for m in MEASURES)
    uniform, mover, looker = range(3)

    assert (response[:, mover, at["frozen"]] == 0).all()
    assert (body[:, mover, at["static body"]] == 0).all() and (body[:, looker, at["static body"]] > 0).any()
    assert actor[:, mover, 0].mean() > 2 * actor[:, uniform, 0].mean()
    assert (moving[:, mover, 0] > moving[:, uniform, 0]).all()
    torch.testing.assert_close(response[:, mover, at["foreign frame"]], torch.full((16,), 0.7), atol=1e-4, rtol=0)

    def true_mask(i, frames):  # what of it is in the square of 16 px in the middle of 24
        mask = synthetic.render(bias.specs(samples.root)[samples.paths[i]])[1]
        return torch.from_numpy(mask[frames][..., 4:20, 4:20])

    for i in (0, 7):  # the same by hand
        x, frames = clips(samples, i)
        mask = true_mask(i, frames)
        other, frames = clips(samples, lenders[0, i], 1)
        pasted = true_mask(lenders[0, i], frames)[0, 4][None]
        pixels = denormalise(x)
        bright = pixels.mean(1)
        assert actor[i, uniform, 0].item() == pytest.approx(mask.float().mean().item(), abs=1e-6)
        expected = np.mean([(bright[k][mask[k]].sum() / bright[k].sum()).item() for k in range(3)])
        assert actor[i, looker, 0].item() == pytest.approx(expected, abs=1e-5)
        still = bright[:, 4:5].mean() / bright.mean()
        assert response[i, looker, at["frozen"]].item() == pytest.approx(still.item(), abs=1e-5)
        lent = denormalise(other)[0, :, 4]
        y = torch.where(pasted[:, None], lent[:, None], pixels).mean(1)
        for values, where in ((actor, mask & ~pasted), (body, pasted.expand_as(mask))):
            expected = np.mean([(y[k][where[k]].sum() / y[k].sum()).item() for k in range(3)])
            assert values[i, looker, at["static body"]].item() == pytest.approx(expected, abs=1e-4)


def test_cam_end_to_end(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "SHOWN", 2)
    monkeypatch.setattr(analysis, "COLUMNS", 2)
    drawn, strip = [], analysis.strip
    monkeypatch.setattr(analysis, "strip", lambda *drawing: drawn.append(drawing) or strip(*drawing))
    runs = [tuned(tiny, tmp_path, seed, test_clips=1)[:2] for seed in (0, 1)]
    analysis.cam(*runs)
    said = json.loads((tmp_path / "cam-ucf101-test.json").read_text())
    names = [f"finetune-ucf101-split1-seed{seed}" for seed in (0, 1)]
    assert said["n_scored"] == said["n_expected"] == 16 and list(said["maps"]) == names
    rows = {(row["network"], row["input"]): row for row in said["rows"]}
    assert len(rows) == 3 * 4 and rows[names[0], "frozen"]["on moving"] is None
    assert all(0 < row["on actor"] < 100 for key, row in rows.items() if key[1] == "original")
    assert rows[names[1], "original"]["response"] == pytest.approx(100)
    assert "| uniform" in (tmp_path / "cam-ucf101-test.md").read_text()
    ((path, shown, *_),) = drawn
    assert [name.split("\n")[-1] for name, *_ in shown] == 5 * ["clip", *names]
    assert (shown[3][1] == shown[3][1][:1]).all()  # the first video again, as one frame
    assert abs(shown[0][1] - shown[3][1]).mean() > 2 / 255
    assert all(heat.shape == (8, 16, 16) for _, _, heat, _ in (*shown[1:3], *shown[4:6]))
    assert shown[1][2] is shown[4][3] and shown[4][2] is not shown[4][3]  # the scale is the unchanged clip's
    width, height = Image.open(path).size
    assert width > 400 and height > 1500  # 15 rows


def test_calibration_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(200, 4, generator=generator)).softmax(1)
    probabilities[0] = torch.tensor([1.0, 0, 0, 0])
    label = torch.randint(4, (200,), generator=generator)
    ok = torch.rand(200, generator=generator) > 0.2
    error, slow = calibration(probabilities, label, ok), 0
    for b in range(10):
        inside = [(p.max().item(), (p.argmax() == y).item()) for p, y, ok_ in zip(probabilities, label, ok, strict=True)
                  if ok_ and b / 10 <= p.max().item() < (b + 1) / 10 + (b == 9)]
        if inside:
            confidence, right = np.mean(inside, 0)
            slow += len(inside) / ok.sum().item() * abs(confidence - right)
    assert error == pytest.approx(100 * slow) and error > 10
    label = (torch.arange(400) % 4 == 3).long()  # three of four are of class 0
    assert calibration(torch.tensor([[0.75, 0.25]] * 400), label, label < 2) == pytest.approx(0, abs=1e-7)


def test_variance_between_groups():
    z = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    label = torch.arange(90) % 3
    inside = sum(((z[label == c] - z[label == c].mean(0)) ** 2).sum() for c in range(3))
    assert between(z, label) == pytest.approx(100 - 100 * (inside / ((z - z.mean(0)) ** 2).sum()).item(), abs=1e-4)
    assert between(z[label], label) == pytest.approx(100) and between(z, label * 0) == pytest.approx(0, abs=1e-9)


def test_errors_end_to_end(tiny, tmp_path):
    path, cfg, _ = tuned(tiny, tmp_path, subset="swapped")
    with pytest.raises(RunError, match="evaluate this run on swapped first"):
        analysis.errors((path, cfg))
    evaluate.evaluate(config.load(path / "config.yaml"))
    analysis.errors((path, cfg))
    said = json.loads((tmp_path / "errors-ucf101-swapped.json").read_text())["rows"][0]
    assert said["n_scored"] == said["n_expected"] == 16 and 0 <= said["calibration_error"] <= 100
    assert 0 < said["variance_between_scene"] < 100 and 0 < said["variance_between_class"] < 100
    head, *rows = csv.reader((path / "confusion-swapped.csv").read_text().splitlines())
    counts = torch.tensor([[int(n) for n in row[1:]] for row in rows])  # (8, 9)
    assert [row[0] for row in rows] == head[1:-1] and head[-1] == "unreadable" and int(counts.sum()) == 16
    top1 = json.loads((path / "result-swapped.json").read_text())["top1"]
    assert 100 * int(counts.trace()) / 16 == pytest.approx(top1)
