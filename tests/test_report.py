"""The report: splits are averaged before seeds, the paper's number stands beside, what is missing is a dash."""

import html.parser
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from be import report
from be.page import as_html, as_markdown
from be.plots import per_class
from be.runs import read_results


def result(experiment="table1-moco-be", dataset="ucf101", subset="test", split=1, seed=0, top1=50.0, **more):
    return dict(experiment=experiment, dataset=dataset, subset=subset, split=split, seed=seed, top1=top1, top5=90.0,
                n_scored=9, n_expected=10, **more)


def recall(experiment="table3-moco-be-i3d", seed=0, protocol="paper", subset="test", **more):
    about = dict(experiment=experiment, dataset="hmdb51", subset=subset, split=1, seed=seed, protocol=protocol,
                 synthetic=False)
    return about | {f"R@{k}": 10.0 + seed + k for k in (1, 5, 10, 20, 50)} | dict(n_scored=3, n_expected=4) | more


def rows(block):
    kind, head, rows = block
    assert kind == "table"
    return [dict(zip(head, row, strict=True)) for row in rows]


# ---- numbers


def test_splits_then_seeds():
    results = [result(split=s, seed=seed, top1=10 * s + seed) for s in (1, 2, 3) for seed in (0, 2)]
    cell = report.aggregate(results)["table1-moco-be", "ucf101", "test"]
    assert cell["mean"] == pytest.approx(21) and cell["sd"] == pytest.approx(2**0.5)  # of 20 and 22
    assert (cell["splits"], cell["seeds"], cell["n_scored"], cell["n_expected"]) == ([1, 2, 3], [0, 2], 54, 60)
    assert report.aggregate([result()])["table1-moco-be", "ucf101", "test"]["sd"] is None


def test_a_seed_that_lacks_a_split_does_not_shift_the_mean():
    """Splits differ in how hard they are: a mean over one is not to be averaged with a mean over three."""
    results = [result(split=s, top1=10 * s) for s in (1, 2, 3)] + [result(split=1, seed=1, top1=90.0)]
    cell = report.aggregate(results)["table1-moco-be", "ucf101", "test"]
    assert cell["mean"] == pytest.approx(20) and cell["seeds"] == [0] and cell["n_expected"] == 30
    assert cell["notes"] == ["seed 1 is incomplete, left out"]


def test_ours_beside_the_papers():
    ours, missing = rows(report.table(["table1-moco-be"], [result(top1=80.0)]))
    assert list(ours.values())[2:9] == ["ucf101 test", "80.0", "86.8", "-6.8", "1 of 3", "0", "9/10"]
    assert list(missing.values())[2:9] == ["hmdb51 test", "-", "55.4", "-", "-", "-", "-"]
    (whole,) = rows(report.table(["table2-moco-be"], [result("table2-moco-be", "diving48", top1=70.0)]))
    assert (whole["delta"], whole["splits"]) == ("+7.6", "1")  # Diving48 has one split


def test_a_rehearsal_is_not_compared():
    ours, _ = rows(report.table(["table1-moco-be"], [result(top1=80.0, synthetic=True)]))
    assert (ours["top-1 %"], ours["paper"], ours["delta"], ours["note"]) == ("80.0", "86.8", "-", "synthetic videos")
    ours, _ = rows(report.table(["table1-moco-be"], [result(top1=80.0, select="holdout")]))
    assert (ours["delta"], ours["note"]) == ("-6.8", "epoch chosen on a hold-out")


def test_rows_that_share_runs():
    """Table 4's last row is Table 1's, and Figure 5 shows one run on two data sets: each number in its own row only."""
    results = [result("table1-moco-be-i3d-ucf101"), result("table1-k400", "hmdb51", top1=70.0),
               result("table1-k400", "actor_hmdb51", top1=40.0)]
    same, _ = rows(report.table(["table4-intra-video-frame"], results))
    assert (same["top-1 %"], same["paper"]) == ("50.0", "82.4")
    both = {row["tested on"]: row["delta"] for row in rows(report.table(["figure5-k400"], results))}
    assert both == {"hmdb51 test": "-4.5", "actor_hmdb51 test": "-3.5"}
    assert [row["tested on"] for row in rows(report.table(["table1-k400"], results))] == ["ucf101 test", "hmdb51 test"]


