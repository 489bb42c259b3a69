"""Verbs `list`, `report`, `strip`: the registry, what came out of it beside the paper's numbers, and pictures."""

import fnmatch
from collections import defaultdict
from functools import partial
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

    results, recalls = ([r for r in read_results(Path(out), kind) if fnmatch.fnmatch(r["experiment"], names)]
                        for kind in ("result", "recall"))
    known = [n for n in config.experiments() if fnmatch.fnmatch(n, names)]
    known += sorted({r["experiment"] for r in results + recalls} - set(known))  # variants named on the command line
    text = ["# Results", "", *table(known, results), *reliance(known, results), *curves(Path(out), known)]
    text += [*retrieval(known, recalls), *pictures(Path(out))]
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
        lists += [(d, "test") for d in paper if (d, "test") not in lists and not d.startswith("R@")]
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
    """Where a list with swapped scenes was tested too: what is lost when the scene no longer tells the class."""
    summary, rows = aggregate(results), []
    for name, dataset, subset in summary:
        if subset == "swapped" and (name, dataset, "test") in summary and name in names:
            test, swapped = summary[name, dataset, "test"], summary[name, dataset, "swapped"]
            rows.append([name, number(test), number(swapped), f"{test['mean'] - swapped['mean']:.1f}"])
    if not rows:
        return []
    rows.sort(key=lambda row: names.index(row[0]))
    return ["", "Reliance on the background: top-1 with scenes as in training, minus top-1 with swapped scenes.", "",
            *markdown(["experiment", "biased", "swapped", "reliance"], rows)]


def retrieval(names: list[str], results: list[dict]) -> list[str]:
    """Table 3: R@k in % for each list and protocol, mean and sd over the seeds, the paper's in brackets."""
    cells = defaultdict(list)
    for r in results:
        cells[r["experiment"], f"{r['dataset']} {r['subset']}, split {r['split']}, {r['protocol']}"].append(r)
    rows, ks = [], [key for key in (results[0] if results else {}) if key.startswith("R@")]
    for name, what in sorted(cells, key=lambda cell: names.index(cell[0])):
        paper = config.paper_numbers(name) if "test" in what and what.endswith("paper") else {}
        values = {k: [r[k] for r in cells[name, what]] for k in ks}
        rows.append([name, what, *(number({"mean": mean(v), "sd": stdev(v) if len(v) > 1 else None})
                                   + (f" ({paper[k]})" if k in paper else "") for k, v in values.items())])
    head = ["experiment", "retrieved on", *(f"{k} %" for k in ks)]
    return ["", "## Retrieval", "", *markdown(head, rows)] if rows else []


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
    plt = pyplot()
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    names = list(dict.fromkeys(name for name, _ in runs))
    for axis, key in zip(axes.flat, keys, strict=False):
        for name, metrics in runs:
            points = [(line["epoch"], line[key]) for line in metrics if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), color=COLOURS[names.index(name) % len(COLOURS)], lw=1.2)
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
    lines = []
    for path in sorted(out.glob("*.png")):
        if path.stem not in config.STAGES:
            lines += ["", f"## {path.stem.replace('-', ' ')}", "", f"![{path.stem}]({path.name})"]
    return lines


def strip(cfg: config.Config):
    """Draws OUT/what-the-network-sees.png: frames of some training clips, and the same distracted by `erase`

    The rows of a pair are the two views x_o and x_d of one video, as they enter the network.
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
    draws = Draws(cfg.seed, 0)
    x_o, x_v = make_views(batch, ((0, 0), (0, 1)), draws, cfg)  # (B, 3, T, S, S) each
    x_d = config.choose(ERASE, cfg.erase, "erase")(x_v, draws, cfg.gamma)
    rows = torch.stack([x_o, x_d], 1).flatten(0, 1)[:, :, :: max(1, cfg.frames // 8)]  # (2B, 3, 8, S, S)
    pixels = denormalise(rows).clamp(0, 1).permute(0, 2, 3, 4, 1)  # (2B, 8, S, S, 3)

    plt = pyplot()
    figure, axes = plt.subplots(*pixels.shape[:2], figsize=(1.1 * pixels.shape[1] + 1, 1.15 * len(pixels)),
                                layout="constrained")  # fmt: skip
    for i, row in enumerate(axes):
        for axis, frame in zip(row, pixels[i], strict=True):
            axis.imshow(frame)
            axis.set(xticks=[], yticks=[])
        name = samples.classes[batch.label[i // 2]]
        row[0].set_ylabel(("x_o", "x_d")[i % 2] + f"\n{name}", fontsize=8)
    figure.suptitle(f"Two views of a video: augmented (x_o), and also distracted (x_d): {cfg.erase}", fontsize=10)
    path = Path(cfg.out) / "what-the-network-sees.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"written to {path}")


def pyplot():
    """matplotlib's interface, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
