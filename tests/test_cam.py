"""CAM: the map by loops, its share on constructed maps, and networks of which is known what they look at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import clips, tuned
from PIL import Image

from be import cam, datasets, manipulate, video
from be.augment import denormalise, normalise
from be.cam import MEASURES, activation, moving_pixels, overlaid, share
from be.manipulate import ADVERSARIAL
from be.runs import make_accelerator


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
    others = manipulate.donors(samples, cfg, accelerator)
    partner = manipulate.partners(samples.labels, list(others), 0)
    found, ok = cam.measure([Mover(), Looker()], samples, others, partner, cfg, accelerator)
    assert found.shape == (16, 3, 4, 4) and ok.all()
    at = {name: n for n, name in enumerate(ADVERSARIAL)}
    response, moving, actor, body = (found[..., MEASURES.index(m)] for m in MEASURES)
    uniform, mover, looker = range(3)

    assert (response[:, mover, at["static video"]] == 0).all()
    assert (body[:, mover, at["static body"]] == 0).all() and (body[:, looker, at["static body"]] > 0).any()
    assert actor[:, mover, 0].mean() > 2 * actor[:, uniform, 0].mean()
    assert (moving[:, mover, 0] > moving[:, uniform, 0]).all()
    torch.testing.assert_close(response[:, mover, at["foreign frame"]], torch.full((16,), 0.7), atol=1e-4, rtol=0)

    specs = manipulate.specs(samples.root)
    for i in (0, 7):  # the same by hand
        x, frames = clips(samples, i)
        mask = manipulate.true_shot(x, None, None, specs[samples.paths[i]], frames, 24).actor[:, 0]
        pixels, pasted = denormalise(x), others[partner[i]].actor
        bright = pixels.mean(1)
        assert actor[i, uniform, 0].item() == pytest.approx(mask.float().mean().item(), abs=1e-6)
        expected = np.mean([(bright[k][mask[k]].sum() / bright[k].sum()).item() for k in range(3)])
        assert actor[i, looker, 0].item() == pytest.approx(expected, abs=1e-5)
        still = bright[:, 4:5].mean() / bright.mean()
        assert response[i, looker, at["static video"]].item() == pytest.approx(still.item(), abs=1e-5)
        lent = denormalise(others[partner[i]].frame.float()[None])[0]
        y = torch.where(pasted[:, None], lent[:, None], pixels).mean(1)
        for values, where in ((actor, mask & ~pasted), (body, pasted.expand_as(mask))):
            expected = np.mean([(y[k][where[k]].sum() / y[k].sum()).item() for k in range(3)])
            assert values[i, looker, at["static body"]].item() == pytest.approx(expected, abs=1e-4)


def test_every_network_has_a_name_of_its_own(tmp_path):
    """Runs of one experiment, and of one name in two folders."""
    one, seed, away, other = map(Path, ("runs/A/pretrain-seed0", "runs/A/pretrain-seed1", "old/A/pretrain-seed0",
                                        "runs/B/pretrain-seed0"))
    assert [cam.label(path, [one, other]) for path in (one, other)] == ["A", "B"]
    assert [cam.label(path, [one, seed, other]) for path in (one, seed)] == ["A/pretrain-seed0", "A/pretrain-seed1"]
    names = [cam.label(path, [one, seed, away, other]) for path in (one, seed, away, other)]
    assert names == [str(one), "A/pretrain-seed1", str(away), "B"]


def test_the_overlay_is_on_the_scale_of_the_reference():
    pixels, reference = torch.zeros(2, 4, 4, 3), torch.linspace(1, 2, 32).view(2, 4, 4)
    assert np.allclose(overlaid(pixels, 0.5 * reference, reference), overlaid(pixels, 0 * reference + 1, reference))
    ends = overlaid(pixels, reference, reference)
    assert ends[1, -1, -1].sum() > 1.2 and ends[0, 0, 0].sum() < 0.05  # yellow and black


def test_the_verb_end_to_end(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cam, "SHOWN", 1)
    monkeypatch.setattr(cam, "COLUMNS", 2)
    runs = [tuned(tiny, tmp_path, seed, test_clips=1)[:2] for seed in (0, 1)]
    cam.cam(*runs)
    said = json.loads((tmp_path / "cam-ucf101-test.json").read_text())
    names = [f"demo-random/finetune-ucf101-split1-seed{seed}" for seed in (0, 1)]
    assert said["n_scored"] == said["n_expected"] == 16 and list(said["maps"]) == names
    rows = {(row["network"], row["input"]): row for row in said["rows"]}
    assert len(rows) == 3 + 2 * 4 and rows[names[0], "static video"]["on moving"] is None
    assert all(0 < row["on actor"] < 100 for key, row in rows.items() if key[1] == "original")
    assert rows[names[1], "original"]["response"] == pytest.approx(100)
    assert "| uniform" in (tmp_path / "cam-ucf101-test.md").read_text()
    for name in ("cam-ucf101-test", "cam-adversarial-ucf101-test"):
        path = tmp_path / name
        assert video.probe(path.with_suffix(".mp4")).frames == Image.open(path.with_suffix(".gif")).n_frames == 8
        width, height = Image.open(path.with_suffix(".png")).size
        assert width > 400 and height > (1200 if "adversarial" in name else 300)  # 12 rows, 3 rows
    assert not list(tmp_path.glob(".cam*"))
