"""Results beside the paper's: tables, paired differences, curves, Figures 4 and 5; `report` puts them on one page.

All is read from finished runs. `index` sorts what `evaluate`, `linear` and `retrieve` left there:

    {(experiment, "hmdb51 test", "top1"): {(split, seed): result}}

be/quoted.yaml holds what is said, be/report.html.j2 and be/report.md.j2 how it looks.
"""

import base64
import fnmatch
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle, pairwise
from pathlib import Path
from statistics import mean, stdev

import jinja2
import numpy as np
import torch
import yaml
from matplotlib import pyplot as plt
from safetensors.numpy import load_file
from scipy import stats

from be.config import FREE_KEYS, STAGES, Config, experiments, load, paper_numbers
from be.datasets import DATASETS
from be.runs import END, RunError, duration, git_sha, read_metrics, read_results, write_text
from be.weights import read_about

SECTIONS = yaml.safe_load(Path(__file__).with_name("quoted.yaml").read_text(encoding="utf-8"))
COLUMNS, FORMATS, GLOSSARY, UNDRAWN = map(SECTIONS.pop, ("columns", "formats", "glossary", "undrawn"))
COLOURS = ("royalblue", "orangered", "seagreen", "orchid", "orange", "deepskyblue", "black")  # as CSS has them, too
LINES = ("solid", "dashed", "dotted", "dashdot")
PROTOCOL = ("test_clips", "select", "synthetic")  # of a test: results that differ in these make no common mean
METRICS = ("top1", "knn", "R@1", "R@5", "R@10", "R@20", "R@50")
TABLE3 = "hmdb51 test, split 1, protocol paper"  # what the paper retrieved
# In these a run may differ from its entry: which of its runs it is, and how it fits the machine
RUN_KEYS = FREE_KEYS - {"test_clips"} | {"name", "seed", "split", "synthetic", "accumulate", "compile"}


def report(out: str = "runs", names: str = "*"):
    """report: lay all results beside the paper's, in OUT/report.html and OUT/report.md

    out     the folder of runs to read; the report is written there, its pictures in OUT/report
    names   a pattern such as demo-* (default: all experiments that have a result or a number in the paper)

    report.html holds its pictures and needs nothing else, no network either. `figure5` and `bars` are this verb, too.
    """
    folder = Path(out)
    results = [*read_results(folder), *read_results(folder, "recall"), *read_results(folder, "linear")]
    tests = index(results)
    known = fnmatch.filter(dict.fromkeys([*experiments(), *(name for name, *_ in tests)]), names)
    ours = dict.fromkeys(map(runs_of, known))
    paths = [path for name in ours for path in sorted((folder / name).glob("*-seed*"))]
    if not paths and not any(name in known for name, *_ in tests):
        raise RunError(f"there is no run named {names} in {folder} with a test or an entry of its own: run.py status "
                       f"out={folder} lists those that are there")
    (folder / "report").mkdir(exist_ok=True)
    found = [*tables(known, tests), *differences(ours, tests)]
    first = {**SECTIONS["results"], "out": out, "names": names, "code": git_sha(), "headline": headline(found)}
    rest = [*settings(paths), provenance(folder, paths, results), *curves(folder, paths), *pictures(folder, paths)]
    shown, folded = ([section for section in found if section.get("fold", False) == fold] for fold in (False, True))
    for kind in ("md", "html"):
        text = page([first, *shown, SECTIONS["reading"], *rest, *folded], folder, kind)
        write_text(folder / f"report.{kind}", text)
    print(page([first, *shown], folder))
    print(f"written to {folder / 'report.html'} and {folder / 'report.md'}")


def headline(found: list[dict]) -> dict:
    """What the page begins with: the rows of its chart, and the difference of two experiments, best one of BE, that has
    the most pairs."""
    rows = [row for section in found for row in section["rows"]]
    chart = [row for row in rows if "ours" in row and row["metric"] == "top1"]
    tests = [row for row in chart if row["tested on"].endswith(" test")]
    pairs = [row for row in rows if "swapped" not in row.get("difference", "swapped")]
    best = max(pairs, key=lambda row: ("-be - " in row["difference"], row["n"]), default=None)
    return {"chart": tests if tests and len(chart) > 12 else chart, "pair": best}


# ---- pages

