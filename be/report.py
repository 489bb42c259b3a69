"""Verbs `report` and `strip`: what came out beside the paper's numbers, what it came from, and pictures of both."""

import fnmatch
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

from be import config
from be.config import experiments, paper_numbers
from be.page import as_html, as_markdown
from be.plots import per_class, plot_confusion, plot_curves, plot_gain, pyplot, save
from be.targets import ONE_SPLIT, VIDEOS

DRAWS = 8  # of `strip`
RECALLS = ("R@1", "R@5", "R@10", "R@20", "R@50")
TABLE3 = {"dataset": "hmdb51", "subset": "test", "split": 1, "protocol": "paper", "synthetic": False}
TITLES = {
    "demo": "The demo",
    "table1": "Table 1: fine-tuned on UCF101 and HMDB51",
    "table2": "Table 2: fine-tuned on Diving48",
    "table3": "Table 3: retrieval on HMDB51; ours / the paper's / delta",
    "table4": "Table 4: what distracts",
    "figure4": "Figure 4: a network without motion",
    "figure5": "Figure 5: HMDB51 with and without its background",
    "sweep": "Sweeps of gamma and of the temporal stride",
    "more": "Methods beyond the paper",
    "": "Others",
}


def report(out: str = "runs", names: str = "*"):
    """report: lay all results beside the paper's, in OUT/report.md and OUT/report.html

    out     the folder of runs to read; the report is written there, its pictures in OUT/report
    names   a pattern such as demo-* (default: all experiments that have a result or a number in the paper)

    report.html holds its pictures and needs nothing else, no network either.
    """
    from be.runs import git_sha, read_results, write_text  # torch takes seconds to import

    out = Path(out)
    (out / "report").mkdir(parents=True, exist_ok=True)
    results, recalls = read_results(out), read_results(out, "recall")
    known = [name for name in experiments() if fnmatch.fnmatch(name, names)]
    variants = {r["experiment"] for r in results + recalls} - experiments().keys()  # named on the command line
    known += sorted(name for name in variants if fnmatch.fnmatch(name, names))
    ours = list(dict.fromkeys(map(runs_of, known)))
    results, recalls = ([r for r in rows if r["experiment"] in ours] for rows in (results, recalls))

    said = [*tables(known, results, recalls), *reliance(ours, results)] or [("text", "No results yet.")]
    blocks = [
        ("title", "Results"),
        ("text", "Top-1 in %: the mean over the splits, and ± the standard deviation over seeds, if there are several. "
         "A video that cannot be read counts as wrong; the column 'scored' says how many were read, of how many."),
        *said, *curves(out, ours), *by_class(out, results), *pictures(out, recalls),
        *provenance(out, ours, results + recalls),
        ("text", f"Written by run.py report, code {git_sha()}."),
    ]
    write_text(out / "report.md", as_markdown(blocks, out) + "\n")
    write_text(out / "report.html", as_html(blocks))
    print(as_markdown(said, out).strip())
    print(f"\nwritten to {out / 'report.md'} and {out / 'report.html'}")


def runs_of(name: str) -> str:
    """The experiment whose runs a row of the paper stands for: itself, or the entry's `name`."""
    return experiments().get(name, {}).get("same_runs_as", name)


# ---- numbers


def aggregate(results: list[dict], metric: str = "top1") -> dict:
    """Mean over the splits for each seed, then mean and sd over the seeds; only seeds that have most splits count.

    Returns {(experiment, dataset, subset): dict(mean, sd or None, values, seeds, splits, n_scored, n_expected, notes)},
    values being those of the seeds.
    """
    cells = defaultdict(list)
    for r in results:
        cells[r["experiment"], r["dataset"], r["subset"]].append(r)
    summary = {}
    for cell, rows in cells.items():
        splits_of = {s: {r["split"] for r in rows if r["seed"] == s} for s in sorted({r["seed"] for r in rows})}
        most = max(splits_of.values(), key=len)
        seeds = [seed for seed in splits_of if splits_of[seed] == most]
        rows = [r for r in rows if r["seed"] in seeds]
        means = [mean(r[metric] for r in rows if r["seed"] == seed) for seed in seeds]
        notes = ["synthetic videos"] * any(r.get("synthetic") for r in rows)
        notes += ["epoch chosen on a hold-out"] * any(r.get("select") == "holdout" for r in rows)
        notes += [f"seed {seed} is incomplete, left out" for seed in splits_of if seed not in seeds]
        summary[cell] = {**spread(means), "values": means, "seeds": seeds, "splits": sorted(most), "notes": notes,
                         "n_scored": sum(r["n_scored"] for r in rows),
                         "n_expected": sum(r["n_expected"] for r in rows)}
    return summary


