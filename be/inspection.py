"""Verb `inspect`: what a fine-tuned model confuses, whether it knows when it is wrong, and how its features lie."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from be import manipulate, synthetic
from be.config import Config
from be.evaluate import features, load_classifier, load_list
from be.plots import COLOURS, per_class, plot_confusion, pyplot, save
from be.report import confusion
from be.runs import RunError, make_accelerator, provenance, write_text

MARKERS = "osD^vP*X"


def inspect(*runs: tuple[Path, Config]):
    """inspect: what fine-tuned models confuse, whether they know when they are wrong, and how their features lie

    They must have been tested on `subset` (evaluate). Into each run's directory go confusion-SUBSET.png,
    classes-SUBSET.png (accuracy of each class), calibration-SUBSET.png and features-SUBSET.png: the two principal
    components of the pooled features of each video's central clip, coloured by class and, of synthetic videos, by
    scene. The numbers of all go to OUT/inspect-DATASET-SUBSET.json: the expected calibration error, and how much of
    the variance of the features, in all dimensions, lies between classes and between scenes.
    """
    first = runs[0][1]
    accelerator = make_accelerator(first)
    for subset in first.subset.split(","):
        rows = []
        for path, cfg in runs:
            kept = path / f"probabilities-{subset}.safetensors"
            if not kept.exists():
                raise RunError(f"{kept} does not exist: evaluate this run on {subset} first")
            model, classes = load_classifier(cfg, path)
            samples = load_list(cfg, subset, classes)
            z, ok = features(model.to(accelerator.device).backbone, model.pool, samples, cfg, accelerator)
            if not accelerator.is_main_process:
                continue
            matrix, _ = confusion([{"path": str(path), "subset": subset}])
            title = f"{cfg.name}, {cfg.dataset} {subset}, split {cfg.split}, seed {cfg.seed}"
            plot_confusion(path / f"confusion-{subset}.png", matrix, classes, title)
            plot_classes(path / f"classes-{subset}.png", per_class(matrix), matrix.sum(1), classes, title)
            bins, error = calibration(**load_file(kept))
            plot_calibration(path / f"calibration-{subset}.png", bins, error, title)
            labels = {"class": (torch.from_numpy(samples.labels)[ok], classes)}
            if manipulate.specs(samples.root):
                labels["scene"] = manipulate.scenes(samples)[ok], list(synthetic.SCENES)
            explained = {what: between(z[ok], label) for what, (label, _) in labels.items()}
            plot_features(path / f"features-{subset}.png", z[ok], labels, explained, title)
            rows.append({"run": str(path), "experiment": cfg.name, "calibration_error": 100 * error,
                         **{f"variance_between_{what}": 100 * share for what, share in explained.items()},
                         "n_scored": int(ok.sum()), "n_expected": len(samples)})
            print(f"{title}: calibration error {100 * error:.1f} %, "
                  + ", ".join(f"{what} explains {100 * share:.1f} % of the features' variance"
                              for what, share in explained.items()) + f"; pictures in {path}")
        if accelerator.is_main_process:
            out = Path(first.out) / f"inspect-{first.dataset}-{subset}.json"
            out.parent.mkdir(parents=True, exist_ok=True)
            about = {"dataset": first.dataset, "subset": subset, **provenance(samples, accelerator)}
            write_text(out, json.dumps({**about, "runs": rows}, indent=1) + "\n")
            print(f"written to {out}")


def calibration(probabilities, label, ok, bins: int = 10) -> tuple[torch.Tensor, float]:
    """Confidence against accuracy. -> (bins, 3) of (videos, mean confidence, accuracy), NaN in empty ones; the error

    Videos that were read are put into `bins` equal ranges of their largest probability (upper ends included). The
    expected calibration error is the mean over videos of |accuracy - mean confidence| of their range (Naeini et al.
    2015). probabilities (N, C), label (N,), ok (N,) bool.
    """
    confidence, answer = probabilities[ok].double().max(1)
    right = (answer == label[ok]).double()
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    count, sum_confidence, sum_right = (torch.zeros(bins, dtype=torch.double).index_add_(0, place, values)
                                        for values in (torch.ones_like(right), confidence, right))
    error = (sum_right - sum_confidence).abs().sum().item() / max(1, len(right))
    return torch.stack([count, sum_confidence / count, sum_right / count], 1), error


def between(z, label) -> float:
    """The share of the variance of z (N, C), summed over C, that lies between groups of equal label (N,): in [0, 1]."""
    z = z.double() - z.double().mean(0)
    groups = [z[label == c] for c in label.unique()]
    return (sum(len(g) * g.mean(0).square().sum() for g in groups) / z.square().sum().clamp(min=1e-30)).item()


def components(z) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal components: z (N, C) on the first two axes (N, 2), and the share of the variance on each (2,).

    An axis points to where its largest coefficient is positive.
    """
    z = z.double() - z.double().mean(0)
    _, scale, axes = torch.linalg.svd(z, full_matrices=False)
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    return z @ axes.T, (scale.square() / scale.square().sum())[:2]