def page(sections: list[dict], folder: Path, kind: str = "md") -> str:
    """The text of a file in `folder`: Markdown, with links to pictures, or HTML that holds them (be/report.KIND.j2).

    A section has some of: title (the first one's is the page's), headline (see there), about, same (see `said_once`),
    rows (dicts), columns (the keys shown, or all), legend, pictures (paths), and fold, which hides it behind its title.
    """
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=kind == "html",
                                   trim_blocks=True, lstrip_blocks=True)
    templates.globals = {"readable": readable, "markdown": markdown, "relpath": os.path.relpath, "colours": COLOURS,
                         "b64encode": base64.b64encode}
    made = {"date": time.strftime("%Y-%m-%d %H:%M"), "torch": torch.__version__, "av": version("av")}
    text = templates.get_template(f"report.{kind}.j2").render(sections=sections, folder=folder, made=made)
    return text.strip() + "\n"


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
    if isinstance(value, list | tuple):
        return ", ".join(map(readable, value)) or "-"
    if value in (None, "") or value != value:
        return "-"
    return format(value, FORMATS.get(column, ".1f")) if isinstance(value, float) else str(value)


def said_once(rows: list[dict], columns) -> dict:
    """The rows and columns of a section, without the columns that say the same in all rows: `same` says it of these."""
    said = {column: {readable(row.get(column), column) for row in rows} for column in columns}
    once = {column: min(texts) for column, texts in said.items() if len(texts) == 1 and (len(rows) > 1 or "-" in texts)}
    return {"same": ", ".join(f"{column} {text}" for column, text in once.items() if text != "-"), "rows": rows,
            "columns": [column for column in columns if column not in once]}


# ---- tables

def entry(name: str) -> dict:
    """An experiment's; {} for a name that experiments.yaml does not have."""
    return experiments().get(name, {})


def runs_of(name: str) -> str:
    """The experiment whose runs a row of the paper stands for: itself, or the entry's `same_runs_as`."""
    return entry(name).get("same_runs_as", name)


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
            title, idle = section["title"], not any("ours" in row for row in rows)
            sections.append({"title": title + ": not run here" * idle, "about": section.get("what"), "fold": idle,
                             **said_once(rows, COLUMNS)})
            if "quoted" in section:
                rows = [dict(zip(section["columns"], row, strict=True)) for row in section["quoted"]]
                sections.append({**section, "title": f"{title}: numbers of others", "rows": rows, "fold": True})
    return sections


def table(names: list[str], tests: dict) -> list[dict]:
    """A row of COLUMNS for each experiment, list and metric that has a result or a number in the paper."""
    elsewhere = {(runs_of(n), *on) for n in experiments() if runs_of(n) != n for on in paper_lists(n)}
    rows = []
    for name in names:
        paper = paper_lists(name)
        own = [on for one, *on in tests if one == name and (one, *on) not in elsewhere]
        for what, metric in dict.fromkeys([*paper, *map(tuple, own)]):
            found, theirs = tests.get((runs_of(name), what, metric)), paper.get((what, metric))
            row = {"experiment": name, "what": entry(name).get("about"), "tested on": what, "metric": metric,
                   "paper": theirs}
            if found or theirs is not None:
                rows.append(row | (summary(found, metric, theirs) if found else {}))
    return rows


def summary(found: dict[tuple, dict], metric: str = "top1", paper: float | None = None) -> dict:
    """For each seed the mean over the splits, and what it is of; only seeds that have the most splits count.

    found: {(split, seed): result}. There is no delta to the paper of a run on synthetic videos, or of other settings
    than its entry's; `note` says so. `splits` of the paper's lists: how many of the official ones.
    """
    splits = defaultdict(list)
    for split, seed in sorted(found):
        splits[seed].append(split)
    most = max(splits.values(), key=len)
    seeds = sorted(seed for seed in splits if splits[seed] == most)
    results = [found[split, seed] for split in most for seed in seeds]
    ours = [mean(found[split, seed][metric] for split in most) for seed in seeds]
    notes = ["synthetic videos"] if any(r.get("synthetic") for r in results) else []
    if len({(r["split"], r["n_expected"]) for r in results}) > len(most):
        notes.append("lists of different length")
    notes += dict.fromkeys(note for r in results for note in other_settings(r["experiment"], Path(r["path"]), r))
    scored, expected, damaged = (sum(r.get(key, 0) for r in results) for key in ("n_scored", "n_expected", "n_damaged"))
    official = DATASETS.get(results[0]["dataset"]) if paper is not None else None
    if official and metric == "top1" and not notes:
        notes += dict.fromkeys(f"{r['n_expected']} of {listed} videos" for r in results
                               if (listed := official.expected.get((r["subset"], r["split"]), 0)) > r["n_expected"])
    return {"ours": ours, "delta": None if notes or paper is None else mean(ours) - paper,
            "splits": f"{len(most)} of {len(official.splits)}" if official else most, "seeds": seeds,
            "scored": f"{scored}/{expected}{f', {damaged} damaged' if damaged else ''}", "note": "; ".join(notes)}


