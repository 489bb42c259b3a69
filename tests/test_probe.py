"""The probe: its two classifiers against slow ones, what it is shown, and that pre-training does not notice it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from be import bias, config, datasets, probe, report, synthetic, train
from be.backbones import build
from be.objectives import Objective
from be.runs import make_accelerator, read_metrics


def cloud(seed, n=60, C=5, classes=3):
    """Rows around a centre per class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    centres = np.random.default_rng(7).standard_normal((classes, C))
    return torch.tensor(3 * centres[label] + 1.2 * rng.standard_normal((n, C))).float(), torch.tensor(label)


def test_knn_by_a_slow_count():
    (x, label), (y, _) = cloud(0), cloud(1)
    for row, answer in zip(y.numpy(), probe.knn(x, label, y, k=5, temperature=0.2).tolist(), strict=True):
        cosine = [float(row @ other / np.linalg.norm(row) / np.linalg.norm(other)) for other in x.numpy()]
        votes = {}
        for i in sorted(range(len(x)), key=lambda i: -cosine[i])[:5]:
            votes[int(label[i])] = votes.get(int(label[i]), 0) + np.exp(cosine[i] / 0.2)
        assert answer == max(votes, key=votes.get)


def test_fewer_videos_than_neighbours():
    assert probe.knn(torch.eye(3), torch.tensor([2, 0, 1]), torch.eye(3) + 0.1).tolist() == [2, 0, 1]


def test_regression_by_gradient_descent():
    """The loss is convex, so that any way down ends in the same place."""
    x, label = cloud(0)
    weight, bias = probe.regress(x, label, decay=0.1)
    X, onehot, W, b = x.double().numpy(), np.eye(3)[label], np.zeros((3, 5)), np.zeros(3)
    for _ in range(5000):
        logits = X @ W.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - onehot) / len(X)
        W, b = W - 0.5 * (error.T @ X + 0.1 * W), b - 0.5 * error.sum(0)
    np.testing.assert_allclose(weight, W, atol=2e-3)
    np.testing.assert_allclose(bias - bias.mean(), b - b.mean(), atol=2e-3)  # a constant on all changes nothing


def test_linear_reads_features_of_any_scale():
    (x, label), (y, answer) = cloud(0), cloud(1)
    scale, shift = torch.tensor([1e3, 1, 1e-3, 1, 1]), torch.tensor([0, 50.0, 0, 0, -3])
    plain = probe.linear(x, label, y)
    assert (plain == answer).float().mean() > 0.7
    assert (probe.linear(x * scale + shift, label, y * scale + shift) == plain).float().mean() > 0.95
    constant = torch.cat([x, torch.ones(len(x), 1)], 1)
    assert torch.equal(probe.linear(constant, label, torch.cat([y, torch.ones(len(y), 1)], 1)), plain)


def make(tiny):
    """A probe of a random backbone on 32 synthetic videos."""
    cfg = config.load("demo-moco", [*TINY, f"data={tiny}", "probe_every=2"])
    objective = Objective(build("c3d", 4), frames=8, stride=2)
    return probe.Probe(objective, datasets.load("ucf101", tiny, "train"), cfg, make_accelerator(cfg))


def test_what_is_held_out_is_not_learned_from(tiny):
    one, samples = make(tiny), datasets.load("ucf101", tiny, "train")
    rest, held = ({*part.paths.tolist()} for part in one.lists)
    assert len(held) == pytest.approx(0.2 * len(samples), abs=2) and rest | held == {*samples.paths.tolist()}
    assert not rest & held and not {*one.lists[0].groups.tolist()} & {*one.lists[1].groups.tolist()}


@pytest.mark.parametrize("what", ["motion", "scene"])
def test_motion_and_scene(tiny, monkeypatch, what):
    """Features that tell one of them perfectly, where the scenes have nothing to do with the motions."""
    names = {"motion": sorted(synthetic.MOTIONS), "scene": list(synthetic.SCENES)}
    samples = datasets.load("ucf101", tiny, "train")
    specs = {path: replace(spec, scene=names["scene"][n // 3 % 8])  # in the list, classes follow each other by fours
             for n, (path, spec) in enumerate(bias.specs(samples.root).items())}
    known = [synthetic.Video(path.decode(), 0, 0, False, spec) for path, spec in specs.items()]
    monkeypatch.setattr(synthetic, "load", lambda root: known)
    one = make(tiny)
    def features(part):
        return torch.eye(8)[[names[what].index(getattr(specs[p], what)) for p in part.paths]], all_ok(part)
    monkeypatch.setattr(one, "features", features)
    found = one(2)
    assert found.keys() == {"probe_knn", "probe_linear", "probe_knn_scene", "probe_linear_scene"} and one(1) == {}
    told, other = ("", "_scene") if what == "motion" else ("_scene", "")
    assert found["probe_knn" + told] == found["probe_linear" + told] == 100
    assert max(found["probe_knn" + other], found["probe_linear" + other]) < 60


def all_ok(part):
    return torch.ones(len(part), dtype=torch.bool)


def test_an_unreadable_video_is_wrong(tiny, monkeypatch):
    one = make(tiny)
    features = lambda part: (torch.eye(8)[torch.from_numpy(part.labels)], all_ok(part))  # noqa: E731
    monkeypatch.setattr(one, "features", features)
    best = one(2)["probe_knn"]
    def half(part):
        x, ok = features(part)
        return x, ok & (torch.arange(len(ok)) % 2 == 0) if part is one.lists[1] else ok
    monkeypatch.setattr(one, "features", half)
    assert one(2)["probe_knn"] < 0.7 * best


def test_features_are_those_of_the_backbone_at_rest(tiny):
    one = make(tiny)
    one.backbone.train()
    before = {key: value.clone() for key, value in one.backbone.state_dict().items()}
    x, ok = one.features(one.lists[1])
    assert x.shape == (len(one.lists[1]), one.backbone.dim) and ok.all() and x.std(0).max() > 0
    for key, value in one.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_pre_training_does_not_notice(tiny, tmp_path, monkeypatch):
    """With and without: the same losses and weights, bit for bit. The probe's lines are its own, every 2nd epoch."""
    lines, weights = [], []
    for every in (0, 2):
        cfg = config.load("demo-moco-be", [*TINY, f"data={tiny}", f"out={tmp_path}", f"name=every{every}", "epochs=4",
                                           f"probe_every={every}", "log_every=3"])
        train.pretrain(cfg)
        path = tmp_path / f"every{every}/pretrain-seed0"
        lines.append(read_metrics(path))
        weights.append(load_file(path / "backbone.safetensors"))
    plain, watched = ([line for line in part if "loss" in line] for part in lines)
    assert [line["loss"] for line in plain] == [line["loss"] for line in watched]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    probes = [line for line in lines[1] if "probe_knn" in line]
    assert [(line["step"], line["epoch"]) for line in probes] == [(8, 2), (16, 4)]
    assert len(lines[0]) == len(plain) and all("loss" not in line for line in probes)
    drawn = []
    monkeypatch.setattr(report, "plot_curves", lambda path, stage, runs, keys, *_: drawn.extend(keys))
    report.curves(tmp_path, ["every2"])
    assert {"loss", "probe_knn", "probe_linear", "probe_knn_scene", "probe_linear_scene"} <= {*drawn}
