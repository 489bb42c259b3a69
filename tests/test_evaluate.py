"""The 10-clip test: every video counts once, a broken one as wrong, whatever the number of processes."""

import json
import shutil

import pytest
import torch
from conftest import TINY, run
from safetensors.torch import load_file

from be.evaluate import accuracy


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


def test_three_processes_score_each_video_once(tiny, tuned):
    """16 videos over 3 processes do not divide; the result is exactly that of one process."""
    base, path = tuned
    run("evaluate", *base, f"data={tiny}")
    one, alone = outcome(path)
    run("evaluate", *base, f"data={tiny}", launch=3)
    three, spread = outcome(path)
    assert one["n_scored"] == three["n_scored"] == 16
    assert (one["top1"], one["top5"], one["mean_class"]) == (three["top1"], three["top5"], three["mean_class"])
    torch.testing.assert_close(alone, spread, rtol=0, atol=0)
    torch.testing.assert_close(alone["probabilities"].sum(1), torch.ones(16))


def test_a_broken_video_counts_as_wrong(tiny, tuned, tmp_path):
    base, path = tuned
    shutil.copytree(tiny, tmp_path / "data")
    run("evaluate", *base, f"data={tiny}")
    whole, probabilities = outcome(path)
    line = (tmp_path / "data/ucf101/ucfTrainTestlist/testlist01.txt").read_text().splitlines()[0]
    (tmp_path / "data/ucf101/UCF-101" / line).write_bytes(b"no video")
    said = run("evaluate", *base, f"data={tmp_path / 'data'}")
    assert "scored 15/16" in said.stdout and line.split("/")[1] in said.stderr
    result, broken = outcome(path)
    assert (result["n_scored"], result["n_expected"]) == (15, 16)
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
