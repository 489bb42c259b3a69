"""Maps by loops, and of networks that are known to look at motion or not."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY
from matplotlib import colormaps
from networks import clips, tuned
from PIL import Image

from be import analysis, bias, config, datasets, synthetic
from be.analysis import INPUTS, MEASURES, activation, moving_pixels, share, uniform
from be.augment import denormalise, normalise
from be.runs import make_accelerator
from be.video import even_clips


def test_a_batch_and_the_same_distracted(tiny, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(analysis, "save", lambda figure, path: drawn.append((figure, path)))
    analysis.show_batch(config.load("demo-moco-be", [*TINY, f"data={tiny}", f"out={tmp_path}", "gamma=0.9"]))
    ((figure, path),) = drawn
    assert path == tmp_path / "what-the-network-sees.png"
    names = [axis.get_ylabel() for axis in figure.axes]
    assert [name.split("\n")[0] for name in names] == ["original", "distracted"] * 3 and len({*names}) == 6
    rows = np.stack([axis.images[0].get_array().reshape(16, 8, 16, 3) for axis in figure.axes]).swapaxes(1, 2)
    for x, y in zip(rows[::2], rows[1::2], strict=True):  # Eq. 1: y = (1 - lam) x + lam x[k]
        a, b = np.diff(x, axis=0), np.diff(y, axis=0)
        lam = 1 - (a * b).sum() / (a * a).sum()
        assert 0 < lam < 0.9
        assert min(np.abs((1 - lam) * x + lam * x[k] - y).max() for k in range(8)) < 0.01


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
    found, ok = analysis.measure([uniform, Mover(), Looker()], samples, look, sampler, cfg, accelerator)
    assert found.shape == (16, 3, 4, 4) and ok.all()
    at = {name: n for n, name in enumerate(INPUTS)}
    response, moving, actor, body = (found[..., MEASURES.index(m)] for m in MEASURES)
    flat, mover, looker = range(3)

    assert (response[:, mover, at["frozen"]] == 0).all()
    assert (body[:, mover, at["static body"]] == 0).all() and (body[:, looker, at["static body"]] > 0).any()
    assert actor[:, mover, 0].mean() > 2 * actor[:, flat, 0].mean()
    assert (moving[:, mover, 0] > moving[:, flat, 0]).all()
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
        assert actor[i, flat, 0].item() == pytest.approx(mask.float().mean().item(), abs=1e-6)
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
    figures, save = [], analysis.save
    monkeypatch.setattr(analysis, "COLUMNS", 2)
    monkeypatch.setattr(analysis, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    runs = [tuned(tiny, tmp_path, seed, test_clips=1)[:2] for seed in (0, 1)]
    analysis.cam(*runs)
    said = json.loads((tmp_path / "cam-ucf101-test.json").read_text())
    names = [f"finetune-ucf101-split1-seed{seed}" for seed in (0, 1)]
    assert said["n_scored"] == said["n_expected"] == 16 and said["size"] == 16
    rows = {(row["network"], row["input"]): row for row in said["rows"]}
    assert len(rows) == 3 * 4 and rows[names[0], "frozen"]["on moving"] is None
    assert all(0 < row["on actor"] < 100 for key, row in rows.items() if key[1] == "original")
    assert rows[names[1], "original"]["response"] == pytest.approx(100)
    assert "| uniform" in (tmp_path / "cam-ucf101-test.md").read_text()
    assert [axis.get_ylabel().split("\n")[-1] for axis in figures[0].axes] == [
        label for name in INPUTS for label in (name, *names)] * 2
    shown = np.stack([axis.images[0].get_array() for axis in figures[0].axes]).reshape(2, 4, 3, 16, 2, 16, 3)
    clips = shown[:, :, 0].swapaxes(2, 3)  # (videos, inputs, frames, S, S, 3)
    assert (clips[:, 1, 0] == clips[:, 1, 1]).all() and (clips[:, 0, 0] != clips[:, 0, 1]).any()  # frozen: one frame
    assert all(np.abs(clips[:, 0] - clips[:, n]).mean() > 1 / 255 for n in (1, 2, 3))
    assert Image.open(tmp_path / "cam-ucf101-test.png").size[1] > 1500  # 24 rows


def test_a_map_over_a_clip():
    """Grey and the colour of the map, half each; the colours run from the least to the largest that are given."""
    clip, heat = torch.rand(2, 3, 3, 3), torch.tensor([2.0, 3, 4]).expand(2, 3, 3)
    shown = analysis.overlay(clip, heat, torch.tensor(2.0), torch.tensor(4.0))
    for i, part in enumerate((0, 0.5, 1.0)):
        colour = torch.tensor(colormaps["inferno"](part)[:3])
        torch.testing.assert_close(shown[:, :, i], (clip[:, :, i].mean(-1, keepdim=True) + colour) / 2)
