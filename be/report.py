"""Results beside the paper's: tables, paired differences, Figures 4 and 5, curves; `report` puts them on one page.

All is read from finished runs. `index` sorts what `evaluate` and `retrieve` left there:

    {(experiment, "hmdb51 test"): {(split, seed): result}}      of a retrieval "hmdb51 test, split 1, protocol paper"
"""

import base64
import fnmatch
import json
import math
import os
import re
from collections import defaultdict
from functools import partial
from itertools import cycle, pairwise, product
from pathlib import Path
from statistics import mean, stdev

import jinja2
import numpy as np
import torch
import yaml
from matplotlib import pyplot as plt
from safetensors.torch import load_file
from scipy import stats

from be import datasets
from be.augment import Draws, denormalise
from be.config import STAGES, Config, choose, experiments, paper_numbers
from be.erase import ERASE
from be.runs import RunError, duration, git_sha, read_metrics, read_results, write_text
from be.train import make_views
from be.video import random_clips
from be.weights import read_about

SECTIONS = yaml.safe_load(Path(__file__).with_name("quoted.yaml").read_text(encoding="utf-8"))
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe-Ito: colour-blind safe
METRICS = ("top1", "R@1", "R@5", "R@10", "R@20", "R@50")
TABLE3 = "hmdb51 test, split 1, protocol paper"  # what the paper retrieved
THREE_SPLITS = ("ucf101", "hmdb51", "actor_hmdb51")
SYNTHETIC = "synthetic videos"  # a note: what ran on them is not compared with the paper
FORMATS = {"delta": "+.1f", "gain": "+.1f", "gain, % of base": "+.1f", "r": ".2f", "p": ".2g", "p of t": ".3f",
           "p of signs": ".3f"}  # of columns, other numbers have one digit
DRAWS = 8  # of `show-batch`


def report(out: str = "runs", names: str = "*"):
    """report: lay all results beside the paper's, in OUT/report.md and OUT/report.html

    out     the folder of runs to read; the report is written there, its pictures in OUT/report
    names   a pattern such as demo-* (default: all experiments that have a result or a number in the paper)

    report.html holds its pictures and needs nothing else, no network either.
    """
    out = Path(out)
    (out / "report").mkdir(parents=True, exist_ok=True)
    tests = index(read_results(out) + read_results(out, "recall"))
    variants = {name for name, _ in tests} - experiments().keys()  # named on the command line
    known = fnmatch.filter([*experiments(), *sorted(variants)], names)
    ours = list(dict.fromkeys(map(runs_of, known)))
    compared = pairs(ours, tests)
    results = [*tables(known, tests), *differences(out, compared)] or [("text", "No results yet.")]
    blocks = [("title", "Results"), ("text", SECTIONS["results"]["about"]), *results, *curves(out, ours),
              *by_class(out, ours, tests, compared), *pictures(out, ours), *provenance(out, ours, tests),
              ("text", f"Written by run.py report, code {git_sha()}.")]
    for kind in ("md", "html"):
        write_text(out / f"report.{kind}", page(blocks, out, kind) + "\n")
    print(page([block for block in results if block[0] in ("section", "text", "table")], out))
    print(f"\nwritten to {out / 'report.md'} and {out / 'report.html'}")


# ---- pages


def page(blocks: list[tuple], folder: Path, kind: str = "md") -> str:
    """The text of a file in `folder`: Markdown, with links to pictures, or HTML that holds them (be/report.KIND.j2).

    blocks: ("title", words), ("section", words), ("text", words), ("table", [{column: value, ...}, ...]),
    ("image", path, what) and ("fold", what, blocks).
    """
    def table(rows):
        return "\n".join(markdown(list(rows[0]), [[readable(row[key], key) for key in row] for row in rows]))

    files = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=kind == "html",
                               trim_blocks=True, lstrip_blocks=True)
    files.filters |= {"readable": readable, "markdown": table, "link": lambda path: os.path.relpath(path, folder),
                      "base64": lambda path: base64.b64encode(path.read_bytes()).decode()}
    return files.get_template(f"report.{kind}.j2").render(blocks=blocks)


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table as lines of Markdown, aligned to be read as it is."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]


