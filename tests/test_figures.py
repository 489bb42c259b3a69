"""Figures 4 and 5: static videos, Pearson's r and p against closed forms, the verbs on answers written by hand."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from be import config, evaluate, objectives, train, video
from be.config import run_dir
from be.figures import bars, gain, label_places, pearson
from be.runs import Run, RunError, make_accelerator


def test_static_clips_are_one_random_frame():
    rng, sampler = np.random.default_rng(0), lambda n, rng: video.even_clips(n, K=3, T=4, stride=2)
    drawn = [video.static_clips(20, rng, like=sampler) for _ in range(400)]
    assert all(clips.shape == (3, 4) and len(np.unique(clips)) == 1 for clips in drawn)
    assert {clips[0, 0] for clips in drawn} == set(range(20))  # of the whole video


@pytest.mark.parametrize("static", [True, False])
def test_static_training_and_test_show_no_motion(tiny, tmp_path, monkeypatch, static):
    words = [*TINY, "synthetic=true", f"data={tiny}", f"out={tmp_path}", "epochs=1", "dataset=ucf101"]
    cfg = config.load("figure4-static", [*words, f"static={str(static).lower()}", "backbone=c3d"], "finetune")
    assert cfg.pretrained == "random" and config.load("figure4-static", stage="finetune").static
    seen = {True: [], False: []}
    logits = objectives.Classify.logits

    def watch(self, x, draws=None):
        seen[self.training].append(x)
        return logits(self, x, draws)

    monkeypatch.setattr(objectives.Classify, "logits", watch)
    train.finetune(cfg)
    model, classes = evaluate.load_classifier(cfg)
    _, ok = evaluate.classify(model, evaluate.load_list(cfg, "test", classes), cfg, make_accelerator(cfg))
    assert ok.all() and len(seen[True]) == 4 and len(seen[False]) == 16
    for x in (x for clips in seen.values() for x in clips):
        assert torch.equal(x, x[:, :, :1].expand_as(x)) == static


def test_pearson_against_closed_forms():
    rng = np.random.default_rng(0)
    for n, tail in ((3, lambda r: 2 / math.pi * math.acos(r)), (4, lambda r: 1 - r)):
        for _ in range(5):
            x, y = rng.standard_normal((2, n))
            r, p = pearson(x, y)
            assert r == pytest.approx(np.corrcoef(x, y)[0, 1]) and p == pytest.approx(tail(abs(r)), abs=1e-12)
    for n in (5, 7, 12, 51, 200):  # Student's t with n - 2 degrees of freedom, its tail by a fine sum
        x = rng.standard_normal(n)
        y = 2 / math.sqrt(n) * x + rng.standard_normal(n)
        r, p = pearson(x, y)
        t, nu = abs(r) * math.sqrt((n - 2) / (1 - r * r)), n - 2
        u = (np.arange(200_000) + 0.5) / 200_000  # s = t / u
        peak = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(nu * math.pi)
        density = peak * (1 + (t / u) ** 2 / nu) ** (-(nu + 1) / 2)
        assert p == pytest.approx(2 * np.mean(density * t / u**2), rel=1e-6)


def test_pearson_of_the_paper():
    """r = -0.48 over HMDB51's 51 classes is p = 0.0004, as the paper has it."""
    x = np.random.default_rng(0).standard_normal((2, 51))
    x -= x.mean(1, keepdims=True)
    a = x[0] / np.linalg.norm(x[0])
    b = x[1] - (x[1] @ a) * a
    r, p = pearson(a, -0.48 * a + math.sqrt(1 - 0.48**2) * b / np.linalg.norm(b))
    assert r == pytest.approx(-0.48) and round(p, 4) == 0.0004


def test_pearson_at_its_ends():
    assert pearson([1, 2, 3, 4], [2, 4, 6, 8]) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert all(math.isnan(v) for v in pearson([1, 1, 1], [1, 2, 3]))


def test_pearson_by_scipy():
    stats = pytest.importorskip("scipy.stats")
    x, y = np.random.default_rng(1).standard_normal((2, 40))
    assert pearson(x, y) == pytest.approx(tuple(stats.pearsonr(x, y)))


