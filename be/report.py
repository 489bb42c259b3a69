"""Verbs `list` and `report`: the registry, and what came out of it beside the paper's numbers."""

import fnmatch
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from be import config

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe-Ito: colour-blind safe


def show_list(names: str = "*"):
    """list: show the experiments and the paper's numbers

    names   a pattern such as table1-* (default: all)
    """
    for name, entry in config.experiments().items():
        if fnmatch.fnmatch(name, names):
            paper = ", ".join(f"{key} {value}" for key, value in config.paper_numbers(name).items())
            print(f"{name:32}{entry.get('about', '')}{f'  [paper: {paper}]' if paper else ''}")


def report(out: str = "runs", names: str = "*"):
    """report: lay all results beside the paper's, in OUT/report.md with plots

    out     the folder of runs to read; the report is written there
    names   a pattern such as demo-* (default: all experiments that have a result or a number in the paper)
    """
    from be.runs import read_results, write_text  # torch takes seconds to import, `list` does not need it

    results = [r for r in read_results(Path(out)) if fnmatch.fnmatch(r["experiment"], names)]
    known = [n for n in config.experiments() if fnmatch.fnmatch(n, names)]
    known += sorted({r["experiment"] for r in results} - set(known))  # variants named on the command line
    text = ["# Results", "", *table(known, results), *reliance(known, results), *curves(Path(out), known)]
    text += pictures(Path(out))
    path = Path(out) / "report.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(text) + "\n")
    print("\n".join([*table(known, results), *reliance(known, results)]))
    print(f"\nwritten to {path}")


def aggregate(results: list[dict], metric: str = "top1") -> dict:
    """Mean over the splits for each seed, then mean and sd over the seeds.

    Returns {(experiment, dataset, subset): dict(mean, sd or None, seeds, splits, n_scored, n_expected)}.
    """
    cells = defaultdict(list)
    for r in results:
        cells[r["experiment"], r["dataset"], r["subset"]].append(r)
    summary = {}
    for cell, rows in cells.items():
        by_seed = defaultdict(list)
        for r in rows:
            by_seed[r["seed"]].append(r[metric])
        means = [mean(values) for values in by_seed.values()]
        summary[cell] = dict(
            mean=mean(means), sd=stdev(means) if len(means) > 1 else None, seeds=sorted(by_seed),
            splits=sorted({r["split"] for r in rows}), n_scored=sum(r["n_scored"] for r in rows),
            n_expected=sum(r["n_expected"] for r in rows))  # fmt: skip
    return summary


def table(names: list[str], results: list[dict]) -> list[str]:
    """One row per experiment and test list: ours, the paper's, the difference; a missing run or number is `-`."""
    summary, rows = aggregate(results), []
    for name in names:
        paper, about = config.paper_numbers(name), config.experiments().get(name, {}).get("about", "")
        lists = [(d, s) for (n, d, s) in summary if n == name]
        lists += [(d, "test") for d in paper if (d, "test") not in lists]
        for dataset, subset in lists:
            cell, theirs = summary.get((name, dataset, subset)), paper.get(dataset) if subset == "test" else None
            rows.append([
                name, about, f"{dataset} {subset}", number(cell),
                "-" if theirs is None else f"{theirs:.1f}",
                "-" if cell is None or theirs is None else f"{cell['mean'] - theirs:+.1f}",
                "-" if cell is None else f"{', '.join(map(str, cell['splits']))} / {len(cell['seeds'])}",
                "-" if cell is None else f"{cell['n_scored']}/{cell['n_expected']}"])  # fmt: skip
    if not rows:
        return ["No results yet."]
    head = ["experiment", "what", "tested on", "top-1 %", "paper", "delta", "splits / seeds", "scored"]
    return markdown(head, rows)


def reliance(names: list[str], results: list[dict]) -> list[str]:
    """Where a list with swapped scenes was tested too: what the model loses when the scene no longer tells the class."""
    summary, rows = aggregate(results), []
    for name, dataset, subset in summary:
        if subset == "swapped" and (name, dataset, "test") in summary and name in names:
            test, swapped = summary[name, dataset, "test"], summary[name, dataset, "swapped"]
            rows.append([name, number(test), number(swapped), f"{test['mean'] - swapped['mean']:.1f}"])
    if not rows:
        return []
    rows.sort(key=lambda row: names.index(row[0]))
    return ["", "Reliance on the background (top-1 with scenes as in training, minus top-1 with swapped scenes):", "",
            *markdown(["experiment", "biased", "swapped", "reliance"], rows)]


def number(cell: dict | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['mean']:.1f}" + (f" ± {cell['sd']:.1f}" if cell["sd"] is not None else "")


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    def line(cells):
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
    return [line(head), line(["-" * w for w in widths]), *map(line, rows)]


def curves(out: Path, names: list[str]) -> list[str]:
    """A PNG per stage: every logged quantity that changes, over the steps, one colour per experiment, all seeds."""
    from be.runs import read_metrics

    lines = []
    for stage in config.STAGES:
        runs = [(name, read_metrics(path)) for name in names for path in sorted((out / name).glob(f"{stage}-*"))]
        runs = [(name, metrics) for name, metrics in runs if metrics]
        if not runs:
            continue
        hidden = {"step", "epoch", "seconds", "skipped"}
        keys = [k for k in dict.fromkeys(k for _, m in runs for line in m for k in line) if k not in hidden]
        plot_curves(out / f"{stage}.png", stage, runs, keys)
        lines += ["", f"## {stage}", "", f"![{stage}]({stage}.png)"]
    return lines


def plot_curves(path: Path, stage: str, runs: list, keys: list[str]):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(keys))
    figure, axes = plt.subplots(-(-len(keys) // columns), columns, squeeze=False, layout="constrained",
                                figsize=(3.2 * columns, 2.4 * -(-len(keys) // columns)))  # fmt: skip
    names = list(dict.fromkeys(name for name, _ in runs))
    for axis, key in zip(axes.flat, keys, strict=False):
        for name, metrics in runs:
            points = [(line["epoch"], line[key]) for line in metrics if key in line]
            axis.plot(*zip(*points, strict=True), color=COLOURS[names.index(name) % len(COLOURS)], lw=1.2) if points else None
        axis.set_title(key, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(keys):]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("epoch", fontsize=8)
    handles = [plt.Line2D([], [], color=COLOURS[i % len(COLOURS)]) for i in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=8)
    figure.suptitle(stage, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def pictures(out: Path) -> list[str]:
    """Pictures that other verbs left beside the report."""
    found = [path for path in sorted(out.glob("*.png")) if path.stem not in config.STAGES]
    return [line for path in found for line in ("", f"## {path.stem.replace('-', ' ')}", "", f"![{path.stem}]({path.name})")]
