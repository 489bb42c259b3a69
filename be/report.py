"""Results beside the paper's: tables, paired differences, curves, Figures 4 and 5; `report` puts them on one page.

All is read from finished runs. `index` sorts what `evaluate` and `retrieve` left there:

    {(experiment, "hmdb51 test", "top1"): {(split, seed): result}}
"""

import base64
import dataclasses
import fnmatch
import json
import math
import os
from collections import defaultdict
from itertools import cycle, pairwise, product
from pathlib import Path
from statistics import mean, stdev

import jinja2
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from matplotlib import pyplot as plt
from safetensors.torch import load_file
from scipy import stats

from be.config import FREE_KEYS, STAGES, experiments, load, paper_numbers
from be.runs import END, RunError, duration, git_sha, read_metrics, read_results, write_text
from be.weights import read_about

SECTIONS = yaml.safe_load(Path(__file__).with_name("quoted.yaml").read_text(encoding="utf-8"))
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe-Ito: colour-blind safe
STYLE = {"xtick.labelsize": 7, "ytick.labelsize": 7, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True}
UNDRAWN = {"step", "epoch", "seconds", "skipped", "damaged"}  # of metrics.jsonl
PROTOCOL = ("test_clips", "select", "synthetic")  # of a test: results that differ in these make no common mean
METRICS = ("top1", "knn", "R@1", "R@5", "R@10", "R@20", "R@50")
TABLE3 = "hmdb51 test, split 1, protocol paper"  # what the paper retrieved
COLUMNS = ("experiment", "what", "tested on", "metric", "ours", "paper", "delta", "splits", "seeds", "scored", "note")
FORMATS = {"delta": "+.1f", "gain": "+.1f", "gain, % of base": "+.1f", "r": ".2f", "p": ".2g", "p of t": ".3f",
           "p of signs": ".3f"}  # of columns, other numbers have one digit
# In these a run may differ from its entry: which of its runs it is, and how it fits the machine
RUN_KEYS = FREE_KEYS - {"test_clips"} | {"name", "seed", "split", "synthetic", "accumulate", "compile"}


def report(out: str = "runs", names: str = "*"):
    """report: lay all results beside the paper's, in OUT/report.md and OUT/report.html

    out     the folder of runs to read; the report is written there, its pictures in OUT/report
    names   a pattern such as demo-* (default: all experiments that have a result or a number in the paper)

    report.html holds its pictures and needs nothing else, no network either.
    """
    out = Path(out)
    results = [result for kind in ("result", "recall", "linear") for result in read_results(out, kind)]
    tests = index(results)
    known = fnmatch.filter(dict.fromkeys([*experiments(), *(on[0] for on in tests)]), names)
    ours = list(dict.fromkeys(map(runs_of, known)))
    if not (any(on[0] in known for on in tests) or any(any((out / name).glob("*-seed*")) for name in ours)):
        raise RunError(f"there is no run named {names} in {out}: run.py status out={out} lists those that "
                       f"are there")
    (out / "report").mkdir(exist_ok=True)
    found = [*tables(known, tests), *differences(out, ours, tests)] or [{"about": "No results yet."}]
    sections = [SECTIONS["results"], *found, *curves(out, ours), *pictures(out, ours), provenance(out, ours, results)]
    for kind in ("md", "html"):
        write_text(out / f"report.{kind}", page(sections, out, kind))
    print(page([section | {"pictures": ()} for section in found if "fold" not in section], out))
    print(f"written to {out / 'report.md'} and {out / 'report.html'}")


# ---- pages


def page(sections: list[dict], folder: Path, kind: str = "md") -> str:
    """The text of a file in `folder`: Markdown, with links to pictures, or HTML that holds them (be/report.KIND.j2).

    A section has some of: title (the first one's is the page's), about, rows (dicts), columns (the keys shown, or all),
    pictures (paths), and fold, which hides it behind its title.
    """
    text = Path(__file__).with_name(f"report.{kind}.j2").read_text(encoding="utf-8")
    template = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True, autoescape=kind == "html")
    functions = {"readable": readable, "markdown": markdown, "relpath": os.path.relpath, "b64encode": base64.b64encode}
    return template.render(sections=sections, folder=folder, **functions).strip() + "\n"