def finished(tmp_path, name, hits, split=1, dataset="hmdb51", seed=0):
    """A finished test in which `hits[c]` of class c's 10 videos are right, the others taken for the next class."""
    cfg = config.load(name, [f"out={tmp_path}", f"split={split}", f"dataset={dataset}", f"seed={seed}"], "finetune")
    label = torch.arange(len(hits)).repeat_interleave(10)
    right = torch.cat([torch.arange(10) < h for h in hits])
    probabilities = torch.nn.functional.one_hot(torch.where(right, label, (label + 1) % len(hits)), len(hits)).float()
    run = Run(run_dir(cfg, "finetune"), cfg)
    run.save_weights("model", torch.nn.Linear(1, 1), classes=[f"class_{c}" for c in range(len(hits))])
    save_file({"probabilities": probabilities, "label": label, "ok": torch.ones(len(label), dtype=torch.bool)},
              run.path / "probabilities-test.safetensors")
    result = {"experiment": cfg.name, "dataset": cfg.dataset, "subset": "test", "split": split, "seed": seed,
              "top1": 10 * float(np.mean(hits)), "n_scored": len(label), "n_expected": len(label)}
    (run.path / "result-test.json").write_text(json.dumps(result))
    run.close()


STATIC, BASE, BETTER = [1, 4, 6, 2, 9, 5], [5, 6, 0, 4, 8, 2], [9, 7, 3, 8, 8, 3]


def test_gain_by_hand(tmp_path, capsys):
    """Over two splits, in the second of which every class but the third has one more right answer."""
    mean = {}
    for name, hits in (("figure4-static", STATIC), ("table1-moco", BASE), ("table1-moco-be", BETTER)):
        finished(tmp_path, name, hits)
        finished(tmp_path, name, second := [h + (c != 2) for c, h in enumerate(hits)], split=2)
        mean[name] = 10 * (np.array(hits) + second) / 2
    finished(tmp_path, "table1-moco", [10] * 6, seed=1)  # a seed that the other was not run with: of no account
    gain(out=str(tmp_path))
    said = json.loads((tmp_path / "gain-hmdb51-test.json").read_text())
    static, base, better = (top1[[0, 1, 3, 4, 5]] for top1 in mean.values())
    r, p = pearson(static, 100 * (better - base) / base)
    assert said["pearson_r"] == pytest.approx(r) and said["p_value"] == pytest.approx(p, rel=1e-5)
    assert said["left_out"] == ["class_2"] and said["classes"] == 5 and said["splits"] == [1, 2]
    assert said["per_class"]["class_3"] == pytest.approx({"static": 25, "base": 45, "better": 85})
    out = capsys.readouterr().out
    assert "the paper: r = -0.48, p = 0.0004" in out and f"{100 * 40 / 45:+.1f}" in out and "class_2" in out
    assert (tmp_path / "gain-hmdb51-test.png").stat().st_size > 10_000


def test_gain_says_what_it_misses(tmp_path):
    finished(tmp_path, "figure4-static", STATIC)
    finished(tmp_path, "table1-moco", BASE)
    with pytest.raises(RunError, match="no test of table1-moco-be on hmdb51 test"):
        gain(out=str(tmp_path))
    finished(tmp_path, "table1-moco-be", BETTER, split=2)
    with pytest.raises(RunError, match="not tested on the same splits"):
        gain(out=str(tmp_path))


def test_labels_hide_nothing_where_there_is_room():
    dots, names = np.array([[50.0, 50], [56, 50], [95, 50]]), ["left", "right", "edge"]
    places = label_places(dots, names, (0, 0, 100, 100))
    assert places[0] != (4, 0)  # would cover the second dot
    assert places[2][0] <= 0  # would leave the picture
    assert label_places(dots[:1], names[:1], (0, 0, 100, 100)) == [(4, 0)]


def test_bars_of_rows_that_are_other_rows_runs(tmp_path, capsys):
    finished(tmp_path, "table1-moco-be", BASE)
    finished(tmp_path, "table1-moco-be", BETTER, dataset="actor_hmdb51")
    bars(out=str(tmp_path), names="figure5-*")
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "figure5-moco-be" in line)
    assert [cell.strip() for cell in line.split("|")[2:4]] == [f"{10 * np.mean(h):.1f}" for h in (BASE, BETTER)]
    assert (tmp_path / "bars-figure5.png").stat().st_size > 10_000
    with pytest.raises(RunError, match="no test of any"):
        bars(out=str(tmp_path), names="figure4-*")
