"""The 10-clip test: every video counts once, a broken one as wrong. Features, kNN and linear probe by slow ways."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import networks
import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file
from videos import remux

from be import config, datasets, evaluate, retrieve, runs, train
from be.backbones import build
from be.evaluate import accuracy
from be.objectives import Objective
from be.prepare import prepare
from be.runs import RunError
from be.weights import read_about


def test_accuracy_by_a_slow_count():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(40, 7, generator=generator).softmax(1)
    label = torch.randint(6, (40,), generator=generator)  # class 6 has no video
    ok = torch.rand(40, generator=generator) > 0.2
    top1 = top5 = 0
    by_class = {}
    for p, y, fine in zip(probabilities.tolist(), label.tolist(), ok.tolist(), strict=True):
        ranked = sorted(range(7), key=lambda c: -p[c])
        by_class.setdefault(y, []).append(fine and ranked[0] == y)
        top1 += fine and ranked[0] == y
        top5 += fine and y in ranked[:5]
    result = accuracy(probabilities, label, ok)
    assert result["top1"] == pytest.approx(100 * top1 / 40)
    assert result["top5"] == pytest.approx(100 * top5 / 40)
    assert result["mean_class"] == pytest.approx(100 * sum(sum(v) / len(v) for v in by_class.values()) / len(by_class))
    assert (result["n_scored"], result["n_expected"]) == (int(ok.sum()), 40)


@pytest.fixture
def tested(tiny, tmp_path):
    """(path, words -> what it prints): tests a classifier of `networks.tuned` on a copy of the videos, in DATA."""
    path, *_ = networks.tuned(tiny, tmp_path / "runs")
    shutil.copytree(tiny, tmp_path / "data")

    def verb(*words):
        words = [f"out={tmp_path / 'runs'}", f"data={tmp_path / 'data'}", "cache_gb=0", *TINY, *words]  # files change
        evaluate.evaluate(config.load("demo-random", words, "finetune"))
    return path, verb


def outcome(path, subset="test"):
    result = json.loads((path / f"result-{subset}.json").read_text())
    return result, load_file(path / f"probabilities-{subset}.safetensors")


def listed(data, subset="test", line=0):
    """A video of a list and its place there."""
    words = (data / f"ucf101/ucfTrainTestlist/{subset}list01.txt").read_text().splitlines()[line]
    return data / "ucf101/UCF-101" / words.split()[0]


def test_nothing_is_tested_twice(tested, tmp_path, monkeypatch):
    """A result stands until the weights, the videos or a setting change; then it is made anew."""
    (path, verb), data, seen = tested, tmp_path / "data", []
    def classify(model, samples, cfg, accelerator, classify=evaluate.classify):
        seen.append(len(samples))
        return classify(model, samples, cfg, accelerator)
    monkeypatch.setattr(evaluate, "classify", classify)
    def again(*words):
        verb(*words)
        return seen.pop() if seen else None

    assert again("test_clips=2") == 16 and again("test_clips=2") is None
    one, _ = outcome(path)
    assert again("test_clips=2", "workers=1", "log_every=7") is None and outcome(path)[0] == one
    assert again() == 16 and again() is None
    (path / "probabilities-test.safetensors").unlink()
    assert again() == 16 and again() is None
    os.utime(listed(data), (1, 1))
    assert again() == 16 and again() is None
    listed(data).unlink()
    assert again() == 16 and outcome(path)[0]["n_scored"] == 15 and again() is None
    lists = data / "ucf101/ucfTrainTestlist/testlist01.txt"
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[1:]))
    assert again() == 15
    weights, about = load_file(path / "model.safetensors"), read_about(path / "model.safetensors")
    weights["head.bias"][0] += 1e-3
    save_file(weights, path / "model.safetensors", {"about": json.dumps(about)})
    assert again() == 15 and again() is None


def test_what_was_trained_otherwise_is_not_tested(tested, tmp_path, capsys):
    """Clips, precision and the like may differ; what the network is and sees may not, and nothing is written."""
    path, verb = tested
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    for words, said in ((["pool=max", "frames=16"], "(pool: avg -> max, frames: 8 -> 16)"), (["stride=1"], "2 -> 1"),
                        (["static=true"], "False -> True"), (["size=24"], "16 -> 24"), (["short_side=32"], "24 -> 32"),
                        (["width=8"], "4 -> 8"), (["backbone=i3d"], "c3d -> i3d"), (["select=holdout"], "-> holdout")):
        with pytest.raises(runs.RunError, match=f"{re.escape(said)}.*--cfg {path / 'config.yaml'}"):
            verb(*words)
    assert before == {file: file.stat().st_mtime_ns for file in path.iterdir()}
    words = [f"data={tmp_path / 'data'}", "test_clips=1", "subset=swapped", "workers=1", "precision=fp32", "lr=1"]
    evaluate.evaluate(config.load(path / "config.yaml", words, "finetune"))
    assert "16 of 16 videos" in capsys.readouterr().out


def test_a_broken_video_counts_as_wrong(tested, tmp_path, capsys):
    (path, verb), data = tested, tmp_path / "data"
    verb()
    whole, probabilities = outcome(path)
    listed(data).write_bytes(b"no video")
    prepare("ucf101", str(data), check="packets", accept_missing=1, workers=1)
    capsys.readouterr()
    verb()
    said = capsys.readouterr()
    assert "15 of 16 videos" in said.out and listed(data).name in said.err
    result, broken = outcome(path)
    assert (result["n_scored"], result["n_expected"]) == (15, 16)
    mark = datasets.load("ucf101", data, "test").manifest_hash
    assert mark is not None and (result["manifest_hash"], whole["manifest_hash"]) == (mark, None)
    assert broken["ok"].tolist() == [False] + [True] * 15
    torch.testing.assert_close(broken["probabilities"][1:], probabilities["probabilities"][1:], rtol=0, atol=0)
    first = probabilities["probabilities"][0].argmax() == probabilities["label"][0]
    assert result["top1"] == pytest.approx(whole["top1"] - 100 / 16 * float(first))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_where_nothing_can_be_read_there_is_no_result(tested, tmp_path, content):
    """Git-LFS pointers in the videos' place, or empty files."""
    path, verb = tested
    for line in range(16):
        listed(tmp_path / "data", line=line).write_bytes(content)
    with pytest.raises(RunError, match=f"test: not one of 16 videos in {tmp_path}.* run.py prepare says why"):
        verb()
    assert not [*path.glob("result-*"), *path.glob("probabilities-*")]