def spread(values: list[float]) -> dict:
    """Mean and standard deviation, which is None of one value."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}


def tables(names: list[str], results: list[dict], recalls: list[dict]) -> list[tuple]:
    """A section for each table of the paper: the rows that have a result, or a number in the paper."""
    blocks = []
    for group, title in TITLES.items():
        rows = [n for n in names if (n.split("-")[0] if n.split("-")[0] in TITLES else "") == group]
        found = [block for block in (table(rows, results), retrieval(rows, recalls)) if block]
        blocks += [("section", title), *found] if found else []
    return blocks


def table(names: list[str], results: list[dict]) -> tuple | None:
    """One row per experiment and test list: ours, the paper's, the difference; a missing run or number is `-`.

    Of what was run on synthetic videos there is no difference to the paper's.
    """
    summary, rows = aggregate(results), []
    others = {(runs_of(n), d) for n in experiments() if runs_of(n) != n for d in paper_numbers(n)}
    for name in names:
        paper, entry, runs = paper_numbers(name), experiments().get(name, {}), runs_of(name)
        lists = [(d, "test") for d in paper if d in VIDEOS]
        lists += [(d, s) for n, d, s in sorted(summary, key=lambda cell: (cell[1], cell[2] != "test", cell[2]))
                  if n == name and (d, s) not in lists and (n, d) not in others]  # not another row's
        for dataset, subset in lists:
            cell, theirs = summary.get((runs, dataset, subset)), paper.get(dataset) if subset == "test" else None
            if cell is None and theirs is None:
                continue
            rows.append([name, entry.get("about", ""), f"{dataset} {subset}", number(cell),
                         "-" if theirs is None else f"{theirs:.1f}", delta(cell, theirs), *counts(cell, dataset)])
    head = ["experiment", "what", "tested on", "top-1 %", "paper", "delta", "splits", "seeds", "scored", "note"]
    return ("table", head, rows) if rows else None


def delta(cell: dict | None, theirs: float | None) -> str:
    comparable = cell and theirs is not None and "synthetic videos" not in cell["notes"]
    return f"{cell['mean'] - theirs:+.1f}" if comparable else "-"


def counts(cell: dict | None, dataset: str) -> list[str]:
    """What a mean is of: splits, seeds, videos, and what is to be said of them."""
    if cell is None:
        return ["-", "-", "-", ""]
    splits, seeds = (", ".join(map(str, cell[key])) for key in ("splits", "seeds"))
    splits += "" if dataset in ONE_SPLIT or len(cell["splits"]) == 3 else " of 3"
    return [splits, seeds, f"{cell['n_scored']}/{cell['n_expected']}", "; ".join(cell["notes"])]


def reliance(names: list[str], results: list[dict]) -> list[tuple]:
    """Where a list with swapped scenes was tested too: what is lost when the scene no longer tells the class."""
    tests, rows = defaultdict(set), []
    for r in results:
        tests[r["experiment"], r["dataset"], r["subset"]].add((r["split"], r["seed"]))
    both = {(n, d): tests[n, d, "test"] & of for (n, d, s), of in list(tests.items()) if s == "swapped"}
    summary = aggregate([r for r in results  # of the same networks: seeds differ in what they know
                         if (r["split"], r["seed"]) in both.get((r["experiment"], r["dataset"]), ())])
    for name, dataset, subset in summary:
        if subset == "swapped" and name in names:
            test, swapped = summary[name, dataset, "test"], summary[name, dataset, "swapped"]
            pairs = zip(test["values"], swapped["values"], strict=True)
            rows.append([name, number(test), number(swapped), f"{test['mean'] - swapped['mean']:.1f}",
                         "; ".join(f"{a:.0f} / {b:.0f}" for a, b in pairs)])
    if not rows:
        return []
    rows.sort(key=lambda row: names.index(row[0]))
    return [("section", "Reliance on the background"),
            ("text", "Reliance on the background: top-1 with scenes as in training, minus top-1 with swapped scenes."),
            ("table", ["experiment", "biased", "swapped", "reliance", "biased / swapped of each seed"], rows)]


def retrieval(names: list[str], recalls: list[dict]) -> tuple | None:
    """Table 3: R@k in % for each list and protocol, mean and sd over the seeds; the paper's and the difference."""
    rows = []
    for name in names:
        groups, missing = defaultdict(list), {**TABLE3, "experiment": name}
        for r in recalls:
            if r["experiment"] == name:
                what = f"{r['dataset']} {r['subset']}, split {r['split']}" + ", synthetic videos" * r["synthetic"]
                groups[what, r["protocol"]].append(r)
        if not groups and paper_recalls(missing):
            groups["hmdb51 test, split 1", "paper"] = []
        for (what, protocol), found in groups.items():
            rows.append([name, what, protocol])
            paper = paper_recalls(found[0] if found else missing)
            for k in RECALLS:
                cell = {**spread([r[k] for r in found]), "notes": []} if found else None
                theirs = [f"{paper[k]:.1f}", delta(cell, paper[k])] if k in paper else []
                rows[-1].append(" / ".join([number(cell), *theirs]))
            scored = f"{sum(r['n_scored'] for r in found)}/{sum(r['n_expected'] for r in found)}"
            seeds = ", ".join(str(seed) for seed in sorted(r["seed"] for r in found))
            rows[-1] += [seeds, scored] if found else ["-", "-"]
    head = ["experiment", "retrieved on", "protocol", *(f"{k} %" for k in RECALLS), "seeds", "scored"]
    return ("table", head, rows) if rows else None


