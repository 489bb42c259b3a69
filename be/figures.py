"""Verbs `gain` and `bars`: the paper's Figures 4 and 5, drawn from finished tests. No network runs."""

import fnmatch
import json
import math
from pathlib import Path

import numpy as np

from be.config import experiments, paper_numbers
from be.page import markdown
from be.plots import COLOURS, per_class, pyplot, save
from be.report import aggregate, confusion, number, runs_of
from be.runs import RunError, git_sha, read_results, write_text

# ---- Figure 4


def gain(out: str = "runs", dataset: str = "hmdb51", static: str = "figure4-static", base: str = "table1-moco",
         better: str = "table1-moco-be", subset: str = "test"):
    """gain: what BE adds to a class, against what a model without motion knows of it (Figure 4)

    out             the folder of runs
    static          the experiment trained and tested on static videos (config key `static`)
    base, better    the experiments whose accuracies are compared, class by class
    dataset, subset the list they were tested on; all splits count, and all seeds that `base` and `better` both have

    The relative gain is 100 (better - base) / base, in % of the accuracy of `base`. It has no value for a class of
    which `base` knows nothing: that is left out and named. Pearson's r (none of less than 3 classes) with its two-sided
    p value, a table and a scatter plot go to OUT/gain-DATASET-SUBSET.json, .md and .png.
    """
    results = [r for r in read_results(Path(out)) if (r["dataset"], r["subset"]) == (dataset, subset)]
    top1, splits = {}, {}
    tests = {name: {(r["split"], r["seed"]) for r in results if r["experiment"] == runs_of(name)}
             for name in (base, better)}
    both = tests[base] & tests[better]
    for name in (static, base, better):
        rows = [r for r in results if r["experiment"] == runs_of(name)]
        if name != static and both:  # seeds differ in what they know: a difference is of the same
            rows = [r for r in rows if (r["split"], r["seed"]) in both]
        counted = confusion(rows) if rows else None
        if counted is None:
            raise RunError(f"{out}: no test of {name} on {dataset} {subset}; finetune and evaluate --cfg {name} first")
        top1[name], classes = per_class(counted[0]), counted[1]  # (C,) %
        splits[name] = sorted({r["split"] for r in rows})
    if len({tuple(s) for s in splits.values()}) > 1:
        raise RunError(f"{out}: the three were not tested on the same splits of {dataset}: {splits}")
    kept = (top1[base] > 0).nonzero().flatten().tolist()  # NaN, a class without videos, is not
    left_out = [name for c, name in enumerate(classes) if c not in kept]
    x = top1[static][kept]
    y = 100 * (top1[better] - top1[base])[kept] / top1[base][kept]
    r, p = pearson(x, y)
    paper = paper_numbers(static)
    result = {"dataset": dataset, "subset": subset, "static": static, "base": base, "better": better,
              "splits": splits[base], "classes": len(kept), "left_out": left_out, "git_sha": git_sha(),
              "pearson_r": None if r != r else r, "p_value": None if p != p else p,
              "per_class": {classes[c]: {"static": top1[static][c].item(), "base": top1[base][c].item(),
                                         "better": top1[better][c].item()} for c in kept}}  # fmt: skip
    synthetic = any(row.get("synthetic") for row in results)
    head = (f"Pearson r = {r:.2f}, p = {p:.2g}" if r == r else "No correlation to be had") + (
        f", {len(kept)} of {len(classes)} classes of {dataset} {subset}" + ", synthetic videos" * synthetic)
    comparable = "pearson_r" in paper and not synthetic
    theirs = f"; the paper: r = {paper['pearson_r']}, p = {paper['p_value']}" if comparable else ""
    left = f"Left out, for {base} knows nothing of them: {', '.join(left_out)}." if left_out else ""
    rows = [[classes[c], *(f"{top1[n][c]:.1f}" for n in (static, base, better)), f"{v:+.1f}"]
            for c, v in sorted(zip(kept, y.tolist(), strict=True), key=lambda pair: -pair[1])]
    text = [head + theirs, left, "", *markdown(["class", static, base, better, "gain, % of base"], rows)]
    path = Path(out) / f"gain-{dataset}-{subset}"
    write_text(path.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(path.with_suffix(".md"), "\n".join(text) + "\n")
    scatter(path.with_suffix(".png"), x, y, [classes[c] for c in kept], head, static, base, better)
    print("\n".join(text) + f"\n\nwritten to {path}.json, .md, .png")


def pearson(x, y) -> tuple[float, float]:
    """Pearson's r of x and y (n,), and the two-sided p value: how often |r| is as large without correlation.

    For normal x or y, r = sin(a) has the density cos(a)^(n - 3) / B(1/2, n/2 - 1) in a under the null hypothesis (R. A.
    Fisher 1915). Its tail is integrated by Gauss and Legendre. NaN if x or y is constant, or n < 3.
    """
    if len(x) < 3:
        return math.nan, math.nan
    x, y = (np.asarray(v, np.float64) - np.mean(np.asarray(v, np.float64)) for v in (x, y))
    norm, n = math.sqrt((x @ x) * (y @ y)), len(x)
    if norm == 0:
        return math.nan, math.nan
    r = max(-1.0, min(1.0, (x @ y) / norm))
    beta = math.gamma(0.5) * math.exp(math.lgamma(n / 2 - 1) - math.lgamma(n / 2 - 0.5))
    place, weight = np.polynomial.legendre.leggauss(200)
    half = (math.pi / 2 - math.asin(abs(r))) / 2  # of the tail from asin |r| to pi / 2
    tail = half * (weight @ np.sin(half * (1 - place)) ** (n - 3))
    return r, min(1.0, 2 * tail / beta)


def scatter(path, x, y, names, head, static, base, better):
    """A labelled dot per class and the least-squares line. x (n,): top-1 of `static`, y (n,): relative gain, both %."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    if len(x) and x.min() < x.max():
        slope, start = np.polyfit(x.numpy(), y.numpy(), 1)
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, start + slope * ends, color=COLOURS[1], lw=1.5, label="least squares")
        axis.legend(fontsize=8, frameon=False)
    axis.axhline(0, color="0.6", lw=0.8, zorder=0)
    axis.scatter(x, y, s=22, color=COLOURS[0], zorder=3)
    axis.margins(0.08)
    axis.set_xlabel(f"top-1 of static videos ({static}), %")
    axis.set_ylabel(f"relative gain of {better}\nover {base}, %")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(head, fontsize=10)
    figure.canvas.draw()  # labels go where they hide least, which takes the scale of the picture
    dots, inside = (values * 72 / figure.dpi for values in (axis.transData.transform(np.stack([x, y], 1)),
                                                            axis.bbox.extents))  # fmt: skip
    for place, name, (dx, dy) in zip(zip(x, y, strict=True), names, label_places(dots, names, inside), strict=True):
        axis.annotate(name.replace("_", " "), place, (dx, dy), textcoords="offset points", fontsize=6, color="0.25",
                      va="center", ha="left" if dx > 0 else "right" if dx < 0 else "center")
    save(figure, path)


def label_places(dots, names, inside, height: float = 7, letter: float = 3.5):
    """For each dot (n, 2) one of 8 offsets at which its label hides the fewest dots and labels before it.

    All in points; inside: left, bottom, right, top, which a label should not leave.
    """
    taken, chosen = [], []
    for (x, y), name in zip(dots, names, strict=True):
        width, best = letter * len(name), None
        for dx, dy in ((4, 0), (-4, 0), (0, 6), (0, -6), (4, 5), (4, -5), (-4, 5), (-4, -5)):
            left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
            box = np.array([left, y + dy - height / 2, left + width, y + dy + height / 2])
            hidden = ((dots > box[:2]) & (dots < box[2:])).all(1).sum()
            hidden += sum((box[:2] < b[2:]).all() and (box[2:] > b[:2]).all() for b in taken)
            hidden += 3 * ((box[:2] < inside[:2]).any() or (box[2:] > inside[2:]).any())
            if best is None or hidden < best[0]:
                best = hidden, box, (dx, dy)
        taken.append(best[1])
        chosen.append(best[2])
    return chosen


# ---- Figure 5


def bars(names: str, out: str = "runs"):
    """bars: top-1 of some experiments side by side, on all data sets they were tested on, beside the paper's (Figure 5)

    names   a pattern such as figure5-*
    out     the folder of runs; the plot goes to OUT/bars-NAMES.png
    """
    known = [name for name in experiments() if fnmatch.fnmatch(name, names)]
    summary = aggregate([r for r in read_results(Path(out)) if r["subset"] == "test"])
    datasets = list(dict.fromkeys(d for name in known for d in paper_numbers(name))) or list(
        dict.fromkeys(d for n, d, _ in summary if n in map(runs_of, known)))
    cells = {(name, d): summary.get((runs_of(name), d, "test")) for name in known for d in datasets}
    if not any(cells.values()):
        raise RunError(f"{out}: no test of any of {names}: {', '.join(known) or 'no experiment has such a name'}")
    notes = sorted({note for c in cells.values() if c for note in c["notes"]})
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(2.2 + 1.1 * len(known) * len(datasets), 4), layout="constrained")
    width, marked = 0.8 / len(known), False
    for n, name in enumerate(known):
        x = np.arange(len(datasets)) + (n - (len(known) - 1) / 2) * width
        ours = [cells[name, d] for d in datasets]
        bar = axis.bar(x, [c["mean"] if c else 0 for c in ours], width * 0.92, color=COLOURS[n % len(COLOURS)],
                       label=name, yerr=[(c and c["sd"]) or 0 for c in ours], error_kw={"lw": 1, "ecolor": "0.3"})
        axis.bar_label(bar, [number(c) for c in ours], fontsize=8, padding=2)
        for place, d in zip(x, datasets, strict=True):
            if (theirs := paper_numbers(name).get(d)) is not None and "synthetic videos" not in notes:
                axis.hlines(theirs, place - width * 0.46, place + width * 0.46, color="k", lw=1.5, ls=":",
                            label=None if marked else "the paper's")
                marked = True
    axis.set_xticks(range(len(datasets)), datasets)
    axis.set_ylabel("top-1, %")
    axis.set_ylim(0, 100)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axis.set_title("; ".join([f"{names}: mean over splits, sd over seeds", *notes]), fontsize=9)
    path = Path(out) / f"bars-{names.strip('*').strip('-') or 'all'}.png"
    save(figure, path)
    rows = [[name, *(number(cells[name, d]) for d in datasets)] for name in known]
    print("\n".join(markdown(["experiment", *datasets], rows)) + f"\n\nwritten to {path}")
