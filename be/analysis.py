"""What a network sees: `show-batch`, `cam` (activation maps, Figures 6 and 7), `errors` of fine-tuned models.

The map is the mean over the channels of the last feature map, which is nowhere negative, resized to the clip in space
and time (paper 4.7). Networks see each clip as it is and in ways that should not mislead one that looks at motion:

    frozen           one frame in place of all, nothing moves: the response should be low
    static body      the actor of another video stands in the picture, cut out of one frame: no response there
    foreign frame    a still frame of another video lies over all frames, weight 0.3: the response should stay

and the map is measured by

    response         its mean, in % of that of the unchanged clip
    on moving        share of its sum, in %, on the pixels that differ from the frame before or after
    on actor         the same for the true actor of synthetic videos
    on body          the same for the pasted one

The row `uniform`, of a map that is equal everywhere, has the share of the area. What moves and where the actor is, is
taken from the unchanged clip, less what the body hides. All are means over the videos that can be read.
"""

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from be import backbones, datasets
from be.augment import Draws, denormalise
from be.bias import MANIPULATIONS, MASKS, THRESHOLD, compare, lend, pasted, publish, short, shots
from be.config import Config, choose
from be.erase import ERASE
from be.evaluate import features, over_videos
from be.report import answers, confusion, panels, per_class, plot_confusion, plot_gain, save
from be.runs import RunError, make_accelerator, provenance
from be.train import make_views
from be.video import even_clips, random_clips
from be.weights import load_weights

INPUTS = ("original", "frozen", "static body", "foreign frame")
MEASURES = ("response", "on moving", "on actor", "on body")
SHOWN = 4  # videos in the picture, the first of them also manipulated
DRAWS = 8  # of `show-batch`
COLUMNS = 8  # frames of a clip in a picture


