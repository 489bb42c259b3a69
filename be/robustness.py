"""What does the accuracy of a fine-tuned model rest on? One table and one plot for one run or several (`robustness`).

Every test video is shown whole and changed (be/manipulate.py), with the same `test_clips` clips each time:

    original            the accuracy as `evaluate` has it
    one frame           the frame in the middle of each clip, repeated: no motion. What is left of the accuracy is to
                        be had from looks alone
    shuffled            all frames of each clip, in random order
    scene only          without the actor. At best chance, for a model of actions
    actor elsewhere     the actor pasted into the still scene of a video of another class. What is lost was the scene's.
                        `fooled` is the share of answers that name the class of that other video: chance is 1 / classes
    BE, lam             Eq. 1 at test time: a random frame of the clip mixed into all of it with weight lam

All in % of the videos of the list; one that cannot be read is wrong everywhere. On synthetic videos there is a
question more, a conflict of cues: where the scene is of the family of another class (the list `swapped` is full of
such), how often is the answer the motion's class, and how often the scene's?
"""

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from accelerate.utils import gather_object

from be import manipulate, synthetic
from be.augment import Draws
from be.config import Config, ConfigError
from be.evaluate import accuracy, load_classifier, load_list, over_videos, views
from be.manipulate import MANIPULATIONS, mixed
from be.report import COLOURS, markdown, number, pyplot
from be.runs import RunError, git_sha, make_accelerator, write_text
from be.video import even_clips

LAMBDAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def robustness(*runs: tuple[Path, Config]):
    """robustness: test fine-tuned models on videos without motion, without actors, before other scenes

    The list is `subset`; several are tested one after the other with subset=test,swapped. `scene` says how scene and
    actor are told apart. Runs of one experiment (seeds, splits) are averaged. Numbers, a table and a plot go to
    OUT/robustness-DATASET-SUBSET.json, .md and .png. What the columns mean: be/robustness.py.
    """
    first = runs[0][1]
    accelerator = make_accelerator(first)
    if len({cfg.dataset for _, cfg in runs}) > 1:
        raise ConfigError(f"runs on different data sets cannot stand side by side: {[c.dataset for _, c in runs]}")
    for subset in first.subset.split(","):
        rows = []
        for path, cfg in runs:
            model, classes = load_classifier(cfg, path)
            samples = load_list(cfg, subset, classes)
            measured = measure(model.to(accelerator.device), samples, cfg, accelerator)
            rows.append({"experiment": cfg.name, "run": str(path), "split": cfg.split, "seed": cfg.seed, **measured})
        if accelerator.is_main_process:
            about = {"dataset": first.dataset, "subset": subset, "test_clips": first.test_clips, "scene": first.scene,
                     "classes": len(classes), "git_sha": git_sha(), "device": str(accelerator.device)}
            out = Path(first.out) / f"robustness-{first.dataset}-{subset}"
            write_text(out.with_suffix(".json"), json.dumps({**about, "runs": rows}, indent=1) + "\n")
            head = f"Top-1 in %, {first.dataset} {subset}, {first.test_clips} clips a video, scene: {first.scene}"
            text = [head, "", *table(rows)]
            write_text(out.with_suffix(".md"), "\n".join(text) + "\n")
            plot(out.with_suffix(".png"), rows, head, len(classes))
            print("\n".join(text) + f"\n\nwritten to {out}.json, .md, .png")


def measure(model, samples, cfg: Config, accelerator) -> dict[str, float]:
    """All numbers of one model on one list, in %."""
    model.eval()
    sampler = partial(even_clips, K=cfg.test_clips, T=cfg.frames, stride=cfg.stride)
    take = manipulate.taker(samples, sampler, cfg.short_side, cfg.scene == "rendered")
    scenes = still_scenes(samples, cfg, accelerator)
    partner = partners(samples.labels, list(scenes), cfg.seed)

    def compute(x, i):
        draws = Draws(cfg.seed, i, device=x.device)  # by the video: the same for any number of processes
        shot = take(x, i, scenes[partner[i]].to(x), draws)
        frame = draws.randint(x.shape[2], len(x))  # k of Eq. 1, the same for all lam
        frame = x[torch.arange(len(x), device=x.device), :, frame].unsqueeze(2)  # (K, 3, 1, S, S)
        clips = [change(shot) for change in MANIPULATIONS.values()] + [mixed(x, frame, lam) for lam in LAMBDAS]
        return torch.stack([model.logits(y).float().softmax(1).mean(0) for y in clips])  # (M, classes)

    probabilities, ok = over_videos(compute, samples, sampler, cfg, accelerator, "robustness")  # (N, M, classes)
    label, answer = torch.from_numpy(samples.labels), probabilities.argmax(2)  # (N,), (N, M)
    names = [*MANIPULATIONS, *(f"BE, {lam}" for lam in LAMBDAS)]
    result = {name: accuracy(probabilities[:, m], label, ok)["top1"] for m, name in enumerate(names)}
    other = torch.tensor([label[partner[i]] if i in partner else -1 for i in range(len(samples))])
    result["fooled"] = share(answer[:, names.index("actor elsewhere")] == other, ok)
    if specs := manipulate.specs(samples.root):
        family = list(synthetic.SCENES)
        scene = torch.tensor([family.index(specs[path].scene) for path in samples.paths])  # the class it belongs to
        conflict = ok & (scene != label)
        result["conflict: motion"] = share((answer[:, 0] == label)[conflict])
        result["conflict: scene"] = share((answer[:, 0] == scene)[conflict])
    return {**result, "n_scored": int(ok.sum()), "n_expected": len(samples)}