def paper_recalls(r: dict) -> dict[str, float]:
    """The paper's R@k in %, if it retrieved what the result `r` did: see TABLE3; else none."""
    same = all(r[key] == value for key, value in TABLE3.items())
    return {k: v for k, v in paper_numbers(r["experiment"]).items() if k in RECALLS} if same else {}


def number(cell: dict | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['mean']:.1f}" + (f" ± {cell['sd']:.1f}" if cell["sd"] is not None else "")


def provenance(out: Path, names: list[str], results: list[dict]) -> list[tuple]:
    """Every training, test and retrieval: what it gave, on which data, by which code, where and in what time."""
    from be.runs import duration, read_metrics
    from be.weights import read_about

    rows = []
    for folder in sorted(path for name in names for path in (out / name).glob("*-seed*")):
        weights = next((path for n in ("model", "backbone") if (path := folder / f"{n}.safetensors").exists()), None)
        found = [r for r in results if r["path"] == str(folder)]
        if weights:
            found.insert(0, {**read_about(weights), "subset": "train", "seconds": seconds(read_metrics(folder))})
        for r in found:
            top = next((f"{what} {r[key]:.2f}" for key, what in (("top1", "top-1"), ("R@1", "R@1")) if key in r), "")
            rows.append([f"{folder.parent.name}/{folder.name}", r["subset"], top,
                         f"{r['n_scored']}/{r['n_expected']}" if top else "", r.get("manifest_hash") or "not prepared",
                         r.get("git_sha", "-"), r.get("device", "-"),
                         duration(r["seconds"]) if r.get("seconds") else "-"])
    head = ["run", "list", "result", "scored", "manifest", "code", "device", "time"]
    return [("section", "What was run"), ("table", head, rows)] if rows else []


def seconds(lines: list[dict]) -> float:
    """Wall time of training, of all processes that worked on it one after the other: each counts from 0."""
    told = [line["seconds"] for line in lines if "seconds" in line] + [0]
    return sum(a for a, b in pairwise(told) if b < a)


# ---- pictures


def curves(out: Path, names: list[str]) -> list[tuple]:
    """A picture per stage: every logged quantity that changes, over the epochs, a colour per experiment, all seeds."""
    from be.runs import read_metrics

    blocks, names = [], [name for name in names if any((out / name).glob("*/metrics.jsonl"))]
    for stage in config.STAGES:
        runs = [(name, read_metrics(path)) for name in names for path in sorted((out / name).glob(f"{stage}-*"))]
        runs = [(name, metrics) for name, metrics in runs if metrics]
        if runs:
            hidden = {"step", "epoch", "seconds", "skipped"}
            keys = [k for k in dict.fromkeys(k for _, m in runs for line in m for k in line) if k not in hidden]
            plot_curves(out / "report" / f"{stage}.png", stage, runs, keys, names)
            blocks += [("section", f"Curves of {stage}"), ("image", out / "report" / f"{stage}.png", stage)]
    return blocks


def by_class(out: Path, results: list[dict]) -> list[tuple]:
    """Which classes are taken for which; and what BE adds to each, where an experiment was run with and without it."""
    cells, blocks = defaultdict(dict), []
    for r in results:
        cells[r["experiment"], r["dataset"], r["subset"]][r["split"], r["seed"]] = r
    for (name, dataset, subset), tests in cells.items():
        plain = name.replace("-be", "", 1)
        others = cells.get((plain, dataset, subset), {}) if plain != name else {}
        both = sorted(tests.keys() & others.keys())  # splits differ in how hard they are
        ours, theirs = (confusion([of[one] for one in both]) for of in (tests, others))
        if both and ours and theirs and ours[1] == theirs[1]:
            path = out / "report" / f"gain-{name}-{dataset}-{subset}.png"
            what = f"{name} minus {plain}, {dataset} {subset}: accuracy of each class; tests of both: {len(both)}"
            plot_gain(path, per_class(ours[0]) - per_class(theirs[0]), ours[1], what)
            blocks.append(("fold", what, [("image", path, what)]))
    counted = {cell: found for cell, tests in cells.items() if (found := confusion(list(tests.values())))}
    for (name, dataset, subset), (matrix, classes) in counted.items():
        path = out / "report" / f"confusion-{name}-{dataset}-{subset}.png"
        what = f"{name}, {dataset} {subset}: what each class was taken for"
        plot_confusion(path, matrix, classes, what)
        blocks.append(("fold", what, [("image", path, what)]))
    return [("section", "By class"), *blocks] if blocks else []


