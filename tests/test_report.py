"""The report: splits are averaged before seeds, the paper's number stands beside, what is missing is a dash."""

import json

import pytest

from be import report


def result(experiment="table1-moco-be", dataset="ucf101", subset="test", split=1, seed=0, top1=50.0):
    return dict(experiment=experiment, dataset=dataset, subset=subset, split=split, seed=seed, top1=top1, top5=90.0,
                n_scored=9, n_expected=10)  # fmt: skip


def test_splits_then_seeds():
    rows = [result(split=s, seed=seed, top1=10 * s + seed) for s in (1, 2, 3) for seed in (0, 2)]
    cell = report.aggregate(rows)["table1-moco-be", "ucf101", "test"]
    assert cell["mean"] == pytest.approx(21) and cell["sd"] == pytest.approx(2**0.5)  # of 20 and 22
    assert (cell["splits"], cell["seeds"], cell["n_scored"], cell["n_expected"]) == ([1, 2, 3], [0, 2], 54, 60)
    assert report.aggregate([result()])["table1-moco-be", "ucf101", "test"]["sd"] is None


def test_ours_beside_the_papers():
    text = report.table(["table1-moco-be"], [result(top1=80.0)])
    ours, missing = text[2], text[3]
    assert [c.strip() for c in ours.split("|")][3:9] == ["ucf101 test", "80.0", "86.8", "-6.8", "1 / 1", "9/10"]
    assert [c.strip() for c in missing.split("|")][3:9] == ["hmdb51 test", "-", "55.4", "-", "-", "-"]


def test_reliance_is_biased_minus_swapped():
    rows = [result("demo-moco", top1=80.0), result("demo-moco", subset="swapped", top1=30.0), result("demo-random")]
    lines = report.reliance(["demo-random", "demo-moco"], rows)
    assert [c.strip() for c in lines[-1].split("|")][1:5] == ["demo-moco", "80.0", "30.0", "50.0"]
    assert report.reliance(["demo-random"], rows[2:]) == []


def test_the_file_and_its_curves(tmp_path, capsys):
    for seed in (0, 1):
        path = tmp_path / f"demo-moco/finetune-ucf101-split1-seed{seed}"
        path.mkdir(parents=True)
        (path / "result-test.json").write_text(json.dumps(result("demo-moco", seed=seed, top1=70.0 + 2 * seed)))
        lines = [{"step": s, "epoch": s / 2, "loss": 1 / s, "top1": s / 9} for s in range(1, 9)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.report(str(tmp_path), "demo-*")
    text = (tmp_path / "report.md").read_text()
    assert "71.0 ± 1.4" in text and "![finetune](finetune.png)" in text and "71.0 ± 1.4" in capsys.readouterr().out
    assert (tmp_path / "finetune.png").read_bytes()[:4] == b"\x89PNG"