def other_settings(name: str, path: Path, result: dict) -> list[str]:
    """`STAGE KEY=VALUE, ...` that the run in `path`, and the pre-training before it, have not from their entries.
    result: of a test, with what it says itself, such as `test_clips`; of a pre-training, empty."""
    stage, saved = path.name.split("-")[0].replace("linear", "finetune"), path / "config.yaml"
    if name not in experiments() or not saved.exists():
        return []
    cfg = load(str(saved))
    given = ["synthetic", "recipe", *["dataset"] * bool(result or cfg.synthetic)]  # the table names a test's
    theirs = load(name, [f"{key}={getattr(cfg, key)}" for key in given], stage)
    theirs = plain(replace(theirs, recipe=load(name).recipe))
    run = plain(replace(cfg, test_clips=result.get("test_clips", cfg.test_clips)))
    other = ", ".join(f"{key}={run[key]}" for key in sorted(run) if run[key] != theirs[key])
    found = [f"{stage} {other}"] if other else []
    if not result:
        return found
    source = name if cfg.pretrained == "self" else cfg.pretrained
    return found + other_settings(source, path.parents[1] / source / f"pretrain-seed{cfg.seed}", {})


def plain(cfg: Config) -> dict[str, str]:
    """What counts of a run's settings."""
    return {key: str([*value] if isinstance(value, tuple) else value) for key, value in vars(cfg).items()
            if key not in RUN_KEYS}


def settings(paths: list[Path]) -> list[dict]:
    """For each stage, a row of the keys in which its experiments differ; what they have in common is said once."""
    sections = []
    for stage in STAGES:
        files = [path / "config.yaml" for path in paths if path.name.startswith(stage)]
        rows = [{"experiment": file.parents[1].name, **plain(load(str(file)))} for file in files if file.exists()]
        rows = [row for n, row in enumerate(rows) if row not in rows[:n]]  # other seeds and splits are the same
        if rows:
            sections.append({"title": f"Settings of {stage}", "fold": True, **said_once(rows, rows[0])})
    return sections


def provenance(out: Path, paths: list[Path], results: list[dict]) -> dict:
    """Every training, test and retrieval: what it gave, on which data, by which code, where and in what time."""
    rows = []
    for folder in paths:
        found = [r for r in results if r["path"] == str(folder)]
        weights = folder / END.get(folder.name.split("-")[0], "")
        if weights.is_file():
            told = [line for line in read_metrics(folder) if "seconds" in line]
            last = {key: told[-1].get(key) for key in ("clips_per_s", "data_wait") if told}
            ends = [line["seconds"] for line in told] + [0]
            spent = sum(a for a, b in pairwise(ends) if b < a)  # a process that took over counts from 0
            found.insert(0, {**read_about(weights), **last, "subset": "train", "seconds": spent})
        rows += [{**r, "run": folder.relative_to(out), "time": duration(r.get("seconds", 0))} for r in found]
    section = SECTIONS["provenance"]
    return {**section, **said_once(rows, section["columns"])}


# ---- differences, paired

def paired(d: np.ndarray) -> dict[str, float]:
    """Is a difference (n,) other than 0? Its parts are of the same split and seed.

    Returns the mean; half the width of its 95 % t interval; p of the two-sided t test, for normal differences, and of
    the sign-flip test, for symmetric ones: exact up to 16 pairs, 65,536 random flips beyond. Of one pair NaN."""
    half = p = p_flip = math.nan
    if len(d) > 1:
        error, df = stats.sem(d), len(d) - 1
        half = stats.t.ppf(0.975, df) * error
        p = 2 * stats.t.sf(abs(d.mean()) / error, df) if error else float(not d.any())
        p_flip = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**16, rng=0).pvalue
    return {"delta": d.mean(), "± 95 %": half, "p of t": p, "p of signs": p_flip}


