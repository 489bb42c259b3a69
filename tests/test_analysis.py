"""Maps by loops, and what is drawn."""

import json

import numpy as np
import torch
from conftest import TINY
from matplotlib import colormaps
from networks import tuned
from PIL import Image

from be import analysis, config
from be.analysis import INPUTS, activation


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


def test_cam_end_to_end(tiny, tmp_path, monkeypatch):
    figures, save = [], analysis.save
    monkeypatch.setattr(analysis, "COLUMNS", 2)
    monkeypatch.setattr(analysis, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    runs = [tuned(tiny, tmp_path, seed, test_clips=1)[:2] for seed in (0, 1)]
    analysis.cam(*runs)
    said = json.loads((tmp_path / "cam-ucf101-test.json").read_text())
    names = [f"finetune-ucf101-split1-seed{seed}" for seed in (0, 1)]
    assert said["size"] == 16 and len({*said["videos"]}) == 2 and len(said["runs"]) == 2
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
