"""The report: splits are averaged before seeds, the paper's numbers stand beside, differences are paired."""

import dataclasses
import html.parser
import json
import math
import re
from itertools import product

import matplotlib.figure
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY
from safetensors.torch import save_file

from be import config, evaluate, objectives, report, train, video
from be.datasets import DATASETS
from be.runs import RunError, make_accelerator, read_results

SHARED = ROOT.parent / "shared/paper/tables.yaml"


def result(experiment="table1-moco-be", dataset="ucf101", subset="test", split=1, seed=0, top1=50.0, **more):
    """Of a row of the paper: on all videos of the official list but one."""
    n = DATASETS[dataset].expected.get((subset, split), 10) if experiment.startswith("table") else 10
    return dict(experiment=experiment, dataset=dataset, subset=subset, split=split, seed=seed, top1=top1, top5=90.0,
                n_scored=n - 1, n_expected=n, path="", **more)


def recall(experiment="table3-moco-be-i3d", seed=0, protocol="paper", subset="test", **more):
    about = dict(experiment=experiment, dataset="hmdb51", subset=subset, split=1, seed=seed, protocol=protocol,
                 synthetic=False, path="")
    return about | {f"R@{k}": 10.0 + seed + k for k in (1, 5, 10, 20, 50)} | dict(n_scored=3, n_expected=4) | more


def table(names, results):
    return report.table(names, report.index(results))


def texts(row, *keys):
    return [report.readable(row.get(key), key) for key in keys]


# ---- numbers


def test_splits_then_seeds():
    found = {(s, seed): result(split=s, seed=seed, top1=10.0 * s + seed) for s in (1, 2, 3) for seed in (0, 2)}
    row = report.summary(found)
    assert row["ours"] == [20, 22] and report.readable(row["ours"]) == "21.0 ± 1.4"
    assert (row["splits"], row["seeds"], row["scored"], row["note"]) == ([1, 2, 3], [0, 2], "22420/22426", "")
    assert report.readable(report.summary({(1, 0): result()})["ours"]) == "50.0"


def test_a_seed_that_lacks_a_split_does_not_shift_the_mean():
    """Splits differ in how hard they are: a mean over one is not to be averaged with a mean over three."""
    found = {(s, 0): result(split=s, top1=10.0 * s) for s in (1, 2, 3)} | {(1, 1): result(seed=1, top1=90.0)}
    row = report.summary(found)
    assert row["ours"] == [20] and row["seeds"] == [0] and row["scored"] == "11210/11213"


def test_ours_beside_the_papers():
    ours, missing = table(["table1-moco-be"], [result(top1=80.0)])
    keys = ("tested on", "metric", "ours", "paper", "delta", "splits", "seeds", "scored", "note")
    assert texts(ours, *keys[1:]) == ["top1", "80.0", "86.8", "-6.8", "1 of 3", "0", "3782/3783", "-"]
    cut = table(["table1-moco-be"], [result() | {"n_expected": 523}])[0]  # fifteen classes, say
    assert texts(cut, "delta", "note") == ["-", "523 of 3783 videos"]
    assert texts(missing, *keys) == ["hmdb51 test", "top1", "-", "55.4", "-", "-", "-", "-", "-"]
    (whole,) = table(["table2-moco-be"], [result("table2-moco-be", "diving48", top1=70.0)])
    assert texts(whole, "delta", "note", "splits") == ["+7.6", "-", "1 of 1"]  # Diving48 has one split


def test_a_run_of_other_settings_is_marked_and_not_compared(tmp_path):
    """Of fine-tuning, the test alone, the pre-training, another recipe; but not in what fits the machine."""
    def delta(*words, pretrain=(), **more):
        path = tmp_path / "table1-moco-be/finetune-ucf101-split1-seed0"
        for at, typed, stage in ((path, words, "finetune"), (path.parent / "pretrain-seed0", pretrain, "pretrain")):
            at.mkdir(parents=True, exist_ok=True)
            (at / "config.yaml").write_text(config.as_text(config.load("table1-moco-be", typed, stage)))
        found = [result(split=s, top1=80.0) | {"path": str(path)} | more for s in (1, 2, 3)]
        return texts(table(["table1-moco-be"], found)[0], "delta", "note")

    same = ["out=x", "data=y", "seed=3", "workers=1", "accumulate=8", "dataset=ucf101", "split=2"]
    assert delta(*same, pretrain=["data=z", "keep=1"], test_clips=10) == ["-6.8", "-"]
    assert delta("epochs=2", "width=8") == ["-", "finetune epochs=2, width=8"]
    assert delta(test_clips=3) == ["-", "finetune test_clips=3"]
    assert delta(pretrain=["epochs=9", "dataset=ucf101"]) == ["-", "pretrain dataset=ucf101, epochs=9"]
    assert delta("recipe=released") == ["-", "finetune recipe=released"]
    assert delta("select=holdout", "synthetic=true", pretrain=["synthetic=true"], synthetic=True) == [
        "-", "synthetic videos; finetune select=holdout"]