def show_batch(cfg: Config):
    """show-batch: draw OUT/what-the-network-sees.png: some training clips as they enter the network, and distracted

    Of DRAWS distractions by `erase` the strongest is shown: with most lam there is little to see.
    """
    samples = datasets.load_for(cfg, "train")
    sampler = partial(random_clips, K=1, T=cfg.frames, stride=cfg.stride)
    clips = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, train=True)
    batch = datasets.collate([clips[0, i] for i in range(0, len(clips), max(1, len(clips) // 3))][:3])
    (x,) = make_views(batch, ((0, 0),), Draws(cfg.seed, 0), cfg)  # (B, 3, T, S, S)
    erase = choose(ERASE, cfg.erase, "erase")
    x_d = max((erase(x, Draws(cfg.seed, draw), cfg.gamma) for draw in range(DRAWS)),
              key=lambda x_d: (x_d - x).square().mean())
    rows = [(f"{what}\n{samples.classes[label]}", pixels(clip))
            for label, *pair in zip(batch.label, x, x_d, strict=True)
            for what, clip in zip(("original", "distracted"), pair, strict=True)]
    path = Path(cfg.out) / "what-the-network-sees.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    strip(path, rows, f"Clips, and distracted by {cfg.erase}, strongest of {DRAWS} draws")
    print(f"written to {path}")


def pixels(clip):
    """A normalised clip (3, T, S, S) as pictures in [0, 1], (T, S, S, 3), on the CPU."""
    return denormalise(clip[None])[0].clamp(0, 1).permute(1, 2, 3, 0).cpu()


def strip(path, rows, title):
    """COLUMNS frames of each clip side by side. rows: (name, clip (T, S, S, 3) in [0, 1]); or that, a map (T, S, S) to
    lay over the clip in grey, and a reference, whose least and largest value bound the colours."""
    T = len(rows[0][1])
    shown = np.linspace(0, T - 1, min(COLUMNS, T)).round().astype(int)
    figure, axes = panels(len(rows), len(shown), 1.05 + 2.6 / len(shown), 1.1, title)
    for axis, ((_, clip, *heat), t) in zip(axes, product(rows, shown), strict=True):
        axis.imshow((clip[t].mean(-1) if heat else clip[t]).numpy(), "gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        if heat:
            layer = axis.imshow(heat[0][t].numpy(), "inferno", vmin=heat[1].min(), vmax=heat[1].max(), alpha=0.5)
    for axis, (name, *_) in zip(axes[:: len(shown)], rows, strict=True):
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    if heat:
        scale = figure.colorbar(layer, ax=axes, ticks=[], shrink=0.5, aspect=30, pad=0.01)
        scale.set_label("response; of the unchanged clip\nfrom the least to the largest", fontsize=7)
    save(figure, path)


# ---- activation maps


def activation(features, T, S):
    """Mean over channels of a feature map (K, C, T', H', W'), resized to the clip, trilinearly -> (K, T, S, S)."""
    return F.interpolate(features.float().mean(1, keepdim=True), (T, S, S), mode="trilinear")[:, 0]


def moving_pixels(x):
    """Where any colour, in [0, 1], differs from the frame before or after by more than THRESHOLD: normalised clips
    (K, 3, T, S, S) -> bool (K, T, S, S)."""
    step = denormalise(x).diff(dim=2).abs().amax(1) > THRESHOLD  # (K, T - 1, S, S)
    return F.pad(step, (0, 0, 0, 0, 1, 0)) | F.pad(step, (0, 0, 0, 0, 0, 1))


def share(heat, mask):
    """The part of the sum of `heat` that lies where `mask` is, both (K, T, S, S): mean over K, in [0, 1]."""
    return ((heat * mask).sum((1, 2, 3)) / heat.sum((1, 2, 3)).clamp(min=1e-12)).mean()


@torch.no_grad()
def cam(*runs: tuple[Path, Config]):
    """cam: show where networks look, and measure how much of it is on what moves (Figures 6 and 7)

    Runs of pre-training or fine-tuning stand side by side, and see the clips that the first one's config describes:
    size, frames, stride. The lists are `subset`, such as test,swapped, of `dataset`, which need not be the one they
    were trained on. `scene` says how an actor is cut out. To OUT go cam-DATASET-SUBSET.json, .md and .png.
    """
    cfg = runs[0][1]
    accelerator, networks, maps = make_accelerator(cfg), {}, {}
    for name, (path, own) in zip(short([path for path, _ in runs]), runs, strict=True):
        networks[name] = backbones.build(own.backbone, own.width)
        load_weights(path / "backbone.safetensors", networks[name])
        networks[name].to(accelerator.device).eval()
        empty = torch.zeros(1, 3, cfg.frames, cfg.size, cfg.size, device=accelerator.device)
        maps[name] = list(networks[name](empty).shape[2:])  # T', H', W'
    sampler = partial(even_clips, K=cfg.test_clips, T=cfg.frames, stride=cfg.stride)
    for subset in cfg.subset.split(","):
        samples = datasets.load_for(cfg, subset)
        lenders, _ = lend(samples, cfg, accelerator)
        if (lenders[0] < 0).any():
            raise RunError(f"{samples.root}: not every video has one of another class beside it that lends it a body")
        look = partial(shots, lenders=lenders[:1])
        found, ok = measure(networks.values(), samples, look, sampler, cfg, accelerator)
        if accelerator.is_main_process:
            means = (100 * found[ok].nanmean(0)).flatten(0, 1).tolist()
            rows = [{"network": network, "input": name, **dict(zip(MEASURES, numbers, strict=True))} for
                    (network, name), numbers in zip(product(["uniform", *networks], INPUTS), means, strict=True)]
            about = {key: getattr(cfg, key) for key in ("dataset", "split", "seed", "size", "test_clips", "scene")}
            about |= {"subset": subset, "maps": maps, "runs": [str(path) for path, _ in runs],
                      "n_scored": int(ok.sum()), "n_expected": len(ok), **provenance(samples, accelerator)}
            out = Path(cfg.out) / f"cam-{cfg.dataset}-{subset}"
            publish(out, "Response of the last feature map in %", about, rows)
            draw(out.with_suffix(".png"), networks, samples, ok, look, sampler, cfg, accelerator)


def measure(networks, samples, look, sampler, cfg, accelerator):
    """MEASURES of each video, in [0, 1], NaN where there is none: (N, 1 + networks, inputs, measures), ok (N,). First
    come those of a map that is equal everywhere."""
    actors = MASKS["rendered"](samples, cfg) if samples.scenes else None

    def compute(whole, i):
        x, (K, _, T, S, _) = whole.x, whole.x.shape
        where = {"on moving": moving_pixels(x)}
        if actors:
            where["on actor"] = whole.seen(actors(i, whole.numbers, whole.frames, whole.spread))
        found = x.new_full((1 + len(networks), len(INPUTS), len(MEASURES)), np.nan)
        for n, name in enumerate(INPUTS):
            y, lies = MANIPULATIONS[name](whole), {} if name == "frozen" else where
            if name == "static body":
                body = whole.seen(pasted(whole)[1]).expand(K, T, S, S)
                lies = {what: mask & ~body for what, mask in where.items()} | {"on body": body}
            for m, heat in enumerate([x.new_ones(K, T, S, S), *(activation(net(y), T, S) for net in networks)]):
                found[m, n, 0] = heat.mean()
                for what, mask in lies.items():
                    found[m, n, MEASURES.index(what)] = share(heat, mask)
        found[:, :, 0] /= found[:, :1, 0].clone()
        return found

    return over_videos(compute, samples, sampler, cfg, accelerator, "cam", look=look)


def draw(path, networks, samples, ok, look, sampler, cfg, accelerator):
    """SHOWN videos as they are, the first of them also manipulated; below each the maps of the networks."""
    readable, rows = np.flatnonzero(ok), []
    chosen = np.unique(readable[np.linspace(0, len(readable) - 1, SHOWN).astype(int)]).tolist()
    for i, whole in look(samples, sampler, cfg, accelerator, "pictures", chosen):
        reference = {}
        for name in INPUTS if i == chosen[0] else INPUTS[:1]:
            y = MANIPULATIONS[name](whole)[:1]
            rows.append((f"{samples.classes[samples.labels[i]]}, {name}\nclip", pixels(y[0])))
            for network, net in networks.items():
                heat = activation(net(y), *y.shape[2:4])[0].cpu()
                rows.append((network, pixels(y[0]), heat, reference.setdefault(network, heat)))
    strip(path, rows, f"Where networks look, {cfg.dataset}")


# ---- error analysis


def errors(*runs: tuple[Path, Config]):
    """errors: what fine-tuned models confuse, whether they know when they are wrong, and how their features lie

    They must have been tested on `subset` (evaluate). Into each run's directory go confusion- and classes-SUBSET.png,
    the accuracy of each class. To OUT/errors-DATASET-SUBSET.json and .md go the expected calibration error, and how
    much of the variance of the features (pooled, of each video's central clip) lies between classes and, of synthetic
    videos, between scenes.
    """
    for out, about, rows in compare("errors", runs, analyse):
        publish(out, "Error analysis in %", about, rows)


def analyse(model, samples, cfg, accelerator, path, subset):
    """Draws what one run, which lies in `path`, confuses. -> its numbers, in %."""
    tested = [{"path": str(path), "subset": subset}]
    kept = answers(tested)
    if accelerator.is_main_process:
        title = f"{cfg.name}, {cfg.dataset} {subset}, split {cfg.split}, seed {cfg.seed}"
        matrix, classes = confusion(tested)
        names = [f"{name} ({n})" for name, n in zip(classes, matrix.sum(1).tolist(), strict=True)]
        plot_confusion(path / f"confusion-{subset}.png", matrix, classes, title)
        plot_gain(path / f"classes-{subset}.png", per_class(matrix), names, f"{title}: top-1 (of so many videos)")
    z, ok = features(model.backbone, model.pool, samples, cfg, accelerator)
    numbers = {"calibration_error": calibration(**kept), "n_scored": int(ok.sum()), "n_expected": len(ok)}
    for what, label in (("class", samples.labels), ("scene", samples.scene)):
        if label is not None:
            numbers[f"variance_between_{what}"] = between(z[ok], torch.from_numpy(label)[ok])
    return numbers


def calibration(probabilities, label, ok, bins=10):
    """The expected calibration error in % (Naeini et al. 2015). probabilities (N, C), label, ok (N,)

    Videos that were read are put into `bins` equal ranges of their largest probability. The error is the mean over
    videos of |accuracy - mean confidence| of their range.
    """
    confidence, answer = probabilities[ok].double().max(1)
    right = (answer == label[ok]).double()
    off = torch.bincount((bins * confidence).int().clamp(max=bins - 1), right - confidence)  # (bins,)
    return 100 * off.abs().sum().item() / max(1, len(right))


def between(z, label):
    """The share of the variance of z (N, C), summed over C, that lies between groups of equal label (N,), in %."""
    z = z.double() - z.double().mean(0)
    groups = [z[label == c] for c in label.unique()]
    return 100 * (sum(len(g) * g.mean(0).square().sum() for g in groups) / z.square().sum().clamp(min=1e-30)).item()