def readable(value, key: str = "") -> str:
    """A value of a table, in the column `key`; `-` for none."""
    if isinstance(value, dict):
        return number(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:
        return "-"
    return format(value, FORMATS.get(key, ".1f")) if isinstance(value, float) else str(value)


def number(cell: dict | None) -> str:
    """The mean of a `cell`, and its sd if it has one."""
    if cell is None:
        return "-"
    return f"{cell['mean']:.1f}" + (f" ± {cell['sd']:.1f}" if cell["sd"] is not None else "")


# ---- tables


def runs_of(name: str) -> str:
    """The experiment whose runs a row of the paper stands for: itself, or the entry's `same_runs_as`."""
    return experiments().get(name, {}).get("same_runs_as", name)


def tested_on(r: dict) -> str:
    what = f"{r['dataset']} {r['subset']}"
    return f"{what}, split {r['split']}, protocol {r['protocol']}" if "protocol" in r else what


def index(results: list[dict]) -> dict[tuple, dict]:
    """Results by experiment and list, then by split and seed: see the top of this file."""
    tests = defaultdict(dict)
    for r in results:
        tests[r["experiment"], tested_on(r)][r["split"], r["seed"]] = r
    return dict(tests)


def paper_lists(name: str) -> dict[tuple, float | None]:
    """A row's numbers in the paper: {("hmdb51 test", "top1"): 55.4, (TABLE3, "R@1"): 9.3}."""
    return {(TABLE3 if key in METRICS else f"{key} test", key if key in METRICS else "top1"): value
            for key, value in paper_numbers(name).items() if key not in ("pearson_r", "p_value")}


def cell(found: dict[tuple, dict], metric: str = "top1") -> dict | None:
    """Mean over the splits for each seed, then mean and sd over the seeds; only seeds that have most splits count.

    found: {(split, seed): result}; None of nothing. sd is None of one seed.
    """
    splits = {seed: {s for s, other in found if other == seed} for seed in sorted({seed for _, seed in found})}
    if not splits:
        return None
    most = max(splits.values(), key=len)
    seeds = [seed for seed in splits if splits[seed] == most]
    values = [mean(found[split, seed][metric] for split in most) for seed in seeds]
    rows = [r for (_, seed), r in found.items() if seed in seeds]
    notes = [SYNTHETIC] * any(r.get("synthetic") for r in rows)
    notes += ["epoch chosen on a hold-out"] * any(r.get("select") == "holdout" for r in rows)
    notes += [f"seed {seed} is incomplete, left out" for seed in splits if seed not in seeds]
    if metric == "top1" and rows[0]["dataset"] in THREE_SPLITS and len(most) < 3:
        notes.append("not all of 3 splits")
    scored, expected = (sum(r[key] for r in rows) for key in ("n_scored", "n_expected"))
    return {**spread(values), "splits": sorted(most), "seeds": seeds, "scored": f"{scored}/{expected}",
            "note": "; ".join(notes)}


def spread(values: list[float]) -> dict:
    """Mean and standard deviation, which is None of one value."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}


def tables(names: list[str], tests: dict) -> list[tuple]:
    """A section for each table of the paper: rows with a result or a number in the paper, then what is only quoted."""
    blocks = []
    for group, section in SECTIONS.items():
        mine = [n for n in names if (n.split("-")[0] if n.split("-")[0] in SECTIONS else "others") == group]
        if rows := table(mine, tests):
            blocks += [("section", section["title"]), ("table", rows)]
            quoted = [dict(zip(section["columns"], row, strict=True)) | {"source": source}
                      for source, part in section.get("rows", {}).items() for row in part]
            if quoted:
                what = f"Not run here: {', '.join(section['rows'])}"
                blocks.append(("fold", what, [("text", section["about"]), ("table", quoted)]))
    return blocks


def table(names: list[str], tests: dict) -> list[dict]:
    """A row for each experiment, list and metric: ours beside the paper's, what it is a mean of, what is to be said."""
    others = {(runs_of(n), what) for n in experiments() if runs_of(n) != n for what, _ in paper_lists(n)}
    rows = []
    for name in names:
        paper = paper_lists(name)
        own = [(what, metric) for n, what in sorted(tests.keys() - others, key=lambda on: on[1].replace(" test", ""))
               for metric in METRICS if n == name and metric in next(iter(tests[name, what].values()))]
        for what, metric in dict.fromkeys([*paper, *own]):  # the lists of `others` are in other rows
            ours, theirs = cell(tests.get((runs_of(name), what), {}), metric), paper.get((what, metric))
            if ours or theirs is not None:
                told = ours or {"note": ""}
                comparable = ours and theirs is not None and SYNTHETIC not in ours["note"]
                rows.append({"experiment": name, "what": experiments().get(name, {}).get("about", ""),
                             "tested on": what, "metric": metric, "ours": ours, "paper": theirs,
                             "delta": ours["mean"] - theirs if comparable else None,
                             **{key: told.get(key) for key in ("splits", "seeds", "scored", "note")}})
    return rows


def provenance(out: Path, names: list[str], tests: dict) -> list[tuple]:
    """Every training, test and retrieval: what it gave, on which data, by which code, where and in what time."""
    rows = []
    for folder in sorted(path for name in names for path in (out / name).glob("*-seed*")):
        found = [r for of in tests.values() for r in of.values() if r["path"] == str(folder)]
        for weights in [path for n in ("model", "backbone") if (path := folder / f"{n}.safetensors").exists()][:1]:
            told = [line["seconds"] for line in read_metrics(folder) if "seconds" in line]
            spent = sum(a for a, b in pairwise([*told, 0]) if b < a)  # a process that took over counts from 0
            found.insert(0, {**read_about(weights), "subset": "train", "seconds": spent})
        rows += [{"run": f"{folder.parent.name}/{folder.name}", "list": r["subset"],
                  "result": r.get("top1", r.get("R@1")),
                  "scored": f"{r['n_scored']}/{r['n_expected']}" if "n_scored" in r else None,
                  "manifest": r.get("manifest_hash") or "not prepared", "code": r.get("git_sha"),
                  "device": r.get("device"), "time": duration(r["seconds"]) if r.get("seconds") else None}
                 for r in found]
    return [("section", "What was run"), ("table", rows)] if rows else []


# ---- differences, paired


def paired(a, b) -> dict[str, float]:
    """Is a - b (n,) other than 0? Partners are of the same split and seed.

    Returns the mean; `half` the width of its 95 % t interval; p of the two-sided t test, for normal differences; p_flip
    of the sign-flip test, for symmetric ones: exact up to 16 pairs, beyond them of 65,536 random flips, and never below
    2 / 2^n. One pair has no interval and no p: NaN.
    """
    d = np.subtract(a, b)
    if len(d) == 1:
        return {"mean": d.mean(), "half": math.nan, "p": math.nan, "p_flip": math.nan}
    error, df = stats.sem(d), len(d) - 1
    flip = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**16, rng=0)
    p = 2 * stats.t.sf(abs(d.mean()) / error, df) if error else float(not d.any())
    return {"mean": d.mean(), "half": stats.t.ppf(0.975, df) * error, "p": p, "p_flip": flip.pvalue}