def test_tests_of_another_protocol_have_a_row_of_their_own():
    """Not a mean over ten clips and one, over the last epoch and the best, or over drawn videos and real ones."""
    for key, usual, other in (("test_clips", 10, 1), ("select", "last", "holdout"), ("synthetic", False, True)):
        found = [result("mine", seed=s, top1=10.0 * s, **{key: other if s == 2 else usual}) for s in range(3)]
        rows = {row["tested on"]: row["ours"] for row in table(["mine"], found)}
        assert rows == {"ucf101 test": [0, 10], f"ucf101 test, {key}={other}": [20]}
    found = [result("mine", seed=0, test_clips=1), result("mine", seed=1, test_clips=10)]
    assert [row["seeds"] for row in table(["mine"], found)] == [[1], [0]]  # of most clips first
    lists = table(["table1-moco-be"], [result(), result(seed=1) | {"n_expected": 7}])
    assert texts(lists[0], "delta", "note") == ["-", "lists of different length"]


def test_no_difference_between_two_protocols():
    found = [result(name, seed=s, test_clips=10 if s else clips)
             for name, clips in (("table1-moco", 10), ("table1-moco-be", 1)) for s in range(3)]
    (section,) = report.differences(["table1-moco-be"], report.index(found))
    assert [(row["seeds"], row["n"]) for row in section["rows"]] == [([1, 2], 2)]
    found = [r | {"test_clips": 3 if r["experiment"] == "table1-moco" else 10} for r in found]
    assert report.differences(["table1-moco-be"], report.index(found)) == []


def test_rows_that_share_runs():
    """Table 4's last row is Table 1's, and Figure 5 shows one run on two data sets: each number in its own row only."""
    results = [result("table1-moco-be-i3d-ucf101"), result("table1-k400", "hmdb51", top1=70.0),
               result("table1-k400", "actor_hmdb51", top1=40.0)]
    same, _ = table(["table4-intra-video-frame"], results)
    assert texts(same, "ours", "paper") == ["50.0", "82.4"]
    both = {row["tested on"]: row["delta"] for row in table(["figure5-k400"], results)}
    assert both == {"hmdb51 test": -4.5, "actor_hmdb51 test": -3.5}
    assert [row["tested on"] for row in table(["table1-k400"], results)] == ["ucf101 test", "hmdb51 test"]


def test_what_the_paper_has_no_number_for():
    test, swapped = table(["demo-moco"], [result("demo-moco", subset="swapped"), result("demo-moco")])
    assert texts(swapped, "tested on", "paper", "delta") == ["ucf101 swapped", "-", "-"]
    assert test["tested on"] == "ucf101 test"
    (first,) = table(["sweep-gamma-0.1"], [result("sweep-gamma-0.1")])
    assert texts(first, "ours", "paper", "delta") == ["50.0", "-", "-"]
    assert table(["sweep-gamma-0.1"], []) == table(["figure4-static"], []) == []


def test_retrieval():
    names = ["table3-moco-c3d", "table3-moco-be-i3d"]
    found = [row for row in table(names, [recall(seed=0), recall(seed=2), recall(protocol="gap")])
             if row["metric"] == "R@1"]
    assert [texts(row, "experiment", "ours", "paper", "delta", "seeds", "scored") for row in found] == [
        [names[0], "-", "9.5", "-", "-", "-"], [names[1], "12.0 ± 1.4", "9.3", "+2.7", "0, 2", "6/8"],
        [names[1], "11.0", "-", "-", "0", "3/4"]]
    assert [row["tested on"] for row in found[1:]] == [f"hmdb51 test, split 1, protocol {p}" for p in ("paper", "gap")]
    synthetic = table(names[1:], [recall(synthetic=True)])[0]
    assert texts(synthetic, "ours", "delta", "note") == ["11.0", "-", "synthetic videos"]
    for other in ({"dataset": "ucf101"}, {"split": 2}, {"experiment": "table1-moco-be"}):
        rows = table([other.get("experiment", names[1])], [recall(**other)])
        assert [texts(row, "delta") for row in rows if "ours" in row] == [["-"]] * 5