def still_scenes(samples, cfg, accelerator) -> dict[int, torch.Tensor]:
    """The scene of every readable video, from its central clip: {i: half (3, S, S)}, in the order of the list."""
    sampler = partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    take, found = manipulate.taker(samples, sampler, cfg.short_side, cfg.scene == "rendered"), {}
    for i, x in views(samples, sampler, cfg, accelerator, "scenes"):
        if x is not None:
            found[i] = take(x, i, None, None).scene[0, :, cfg.frames // 2].half().cpu()
    found = {i: scene for part in gather_object([found]) for i, scene in part.items()}
    return dict(sorted(found.items()))


def partners(labels, readable: list[int], seed: int) -> dict[int, int]:
    """For each readable video another one of another class, drawn from (seed, i). RunError if there is none."""
    readable = np.array(readable, np.int64)
    if len(np.unique(labels[readable])) < 2:
        raise RunError(f"{len(readable)} readable videos of one class: nobody has the scene of another one")
    return {i: int(np.random.default_rng((seed, i)).choice(readable[labels[readable] != labels[i]]))
            for i in readable.tolist()}  # fmt: skip


def share(true, ok=None) -> float:
    """In %, of all; those not `ok` count as false. NaN of none."""
    return 100 * (true if ok is None else true & ok).float().mean().item()


def cells(rows) -> dict[str, dict[str, dict]]:
    """experiment -> column -> dict(mean, sd or None) over its runs; only columns that have a number."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["experiment"]].append(row)
    columns = [c for c in rows[0] if c not in ("experiment", "run", "split", "seed", "n_scored", "n_expected")]
    return {name: {c: {"mean": mean(r[c] for r in group), "sd": stdev(r[c] for r in group) if len(group) > 1 else None}
                   for c in columns if all(r[c] == r[c] for r in group)} for name, group in groups.items()}  # fmt: skip


def table(rows) -> list[str]:
    """Models side by side, a line for each manipulation."""
    summary = cells(rows)
    lines = list(dict.fromkeys(column for row in summary.values() for column in row))
    scored = [f"{sum(r['n_scored'] for r in rows if r['experiment'] == name)}/"
              f"{sum(r['n_expected'] for r in rows if r['experiment'] == name)}" for name in summary]
    return markdown(["", *summary], [[line, *(number(row.get(line)) for row in summary.values())] for line in lines]
                    + [["scored", *scored]])


def plot(path, rows, head, classes):
    """Left, a group of bars for each manipulation; right, accuracy over lam. Error bars: sd over runs, if several."""
    plt, summary = pyplot(), cells(rows)
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2))
    groups = [c for c in next(iter(summary.values())) if not c.startswith("BE")]
    width = 0.8 / len(summary)
    for n, (name, row) in enumerate(summary.items()):
        style = {"color": COLOURS[n % len(COLOURS)], "label": name}
        x = np.arange(len(groups)) + (n - (len(summary) - 1) / 2) * width
        values = [row.get(c, {"mean": 0, "sd": None}) for c in groups]
        bars.bar(x, [v["mean"] for v in values], width * 0.92, yerr=[v["sd"] or 0 for v in values],
                 error_kw={"lw": 1, "ecolor": "0.3"}, **style)
        points = [row["original"], *(row[f"BE, {lam}"] for lam in LAMBDAS)]
        curve.errorbar((0, *LAMBDAS), [p["mean"] for p in points], [p["sd"] or 0 for p in points], marker="o", ms=4,
                       lw=1.5, **style)
    labels = {"actor elsewhere": "actor\nelsewhere", "fooled": "says the\nother scene's\nclass",
              "conflict: motion": "conflict:\nsays the\nmotion", "conflict: scene": "conflict:\nsays the\nscene"}
    bars.set_xticks(range(len(groups)), [labels.get(c, c.replace(" ", "\n")) for c in groups], fontsize=8)
    curve.set_xlabel("BE at test time: lam", fontsize=9)
    top = max([5, *(v["mean"] + (v["sd"] or 0) for row in summary.values() for v in row.values())]) * 1.08
    for axis, what in ((bars, "top-1, or share of answers, %"), (curve, "top-1, %")):
        axis.axhline(100 / classes, color="0.4", lw=1, ls="--", zorder=0)
        axis.set_ylabel(what, fontsize=9)
        axis.set_ylim(0, min(100, top))
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    curve.annotate("chance", (0.6, 100 / classes), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8,
                   color="0.4")
    curve.legend(fontsize=8, frameon=False)
    figure.suptitle(head, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
