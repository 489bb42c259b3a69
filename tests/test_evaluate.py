"""The 10-clip test: every video counts once, a broken one as wrong, whatever the number of processes."""

import json
import os
import shutil

import pytest
import torch
from conftest import TINY, run
from safetensors.torch import load_file, save_file

from be import config, datasets, evaluate, runs
from be.evaluate import accuracy
from be.prepare import prepare
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


def test_fewer_than_five_classes():
    result = accuracy(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor([True, True, True]))
    assert result["top1"] == pytest.approx(200 / 3) and result["top5"] == 100


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """A fine-tuned model, and the words that test it."""
    out = tmp_path_factory.mktemp("runs")
    base = ["--cfg", "demo-random", f"out={out}", *TINY, "epochs=1"]
    run("finetune", *base, f"data={tiny}")
    return base, out / "demo-random/finetune-ucf101-split1-seed0"


def outcome(path, subset="test"):
    result = json.loads((path / f"result-{subset}.json").read_text())
    return result, load_file(path / f"probabilities-{subset}.safetensors")


def test_nothing_is_tested_twice(tiny, tuned, tmp_path, monkeypatch):
    """A result stands until the weights, the videos or a setting change; then it is made anew."""
    base, path = tuned
    shutil.copytree(tiny, data := tmp_path / "data")
    shutil.copytree(path.parents[1], tmp_path / "runs")
    path = tmp_path / "runs" / path.relative_to(path.parents[1])
    tested = []
    def classify(model, samples, cfg, accelerator, classify=evaluate.classify):
        tested.append(len(samples))
        return classify(model, samples, cfg, accelerator)
    monkeypatch.setattr(evaluate, "classify", classify)
    def again(*words):
        words = [*base[2:], f"out={tmp_path / 'runs'}", f"data={data}", "cache_gb=0", *words]  # files change below
        evaluate.evaluate(config.load("demo-random", words, "finetune"))
        return tested.pop() if tested else None

    assert again("test_clips=2") == 16 and again("test_clips=2") is None
    one, _ = outcome(path)
    assert again("test_clips=2", "workers=1", "log_every=7") is None and outcome(path)[0] == one
    assert again("test_clips=3") == 16 and again("test_clips=3") is None
    (path / "probabilities-test.safetensors").unlink()
    assert again() == 16 and again() is None

    line = (data / "ucf101/ucfTrainTestlist/testlist01.txt").read_text().splitlines()[0]
    video = data / "ucf101/UCF-101" / line
    os.utime(video, (1, 1))
    assert again() == 16 and again() is None
    video.unlink()
    assert again() == 16 and outcome(path)[0]["n_scored"] == 15 and again() is None
    lists = data / "ucf101/ucfTrainTestlist/testlist01.txt"
    lists.write_text("".join(lists.read_text().splitlines(keepends=True)[1:]))
    assert again() == 15
    weights = load_file(path / "model.safetensors")
    about = read_about(path / "model.safetensors")
    weights["head.bias"][0] += 1e-3
    save_file(weights, path / "model.safetensors", {"about": json.dumps(about)})
    assert again() == 15 and again() is None


def test_what_was_trained_otherwise_is_not_tested(tiny, tuned, capsys):
    """Clips, precision and the like may differ; what the network is and sees may not, and nothing is written."""
    base, path = tuned
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    said = run("evaluate", *base, f"data={tiny}", "pool=max", "frames=16", code=2).stderr
    assert "(pool: avg -> max, frames: 8 -> 16)" in said and f"--cfg {path / 'config.yaml'}" in said
    assert len(said.strip().splitlines()) == 1
    for word in ("stride=1", "static=true", "size=24", "short_side=32", "width=8", "backbone=i3d", "select=holdout"):
        cfg = config.load("demo-random", [*base[2:], f"data={tiny}", word], "finetune")
        with pytest.raises(runs.RunError, match=f"{word.split('=')[0]}: .+ -> {cfg.__dict__[word.split('=')[0]]}"):
            evaluate.evaluate(cfg)
    assert before == {file: file.stat().st_mtime_ns for file in path.iterdir()}
    words = [f"data={tiny}", "test_clips=1", "subset=swapped", "workers=1", "precision=fp32", "lr=1"]
    evaluate.evaluate(config.load(path / "config.yaml", words, "finetune"))
    assert "scored 16/16" in capsys.readouterr().out


def test_a_broken_video_counts_as_wrong(tiny, tuned, tmp_path):
    base, path = tuned
    shutil.copytree(tiny, tmp_path / "data")
    run("evaluate", *base, f"data={tiny}")
    whole, probabilities = outcome(path)
    line = (tmp_path / "data/ucf101/ucfTrainTestlist/testlist01.txt").read_text().splitlines()[0]
    (tmp_path / "data/ucf101/UCF-101" / line).write_bytes(b"no video")
    prepare("ucf101", str(tmp_path / "data"), check="packets", accept_missing=1, workers=1)
    said = run("evaluate", *base, f"data={tmp_path / 'data'}")
    assert "scored 15/16" in said.stdout and line.split("/")[1] in said.stderr
    result, broken = outcome(path)
    assert (result["n_scored"], result["n_expected"]) == (15, 16)
    mark = datasets.load("ucf101", tmp_path / "data", "test").manifest_hash
    assert mark is not None and (result["manifest_hash"], whole["manifest_hash"]) == (mark, None)
    assert broken["ok"].tolist() == [False] + [True] * 15
    torch.testing.assert_close(broken["probabilities"][1:], probabilities["probabilities"][1:], rtol=0, atol=0)
    first = probabilities["probabilities"][0].argmax() == probabilities["label"][0]
    assert result["top1"] == pytest.approx(whole["top1"] - 100 / 16 * float(first))


def test_training_names_and_counts_what_it_skips(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "data")
    line = (tmp_path / "data/ucf101/ucfTrainTestlist/trainlist01.txt").read_text().splitlines()[3].split()[0]
    (tmp_path / "data/ucf101/UCF-101" / line).write_bytes(b"no video")
    said = run("finetune", "--cfg", "demo-random", f"data={tmp_path / 'data'}", f"out={tmp_path}", *TINY)
    assert line in said.stderr
    last = (tmp_path / "demo-random/finetune-ucf101-split1-seed0/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["skipped"] == 2  # once in each of 2 epochs


def test_another_list_of_classes_is_refused(tiny, tuned, tmp_path):
    base, _ = tuned
    shutil.copytree(tiny, tmp_path / "data")
    file = tmp_path / "data/ucf101/ucfTrainTestlist/classInd.txt"
    file.write_bytes(file.read_bytes() + b"9 NewClass\r\n")
    assert "knows other classes" in run("evaluate", *base, f"data={tmp_path / 'data'}", code=2).stderr