# ---- numbers of others


def test_what_is_quoted_is_marked():
    ours, others = report.tables(["table2-moco-be"], {})
    assert ours["fold"] and ours["title"] == "Table 2: fine-tuned on Diving48: not run here" and len(ours["rows"]) == 1
    assert others["fold"] and others["title"].endswith("numbers of others") and "V2" in others["about"]
    rows = {(row["method"], row["pretrain"]): row for row in others["rows"]}
    assert rows["CorrNet", "Sports1M"]["diving48"] == 44.7 and "V1" in rows["CorrNet", "Sports1M"]["source"]
    assert rows["MoCo + BE", "K400"] == {"method": "MoCo + BE", "backbone": "I3D", "pretrain": "K400", "diving48": 62.6,
                                         "modalities": "one", "source": "authors' README"}
    assert not any(row["method"] == "I3D" for row in others["rows"])  # the authors' own rows: entries, to be run
    assert len(report.tables(["table4-baseline"], {})) == 1


@pytest.mark.skipif(not SHARED.exists(), reason="the tables as data are not here")
def test_what_is_quoted_is_what_the_paper_quotes():
    theirs = yaml.safe_load(SHARED.read_text())
    for name, own in (("table1", ()), ("table2", ("I3D",)), ("table3", ())):
        columns, section = theirs[name]["columns"], report.SECTIONS[name]
        renamed = [re.sub(r"R@(\d+)", r"r\1", key.replace("modalities", "single_modality"))
                   for key in section["columns"][:-1]]
        wanted = [[{True: "one", False: "several"}.get(value, value) if isinstance(value, bool) else value
                   for value in (row[columns.index(key)] for key in renamed)]
                  for row in theirs[name]["quoted"] if row[0] not in own]
        assert [row[:-1] for row in section["quoted"] if row[-1].startswith("quoted")] == wanted


# ---- paired differences


def tails(t, nu):
    """Of Student's t with `nu` degrees of freedom, both beyond +-t: a sum over its density."""
    u = (np.arange(200_000) + 0.5) / 200_000  # s = t / u
    peak = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(nu * math.pi)
    return 2 * np.mean(peak * (1 + (t / u) ** 2 / nu) ** (-(nu + 1) / 2) * t / u**2)


def brute_force(d):
    """Transcribed slowly: the t test, and all 2^n flips of signs."""
    n, middle = len(d), sum(d) / len(d)
    p = tails(abs(middle) / math.sqrt(sum((x - middle) ** 2 for x in d) / (n - 1) / n), n - 1)
    flips = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=n)]
    return p, sum(flip >= abs(sum(d)) - 1e-9 for flip in flips) / 2**n


def test_paired_against_a_slow_transcription():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 8, 12):
        a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
        p, p_flip = brute_force(a - b)
        d = report.paired(a - b)
        assert d["p of t"] == pytest.approx(p, rel=1e-4) and d["p of signs"] == pytest.approx(p_flip)
    for n, t in (2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042):  # 97.5 % quantiles, of any table
        a = rng.normal(size=n)
        assert report.paired(a)["± 95 %"] == pytest.approx(t * a.std(ddof=1) / math.sqrt(n), rel=1e-3)


def test_paired_by_hand():
    d = report.paired(np.array([2.0, 3, 1, 2]))
    assert (d["delta"], d["p of signs"]) == (2.0, 2 / 16) and d["± 95 %"] == pytest.approx(3.18245 * 0.408248, rel=1e-4)
    assert [*report.paired(np.zeros(2)).values()] == [0, 0, 1, 1] and report.paired(np.ones(2))["p of t"] == 0
    assert report.paired(np.array([-1.0, 2, 0]))["p of signs"] == 1.0  # 8 of 8 sums reach 1
    mean, *others = report.paired(np.array([2.0])).values()
    assert mean == 2 and np.isnan(others).all()
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(500):  # under equality p < 0.1 comes in a tenth of all cases
        rejected += report.paired(rng.normal(size=6))["p of t"] < 0.1
    assert abs(rejected - 50) < 4 * math.sqrt(45)