def common(a: dict[tuple, dict], b: dict[tuple, dict]) -> tuple[list[dict], list[dict]]:
    """The results {(split, seed): result} of a and of b, where both have one."""
    both = sorted(a.keys() & b.keys())
    return [a[key] for key in both], [b[key] for key in both]


def pairs(names: list[str], tests: dict) -> dict[tuple, tuple]:
    """What is compared: an experiment with its `against`, or NAME-be with NAME; and a test list with `swapped`.

    Returns {(difference, list): (results, other results)}, of all splits and seeds that both have.
    """
    found = {}
    for name in names:
        other = experiments().get(name, {}).get("against", name.replace("-be", "", 1))
        for what in [what for n, what in tests if n == name and "protocol" not in what]:
            if other != name:
                found[f"{name} - {other}", what] = common(tests[name, what], tests.get((runs_of(other), what), {}))
            dataset, _, subset = what.partition(" ")
            if subset == "swapped":
                test = tests.get((name, f"{dataset} test"), {})
                found[f"{name}: test - swapped", dataset] = common(test, tests[name, what])
    return {key: both for key, both in found.items() if both[0]}


def differences(out: Path, compared: dict[tuple, tuple]) -> list[tuple]:
    """A table and a picture of what `pairs` found, in points of top-1."""
    rows, drawn, path = [], {}, out / "report" / "differences.png"
    for (name, on), results in compared.items():
        x, y = ([r["top1"] for r in of] for of in results)
        d = paired(x, y)
        drawn[f"{name}, {on}"] = np.subtract(x, y)
        rows.append({"difference": name, "on": on, "first": mean(x), "second": mean(y), "delta": d["mean"],
                     "± 95 %": d["half"], "p of t": d["p"], "p of signs": d["p_flip"], "n": len(x),
                     "seeds": sorted({r["seed"] for r in results[0]})})
    if not rows:
        return []
    plot_differences(path, drawn, "Differences of top-1 between tests of the same split and seed: each, mean, 95 %")
    words = SECTIONS["differences"]
    return [("section", words["title"]), ("text", words["about"]), ("table", rows), ("image", path, "differences")]