def test_what_the_paper_has_no_number_for():
    (row,) = rows(report.table(["demo-moco"], [result("demo-moco", subset="swapped")]))
    assert (row["tested on"], row["paper"], row["delta"]) == ("ucf101 swapped", "-", "-")
    (first,) = rows(report.table(["sweep-gamma-0.1"], [result("sweep-gamma-0.1")]))
    assert (first["top-1 %"], first["paper"], first["delta"]) == ("50.0", "-", "-")
    assert report.table(["sweep-gamma-0.1"], []) is None


def test_reliance_is_biased_minus_swapped():
    results = [result("demo-moco", top1=80.0), result("demo-moco", subset="swapped", top1=30.0), result("demo-random")]
    (row,) = rows(report.reliance(["demo-random", "demo-moco"], results)[-1])
    assert list(row.values()) == ["demo-moco", "80.0", "30.0", "50.0", "80 / 30"]
    assert report.reliance(["demo-random"], results[2:]) == []
    more = [*results, result("demo-moco", top1=60.0, seed=1)]  # a network that was tested on one of the lists only
    (row,) = rows(report.reliance(["demo-random", "demo-moco"], more)[-1])
    assert list(row.values()) == ["demo-moco", "80.0", "30.0", "50.0", "80 / 30"]


def test_retrieval():
    names = ["table3-moco-c3d", "table3-moco-be-i3d"]
    found = rows(report.retrieval(names, [recall(seed=0), recall(seed=2), recall(protocol="gap")]))
    assert [(row["experiment"], row["protocol"], row["R@1 %"], row["seeds"], row["scored"]) for row in found] == [
        ("table3-moco-c3d", "paper", "- / 9.5 / -", "-", "-"),
        ("table3-moco-be-i3d", "paper", "12.0 ± 1.4 / 9.3 / +2.7", "0, 2", "6/8"),
        ("table3-moco-be-i3d", "gap", "11.0", "0", "3/4")]
    (synthetic,) = rows(report.retrieval(names[1:], [recall(synthetic=True)]))
    assert synthetic["R@1 %"] == "11.0" and "synthetic" in synthetic["retrieved on"]
    for other in ({"dataset": "ucf101"}, {"split": 2}, {"experiment": "table1-moco-be"}):
        (row,) = rows(report.retrieval([other.get("experiment", names[1])], [recall(**other)]))
        assert row["R@1 %"] == "11.0"
    assert report.retrieval(["table1-moco-be"], []) is None


def test_time_of_processes_that_took_over_from_each_other():
    lines = [{"seconds": 3600.0}, {"seconds": 7200.0}, {"probe_knn": 1.0}, {"seconds": 1800.0}, {"seconds": 5400.0}]
    assert report.seconds(lines) == 7200 + 5400 and report.seconds([]) == 0


# ---- which class was taken for which


def finished(out, name, answers, labels, ok, seed=0, classes=("jump", "run", "walk"), **more):
    """A run directory with a test's answers in it."""
    path = out / name / f"finetune-ucf101-split1-seed{seed}"
    path.mkdir(parents=True)
    hit = [a == label and good for a, label, good in zip(answers, labels, ok, strict=True)]
    (path / "result-test.json").write_text(json.dumps(result(name, seed=seed, top1=100 * sum(hit) / len(hit), **more)))
    kept = {"probabilities": torch.eye(len(classes))[answers], "label": torch.tensor(labels), "ok": torch.tensor(ok)}
    save_file(kept, path / "probabilities-test.safetensors")
    about = {"classes": list(classes), "git_sha": "abc123", "device": "8 x H100", "manifest_hash": "feed5"}
    save_file({"w": torch.zeros(1)}, path / "model.safetensors", {"about": json.dumps(about)})
    lines = [{"step": s, "epoch": s / 2, "loss": 1 / s, "top1": s / 9, "seconds": 450.0 * s} for s in range(1, 9)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_confusion_by_hand(tmp_path):
    finished(tmp_path, "demo-moco", [0, 1, 1, 2, 0], [0, 0, 1, 2, 2], [True, True, True, True, False])
    finished(tmp_path, "demo-moco", [0, 0, 0, 0, 0], [0, 0, 1, 2, 2], [True] * 5, seed=1)
    matrix, classes = report.confusion(read_results(tmp_path))
    assert matrix.tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [2, 0, 1, 1]] and classes == ["jump", "run", "walk"]
    assert per_class(matrix).tolist() == pytest.approx([75, 50, 25])
    assert report.confusion([result(path=str(tmp_path))]) is None  # the answers were not kept


