"""What does the accuracy of a fine-tuned model rest on? One table and one plot for one run or several (`robustness`).

Every test video is shown whole and changed (be/manipulate.py), with the same `test_clips` clips each time:

    original            the accuracy as `evaluate` has it (with `static`: of one frame)
    one frame           the frame in the middle of each clip, repeated: no motion. What is left of the accuracy is to
                        be had from looks alone
    shuffled            all frames of each clip, in random order
    scene only          without the actor. At best chance, for a model of actions
    actor elsewhere     the actor pasted into the still scene of a video of another class. What is lost was the scene's.
                        `fooled` is the share of answers that name the class of that other video: chance is 1 / classes
    BE, lam             Eq. 1 at test time: a random frame of the clip mixed into all of it with weight lam

All in % of the videos of the list; one that cannot be read is wrong everywhere. Synthetic videos allow two questions
more, of scene against motion:

    conflict    where the scene is of the family of another class (the list `swapped` is full of such), how often is the
                answer the motion's class, and how often the scene's?
    probe       a linear classifier of the frozen features, taught motion or family of scenes on the training list: how
                often is it right? What can be read off need not be what is answered
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

from be import datasets, manipulate
from be.augment import Draws
from be.config import Config, ConfigError
from be.evaluate import accuracy, features, load_classifier, load_list, over_videos, spread_clips
from be.manipulate import MANIPULATIONS, mixed
from be.page import markdown
from be.plots import COLOURS, pyplot, save
from be.probe import linear
from be.report import number
from be.runs import git_sha, make_accelerator, write_text

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
        rows, several = [], len({cfg.out for _, cfg in runs}) > 1
        for path, cfg in runs:
            model, classes = load_classifier(cfg, path)
            samples = load_list(cfg, subset, classes)
            measured = measure(model.to(accelerator.device), samples, cfg, accelerator)
            name = f"{cfg.out}/{cfg.name}" if several else cfg.name  # experiments of one name in two folders are two
            rows.append({"experiment": name, "run": str(path), "split": cfg.split, "seed": cfg.seed, **measured})
        if accelerator.is_main_process:
            about = {"dataset": first.dataset, "subset": subset, "test_clips": first.test_clips, "scene": first.scene,
                     "classes": len(classes), "git_sha": git_sha(), "device": str(accelerator.device)}
            out = Path(first.out) / f"robustness-{first.dataset}-{subset}"
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out.with_suffix(".json"), json.dumps({**about, "runs": rows}, indent=1) + "\n")
            head = f"Top-1 in %, {first.dataset} {subset}, {first.test_clips} clips a video, scene: {first.scene}"
            text = [head, "", *table(rows)]
            write_text(out.with_suffix(".md"), "\n".join(text) + "\n")
            plot(out.with_suffix(".png"), rows, head, len(classes))
            print("\n".join(text) + f"\n\nwritten to {out}.json, .md, .png")


def measure(model, samples, cfg: Config, accelerator) -> dict[str, float]:
    """All numbers of one model on one list, in %."""
    model.eval()
    sampler = spread_clips(cfg, cfg.test_clips)
    take = manipulate.taker(samples, sampler, cfg, cfg.scene == "rendered")
    others = manipulate.donors(samples, cfg, accelerator)
    partner = manipulate.partners(samples.labels, list(others), cfg.seed)

    def compute(x, i):
        draws = Draws(cfg.seed, i, device=x.device)  # by the video: the same for any number of processes
        shot = take(x, i, manipulate.lent(others[partner[i]], x), draws)
        frame = draws.randint(x.shape[2], len(x))  # k of Eq. 1, the same for all lam
        frame = x[torch.arange(len(x), device=x.device), :, frame].unsqueeze(2)  # (K, 3, 1, S, S)
        clips = [change(shot) for change in MANIPULATIONS.values()] + [mixed(x, frame, lam) for lam in LAMBDAS]
        return torch.stack([model.logits(y).float().softmax(1).mean(0) for y in clips])  # (M, classes)

    probabilities, ok = over_videos(compute, samples, sampler, cfg, accelerator, "robustness")  # (N, M, classes)
    label, answer = torch.from_numpy(samples.labels), probabilities.argmax(2)  # (N,), (N, M)
    names = [*MANIPULATIONS, *(f"BE, {lam}" for lam in LAMBDAS)]
    result = {name: accuracy(probabilities[:, m], label, ok)["top1"] for m, name in enumerate(names)}
    result["fooled"] = share(answer[:, names.index("actor elsewhere")] == label[partner], ok)
    if manipulate.specs(samples.root):
        scene = manipulate.scenes(samples)
        conflict = ok & (scene != label)
        result["conflict: motion"] = share((answer[:, 0] == label)[conflict])
        result["conflict: scene"] = share((answer[:, 0] == scene)[conflict])
        train = datasets.load(cfg.dataset, cfg.data, "train", cfg.split)
        (x, known), (y, there) = (features(model.backbone, model.pool, s, cfg, accelerator) for s in (train, samples))
        for what, of in (("motion", lambda s: torch.from_numpy(s.labels)), ("scene", manipulate.scenes)):
            result[f"probe: {what}"] = share(linear(x[known], of(train)[known], y) == of(samples), there)
    return {**result, "n_scored": int(ok.sum()), "n_expected": len(samples)}


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
    groups = [c for c in next(iter(summary.values())) if not c.startswith("BE")]
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(5 + 0.85 * len(groups), 4.2), layout="constrained",
                                         width_ratios=(0.85 * len(groups), 4))
    width = 0.8 / len(summary)
    for n, (name, row) in enumerate(summary.items()):
        style = {"color": COLOURS[n % len(COLOURS)], "label": name}
        x = np.arange(len(groups)) + (n - (len(summary) - 1) / 2) * width
        values = [row.get(c, {"mean": 0, "sd": None}) for c in groups]
        bars.bar(x, [v["mean"] for v in values], width * 0.92, yerr=[v["sd"] or 0 for v in values],
                 error_kw={"lw": 1, "ecolor": "0.3"}, **style)
        points = [row["original"], *(row[f"BE, {lam}"] for lam in LAMBDAS)]
        curve.errorbar((0, *LAMBDAS), [p["mean"] for p in points], [p["sd"] or 0 for p in points], lw=1.5,
                       marker="osD^vP*"[n % 7], ms=5, **style)
    labels = {"fooled": "answer:\nother\nscene", "conflict: motion": "conflict:\nmotion", "conflict: scene":
              "conflict:\nscene", "probe: motion": "probe:\nmotion", "probe: scene": "probe:\nscene"}  # fmt: skip
    bars.set_xticks(range(len(groups)), [labels.get(c, c.replace(" ", "\n")) for c in groups])
    curve.set_xlabel("BE at test time: λ", fontsize=9)
    top = max([5, *(v["mean"] + (v["sd"] or 0) for row in summary.values() for v in row.values())]) * 1.08
    for axis, what in ((bars, "top-1, or share of answers, %"), (curve, "top-1, %")):
        axis.axhline(100 / classes, color="0.4", lw=1, ls="--", zorder=0, label="chance")
        axis.set_ylabel(what, fontsize=9)
        axis.set_ylim(0, min(100, top))
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*curve.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    several = any(v["sd"] is not None for row in summary.values() for v in row.values())
    figure.suptitle(head + ("; mean and sd over runs" if several else ""), fontsize=10)
    save(figure, path)