# ---- pictures


def pyplot():
    """matplotlib's interface, drawing to files."""
    plt.switch_backend("Agg")
    return plt


def save(figure, path: Path):
    figure.savefig(path, dpi=110)
    plt.close(figure)


def panels(rows: int, columns: int, width: float, height: float, title: str):
    """A figure and its axes (rows * columns,), of `width` x `height` inches each."""
    size = (width * columns, height * rows)
    figure, axes = pyplot().subplots(rows, columns, squeeze=False, layout="constrained", figsize=size)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure, axes.flatten()


def plot_differences(path: Path, drawn: dict[str, np.ndarray], title: str):
    """A row for each name: a dot per pair, the mean and its 95 % interval."""
    figure, (axis,) = panels(1, 1, 8, 1 + 0.17 * len(drawn), title)
    for row, d in enumerate(drawn.values()):
        axis.plot(d, [row] * len(d), ".", color=COLOURS[5])
        axis.errorbar(d.mean(), row, xerr=paired(d, 0)["half"], fmt="s", ms=3, color=COLOURS[0])
    axis.axvline(0, color="0.3", lw=0.8)
    axis.set_yticks(range(len(drawn)), drawn)
    axis.set(xlabel="points", ylim=(len(drawn) - 0.5, -0.5))
    save(figure, path)


def curves(out: Path, names: list[str]) -> list[tuple]:
    """A picture per stage: every logged quantity that changes, over the epochs, a colour per experiment, all seeds."""
    blocks = []
    for stage in STAGES:
        path = out / "report" / f"{stage}.png"
        runs = [(name, lines) for name in names for run in sorted((out / name).glob(f"{stage}-*"))
                if (lines := read_metrics(run))]
        keys = dict.fromkeys(key for _, lines in runs for line in lines for key in line)
        if runs:
            keys = [key for key in keys if key not in ("step", "epoch", "seconds", "skipped")]
            plot_curves(path, stage, runs, keys, names)
            blocks += [("section", f"Curves of {stage}"), ("image", path, stage)]
    return blocks