def test_differences_are_of_the_same_splits_and_seeds(monkeypatch):
    """An entry says `against` whom; NAME-be is compared with NAME; a list with its swapped scenes."""
    registry = config.registry() | {"mine": {"from": "demo-moco", "against": "demo-random"}}
    monkeypatch.setattr(config, "registry", lambda: registry)
    results = [result(name, split=split, seed=seed, top1=float(top1 + 10 * seed + split))
               for name, top1 in (("mine", 40), ("demo-random", 30)) for split in (1, 2) for seed in (0, 1)]
    results += [result("mine", split=3, top1=99.0), result("demo-random", seed=2, top1=1.0)]  # only one has them
    results += [result("demo-moco-be", top1=60.0), result("demo-moco", top1=55.0), result("table1-moco-be", top1=1.0)]
    results += [result("demo-random", subset="swapped", top1=20.0)]
    results[0]["top1"] += 4  # split 1, seed 0
    tests = report.index(results)
    names = ["demo-random", "demo-moco", "demo-moco-be", "mine", "table1-moco-be"]
    (section,) = report.differences(names, tests)
    assert section["title"] == "Paired differences"
    rows = {row["difference"]: row for row in section["rows"]}
    assert rows.keys() == {"mine - demo-random", "demo-moco-be - demo-moco", "demo-random: test - swapped"}
    mine = rows["mine - demo-random"]
    assert texts(mine, "on", "delta", "n", "seeds") == ["ucf101 test", "+11.0", "4", "0, 1"]  # 14, 10, 10, 10
    assert mine["± 95 %"] == pytest.approx(3.182446) and mine["p of signs"] == 2 / 16  # sd 2, of 4
    assert mine["first"] - mine["second"] == 11
    be, gap = rows["demo-moco-be - demo-moco"], rows["demo-random: test - swapped"]
    assert texts(be, "delta", "± 95 %", "p of t", "n") == ["+5.0", "-", "-", "1"]
    assert texts(gap, "on", "delta") == ["ucf101 swapped", "+11.0"]  # 31 - 20
    assert report.differences(names, {}) == []


# ---- which class was taken for which


def finished(out, name, answers, labels, ok=None, seed=0, split=1, dataset="ucf101", classes=("jump", "run", "walk"),
             p=1.0, **more):
    """A run directory with a test's answers in it, of probability `p` each."""
    path = out / name / f"finetune-{dataset}-split{split}-seed{seed}"
    path.mkdir(parents=True)
    ok = ok or [True] * len(labels)
    hit = [a == label and good for a, label, good in zip(answers, labels, ok, strict=True)]
    about = result(name, dataset, split=split, seed=seed, top1=100 * sum(hit) / len(hit), seconds=12.0) | more
    (path / "result-test.json").write_text(json.dumps(about))
    kept = {"probabilities": p * torch.eye(len(classes))[answers] + (1 - p) / len(classes),
            "label": torch.tensor(labels), "ok": torch.tensor(ok)}
    save_file(kept, path / "probabilities-test.safetensors")
    about = {"classes": list(classes), "git_sha": "abc123", "device": "8 x H100", "manifest_hash": "feed5"}
    save_file({"w": torch.zeros(1)}, path / "model.safetensors", {"about": json.dumps(about)})
    lines = [{"step": s, "epoch": s / 2, "loss": 1 / s, "top1": s / 9, "seconds": 450.0 * s} for s in range(1, 9)]
    lines[5:5] = [{"step": 5, "epoch": 2.5, "probe_knn": 50.0}]
    lines[-1]["seconds"] = 1800.0  # a process that took over when the first had worked for 3150 s
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_accuracy_of_each_class_by_hand(tmp_path):
    """Over two tests; an unreadable video is wrong, and a class without videos has none."""
    four = ("jump", "run", "walk", "wave")
    finished(tmp_path, "demo-moco", [0, 1, 1, 2, 0], [0, 0, 1, 2, 2], [True, True, True, True, False], classes=four)
    finished(tmp_path, "demo-moco", [0, 0, 0, 0, 0], [0, 0, 1, 2, 2], seed=1, classes=four, p=0.6)
    results = read_results(tmp_path)
    assert report.per_class(results).tolist() == pytest.approx([75, 50, 25, math.nan], nan_ok=True)
    soft = report.per_class(results, soft=True).tolist()  # 0.7 for what is answered, 0.1 for all others in the second
    assert soft == pytest.approx([100 * 2.4 / 4, 100 * 1.1 / 2, 100 * 1.2 / 4, math.nan], nan_ok=True)
    (tmp_path / "demo-moco/finetune-ucf101-split1-seed1/probabilities-test.safetensors").unlink()
    with pytest.raises(RunError, match="seed1/probabilities-test.safetensors does not exist: evaluate this"):
        report.per_class(results)