def differences(names: list[str], tests: dict) -> list[dict]:
    """An experiment less its `against`, or NAME-be less NAME; and a test list less `swapped`, the background gap. In
    points of top-1, of all splits and seeds that both have."""
    rows = []
    for name, what in [on for name in names for *on, metric in tests if on[0] == name and metric == "top1"]:
        others = entry(name).get("against", name.replace("-be", "", 1))
        here, whole = (name, what, "top1"), (name, what.replace("swapped", "test"), "top1")
        pairs = [(f"{name} - {other}", here, (runs_of(other), what, "top1"))
                 for other in ([others] if isinstance(others, str) else others)]
        for difference, a, b in (*pairs, (f"{name}: test - swapped", whole, here)):
            x, y = tests.get(a, {}), tests.get(b, {})
            if a != b and (both := common(x, y)):
                x, y = (np.array([found[key]["top1"] for key in both]) for found in (x, y))
                rows.append({"difference": difference, "on": what, "first": x.mean(), "second": y.mean(),
                             **paired(x - y), "n": len(both), "seeds": sorted({seed for _, seed in both})})
    return [{**SECTIONS["differences"], "rows": rows}] if rows else []


def common(x: dict[tuple, dict], y: dict[tuple, dict]) -> list[tuple]:
    """The splits and seeds of which both have a result by the same protocol."""
    return sorted(key for key in x.keys() & y.keys() if protocol(x[key]) == protocol(y[key]))


# ---- pictures

def save(figure, path: Path):
    figure.savefig(path, dpi=110)
    plt.close(figure)


def panels(rows: int, columns: int, width: float, height: float, title: str):
    """A figure and its axes (rows * columns,), of `width` x `height` inches each."""
    plt.switch_backend("Agg")
    with plt.rc_context({"axes.grid": True, "grid.alpha": 0.25, "font.size": 8}):
        size = (width * columns, height * rows)
        figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", figsize=size)
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure, axes.flatten()


def curves(out: Path, paths: list[Path]) -> list[dict]:
    """For each stage, a picture of every logged quantity over the epochs: a colour an experiment, a style a seed."""
    sections, colours = [], dict(zip(dict.fromkeys(path.parent.name for path in paths), cycle(COLOURS), strict=False))
    for stage in STAGES:
        runs = [(path.parent.name, path.name.split("-")[-1], read_metrics(path)) for path in paths
                if path.name.startswith(stage)]
        styles = dict(zip(sorted({seed for _, seed, _ in runs}), cycle(LINES), strict=False))
        found = {key for *_, lines in runs for line in lines for key in line}.difference(UNDRAWN)
        rows = [{"quantity": key, "meaning": GLOSSARY.get(key)} for key in [*GLOSSARY, *sorted(found - GLOSSARY.keys())]
                if key in found]
        drawn = [out / "report" / f"{stage}-{row['quantity']}.png" for row in rows]
        for row, path in zip(rows, drawn, strict=True):
            figure, (axis,) = panels(1, 1, 4.2, 2.4, key := row["quantity"])
            for name, seed, lines in runs:
                points = [(line["epoch"], line[key]) for line in lines if key in line]
                few = "." if len(points) < 3 else ""  # a line of one point would not be seen
                axis.plot(*np.reshape(points, (-1, 2)).T, color=colours[name], ls=styles[seed], marker=few)
            axis.set_xlabel("epoch")
            save(figure, path)
        if rows:
            legend = {name: colours[name] for name, *_ in runs} | styles
            sections.append({"title": f"Curves of {stage}", "legend": legend, "rows": rows, "pictures": drawn})
    return sections


def pictures(out: Path, paths: list[Path]) -> list[dict]:
    """Pictures that other verbs left: beside the report, and in the runs, of retrieval."""
    inside = [path for folder in sorted({path.parent for path in paths}) for path in sorted(folder.glob("*/*.png"))]
    return [{"title": path.relative_to(out), "pictures": [path], "fold": path in inside}
            for path in [*sorted(out.glob("*.png")), *inside]]


# ---- Figure 4