def markdown(rows: list[dict], columns=None) -> str:
    """A table, aligned to be read as it is."""
    columns = list(columns or rows[0])
    lines = [columns, *([readable(row.get(column), column) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def readable(value, column: str = "") -> str:
    """A value of a table. Of several floats, one a seed: the mean ± the standard deviation. `-` for none."""
    if isinstance(value, list) and {*map(type, value)} == {float}:
        return " ± ".join(f"{of(value):.1f}" for of in (mean, stdev)[: len(value)])
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if value in (None, "") or value != value:
        return "-"
    return format(value, FORMATS.get(column, ".1f")) if isinstance(value, float) else str(value)


# ---- tables


def runs_of(name: str) -> str:
    """The experiment whose runs a row of the paper stands for: itself, or the entry's `same_runs_as`."""
    return experiments().get(name, {}).get("same_runs_as", name)


def index(results: list[dict]) -> dict[tuple, dict]:
    """Results by experiment, list and metric, then by split and seed: see the top of this file. Tests of another
    protocol than that of most clips are a list of their own: "hmdb51 test, test_clips=1"."""
    tests, usual = defaultdict(dict), {}
    for r in sorted(results, key=lambda r: (r["subset"], r.get("test_clips", 0)), reverse=True):  # test before swapped
        what = "{dataset} {subset}, split {split}, protocol {protocol}" if "protocol" in r else "{dataset} {subset}"
        what, own = what.format(**r) + ", frozen" * ("knn" in r), protocol(r)
        first = usual.setdefault((r["experiment"], what), own)
        what = ", ".join([what, *(f"{key}={own[key]}" for key in own if own[key] != first[key])])
        for metric in METRICS:
            if metric in r:
                tests[r["experiment"], what, metric][r["split"], r["seed"]] = r
    return dict(tests)


def protocol(result: dict) -> dict:
    return {key: result.get(key) for key in PROTOCOL}


def paper_lists(name: str) -> dict[tuple, float | None]:
    """A row's numbers in the paper: {("hmdb51 test", "top1"): 55.4, (TABLE3, "R@1"): 9.3}."""
    return {(TABLE3, key) if key in METRICS else (f"{key} test", "top1"): value
            for key, value in paper_numbers(name).items() if key not in ("pearson_r", "p_value")}


def tables(names: list[str], tests: dict) -> list[dict]:
    """A section for each table of the paper: rows with a result or a number in the paper, then what is only quoted."""
    sections = []
    for section in SECTIONS.values():
        mine = [n for n in names if SECTIONS.get(n.split("-")[0], SECTIONS["others"]) is section]
        if rows := table(mine, tests):
            sections.append({"title": section["title"], "rows": rows, "columns": COLUMNS})
            if "quoted" in section:
                rows = [dict(zip(section["columns"], row, strict=True)) for row in section["quoted"]]
                sections.append({**section, "title": "Not run here", "rows": rows, "fold": True})
    return sections


def table(names: list[str], tests: dict) -> list[dict]:
    """A row of COLUMNS for each experiment, list and metric that has a result or a number in the paper."""
    elsewhere = {(runs_of(n), *on) for n in experiments() if runs_of(n) != n for on in paper_lists(n)}
    rows = []
    for name in names:
        paper = paper_lists(name)
        own = [on[1:] for on in tests if on[0] == name and on not in elsewhere]
        for on in dict.fromkeys([*paper, *own]):
            found, theirs = tests.get((runs_of(name), *on)), paper.get(on)
            if found or theirs is not None:
                rows.append({"experiment": name, "what": experiments().get(name, {}).get("about"), "tested on": on[0],
                             "metric": on[1], "paper": theirs, **(summary(found, on[1], theirs) if found else {})})
    return rows


def summary(found: dict[tuple, dict], metric: str = "top1", paper: float | None = None) -> dict:
    """For each seed the mean over the splits, and what it is of; only seeds that have the most splits count.

    found: {(split, seed): result}. There is no delta to the paper of a run on synthetic videos, or of other settings
    than its entry's; `note` says so.
    """
    splits = {seed: sorted(s for s, other in found if other == seed) for _, seed in sorted(found)}
    most = max(splits.values(), key=len)
    seeds = sorted(seed for seed in splits if splits[seed] == most)
    results = [found[on] for on in product(most, seeds)]
    ours = [mean(found[split, seed][metric] for split in most) for seed in seeds]
    notes = ["synthetic videos"] * any(r.get("synthetic") for r in results)
    expected = [{found[split, seed]["n_expected"] for seed in seeds} for split in most]
    notes += ["lists of different length"] * any(len(lengths) > 1 for lengths in expected)
    notes += dict.fromkeys(key for r in results for key in other_settings(r["experiment"], Path(r["path"]), r))
    scored, expected, damaged = (sum(r.get(key, 0) for r in results) for key in ("n_scored", "n_expected", "n_damaged"))
    scored = f"{scored}/{expected}{f', {damaged} damaged' if damaged else ''}"
    return {"ours": ours, "delta": None if notes or paper is None else mean(ours) - paper, "splits": most,
            "seeds": seeds, "scored": scored, "note": "; ".join(notes)}


def other_settings(name: str, path: Path, result: dict) -> list[str]:
    """`STAGE KEY=VALUE, ...` that the run in `path`, and the pre-training before it, have not from their entries.

    result: of a test, with what it says itself, such as `test_clips`; of a pre-training, empty.
    """
    stage, saved = path.name.split("-")[0].replace("linear", "finetune"), path / "config.yaml"
    if name not in experiments() or not saved.exists():
        return []
    run = dataclasses.asdict(load(str(saved))) | result
    given = ["synthetic", "recipe"] + ["dataset"] * (bool(result) or run["synthetic"])  # the table names a test's
    entry = dataclasses.asdict(load(name, [f"{key}={run[key]}" for key in given], stage))
    entry["recipe"] = load(name).recipe
    found = sorted(f"{key}={run[key]}" for key in entry.keys() - RUN_KEYS if run[key] != entry[key])
    source = name if run["pretrained"] == "self" else run["pretrained"]
    before = path.parents[1] / source / f"pretrain-seed{run['seed']}"
    return [f"{stage} {', '.join(found)}"] * bool(found) + (other_settings(source, before, {}) if result else [])


def provenance(out: Path, names: list[str], results: list[dict]) -> dict:
    """Every training, test and retrieval: what it gave, on which data, by which code, where and in what time."""
    rows = []
    for folder in sorted(path for name in names for path in (out / name).glob("*-seed*")):
        found = [r for r in results if r["path"] == str(folder)]
        for weights in folder.glob(END.get(folder.name.split("-")[0], "-")):
            told = [line["seconds"] for line in read_metrics(folder) if "seconds" in line]
            spent = sum(a for a, b in pairwise([*told, 0]) if b < a)  # a process that took over counts from 0
            found.insert(0, {**read_about(weights), "subset": "train", "seconds": spent})
        rows += [{**r, "run": folder.relative_to(out), "time": duration(r.get("seconds", 0))} for r in found]
    section = SECTIONS["provenance"]
    return {**section, "about": f"Report by code {git_sha()}. {section['about']}", "rows": rows}


# ---- differences, paired


def paired(d: np.ndarray) -> dict[str, float]:
    """Is a difference (n,) other than 0? Its parts are of the same split and seed.

    Returns the mean; half the width of its 95 % t interval; p of the two-sided t test, for normal differences, and of
    the sign-flip test, for symmetric ones: exact up to 16 pairs, 65,536 random flips beyond. Of one pair NaN.
    """
    half = p = p_flip = math.nan
    if len(d) > 1:
        error, df = stats.sem(d), len(d) - 1
        half = stats.t.ppf(0.975, df) * error
        p = 2 * stats.t.sf(abs(d.mean()) / error, df) if error else float(not d.any())
        p_flip = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**16, rng=0).pvalue
    return {"delta": d.mean(), "± 95 %": half, "p of t": p, "p of signs": p_flip}


def differences(out: Path, names: list[str], tests: dict) -> list[dict]:
    """An experiment less its `against`, or NAME-be less NAME; and a test list less `swapped`, the background gap.

    In points of top-1, of all splits and seeds that both have.
    """
    rows, drawn, path = [], {}, out / "report" / "differences.png"
    for name, what, metric in [on for on in tests if on[0] in names and on[2] == "top1"]:
        others = experiments().get(name, {}).get("against", name.replace("-be", "", 1))
        here, whole = (name, what, metric), (name, what.replace("swapped", "test"), metric)
        pairs = [(f"{name} - {other}", here, (runs_of(other), what, metric))
                 for other in ([others] if isinstance(others, str) else others)]
        for difference, a, b in (*pairs, (f"{name}: test - swapped", whole, here)):
            x, y = tests.get(a, {}), tests.get(b, {})
            both = sorted(key for key in x.keys() & y.keys() if protocol(x[key]) == protocol(y[key]))
            if a != b and both:
                x, y = np.array([[tests[on][key]["top1"] for key in both] for on in (a, b)])
                drawn[f"{difference}, {what}"] = x - y
                rows.append({"difference": difference, "on": what, "first": x.mean(), "second": y.mean(),
                             **paired(x - y), "n": len(both), "seeds": sorted({seed for _, seed in both})})
    if not rows:
        return []
    plot_differences(path, drawn, "Differences of top-1 between tests of the same split and seed: each, mean, 95 %")
    return [{**SECTIONS["differences"], "rows": rows, "pictures": [path]}]


# ---- pictures


def save(figure, path: Path):
    figure.savefig(path, dpi=110)
    plt.close(figure)


def panels(rows: int, columns: int, width: float, height: float, title: str):
    """A figure and its axes (rows * columns,), of `width` x `height` inches each."""
    size = (width * columns, height * rows)
    plt.switch_backend("Agg")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", figsize=size)
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure, axes.flatten()


def plot_differences(path: Path, drawn: dict[str, np.ndarray], title: str):
    """A row for each name: a dot per pair, the mean and its 95 % interval."""
    figure, (axis,) = panels(1, 1, 8, 1 + 0.17 * len(drawn), title)
    for name, d in drawn.items():
        axis.plot(d, [name] * len(d), ".", color=COLOURS[5])
        axis.errorbar(d.mean(), name, xerr=paired(d)["± 95 %"], fmt="s", ms=3, color=COLOURS[0])
    axis.axvline(0, color="0.3", lw=0.8)
    axis.set(xlabel="points", ylim=(len(drawn) - 0.5, -0.5))
    save(figure, path)


def curves(out: Path, names: list[str]) -> list[dict]:
    """A picture per stage: every logged quantity over the epochs, a panel each; a colour per experiment, all seeds."""
    sections = []
    styles = dict(zip(names, cycle(plt.cycler(ls=["-", "--", ":"]) * plt.cycler(color=COLOURS)), strict=False))
    for stage in STAGES:
        path = out / "report" / f"{stage}.png"
        runs = [(name, read_metrics(run)) for name in names for run in sorted((out / name).glob(f"{stage}-*"))]
        keys = sorted({key for _, lines in runs for line in lines for key in line} - UNDRAWN)
        if not keys:
            continue
        figure, axes = panels(len(keys), 1, 8, 1.8, f"{stage}, over the epochs")
        for axis, key in zip(axes, keys, strict=True):
            axis.set_ylabel(key)
            for name, lines in runs:
                x, y = ([line[of] for line in lines if key in line] for of in ("epoch", key))
                axis.plot(x, y, marker="." * (len(x) < 3), label=name, **styles[name])
        drawn = {line.get_label(): line for line in axes[0].lines}
        figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=4, fontsize=8)
        save(figure, path)
        sections.append({"title": f"Curves of {stage}", "pictures": [path]})
    return sections


def pictures(out: Path, names: list[str]) -> list[dict]:
    """Pictures that other verbs left: beside the report, and in the runs, of retrieval and of error analysis."""
    inside = [path for name in names for path in sorted((out / name).glob("*/*.png"))]
    return [{"title": path.relative_to(out), "pictures": [path], "fold": path in inside}
            for path in [*sorted(out.glob("*.png")), *inside]]


def answers(results: list[dict]) -> dict[str, torch.Tensor]:
    """What `evaluate` kept of all tests: probabilities (N, C), label (N,), ok (N,) bool. RunError where it is gone."""
    kept = []
    for r in results:
        path = Path(r["path"]) / f"probabilities-{r['subset']}.safetensors"
        if not path.exists():
            raise RunError(f"{path} does not exist: evaluate this run on {r['subset']} first")
        kept.append(load_file(path))
    return {key: torch.cat([part[key] for part in kept]) for key in kept[0]}


def confusion(results: list[dict], soft: bool = False) -> tuple[torch.Tensor, list[str]]:
    """How many videos of a class (row) were taken for which (column), over all tests. `soft`: with which probability.

    Returns ((C, C + 1), names of the classes); the last column counts the unreadable.
    """
    kept = answers(results)
    p, label, ok = (kept[key] for key in ("probabilities", "label", "ok"))
    answer = p if soft else F.one_hot(p.argmax(1), p.shape[1])
    answer = torch.cat([answer * ok[:, None], ~ok[:, None]], 1)  # (N, C + 1)
    matrix = answer.new_zeros(p.shape[1], answer.shape[1]).index_add(0, label, answer)
    return matrix, read_about(Path(results[0]["path"]) / "model.safetensors")["classes"]


def per_class(matrix: torch.Tensor) -> torch.Tensor:
    """Accuracy of each class in %, unreadable videos being wrong; NaN of a class without videos. (C, C + 1) -> (C,)"""
    return 100 * matrix.diagonal() / matrix.sum(1)


def plot_gain(path: Path, gain: torch.Tensor, classes: list[str], title: str):
    """A dot per class, sorted. gain (C,): points or %, NaN of a class without videos."""
    order = gain.nan_to_num().argsort(descending=True).tolist()
    plot_differences(path, {classes[c]: gain[c : c + 1].numpy() for c in order}, title)


def plot_confusion(path: Path, matrix: torch.Tensor, classes: list[str], title: str):
    """matrix (C, C + 1): how many videos of a class were taken for which, the unreadable in the last column."""
    C = len(classes)
    figure, (axis,) = panels(1, 1, 0.11 * C + 5, 0.11 * C + 4, title)
    share = (100 * matrix / matrix.sum(1, keepdim=True)).nan_to_num().numpy()  # (C, C + 1)
    image = axis.imshow(share, cmap="Blues", norm="symlog", vmin=0, vmax=100)  # what is seldom is to be seen, too
    figure.colorbar(image, shrink=0.6, label="% of the class's videos")
    axis.set_xticks(range(C + 1), [*classes, "unreadable"], rotation=90)
    axis.set_yticks(range(C), classes)
    axis.set(xlabel="taken for", ylabel="class")
    axis.grid(False)
    save(figure, path)


# ---- Figures 4 and 5


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
    path, about = Path(out) / f"gain-{dataset}-{subset}", {"static": static, "base": base, "better": better}
    results = compared(Path(out), f"{dataset} {subset}", *about.values())
    known, before, after = (per_class(confusion(of)[0]) for of in results)
    soft, classes = confusion(results[0], soft=True)
    columns = {"static top-1": known, "static probability": per_class(soft), base: before, better: after,
               "gain": after - before, "gain, % of base": 100 * (after - before) / before}
    splits, synthetic = sorted({r["split"] for r in results[0]}), any(r.get("synthetic") for of in results for r in of)
    title = f"{better} - {base}, {dataset} {subset}, splits {readable(splits)}{', synthetic videos' * synthetic}"
    figure, axes = panels(2, 2, 5, 3.6, title)
    fits = [correlate(axis, columns, x, y, classes)
            for axis, (y, x) in zip(axes, product(list(columns)[4:], list(columns)[:2]), strict=True)]
    save(figure, path.with_suffix(".png"))
    rows = [{"class": name} | {key: of[c].item() if of[c].isfinite() else None for key, of in columns.items()}
            for c, name in enumerate(classes)]
    about |= {"dataset": dataset, "subset": subset, "splits": splits, "git_sha": git_sha(), "correlations": fits}
    write_text(path.with_suffix(".json"), json.dumps({**about, "per_class": rows}, indent=1) + "\n")
    rows.sort(key=lambda row: -(row["gain"] or 0))
    paper = paper_numbers(static)
    theirs = SECTIONS["figure4"]["about"].format(**paper) if dataset in paper and not synthetic else ""
    first = {"title": title, "about": "In %, gain in points.", "rows": fits}
    text = page([first, {"about": theirs, "rows": rows}], path.parent)
    write_text(path.with_suffix(".md"), text)
    print(f"{text}\nwritten to {path}.json, .md, .png")


def compared(out: Path, on: str, *names: str) -> list[list[dict]]:
    """Results of three experiments on a list, of the splits that all have and seeds that the last two have; RunError
    where there are none."""
    tests = index(read_results(out))
    static, base, better = (tests.get((runs_of(name), on, "top1"), {}) for name in names)
    both = [key for key in base if key in better and key[0] in {split for split, _ in static}
            and base[key].get("test_clips") == better[key].get("test_clips")]
    if not both:
        raise RunError(f"{out}: no split of {on} on which all of {', '.join(names)} were tested, the last two with the "
                       f"same seed and test_clips; finetune and evaluate them first")
    still = [r for (split, _), r in static.items() if split in {split for split, _ in both}]
    return [still, [base[key] for key in both], [better[key] for key in both]]


def correlate(axis, columns: dict[str, torch.Tensor], x: str, y: str, names: list[str]) -> dict:
    """Draws a dot per class and the least-squares line, and names the 8 classes that lie farthest from it.

    x, y: of the columns (C,); a class without one of them, NaN or infinite, does not count. Returns Pearson's r, its
    two-sided p, and how many `classes` count; r and p are None of fewer than 3, or if x or y is the same for all.
    """
    kept = (columns[x] + columns[y]).isfinite()
    a, b, names = columns[x][kept].numpy(), columns[y][kept].numpy(), np.array(names)[kept]
    fit = {"y": y, "x": x, "r": None, "p": None, "classes": len(a)}
    axis.plot(a, b, ".", color=COLOURS[0])
    axis.set(xlabel=x, ylabel=y)
    if len(a) > 2 and np.ptp(a) and np.ptp(b):
        line = stats.linregress(a, b)
        fitted = np.polyval(line[:2], a)
        axis.plot(a, fitted, lw=1, color=COLOURS[1])
        for c in np.abs(b - fitted).argsort()[-8:]:
            axis.annotate(names[c].replace("_", " "), (a[c], b[c]), (3, 2), textcoords="offset points", fontsize=6)
        axis.set_title(f"r = {line.rvalue:.2f}, p = {line.pvalue:.2g}", fontsize=9)
        fit |= {"r": line.rvalue, "p": line.pvalue}
    return fit


def figure5(names: str = "figure5-*", out: str = "runs"):
    """figure5: top-1 of some experiments side by side, on all lists they were tested on, beside the paper's (Figure 5)

    names   a pattern such as figure5-*
    out     the folder of runs; the plot goes to OUT/bars-NAMES.png
    """
    rows = [row for row in table(fnmatch.filter(experiments(), names), index(read_results(Path(out)))) if "ours" in row]
    if not rows:
        raise RunError(f"{out}: no test of an experiment named {names}")
    rows.sort(key=lambda row: row["tested on"], reverse=True)
    notes = dict.fromkeys(row["note"] for row in rows if row["note"])
    figure, (axis,) = panels(1, 1, 2 + len(rows), 4, "; ".join([names, *notes]))
    for row in rows:
        x, ours = f"{row['experiment']}\n{row['tested on']}", row["ours"]
        bar = axis.bar(x, mean(ours), yerr=np.std(ours, ddof=len(ours) > 1), color=COLOURS[0])
        axis.bar_label(bar, [readable(ours)], fontsize=8, padding=2)
        axis.plot(x, row["paper"] if row["delta"] is not None else math.nan, "k_", ms=24)
    axis.set(ylabel="top-1, % (line: the paper's)", ylim=(0, 100))
    save(figure, path := Path(out) / f"bars-{names.strip('*').strip('-') or 'all'}.png")
    print(f"{markdown(rows, COLUMNS)}\n\nwritten to {path}")