def test_a_test_without_a_manifest_does_not_show_that_of_training(tmp_path):
    finished(tmp_path, "demo-moco", [0, 1], [0, 1], manifest_hash=None, git_sha="def456", device="1 x cpu")
    section = report.provenance(tmp_path, [*tmp_path.glob("demo-moco/*")], read_results(tmp_path))
    keys = ("subset", "top1", "n_scored", "manifest_hash", "git_sha", "device", "time")
    assert {*keys} < {*section["columns"]}
    trained, tested = (texts(row, *keys) for row in section["rows"])
    assert trained == ["train", "-", "-", "feed5", "abc123", "8 x H100", "82 min"]  # 3150 + 1800 s
    assert tested == ["test", "100.0", "9", "-", "def456", "1 x cpu", "12 s"]


# ---- the files


@pytest.fixture
def written(tmp_path):
    for seed in (0, 1):
        finished(tmp_path, "demo-moco", [0, 0, 0, 1, 2, 1], [0, 0, 1, 1, 2, 2], seed=seed)
        finished(tmp_path, "demo-moco-be", [0, 1 - seed, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], seed=seed)
    (tmp_path / "demo-moco/retrieve-x").mkdir()
    for path in ("gain.png", "demo-moco/retrieve-x/nearest.png"):  # what other verbs left
        matplotlib.figure.Figure().savefig(tmp_path / path)
    report.report(str(tmp_path), "demo-*")
    return tmp_path


def test_markdown(written, capsys):
    text = (written / "report.md").read_text()
    assert "91.7 ± 11.8" in text and "66.7 ± 0.0" in text  # 5 and 6 of 6; 4 of 6 twice
    assert "feed5" in text and "abc123" in text and "8 x H100" in text and "82 min" in text
    linked = re.findall(r"!\[.+?\]\((.+?)\)", text)
    curves = [f"report/finetune-{key}.png" for key in ("loss", "top1", "probe_knn")]
    assert linked == [*curves, "gain.png", "demo-moco/retrieve-x/nearest.png"]
    assert all((written / path).read_bytes()[:4] == b"\x89PNG" for path in linked)
    parts = ["# Results in ", "demo-moco-be - demo-moco, on ucf101 test: +25.0 ± ", "## The demo", "91.7 ± 11.8",
             "## Paired differences", "## How to read", "## What was run", "## Curves of finetune"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)  # the result comes first
    assert "demo-moco: royalblue, demo-moco-be: orangered, seed0: solid, seed1: dashed" in text
    assert re.search(r"\| probe_knn +\| right classes by nearest neighbours", text) and "loss" in text


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in ("meta", "img"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(written):
    """Nothing is loaded from anywhere: all that has an address has its content in it. And every tag is closed."""
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.open == ["html", "body"]  # whose ends are the file's
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "srcset", "data") if key in attrs]
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "width=device-width" in text and "91.7 ± 11.8" in text and "<title>Results</title>" in text
    chart = text[text.index('<div class="chart">') : text.index('<p class="lead">')]
    assert [float(x) for x in re.findall(r'bar" style="width:([0-9.]+)%', chart)] == pytest.approx([200 / 3, 275 / 3])
    assert [float(x) for x in re.findall(r'dot" style="left:([0-9.]+)%', chart)] == pytest.approx(
        [200 / 3, 200 / 3, 500 / 6, 100])
    assert text.index('class="chart"') < text.index('class="lead"') < text.index("<table>")
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d; code \w+\+?, PyTorch 2", text) and "run.py report out=" in text