def plot_classes(path, top1, videos, classes, title):
    """A bar per class, sorted, and how many videos it is of. top1 (C,) %, NaN of a class without; videos (C,)."""
    plt, order = pyplot(), top1.nan_to_num(-1).argsort().tolist()
    figure, axis = plt.subplots(figsize=(6.5, max(2.5, 0.17 * len(classes) + 1.2)), layout="constrained")
    axis.barh([f"{classes[c]} ({int(videos[c])})" for c in order], top1[order].nan_to_num().numpy(), color=COLOURS[0])
    axis.axvline(mean := top1.nanmean().item(), color="0.3", lw=1, ls="--", label=f"mean of the classes {mean:.1f}")
    axis.axvline(100 / len(classes), color=COLOURS[1], lw=1, ls=":", label=f"chance {100 / len(classes):.1f}")
    axis.set(xlim=(0, 100), xlabel="top-1, % (in brackets: videos)")
    axis.tick_params(labelsize=7)
    axis.margins(y=0.01)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="lower right")
    axis.set_title(title, fontsize=9)
    save(figure, path)


def plot_calibration(path, bins, error, title):
    """Above, accuracy over confidence; below, how many videos have it. bins: see `calibration`."""
    plt, n, bins = pyplot(), len(bins), bins.numpy()
    figure, (axis, below) = plt.subplots(2, 1, sharex=True, figsize=(4.5, 5.2), layout="constrained",
                                         height_ratios=(3, 1))
    place, full = (np.arange(n) + 0.5) / n, bins[:, 0] > 0
    axis.plot([0, 1], [0, 1], color="0.4", lw=1, ls="--", label="calibrated")
    axis.bar(place[full], bins[full, 2], 0.9 / n, color=COLOURS[5], label="accuracy")
    axis.plot(bins[full, 1], bins[full, 2], "o-", color=COLOURS[0], ms=4, lw=1, label="at the mean confidence")
    axis.set(ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    below.bar(place, bins[:, 0], 0.9 / n, color="0.6")
    below.set(xlabel="confidence: the largest probability", ylabel="videos")
    for one in (axis, below):
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
        one.tick_params(labelsize=8)
    axis.set_title(f"{title}\nexpected calibration error {100 * error:.1f} %", fontsize=9)
    save(figure, path)


def plot_features(path, z, labels, explained, title):
    """A panel for each of `labels` {what: (label (N,), names)}; beyond 16, the rarer groups are grey."""
    plt, (points, share) = pyplot(), components(z)
    figure, axes = plt.subplots(1, len(labels), squeeze=False, figsize=(5.6 * len(labels), 4.2), layout="constrained")
    for axis, (what, (label, names)) in zip(axes[0], labels.items(), strict=True):
        common = torch.bincount(label, minlength=len(names)).argsort(descending=True, stable=True)[:16].sort().values
        rest = ~torch.isin(label, common)
        axis.scatter(*points[rest].T, s=8, color="0.85", label=f"{len(names) - 16} others" if rest.any() else None)
        for n, c in enumerate(common.tolist()):
            axis.scatter(*points[label == c].T, s=14, color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)],
                         linewidths=0, alpha=0.8, label=names[c])
        axis.set_xlabel(f"component 1 ({100 * share[0]:.0f} % of the variance)", fontsize=8)
        axis.set_ylabel(f"component 2 ({100 * share[1]:.0f} %)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        chance = (len(label.unique()) - 1) / max(1, len(label) - 1)  # of groups that mean nothing
        axis.set_title(f"by {what}, which explains {100 * explained[what]:.0f} % of all variance "
                       f"(chance {100 * chance:.0f} %)", fontsize=9)
    figure.suptitle(title, fontsize=9)
    save(figure, path)
