"""Robustness: every number against a slow transcription, on decoded videos and a network with random weights."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from networks import clips, tuned

from be import datasets, manipulate, synthetic
from be.augment import Draws
from be.evaluate import accuracy, classify, over_videos, spread_clips, views
from be.probe import linear
from be.robustness import LAMBDAS, cells, measure, robustness, table
from be.runs import RunError, make_accelerator
from be.video import even_clips


@pytest.mark.parametrize("scene", ["median", "rendered"])
def test_measure_by_hand(tiny, tmp_path, scene):
    _, cfg, model = tuned(tiny, tmp_path, scene=scene)
    samples = datasets.load("ucf101", tiny, "swapped", 1)
    specs, N = manipulate.specs(samples.root), len(samples)
    found = measure(model, samples, cfg, make_accelerator(cfg))

    def apart(i, K):  # clip, scene, where the actor is
        x, frames = clips(samples, i, K)
        if scene == "rendered":
            shot = manipulate.true_shot(x, None, None, specs[samples.paths[i]], frames, 24)
            return x, shot.scene, shot.actor
        rest = x.sort(2).values[:, :, 3:4].expand_as(x)  # of 8 frames the 4th
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
        return x, rest, ((x - rest) * std).abs().amax(1, keepdim=True) > 0.15

    partner = manipulate.partners(samples.labels, list(range(N)), cfg.seed)
    assert all(samples.labels[i] != samples.labels[partner[i]] for i in range(N)) and len(set(partner)) > N / 4
    hits, fooled = {}, []
    for i in range(N):
        x, rest, actor = apart(i, 3)
        draws = Draws(cfg.seed, i)
        still = draws.randint(8, 3)
        order = draws.rand(3, 8).argsort(1)
        lent = apart(partner[i], 1)[1][0, :, 4]
        inputs = {"original": x, "one frame": x[:, :, 4:5].repeat(1, 1, 8, 1, 1), "scene only": rest,
                  "shuffled": torch.stack([x[k][:, order[k]] for k in range(3)]),
                  "actor elsewhere": torch.where(actor, x, lent.half().float()[None, :, None])}
        for lam in LAMBDAS:
            inputs[f"BE, {lam}"] = torch.stack([(1 - lam) * x[k] + lam * x[k][:, still[k]][:, None] for k in range(3)])
        with torch.no_grad():
            answers = {name: model.logits(y).softmax(1).mean(0).argmax().item() for name, y in inputs.items()}
        for name, answer in answers.items():
            hits.setdefault(name, []).append(answer == samples.labels[i])
        fooled.append(answers["actor elsewhere"] == samples.labels[partner[i]])
    for name, right in hits.items():
        assert found[name] == pytest.approx(100 * np.mean(right)), name
    assert found["fooled"] == pytest.approx(100 * np.mean(fooled))
    assert found["original"] > 80 and len({found[name] for name in hits}) > 4  # else little would have been compared


def test_scene_against_motion(tiny, tmp_path):
    """Of a network that mostly says the scene. The probe is a linear classifier of what the backbone says."""
    _, cfg, model = tuned(tiny, tmp_path, knows=lambda s: torch.cat([manipulate.scenes(s)[:9], torch.arange(7)]))
    samples, train = (datasets.load("ucf101", tiny, subset, 1) for subset in ("swapped", "train"))
    found, specs = measure(model, samples, cfg, make_accelerator(cfg)), manipulate.specs(samples.root)
    family = [list(synthetic.SCENES).index(specs[path].scene) for path in samples.paths]
    conflict, features = [], []
    for i, (label, scene) in enumerate(zip(samples.labels, family, strict=True)):
        answer = model.logits(clips(samples, i)[0]).softmax(1).mean(0).argmax().item()
        conflict += [(answer == label, answer == scene)] if scene != label else []
    assert 4 < len(conflict) < 16
    assert [found["conflict: motion"], found["conflict: scene"]] == pytest.approx(100 * np.mean(conflict, 0))
    with torch.no_grad():
        for s in (train, samples):
            features.append(torch.stack([model.backbone(clips(s, i, 1)[0]).mean((0, 2, 3, 4)) for i in range(len(s))]))
    for what, of in (("motion", lambda s: torch.from_numpy(s.labels)), ("scene", manipulate.scenes)):
        right = linear(features[0], of(train), features[1]) == of(samples)
        assert found[f"probe: {what}"] == pytest.approx(100 * right.float().mean().item(), abs=100 / 16 + 0.1)
    assert manipulate.scenes(samples).tolist() == family


def test_an_unreadable_video_is_wrong_everywhere(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "data")
    _, cfg, model = tuned(tmp_path / "data", tmp_path, cache_gb=0)  # a file changes below
    samples = datasets.load("ucf101", tmp_path / "data", "test", 1)
    sampler = partial(even_clips, K=3, T=8, stride=2)
    answer, _ = over_videos(lambda x, i: model.logits(x).softmax(1).mean(0), samples, sampler, cfg,
                            make_accelerator(cfg), "test")
    hit = answer.argmax(1).numpy() == samples.labels
    lost = int(np.flatnonzero(hit)[0])  # one that was right
    with open(samples.path(lost), "wb") as file:
        file.write(b"no video")
    found = measure(model, samples, cfg, make_accelerator(cfg))
    assert (found["n_scored"], found["n_expected"]) == (15, 16)
    assert found["original"] == pytest.approx(100 * (hit.sum() - 1) / 16)


@pytest.mark.parametrize("scene", ["median", "rendered"])
def test_a_network_without_motion_is_shown_what_evaluate_shows_it(tiny, tmp_path, scene):
    """One frame drawn from each video: the same as in the test, and in the truth of synthetic videos."""
    _, cfg, model = tuned(tiny, tmp_path, static="true", scene=scene)
    samples, accelerator = datasets.load("ucf101", tiny, "swapped", 1), make_accelerator(cfg)
    probabilities, ok = classify(model, samples, cfg, accelerator)
    found = measure(model, samples, cfg, accelerator)
    top1 = accuracy(probabilities, torch.from_numpy(samples.labels), ok)["top1"]
    assert found["original"] == found["one frame"] == pytest.approx(top1)

    drawn, spread = [], spread_clips(cfg, 3)
    def sampler(n, rng):
        drawn.append(spread(n, rng))
        return drawn[-1]
    take = manipulate.taker(samples, sampler, cfg, rendered=True)
    for i, x in views(samples, sampler, cfg, accelerator, "clips"):
        take(x, i, None, None)
    assert len(drawn) == 2 * 16 and all(map(np.array_equal, drawn[::2], drawn[1::2]))
    assert len({clips[0, 0] for clips in drawn}) > 4


def test_donors_are_a_part_of_the_list(tiny, tmp_path, monkeypatch):
    _, cfg, _ = tuned(tiny, tmp_path)
    samples = datasets.load("ucf101", tiny, "test", 1)
    monkeypatch.setattr(manipulate, "DONORS", 5)
    lent = manipulate.donors(samples, cfg, make_accelerator(cfg))
    assert len(lent) == 5 and list(lent) == sorted(lent)
    for i, still in lent.items():
        x, _ = clips(samples, i, 1)
        torch.testing.assert_close(still.frame.float(), x[0, :, 4], atol=2e-3, rtol=1e-3)
    assert set(manipulate.partners(samples.labels, list(lent), 0)) <= lent.keys()
    same = [i for i in range(16) if samples.labels[i] == samples.labels[0]]
    with pytest.raises(RunError, match="of one class"):
        manipulate.partners(samples.labels, same, 0)


def test_the_verb_averages_runs_of_an_experiment(tiny, tmp_path, capsys):
    runs = [tuned(tiny, tmp_path, seed)[:2] for seed in (0, 1)] + [tuned(tiny, tmp_path, name="other")[:2]]
    robustness(*runs)
    said = json.loads((tmp_path / "robustness-ucf101-test.json").read_text())
    assert [row["experiment"] for row in said["runs"]] == ["demo-random", "demo-random", "other"]
    a, b = (row["one frame"] for row in said["runs"][:2])
    assert f"{(a + b) / 2:.1f} ± {abs(a - b) / 2**0.5:.1f}" in capsys.readouterr().out
    assert (tmp_path / "robustness-ucf101-test.png").stat().st_size > 10_000
    assert "scored" in (tmp_path / "robustness-ucf101-test.md").read_text()
    elsewhere = tuned(tiny, tmp_path / "elsewhere")[:2]
    robustness(runs[0], elsewhere)  # of the same name: no second seed
    said = json.loads((tmp_path / "robustness-ucf101-test.json").read_text())
    assert [row["experiment"] for row in said["runs"]] == [f"{cfg.out}/demo-random" for _, cfg in (runs[0], elsewhere)]


def test_a_number_that_is_missing_is_not_averaged():
    rows = [{"experiment": "a", "run": "", "split": 1, "seed": s, "original": 50.0 + s, "conflict: scene": v,
             "n_scored": 1, "n_expected": 2} for s, v in ((0, 1.0), (1, float("nan")))]
    assert cells(rows)["a"].keys() == {"original"}
    assert any(line.split("|")[1].strip() == "scored" and "2/4" in line for line in table(rows))