def test_text_is_text(tmp_path, monkeypatch):
    about = {"from": "demo-moco", "about": "<b> & <u>"}
    registry = config.registry() | {"demo-<i>": about}
    monkeypatch.setattr(config, "registry", lambda: registry)
    (tmp_path / "demo/finetune-ucf101-split1-seed0").mkdir(parents=True)
    (tmp_path / "demo/finetune-ucf101-split1-seed0/result-test.json").write_text(json.dumps(result("demo-<i>")))
    report.report(str(tmp_path), "demo-*")
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "&lt;b&gt; &amp; &lt;u&gt;" in page and "demo-&lt;i&gt;" in page and "<b>" not in page and "<i>" not in page
    assert '<td class="number" data-name="ours">50.0</td>' in page and "| <b> & <u> |" in text


def test_nothing_to_report(tmp_path, capsys):
    """A run without a result is said to have none; a report over nothing, of a typing error, writes nothing."""
    (tmp_path / "demo-moco/pretrain-seed0").mkdir(parents=True)
    report.report(str(tmp_path), "demo-*")
    assert "No results yet." in capsys.readouterr().out
    before = {path: path.read_bytes() for path in tmp_path.glob("report.*")}
    assert len(before) == 2 and b"No results yet." in before[tmp_path / "report.html"]
    for out, names in (tmp_path, "nothing-*"), (tmp_path, "table1-*"), (tmp_path / "typo", "*"):
        with pytest.raises(RunError, match=f"no run named {re.escape(names)} in {out}"):
            report.report(str(out), names)
    assert {path: path.read_bytes() for path in tmp_path.glob("report.*")} == before
    assert not (tmp_path / "typo").exists()


def test_one_broken_result_costs_itself(tmp_path, capsys):
    """Empty after a full disk, cut short by rsync, or no result at all: it is named, the others are in the report."""
    for seed, content in enumerate([json.dumps(result("mine")), "", '{"top1": 5', "[]"]):
        folder = tmp_path / f"mine/finetune-ucf101-split1-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "result-test.json").write_text(content)
    report.report(str(tmp_path))
    said = capsys.readouterr()
    assert said.err.count("is passed over") == 3 and "seed3/result-test.json" in said.err
    assert re.search(r"\| mine +\|.*\| 50.0 +\|", said.out)


# ---- Figures 4 and 5


def test_static_clips_are_one_random_frame():
    rng, sampler = np.random.default_rng(0), lambda n, rng: video.even_clips(n, K=3, T=4, stride=2)
    drawn = [video.static_clips(20, rng, like=sampler) for _ in range(400)]
    assert all(clips.shape == (3, 4) and len(np.unique(clips)) == 1 for clips in drawn)
    assert {clips[0, 0] for clips in drawn} == set(range(20))  # of the whole video


def test_static_training_and_test_show_no_motion(tiny, tmp_path, monkeypatch):
    words = [*TINY, "synthetic=true", f"data={tiny}", f"out={tmp_path}", "epochs=1", "dataset=ucf101"]
    cfg = config.load("figure4-static", [*words, "backbone=c3d"], "finetune")
    assert cfg.pretrained == "random" and cfg.static
    seen = {True: [], False: []}
    logits = objectives.Classify.logits

    def watch(self, x, draws=None):
        seen[self.training].append(x)
        return logits(self, x, draws)

    monkeypatch.setattr(objectives.Classify, "logits", watch)
    def still(x):
        return torch.equal(x, x[:, :, :1].expand_as(x))

    train.finetune(cfg)
    assert len(seen[True]) == 4 and all(map(still, seen[True]))
    model, classes = evaluate.load_classifier(cfg)
    for static in (True, False):  # the videos themselves do move
        seen[False].clear()
        used = dataclasses.replace(cfg, static=static)
        _, ok = evaluate.classify(model, evaluate.load_list(used, "test", classes), used, make_accelerator(used))
        assert ok.all() and [still(x) for x in seen[False]] == [static] * 16


def pearson(x, y):
    """Transcribed slowly: r by its definition, p by the tail of Student's t with n - 2 degrees of freedom."""
    x, y = np.subtract(x, np.mean(x)), np.subtract(y, np.mean(y))
    r, nu = sum(x * y) / math.sqrt(sum(x * x) * sum(y * y)), len(x) - 2
    return r, tails(abs(r) * math.sqrt(nu / (1 - r * r)), nu)