def confusion(results: list[dict]):
    """How many videos of a class (row) were taken for which (column), over all splits and seeds.

    Returns (int64 (C, C + 1), names of the classes); the last column counts the unreadable. None where the answers were
    not kept.
    """
    import torch
    from safetensors.torch import load_file

    from be.weights import WeightsError, read_about

    total, classes = 0, None
    for r in results:
        path = Path(r.get("path", "")) / f"probabilities-{r['subset']}.safetensors"
        if not path.exists():
            return None
        kept = load_file(path)
        C = kept["probabilities"].shape[1]
        answer = torch.where(kept["ok"], kept["probabilities"].argmax(1), C)
        total += torch.bincount(kept["label"] * (C + 1) + answer, minlength=C * (C + 1)).view(C, C + 1)
        try:
            classes = classes or read_about(path.with_name("model.safetensors"))["classes"]
        except WeightsError:
            classes = [str(c) for c in range(C)]
    return total, classes


def pictures(out: Path, recalls: list[dict]) -> list[tuple]:
    """Pictures that other verbs left beside the report, and the examples of retrieval."""
    blocks = []
    for path in sorted(out.glob("*.png")):
        blocks += [("section", path.stem.replace("-", " ").capitalize()), ("image", path, path.stem.replace("-", " "))]
    sheets = [(r, Path(r["path"]) / f"nearest-{r['protocol']}-{r['subset']}.png") for r in recalls]
    folds = [("fold", what := f"{r['experiment']}: nearest neighbours on {r['dataset']} {r['subset']}, protocol "
              f"{r['protocol']}", [("image", path, what)]) for r, path in sheets if path.exists()]
    return [*blocks, *([("section", "Nearest neighbours"), *folds] if folds else [])]


def strip(cfg: config.Config):
    """Draws OUT/what-the-network-sees.png: frames of some training clips, and the same distracted by `erase`

    The clips are views of training, as they enter the network. Of DRAWS distractions the one is shown that changes a
    clip most, since with most lam there is little to see.
    """
    import torch

    from be import datasets
    from be.augment import Draws, denormalise
    from be.erase import ERASE
    from be.train import make_views
    from be.video import random_clips

    samples = datasets.load(cfg.dataset, cfg.data, "train", cfg.split)
    sampler = partial(random_clips, K=1, T=cfg.frames, stride=cfg.stride)
    clips = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, train=True)
    batch = datasets.collate([clips[0, i] for i in range(0, len(clips), max(1, len(clips) // 3))][:3])
    (x,) = make_views(batch, ((0, 0),), Draws(cfg.seed, 0), cfg)  # (B, 3, T, S, S)
    erase = config.choose(ERASE, cfg.erase, "erase")
    tries = torch.stack([erase(x, Draws(cfg.seed, step), cfg.gamma) for step in range(DRAWS)])  # (DRAWS, B, 3, T, S, S)
    most = (tries - x).square().flatten(2).mean(2).argmax(0)  # (B,)
    x_d = tries[most, torch.arange(len(x))]
    rows = torch.stack([x, x_d], 1).flatten(0, 1)[:, :, :: max(1, cfg.frames // 8)]  # (2B, 3, 8, S, S)
    pixels = denormalise(rows).clamp(0, 1).permute(0, 2, 3, 4, 1)  # (2B, 8, S, S, 3)

    plt = pyplot()
    figure, axes = plt.subplots(*pixels.shape[:2], figsize=(1.1 * pixels.shape[1] + 1, 1.15 * len(pixels)),
                                layout="constrained")
    for i, row in enumerate(axes):
        for axis, frame in zip(row, pixels[i], strict=True):
            axis.imshow(frame)
            axis.set(xticks=[], yticks=[])
        name = samples.classes[batch.label[i // 2]]
        row[0].set_ylabel(("original", "distracted")[i % 2] + f"\n{name}", fontsize=8)
    figure.suptitle(f"Clips, and the same distracted: {cfg.erase}, the strongest of {DRAWS} draws", fontsize=10)
    path = Path(cfg.out) / "what-the-network-sees.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
    print(f"written to {path}")
