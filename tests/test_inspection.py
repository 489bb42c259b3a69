"""One model looked at: calibration, variance and components against slow forms, the verb on a run."""

import json

import numpy as np
import pytest
import torch
from networks import tuned

from be import config, evaluate
from be.inspection import between, calibration, components, inspect
from be.runs import RunError


def test_calibration_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(200, 4, generator=generator)).softmax(1)
    probabilities[0] = torch.tensor([1.0, 0, 0, 0])
    label = torch.randint(4, (200,), generator=generator)
    ok = torch.rand(200, generator=generator) > 0.2
    bins, error = calibration(probabilities, label, ok)
    slow = 0
    for b in range(10):
        inside = [(p.max().item(), (p.argmax() == y).item()) for p, y, ok_ in zip(probabilities, label, ok, strict=True)
                  if ok_ and b / 10 < p.max().item() <= (b + 1) / 10]
        assert bins[b, 0] == len(inside)
        if inside:
            confidence, right = np.mean(inside, 0)
            assert bins[b, 1:].tolist() == pytest.approx([confidence, right])
            slow += len(inside) / ok.sum().item() * abs(confidence - right)
    assert error == pytest.approx(slow) and bins[:, 0].sum() == ok.sum() and error > 0.1


def test_a_calibrated_model_has_no_error():
    probabilities = torch.tensor([[0.75, 0.25]]).repeat(400, 1)
    label = (torch.arange(400) % 4 == 3).long()
    assert calibration(probabilities, label, torch.ones(400, dtype=torch.bool))[1] == pytest.approx(0, abs=1e-9)


def test_variance_between_groups():
    z = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    label = torch.arange(90) % 3
    inside = sum(((z[label == c] - z[label == c].mean(0)) ** 2).sum() for c in range(3))
    assert between(z, label) == pytest.approx(1 - (inside / ((z - z.mean(0)) ** 2).sum()).item(), abs=1e-6)
    assert between(z[label], label) == pytest.approx(1) and between(z, label * 0) == pytest.approx(0, abs=1e-9)


def test_components_against_the_covariance():
    z = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 1, 3, 1, 0.5, 1])
    points, share = components(z)
    values, vectors = np.linalg.eigh(np.cov(z.numpy().T.astype(float)))
    assert share.tolist() == pytest.approx((values[::-1] / values.sum())[:2].tolist(), rel=1e-5)
    for k in (0, 1):
        axis = vectors[:, -1 - k] * np.sign(vectors[np.abs(vectors[:, -1 - k]).argmax(), -1 - k])
        np.testing.assert_allclose(points[:, k], (z - z.mean(0)).numpy() @ axis, atol=1e-4)


def test_the_verb_end_to_end(tiny, tmp_path, capsys):
    path, cfg, _ = tuned(tiny, tmp_path, subset="swapped")
    with pytest.raises(RunError, match="evaluate this run on swapped first"):
        inspect((path, cfg))
    evaluate.evaluate(config.load(path / "config.yaml"))
    inspect((path, cfg))
    said = json.loads((tmp_path / "inspect-ucf101-swapped.json").read_text())["runs"][0]
    assert said["n_scored"] == said["n_expected"] == 16 and 0 <= said["calibration_error"] <= 100
    assert 0 < said["variance_between_scene"] < 100 and 0 < said["variance_between_class"] < 100
    for name in ("confusion", "classes", "calibration", "features"):
        assert (path / f"{name}-swapped.png").stat().st_size > 5_000