def correlate(x, y):
    fit = report.correlation([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], "x", "y")
    assert fit["classes"] == len(x)
    return fit["r"], fit["p"]


def test_correlation_against_a_slow_transcription_and_closed_forms():
    rng = np.random.default_rng(0)
    for n in (5, 7, 12, 51, 200):
        x = rng.standard_normal(n)
        y = 2 / math.sqrt(n) * x + rng.standard_normal(n)
        assert correlate(x, y) == pytest.approx(pearson(x, y), rel=1e-6)
    for n, tail in ((3, lambda r: 2 / math.pi * math.acos(r)), (4, lambda r: 1 - r)):
        r, p = correlate(*rng.standard_normal((2, n)))
        assert p == pytest.approx(tail(abs(r)))
    for x, y in ([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 1, 1]):
        assert correlate(x, y) == (None, None)


def scored(out, name, hits, p=1.0, **more):
    """A finished test in which `hits[c]` of class c's 10 videos are right, the others taken for the next class."""
    labels = [c for c in range(len(hits)) for _ in range(10)]
    answers = [c if n < h else (c + 1) % len(hits) for c, h in enumerate(hits) for n in range(10)]
    more = {"dataset": "hmdb51"} | more
    finished(out, name, answers, labels, classes=[f"class_{c}" for c in range(len(hits))], p=p, **more)


STATIC, BASE, BETTER = [1, 4, 6, 2, 9, 5], [5, 6, 0, 4, 8, 2], [9, 7, 3, 8, 8, 3]