def plot_curves(path: Path, stage: str, runs: list[tuple], keys: list[str], known: list[str]):
    """A panel per key over the epochs. runs: [(experiment, lines of metrics.jsonl)], a colour per one of `known`."""
    styles = dict(zip(known, cycle(plt.cycler(ls=["-", "--", ":"]) * plt.cycler(color=COLOURS)), strict=False))
    columns = min(4, len(keys))
    figure, axes = panels(-(-len(keys) // columns), columns, 3.2, 2.4, f"{stage}, over the epochs")
    for axis, key in zip(axes, keys, strict=False):
        axis.set_title(key, fontsize=9)
        for name, lines in runs:
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            axis.plot(*np.reshape(points, (-1, 2)).T, marker="." * (len(points) < 3), label=name, **styles[name])
    for axis in axes[len(keys):]:
        axis.axis("off")
    drawn = dict(zip([name for name, _ in runs], axes[0].lines, strict=True))
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=min(4, len(drawn)), fontsize=8)
    save(figure, path)


def answers(results: list[dict]) -> dict[str, torch.Tensor] | None:
    """What `evaluate` kept of all tests: probabilities (N, C), label (N,), ok (N,); None where one has nothing."""
    paths = [Path(r.get("path", "")) / f"probabilities-{r['subset']}.safetensors" for r in results]
    if not paths or not all(path.exists() for path in paths):
        return None
    kept = [load_file(path) for path in paths]
    return {key: torch.cat([part[key] for part in kept]) for key in kept[0]}


def confusion(results: list[dict]) -> tuple[torch.Tensor, list[str]] | None:
    """How many videos of a class (row) were taken for which (column), over all tests; None without `answers`.

    Returns (int64 (C, C + 1), names of the classes); the last column counts the unreadable.
    """
    kept = answers(results)
    if kept is None:
        return None
    C, model = kept["probabilities"].shape[1], Path(results[0]["path"]) / "model.safetensors"
    answer = torch.where(kept["ok"], kept["probabilities"].argmax(1), C)
    matrix = torch.bincount(kept["label"] * (C + 1) + answer, minlength=C * (C + 1)).view(C, C + 1)
    return matrix, read_about(model)["classes"] if model.exists() else [str(c) for c in range(C)]


def per_class(matrix: torch.Tensor) -> torch.Tensor:
    """Accuracy of each class in %, unreadable videos being wrong; NaN of a class without videos. (C, C + 1) -> (C,)"""
    return 100 * matrix.diagonal() / matrix.sum(1)


def by_class(out: Path, names: list[str], tests: dict, compared: dict[tuple, tuple]) -> list[tuple]:
    """What is gained in each class; and which classes are taken for which."""
    drawn = []
    for (name, on), both in compared.items():
        ours, theirs = map(confusion, both)
        if ours and theirs and ours[1] == theirs[1]:
            gain = per_class(ours[0]) - per_class(theirs[0])
            drawn.append((plot_gain, f"gain {name} {on}", (gain, ours[1])))
    for (name, on), found in tests.items():
        if name in names and (counted := confusion(list(found.values()))):
            drawn.append((plot_confusion, f"confusion {name} {on}", counted))
    blocks = []
    for draw, what, values in drawn:
        path = out / "report" / f"{re.sub('[^a-z0-9.]+', '-', what)}.png"
        draw(path, *values, what)
        blocks.append(("fold", what.capitalize(), [("image", path, what)]))
    return [("section", "By class"), *blocks] if blocks else []


def plot_gain(path: Path, gain: torch.Tensor, classes: list[str], title: str):
    """A dot per class, sorted. gain (C,): points or %, NaN of a class without videos."""
    order = gain.nan_to_num().argsort(descending=True).tolist()
    plot_differences(path, {classes[c]: gain[c : c + 1].numpy() for c in order}, title)


def plot_confusion(path: Path, matrix: torch.Tensor, classes: list[str], title: str):
    """matrix (C, C + 1): how many videos of a class were taken for which, the unreadable in the last column."""
    C = len(classes)
    side, size = min(15, max(4.5, 0.16 * C + 2)), 8 if C <= 20 else 5
    figure, (axis,) = panels(1, 1, side + 1, side, title)
    share = (100 * matrix / matrix.sum(1, keepdim=True)).nan_to_num().numpy()  # (C, C + 1)
    image = axis.imshow(share, cmap="Blues", norm="symlog", vmin=0, vmax=100)  # what is seldom is to be seen, too
    figure.colorbar(image, shrink=0.6, label="% of the class's videos")
    axis.set_xticks(range(C + 1), [*classes, "unreadable"], rotation=90, fontsize=size)
    axis.set_yticks(range(C), classes, fontsize=size)
    axis.set(xlabel="taken for", ylabel="class")
    axis.grid(False)
    save(figure, path)


def pictures(out: Path, names: list[str]) -> list[tuple]:
    """Pictures that other verbs left: beside the report, and in the runs of retrieval."""
    blocks = []
    for path in sorted(out.glob("*.png")):
        blocks += [("section", path.stem.replace("-", " ").capitalize()), ("image", path, path.stem)]
    for path in [path for name in names for path in sorted((out / name).glob("*/nearest-*.png"))]:
        blocks.append(("fold", str(path.relative_to(out)), [("image", path, path.stem)]))
    return blocks


# ---- Figures 4 and 5, and what the network sees


def figure4(out: str = "runs", dataset: str = "hmdb51", static: str = "figure4-static", base: str = "table1-moco",
            better: str = "table1-moco-be", subset: str = "test"):
    """figure4: what BE adds to a class, against what a network without motion knows of it (Figure 4)

    out             the folder of runs
    static          the experiment trained and tested on static videos (config key `static`)
    base, better    the experiments whose accuracies are compared, class by class
    dataset, subset the list they were tested on; all splits count that the three have, and seeds that the two have

    Pearson's r, with its two-sided p, of two gains (in points of top-1; in % of `base`, which has no value for a class
    of which `base` knows nothing) and two measures of `static` (its top-1; its mean probability of the right class).
    These, all classes and four scatter plots go to OUT/gain-DATASET-SUBSET.json, .md and .png.
    """
    tests, path, on = index(read_results(Path(out))), Path(out) / f"gain-{dataset}-{subset}", f"{dataset} {subset}"
    found = {name: tests.get((runs_of(name), on), {}) for name in (static, base, better)}
    splits = set.intersection(*({split for split, _ in of} for of in found.values()))
    still, *others = ({key: r for key, r in of.items() if key[0] in splits} for of in found.values())
    results = [list(still.values()), *common(*others)]  # seeds differ in what they know: a gain is of the same
    counted = [confusion(of) for of in results]
    if not all(counted):
        for name in [name for name, of in found.items() if not of]:
            raise RunError(f"{out}: no test of {name} on {on}; finetune and evaluate --cfg {name} first")
        raise RunError(f"{out}: {', '.join(found)} have no split of {dataset} in common (the last two: with the same "
                       f"seed), or the answers of a test are gone (probabilities-{subset}.safetensors)")
    (known, before, after), kept = (per_class(matrix) for matrix, _ in counted), answers(results[0])
    right = kept["probabilities"].gather(1, kept["label"][:, None])[:, 0] * kept["ok"]  # (N,)
    probability = 100 * torch.bincount(kept["label"], right, len(known)) / counted[0][0].sum(1)
    columns = {"static top-1": known, "static probability": probability, base: before, better: after,
               "gain": after - before, "gain, % of base": 100 * (after - before) / before}
    rows = [{"class": name, **{key: v[c].item() if v[c].isfinite() else None for key, v in columns.items()}}
            for c, name in enumerate(counted[0][1])]
    synthetic = any(r.get("synthetic") for of in results for r in of)
    title = f"{better} - {base}, {on}, splits {readable(sorted(splits))}{f', {SYNTHETIC}' * synthetic}"
    figure, axes = panels(2, 2, 5, 3.6, title)
    fits = []
    for axis, (y, x) in zip(axes, product(list(columns)[4:], list(columns)[:2]), strict=True):
        kept = [row for row in rows if row[x] is not None and row[y] is not None]
        r, p = correlate(axis, *([row[key] for row in kept] for key in (x, y, "class")))
        axis.set(xlabel=x, ylabel=y)
        fits.append({"y": y, "x": x, "r": r, "p": p, "classes": len(kept),
                     "left out": [row["class"] for row in rows if row not in kept]})
    save(figure, path.with_suffix(".png"))
    about = {"dataset": dataset, "subset": subset, "static": static, "base": base, "better": better,
             "splits": sorted(splits), "git_sha": git_sha(), "correlations": fits, "per_class": rows}
    write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    rows.sort(key=lambda row: -(row["gain"] or 0))
    text = [("text", f"{title}. In %, gain in points."), ("table", fits), ("table", rows)]
    if not synthetic and (paper := paper_numbers(static)).keys() >= {dataset, "pearson_r"}:
        text.insert(2, ("text", SECTIONS["figure4"]["about"].format(**paper)))
    text = page(text, Path(out))
    write_text(path.with_suffix(".md"), text + "\n")
    print(f"{text}\n\nwritten to {path}.json, .md, .png")


def correlate(axis, x: list[float], y: list[float], names: list[str]) -> tuple[float | None, float | None]:
    """Draws a dot per class and the least-squares line, and names the 8 classes that lie farthest from it.

    Returns Pearson's r and its two-sided p; None of fewer than 3 classes, or if x or y is the same for all.
    """
    axis.plot(x, y, ".", color=COLOURS[0])
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None, None
    line = stats.linregress(x, y)
    fitted = line.intercept + line.slope * np.array(x)
    axis.plot(x, fitted, lw=1, color=COLOURS[1])
    for c in np.abs(y - fitted).argsort()[-8:]:
        axis.annotate(names[c].replace("_", " "), (x[c], y[c]), (3, 2), textcoords="offset points", fontsize=6)
    axis.set_title(f"r = {line.rvalue:.2f}, p = {line.pvalue:.2g}", fontsize=9)
    return float(line.rvalue), float(line.pvalue)


def figure5(names: str = "figure5-*", out: str = "runs"):
    """figure5: top-1 of some experiments side by side, on all lists they were tested on, beside the paper's (Figure 5)

    names   a pattern such as figure5-*
    out     the folder of runs; the plot goes to OUT/bars-NAMES.png
    """
    known = fnmatch.filter(experiments(), names)
    rows = [row for row in table(known, index(read_results(Path(out)))) if row["ours"]]
    if not rows:
        raise RunError(f"{out}: no test of any of {names}: {', '.join(known) or 'no experiment has such a name'}")
    title = "; ".join(dict.fromkeys([names, *(row["note"] for row in rows if row["note"])]))
    figure, (axis,) = panels(1, 1, 2 + len(rows), 4, title)
    rows.sort(key=lambda row: row["tested on"], reverse=True)
    for x, row in enumerate(rows):
        colour = COLOURS[known.index(row["experiment"]) % len(COLOURS)]
        bar = axis.bar(x, row["ours"]["mean"], yerr=row["ours"]["sd"] or 0, color=colour)
        axis.bar_label(bar, [number(row["ours"])], fontsize=8, padding=2)
        if row["delta"] is not None:
            axis.plot(x, row["paper"], "k_", ms=24)
    axis.set_xticks(range(len(rows)), [f"{row['experiment']}\n{row['tested on']}" for row in rows])
    axis.set(ylabel="top-1, % (line: the paper's)", ylim=(0, 100))
    path = Path(out) / f"bars-{names.strip('*').strip('-') or 'all'}.png"
    save(figure, path)
    print(f"{page([('table', rows)], path.parent)}\n\nwritten to {path}")


def show_batch(cfg: Config):
    """show-batch: draw OUT/what-the-network-sees.png: some training clips as they enter the network, and distracted

    Of DRAWS distractions by `erase` the strongest is shown, since with most lam there is little to see.
    """
    samples = datasets.load_for(cfg, "train")
    sampler = partial(random_clips, K=1, T=cfg.frames, stride=cfg.stride)
    clips = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, train=True)
    batch = datasets.collate([clips[0, i] for i in range(0, len(clips), max(1, len(clips) // 3))][:3])
    (x,) = make_views(batch, ((0, 0),), Draws(cfg.seed, 0), cfg)  # (B, 3, T, S, S)
    erase = choose(ERASE, cfg.erase, "erase")
    distracted = [erase(x, Draws(cfg.seed, draw), cfg.gamma) for draw in range(DRAWS)]
    strongest = max(distracted, key=lambda x_d: (x_d - x).square().mean())
    frames = torch.stack([x, strongest], 1).flatten(0, 1)[:, :, :: max(1, cfg.frames // 8)]  # (2B, 3, F, S, S)
    picture = denormalise(frames).clamp(0, 1).permute(0, 3, 2, 4, 1)  # (2B, S, F, S, 3)
    rows, side, columns = picture.shape[:3]
    title = f"Clips, and the same distracted: {cfg.erase}, the strongest of {DRAWS} draws"
    figure, (axis,) = panels(1, 1, 1.1 * columns + 1, 1.15 * rows, title)
    axis.imshow(picture.reshape(rows * side, columns * side, 3).numpy())
    names = [f"{kind}\n{samples.classes[label]}" for label in batch.label for kind in ("original", "distracted")]
    axis.set_yticks([side * (row + 0.5) for row in range(rows)], names)
    axis.set_xticks([])
    axis.grid(False)
    path = Path(cfg.out) / "what-the-network-sees.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
    print(f"written to {path}")