def test_gains_are_of_the_same_splits_and_seeds(tmp_path, monkeypatch):
    """Seed 0: 2 of 2 against 1 of 2. Seed 1, which only MoCo + BE has, would make it less."""
    drawn = []
    (tmp_path / "report").mkdir()
    monkeypatch.setattr(report, "plot_gain", lambda path, gain, classes, what: drawn.append((gain.tolist(), what)))
    finished(tmp_path, "demo-moco", [0, 1], [0, 0], [True] * 2, classes=["jump", "run"])
    finished(tmp_path, "demo-moco-be", [0, 0], [0, 0], [True] * 2, classes=["jump", "run"])
    finished(tmp_path, "demo-moco-be", [1, 1], [0, 0], [True] * 2, seed=1, classes=["jump", "run"])
    report.by_class(tmp_path, read_results(tmp_path))
    ((gain, what),) = drawn
    assert gain[0] == 50 and "tests of both: 1" in what
    (tmp_path / "demo-moco/finetune-ucf101-split1-seed0/result-test.json").unlink()
    finished(tmp_path, "demo-moco", [0, 0], [0, 0], [True] * 2, seed=2, classes=["jump", "run"])
    report.by_class(tmp_path, read_results(tmp_path))
    assert len(drawn) == 1  # no test in common


def test_a_test_without_a_manifest_does_not_show_that_of_training(tmp_path):
    finished(tmp_path, "demo-moco", [0, 1], [0, 1], [True, True], manifest_hash=None, git_sha="def456",
             device="1 x cpu", seconds=12.0)
    trained, tested = rows(report.provenance(tmp_path, ["demo-moco"], read_results(tmp_path))[1])
    assert list(trained.values())[1:] == ["train", "", "", "feed5", "abc123", "8 x H100", "60 min"]
    assert list(tested.values())[1:] == ["test", "top-1 100.00", "9/10", "not prepared", "def456", "1 x cpu", "12 s"]


# ---- the files


@pytest.fixture
def written(tmp_path):
    ok = [True] * 6
    for seed in (0, 1):
        finished(tmp_path, "demo-moco", [0, 0, 0, 1, 2, 1], [0, 0, 1, 1, 2, 2], ok, seed)
        finished(tmp_path, "demo-moco-be", [0, 1 - seed, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], ok, seed)
    report.report(str(tmp_path), "demo-*")
    return tmp_path


def test_markdown(written, capsys):
    text = (written / "report.md").read_text()
    assert "91.7 ± 11.8" in text and "66.7 ± 0.0" in text  # 5 and 6 of 6; 4 of 6 twice
    assert "feed5" in text and "abc123" in text and "8 x H100" in text and "60 min" in text
    linked = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert "report/finetune.png" in linked and "report/gain-demo-moco-be-ucf101-test.png" in linked
    assert sum("confusion" in path for path in linked) == 2
    assert all((written / path).read_bytes()[:4] == b"\x89PNG" for path in linked)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(written):
    """Nothing is loaded from anywhere: all that has an address has its content in it. And every tag is closed."""
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == ["html", "body"]  # whose ends are the file's
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "srcset", "data") if key in attrs]
    assert len(sources) == 4 and all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "width=device-width" in text and "91.7 ± 11.8" in text


def test_text_is_text():
    blocks = [("title", "a <b>"), ("table", ["<i>", "n"], [["x & y", "1.5"]]), ("fold", "<u>", [("text", '"z"')])]
    page = as_html(blocks)
    assert "<title>a &lt;b&gt;</title>" in page and "&lt;i&gt;" in page and "x &amp; y" in page
    assert "<b>" not in page and "<u>" not in page and '<td class="number" data-name="n">1.5</td>' in page
    assert "| x & y | 1.5 |" in as_markdown(blocks, None)


def test_nothing_to_report(tmp_path, capsys):
    report.report(str(tmp_path / "none"), "demo-*")
    assert "No results yet." in capsys.readouterr().out
    assert "No results yet." in (tmp_path / "none/report.html").read_text()