def test_figure4_by_hand(tmp_path, capsys):
    """Over two splits, in the second of which every class but the third has one more right answer."""
    mean = {}
    for name, hits in (("figure4-static", STATIC), ("table1-moco", BASE), ("table1-moco-be", BETTER)):
        scored(tmp_path, name, hits, p=0.4 if name == "figure4-static" else 1)
        scored(tmp_path, name, second := [h + (c != 2) for c, h in enumerate(hits)], split=2, p=0.7)
        mean[name] = 10 * (np.array(hits) + second) / 2
    scored(tmp_path, "table1-moco", [10] * 6, seed=1)  # a seed that the other was not run with: of no account
    scored(tmp_path, "figure4-static", [10] * 6, split=3)  # nor a split
    report.figure4(out=str(tmp_path))
    said = json.loads((tmp_path / "gain-hmdb51-test.json").read_text())
    static, base, better = mean.values()
    probability = [100 * (0.4 * a / 10 + 0.1 + 0.7 * b / 10 + 0.05) / 2  # (1 - p) / 6 for each class
                   for a, b in zip(STATIC, [h + (c != 2) for c, h in enumerate(STATIC)], strict=True)]
    expected = {("gain", "static top-1"): pearson(static, better - base),
                ("gain", "static probability"): pearson(probability, better - base)}
    kept = [0, 1, 3, 4, 5]  # of the third class `base` knows nothing
    relative = 100 * (better - base)[kept] / base[kept]
    expected["gain, % of base", "static top-1"] = pearson(static[kept], relative)
    expected["gain, % of base", "static probability"] = pearson(np.array(probability)[kept], relative)
    assert {(fit["y"], fit["x"]): (fit["r"], fit["p"]) for fit in said["correlations"]} == {
        key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}
    assert [fit["classes"] for fit in said["correlations"]] == [6, 6, 5, 5]
    assert [row["class"] for row in said["per_class"] if row["gain, % of base"] is None] == ["class_2"]
    row = next(row for row in said["per_class"] if row["class"] == "class_3")
    assert row.pop("class") and row == pytest.approx({
        "static top-1": 25, "static probability": probability[3], "table1-moco": 45, "table1-moco-be": 85, "gain": 40,
        "gain, % of base": 100 * 40 / 45})
    assert said["splits"] == [1, 2] and (tmp_path / "gain-hmdb51-test.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "r = -0.48, p = 0.0004 compares with `gain` against `static probability`" in out and "+88.9" in out


def test_figure4_says_what_it_misses(tmp_path, capsys):
    scored(tmp_path, "figure4-static", STATIC)
    scored(tmp_path, "table1-moco", BASE)
    missing = "no split of hmdb51 test on which all of figure4-static, table1-moco, table1-moco-be"
    with pytest.raises(RunError, match=missing):
        report.figure4(out=str(tmp_path))
    scored(tmp_path, "table1-moco-be", BETTER, split=2)
    with pytest.raises(RunError, match=missing):
        report.figure4(out=str(tmp_path))
    for name in ("figure4-static", "table1-moco", "table1-moco-be"):
        scored(tmp_path / "drawn", name, BETTER, synthetic=True)
    report.figure4(out=str(tmp_path / "drawn"))
    out = capsys.readouterr().out
    assert "-0.48" not in out and "synthetic videos" in out  # the paper's r is of real ones


def test_figure5_of_rows_that_are_other_rows_runs(tmp_path, capsys):
    scored(tmp_path, "table1-moco-be", BASE)
    scored(tmp_path, "table1-moco-be", BETTER, dataset="actor_hmdb51")
    report.report(out=str(tmp_path), names="figure5-*")
    rows = [re.split(r" *\| *", line) for line in capsys.readouterr().out.splitlines() if "| figure5-moco-be" in line]
    assert sorted((row[3], row[4]) for row in rows) == [
        (f"{name} test", f"{10 * np.mean(h):.1f}") for name, h in (("actor_hmdb51", BETTER), ("hmdb51", BASE))]
    with pytest.raises(RunError, match="no run named figure4"):
        report.report(out=str(tmp_path), names="figure4-*")


def test_what_all_rows_say_is_said_once(tmp_path):
    rows = [{"a": n, "b": 0.5, "c": None, "d": "x"} for n in range(3)]
    section = report.said_once(rows, "abcd")
    assert section["columns"] == ["a"] and section["same"] == "b 0.5, d x"
    assert report.said_once(rows[:1], "abcd")["columns"] == ["a", "b", "d"]  # of one row, only what is empty goes
    for name, seed, lr in ("demo-moco", 0, 0.003), ("demo-moco", 1, 0.003), ("demo-moco-be", 0, 0.01):
        path = tmp_path / name / f"pretrain-seed{seed}"
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(config.as_text(config.load(name, [f"lr={lr}", f"seed={seed}", "out=x"])))
    (section,) = report.settings([*sorted(tmp_path.glob("*/*"))])
    assert section["columns"] == ["experiment", "erase", "hard_negative", "lr"] and len(section["rows"]) == 2
    assert section["rows"][0]["lr"] == "0.003"
    assert "c3d, width 6" in section["same"] and "lr_steps [8.0]" in section["same"]
    assert " out " not in section["same"]  # where it ran is no setting


def test_the_sentence_at_the_top(tmp_path):
    """Of one pair, of several that differ or not, of a result alone, of nothing."""
    def said(be=(), moco=()):
        found = [result(name, seed=s, top1=x) for name, values in (("table1-moco-be", be), ("table1-moco", moco))
                 for s, x in enumerate(values)]
        tests, names = report.index(found), ["table1-moco", "table1-moco-be"]
        sections = [*report.tables(names, tests), *report.differences(names, tests)]
        return report.page([{"headline": report.headline(sections)}], tmp_path)

    start = "table1-moco-be - table1-moco, on ucf101 test: "
    assert f"{start}+8.0 points of top-1. One pair of tests says nothing" in said([60.0], [52.0])
    large, small = said([60.0, 61], [52.0, 53]), said([60.0, 62], [60.0, 60])
    assert f"{start}+8.0 ± 0.0 points" in large and "interval of 2 pairs. The interval does not hold 0" in large
    assert f"{start}+1.0 ± 12.7" in small and "The interval holds 0: a difference is not shown." in small
    assert "table1-moco-be has a top-1 of 60.0 % on ucf101 test, -26.8 points from the paper's." in said([60.0])
    assert "No results yet." in said()


def test_a_row_of_other_settings_has_no_mark_of_the_papers_in_the_chart(tmp_path):
    for note in (False, True):
        found = [result(top1=80.0, synthetic=note)]
        sections = report.tables(["table1-moco-be"], report.index(found))
        text = report.page([{"headline": report.headline(sections)}], tmp_path, "html")
        assert ('class="mark" style="left:86.8%"' in text) != note and ("synthetic videos</small>" in text) == note