def figure4(out: str = "runs", dataset: str = "hmdb51", static: str = "figure4-static", base: str = "table1-moco",
            better: str = "table1-moco-be", subset: str = "test"):
    """figure4: what BE adds to a class, against what a network without motion knows of it (Figure 4)

    out             the folder of runs
    static          the experiment trained and tested on static videos (config key `static`)
    base, better    the experiments whose accuracies are compared, class by class
    dataset, subset the list they were tested on; all splits count that the three have, and seeds that the two have

    Pearson's r, with its two-sided p, of two gains (in points of top-1; in % of `base`, None for a class of which
    `base` knows nothing) and two measures of `static` (its top-1; its mean probability of the right class). These, all
    classes and four plots go to OUT/gain-DATASET-SUBSET.json, .md and .png.
    """
    path, names = Path(out) / f"gain-{dataset}-{subset}", (static, base, better)
    results = compared(Path(out), f"{dataset} {subset}", names)
    known, before, after = map(per_class, results)
    columns = {"static top-1": known, "static probability": per_class(results[0], soft=True), base: before,
               better: after, "gain": after - before,
               "gain, % of base": 100 * (after - before) / np.where(before, before, np.nan)}
    classes = read_about(Path(results[0][0]["path"]) / "model.safetensors")["classes"]
    values = zip(*([None if v != v else v for v in of.tolist()] for of in columns.values()), strict=True)  # NaN: None
    rows = [{"class": name, **dict(zip(columns, of, strict=True))} for name, of in zip(classes, values, strict=True)]
    rows = sorted((row for row in rows if row["gain"] is not None), key=lambda row: -row["gain"])
    fits = [{"y": y, "x": x, **correlation(rows, x, y)} for y in list(columns)[4:] for x in list(columns)[:2]]
    splits, synthetic = sorted({r["split"] for r in results[0]}), any(r.get("synthetic") for r in sum(results, []))
    title = f"{better} - {base}, {dataset} {subset}, splits {readable(splits)}{', synthetic videos' * synthetic}"
    figure, axes = panels(2, 2, 5, 3.6, title)
    for axis, fit in zip(axes, fits, strict=True):
        axis.plot(columns[fit["x"]], columns[fit["y"]], ".")
        found = f"r = {readable(fit['r'], 'r')}, p = {readable(fit['p'], 'p')}"
        axis.set(xlabel=fit["x"], ylabel=fit["y"], title=found)
    save(figure, path.with_suffix(".png"))
    about = {"static": static, "base": base, "better": better, "dataset": dataset, "subset": subset, "splits": splits,
             "git_sha": git_sha(), "correlations": fits, "per_class": rows}
    write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    paper = paper_numbers(static)
    theirs = SECTIONS["figure4"]["paper"].format(**paper) if dataset in paper and not synthetic else ""
    first = {"title": title, "about": "In %, gain in points.", "rows": fits}
    text = page([first, {"about": theirs, "rows": rows}], path.parent)
    write_text(path.with_suffix(".md"), text)
    print(f"{text}\nwritten to {path}.json, .md, .png")


def compared(out: Path, on: str, names) -> list[list[dict]]:
    """Results of three experiments on a list, of the splits that all have and seeds that the last two have; RunError
    where there are none."""
    tests = index(read_results(out))
    static, base, better = (tests.get((runs_of(name), on, "top1"), {}) for name in names)
    both = common(base, better)
    splits = {split for split, _ in static} & {split for split, _ in both}
    if not splits:
        there = ", ".join(sorted({f"{name} on {what}" for name, what, _ in tests})) or "nothing"
        raise RunError(f"{out}: no split of {on} on which all of {', '.join(names)} were tested, the last two with the "
                       f"same seed and test_clips; there are tests of {there}")
    return [[found[key] for key in keys if key[0] in splits]
            for found, keys in ((static, static), (base, both), (better, both))]


def per_class(results: list[dict], soft: bool = False) -> np.ndarray:
    """Accuracy in % of each class (C,), over all tests, unreadable videos being wrong; NaN of a class without videos.
    soft: the mean probability of the right class in its place. RunError where `evaluate` has not kept its answers."""
    right = videos = 0
    for r in results:
        path = Path(r["path"]) / f"probabilities-{r['subset']}.safetensors"
        if not path.exists():
            raise RunError(f"{path} does not exist: evaluate this run on {r['subset']} first")
        kept = load_file(path)
        label, p = kept["label"], kept["probabilities"]  # (N,), (N, C)
        hit = p[np.arange(len(label)), label] if soft else p.argmax(1) == label
        right += np.bincount(label, hit * kept["ok"], p.shape[1])
        videos += np.bincount(label, minlength=p.shape[1])
    return 100 * right / np.where(videos, videos, np.nan)


def correlation(rows: list[dict], *names: str) -> dict:
    """Pearson's r of two columns and its two-sided p, of rows that have both; None of less than 3, or of a constant."""
    both = [[row[name] for name in names] for row in rows if all(row[name] is not None for name in names)]
    x, y = np.reshape(both, (-1, 2)).T
    r, p = stats.pearsonr(x, y) if len(both) > 2 and np.ptp(x) and np.ptp(y) else (None, None)
    return {"r": r, "p": p, "classes": len(both)}