@pytest.mark.parametrize("content", ["", '{"top1": 50', "[1, 2]"])
def test_a_broken_result_is_named_and_made_anew(tested, capsys, content):
    """As a full disk leaves it, or an rsync cut short. Others can be read."""
    path, verb = tested
    verb()
    (path / "result-swapped.json").write_bytes((path / "result-test.json").read_bytes())
    (path / "result-test.json").write_text(content)
    capsys.readouterr()
    assert [Path(r["path"]) for r in runs.read_results(path.parents[1])] == [path]
    assert f"{path / 'result-test.json'} is passed over" in capsys.readouterr().err
    verb()
    assert outcome(path)[0]["n_scored"] == 16



def cut_a_picture_short(path):
    """Of an AVI file of MPEG-4: a third of a picture is left, as a broken line or a bad sector leaves it."""
    path.rename(whole := path.with_name("whole.avi"))
    remux(whole, path, lambda packets: [(data[: len(data) // 3] if i == 8 else data, *times)
                                        for i, (data, *times) in enumerate(packets)])


def test_damage_is_counted_or_refused(tested, tmp_path, capsys):
    """FFmpeg shows something in its place; strict, it is a video that cannot be read. `retrieve` counts as `evaluate`,
    of features that are taken from the disk as well."""
    (path, verb), data = tested, tmp_path / "data"
    cut_a_picture_short(listed(data))
    verb()
    assert "16 of 16 videos, 1 damaged" in capsys.readouterr().out
    (result, kept), seen = outcome(path), set()
    assert (result["n_scored"], result["n_damaged"]) == (16, 1) and kept["ok"].all()
    verb("strict=true")
    assert "15 of 16 videos, 0 damaged" in capsys.readouterr().out
    (result, kept) = outcome(path)
    assert (result["n_scored"], result["n_damaged"]) == (15, 0) and kept["ok"].tolist() == [False] + [True] * 15
    for strict, counts in (("false", (16, 1)), ("false", (16, 1)), ("true", (15, 0))):
        words = [f"data={data}", f"out={tmp_path}", *TINY, "protocol=gap", "cache_gb=0", f"strict={strict}"]
        retrieve.retrieve(config.load("demo-random", words, "retrieve"))
        result = json.loads(next(tmp_path.glob("demo-random/*/recall-gap-test.json")).read_text())
        assert (result["n_scored"], result["n_damaged"]) == counts
        seen.add(capsys.readouterr().out.count("taken from"))
    assert seen == {0, 2}


def test_training_names_and_counts_what_it_skips(tiny, tmp_path, capsys):
    shutil.copytree(tiny, tmp_path / "data")
    cut_a_picture_short(listed(tmp_path / "data", "train", 5))
    (video := listed(tmp_path / "data", "train", 3)).write_bytes(b"no video")
    words = [f"data={tmp_path / 'data'}", f"out={tmp_path}", *TINY]
    train.finetune(config.load("demo-random", words, "finetune"))
    assert video.name in capsys.readouterr().err
    last = runs.read_metrics(tmp_path / "demo-random/finetune-ucf101-split1-seed0")[-1]
    assert last["skipped"] == last["damaged"] == 2  # once in each of 2 epochs


def test_another_list_of_classes_is_refused(tested, tmp_path):
    with open(tmp_path / "data/ucf101/ucfTrainTestlist/classInd.txt", "ab") as file:
        file.write(b"9 NewClass\r\n")
    with pytest.raises(config.ConfigError, match="knows other classes"):
        tested[1]()


# ---- features


def test_features_are_those_of_the_clip_in_the_middle(tiny):
    """Of the backbone at rest, which stays as it is; the clips decoded and encoded one by one."""
    cfg, samples = config.load("demo-moco", [*TINY, f"data={tiny}", "pool=max"]), datasets.load("ucf101", tiny, "test")
    backbone = build("c3d", 4).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    z, ok = evaluate.features(backbone, samples, cfg, runs.make_accelerator(cfg))
    assert z.shape == (16, backbone.dim) and ok.all()
    with torch.no_grad():
        for i in (0, 9):
            torch.testing.assert_close(z[i], backbone(networks.clips(samples, i, K=1)[0]).amax((0, 2, 3, 4)))
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


def cloud(seed, n=60, C=5, classes=3):
    """Rows around a centre per class, and their classes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    centres = np.random.default_rng(7).standard_normal((classes, C))
    return torch.tensor(3 * centres[label] + 1.2 * rng.standard_normal((n, C))).float(), torch.tensor(label)


def test_knn_by_a_slow_count():
    (x, label), (y, _) = cloud(0), cloud(1)
    for row, answer in zip(y.numpy(), evaluate.knn(x, label, y, k=5, temperature=0.2).tolist(), strict=True):
        cosine = [float(row @ other / np.linalg.norm(row) / np.linalg.norm(other)) for other in x.numpy()]
        votes = {}
        for i in sorted(range(len(x)), key=lambda i: -cosine[i])[:5]:
            votes[int(label[i])] = votes.get(int(label[i]), 0) + np.exp(cosine[i] / 0.2)
        assert answer == max(votes, key=votes.get)
    fewer = torch.eye(3)  # than the 20 neighbours that are asked by default
    assert evaluate.knn(fewer, torch.tensor([2, 0, 1]), fewer + 0.1).tolist() == [2, 0, 1]


def test_logistic_regression_by_gradient_descent():
    """The loss is convex, so that any way down ends in the same place; the scale of a column, or one that is constant,
    changes nothing."""
    x, label = cloud(0)
    X, onehot, W, b = x.double().numpy(), np.eye(3)[label], np.zeros((3, 5)), np.zeros(3)
    X = (X - X.mean(0)) / X.std(0, ddof=1)
    for _ in range(5000):
        logits = X @ W.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - onehot) / len(X)
        W, b = W - 0.5 * (error.T @ X + 0.1 * W), b - 0.5 * error.sum(0)
    logits = X @ W.T + b
    scale, shift = torch.tensor([1e3, 1, 1e-3, 1, 1]), torch.tensor([0, 50.0, 0, 0, -3])
    for z in (x, x * scale + shift, torch.nn.functional.pad(x, (0, 1), value=1.0)):
        weight, bias = evaluate.fit(z, label, 3, decay=0.1)
        got = (z @ weight.T + bias).double().numpy()
        np.testing.assert_allclose(got - got.mean(1, keepdims=True), logits - logits.mean(1, keepdims=True), atol=2e-2)
    assert (logits.argmax(1) == label.numpy()).mean() > 0.7


# ---- the probe


def probe(tiny, samples=None):
    """A probe of a random backbone on 32 synthetic videos."""
    cfg = config.load("demo-moco", [*TINY, f"data={tiny}", "probe_every=2"])
    objective = Objective(build("c3d", 4), frames=8, stride=2)
    samples = samples or datasets.load("ucf101", tiny, "train")
    return evaluate.make_probe(objective, samples, cfg, runs.make_accelerator(cfg))


def tell(monkeypatch, what, wrong=0):
    """Features that tell the column `what`; the first `wrong` videos cannot be read. -> the lists asked for"""
    asked = []
    monkeypatch.setattr(evaluate, "features", lambda backbone, part, *_: asked.append(part) or (
        torch.eye(8)[getattr(part, what)], torch.arange(len(part)) >= wrong))
    return asked


def test_what_is_held_out_is_not_learned_from(tiny, monkeypatch):
    samples = datasets.load("ucf101", tiny, "train")
    asked = tell(monkeypatch, "labels", wrong=1)
    found = probe(tiny)(2)
    rest, held = asked
    assert len(held) == pytest.approx(0.2 * len(samples), abs=2) and not {*rest.groups} & {*held.groups}
    assert sorted([*rest.paths, *held.paths]) == sorted(samples.paths)
    part = pytest.approx(100 - 100 / len(held))
    assert found["probe_knn"] == found["probe_linear"] == part  # the unreadable one is wrong


@pytest.mark.parametrize("column, ending, other", [("labels", "", "_scene"), ("scene", "_scene", "")])
def test_motion_and_scene(tiny, monkeypatch, column, ending, other):
    """Features that tell one of them perfectly, where the scenes have nothing to do with the motions."""
    samples = datasets.load("ucf101", tiny, "train")
    scenes = np.arange(len(samples)) % 8  # in the list, classes follow each other by fours
    one = probe(tiny, replace(samples, scene=scenes))
    tell(monkeypatch, column)
    found = one(2)
    assert found.keys() == {"probe_knn", "probe_linear", "probe_knn_scene", "probe_linear_scene"} and one(1) == {}
    assert found["probe_knn" + ending] == found["probe_linear" + ending] == 100
    assert max(found["probe_knn" + other], found["probe_linear" + other]) < 60
    tell(monkeypatch, "labels")
    for unknown in (None, np.where(scenes == 3, -1, scenes)):
        assert probe(tiny, replace(samples, scene=unknown))(2) == {"probe_knn": 100, "probe_linear": 100}


def test_pre_training_does_not_notice(tiny, tmp_path):
    """With and without: the same losses and weights, bit for bit. The probe's lines are its own, every 2nd epoch."""
    lines, weights = [], []
    for every in (0, 2):
        cfg = config.load("demo-moco-be", [*TINY, f"data={tiny}", f"out={tmp_path}", f"name=every{every}", "epochs=4",
                                           f"probe_every={every}", "log_every=3"])
        train.pretrain(cfg)
        path = tmp_path / f"every{every}/pretrain-seed0"
        lines.append(runs.read_metrics(path))
        weights.append(load_file(path / "backbone.safetensors"))
    plain, watched = ([line for line in part if "loss" in line] for part in lines)
    assert [line["loss"] for line in plain] == [line["loss"] for line in watched]
    assert all(1 < line["rankme"] <= 8 and line["damaged"] == 0 for line in plain)  # 8 clips a batch
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    probes = [line for line in lines[1] if "probe_knn" in line]
    assert [(line["step"], line["epoch"]) for line in probes] == [(8, 2), (16, 4)]
    assert len(lines[0]) == len(plain) and all("loss" not in line for line in probes)


def test_a_copy_smaller_than_asked_for_is_refused(tested, tmp_path):
    """Its videos would be enlarged; its size is in the result. Of what is no copy nothing is known."""
    (path, verb), data = tested, tmp_path / "data"
    assert datasets.copied_at(data / "ucf101") is None
    for side, enough in ((24, True), (240, True), (22, False), (16, False)):
        (data / "ucf101/transcode.json").write_text(json.dumps({"short_side": side, "gop": 16}))
        if enough:
            verb()
            (path / "model.safetensors").touch()
            assert datasets.copied_at(data / "ucf101") == side
        else:
            with pytest.raises(config.ConfigError, match=f"short_side={side}, too small for short_side=24"):
                verb()
            with pytest.raises(config.ConfigError, match="give data= the original"):
                train.pretrain(config.load("demo-moco", [f"data={data}", f"out={tmp_path / 'no'}", *TINY]))
    prepare("ucf101", str(data), transcode=True, short_side=24, workers=1)
    (path / "result-test.json").unlink()
    evaluate.evaluate(config.load("demo-random", [f"out={tmp_path / 'runs'}", f"data={data}-24", *TINY], "finetune"))
    result = outcome(path)[0]
    assert (result["copied_at"], result["av"]) == (24, av.__version__)
