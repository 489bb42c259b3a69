"""Where does a network look, and how much of that is on what moves? Pictures and numbers (verb `cam`, Figures 6 and 7).

The map needs no labels: the mean over the channels of the last feature map, resized to the clip in space and time
(paper 4.7). All backbones end in a ReLU, so it is nowhere negative. Every network sees each clip as it is and in three
ways that should not mislead one that looks at motion (`manipulate.ADVERSARIAL`):

    static video     one frame, repeated: nothing moves, the response should be low
    static body      the actor of another video stands in the picture, cut out of one frame: no response there
    foreign frame    a still frame of another video lies over all frames as noise, weight 0.3: the response should stay

and is measured by

    response         mean of the map, in % of that of the unchanged clip
    on moving        share of the map's sum, in %, on the pixels that differ from the frame before or after
    on actor         the same for the true actor of synthetic videos
    on body          the same for the pasted one

A share says nothing by itself: a map that is equal everywhere has the share of the area, which stands in the row
`uniform`. What moves and where the actor is, is always taken from the unchanged clip, less what the body hides. A video
without a moving pixel has the share 0. All are means over the videos that can be read, `test_clips` clips of each.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from be import backbones, datasets, manipulate
from be.augment import Draws, denormalise
from be.config import Config
from be.evaluate import over_videos, views
from be.manipulate import ADVERSARIAL
from be.page import markdown
from be.plots import pyplot, save
from be.runs import load_weights, make_accelerator, provenance, write_text
from be.video import encode, even_clips

MEASURES = ("response", "on moving", "on actor", "on body")
SHOWN = 4  # videos in the picture, of different classes; the first of them also tampered with
COLUMNS = 8  # frames of a clip in the picture


def activation(features, T: int, S: int):
    """Mean over channels of a feature map (K, C, T', H', W'), resized to the clip, trilinearly -> (K, T, S, S)."""
    return F.interpolate(features.float().mean(1, keepdim=True), (T, S, S), mode="trilinear")[:, 0]


def moving_pixels(x, threshold: float = manipulate.THRESHOLD):
    """Where any colour differs from the frame before or after by more than `threshold`, of pixels in [0, 1].

    Normalised clips (K, 3, T, S, S) -> bool (K, T, S, S).
    """
    step = (denormalise(x).diff(dim=2).abs().amax(1) > threshold).float()  # (K, T - 1, S, S)
    return (F.pad(step, (0, 0, 0, 0, 1, 0)) + F.pad(step, (0, 0, 0, 0, 0, 1))) > 0


def share(heat, mask):
    """The part of the sum of `heat` that lies where `mask` is, both (K, T, S, S): mean over K, in [0, 1]."""
    return ((heat * mask).sum((1, 2, 3)) / heat.sum((1, 2, 3)).clamp(min=1e-12)).mean()


def cam(*runs: tuple[Path, Config]):
    """cam: show where networks look, and measure how much of it is on what moves (Figures 6 and 7)

    Runs of pre-training or fine-tuning stand side by side, and see the clips that the first one's config describes:
    size, frames, stride. The list is `subset` of `dataset`, which need not be the one they were trained on; several are
    taken one after the other with subset=test,swapped. `scene` says how an actor is cut out. To OUT go
    cam-DATASET-SUBSET.json, .md, .png, .mp4 and .gif, and the tampered clips as cam-adversarial-...
    """
    cfg = runs[0][1]
    accelerator = make_accelerator(cfg)
    networks = {}
    for path, own in runs:
        backbone = backbones.build(own.backbone, own.width)
        load_weights(path / "backbone.safetensors", backbone)
        networks[label(path, [other for other, _ in runs])] = backbone.to(accelerator.device).eval()
    grids = {name: grid(network, cfg, accelerator.device) for name, network in networks.items()}
    for name, (_, *places) in grids.items():
        if max(places) == 1:
            accelerator.print(f"warning: the map of {name} has one place in space for {cfg.size} pixels, so it says "
                              f"nothing of where; choose a larger size= and short_side=")
    for subset in cfg.subset.split(","):
        samples = datasets.load(cfg.dataset, cfg.data, subset, cfg.split)
        others = manipulate.donors(samples, cfg, accelerator)
        partner = manipulate.partners(samples.labels, list(others), cfg.seed)
        found, ok = measure(networks.values(), samples, others, partner, cfg, accelerator)  # (N, 1 + nets, inputs, 4)
        if accelerator.is_main_process:
            out = Path(cfg.out) / f"cam-{cfg.dataset}-{subset}"
            out.parent.mkdir(parents=True, exist_ok=True)
            rows = table(found[ok].nanmean(0), list(networks))
            about = {"dataset": cfg.dataset, "subset": subset, "split": cfg.split, "seed": cfg.seed, "size": cfg.size,
                     "test_clips": cfg.test_clips, "scene": cfg.scene, "runs": [str(path) for path, _ in runs],
                     "maps": grids, "n_scored": int(ok.sum()), "n_expected": len(samples),
                     **provenance(samples, accelerator)}
            write_text(out.with_suffix(".json"), json.dumps({**about, "rows": rows}, indent=1) + "\n")
            head = (f"Response of the last feature map, {cfg.dataset} {subset}, {cfg.test_clips} clips a video, "
                    f"{about['n_scored']}/{about['n_expected']} videos, scene: {cfg.scene}")
            columns = [m for m in MEASURES if any(row[m] is not None for row in rows)]
            cells = [[row["network"], row["input"], *("-" if row[m] is None else f"{row[m]:.1f}" for m in columns)]
                     for row in rows]
            places = ", ".join(f"{name} {'x'.join(map(str, sides))}" for name, sides in grids.items())
            text = [head, "", *markdown(["network", "input", *(f"{m} %" for m in columns)], cells), "",
                    f"Places of a map in time and space: {places}"]
            write_text(out.with_suffix(".md"), "\n".join(text) + "\n")
            print("\n".join(text))
            draw(out, networks, samples, ok, others, partner, cfg, accelerator)
            print(f"\nwritten to {out}.json, .md, .png, .mp4, .gif and {out.parent}/cam-adversarial-...")


def label(path: Path, paths: list[Path]) -> str:
    """The experiment of a run; its directory, or the whole path, too, where others have the same."""
    forms = (lambda one: one.parent.name, lambda one: f"{one.parent.name}/{one.name}", str)
    return next((form(path) for form in forms if [*map(form, paths)].count(form(path)) == 1), str(path))


@torch.no_grad()
def grid(network, cfg: Config, device) -> list[int]:
    """[T', H', W'] of the feature map of a clip."""
    return list(network(torch.zeros(1, 3, cfg.frames, cfg.size, cfg.size, device=device)).shape[2:])


def measure(networks, samples, others, partner, cfg: Config, accelerator):
    """MEASURES of each video, in [0, 1], NaN where there is none: (N, 1 + networks, inputs, measures), ok (N,).

    The first `network` is a map that is equal everywhere.
    """
    sampler = partial(even_clips, K=cfg.test_clips, T=cfg.frames, stride=cfg.stride)
    take = manipulate.taker(samples, sampler, cfg, cfg.scene == "rendered")
    truth = manipulate.taker(samples, sampler, cfg, True) if manipulate.specs(samples.root) else None

    def compute(x, i):
        draws = Draws(cfg.seed, i, device=x.device)
        shot = take(x, i, manipulate.lent(others[partner[i]], x), draws)
        K, _, T, S, _ = x.shape
        where = {"on moving": moving_pixels(x)}
        if truth:
            where["on actor"] = truth(x, i, None, draws).actor[:, 0]
        flat, before, found = x.new_ones(K, T, S, S), {}, x.new_full((1 + len(networks), len(ADVERSARIAL), 4), np.nan)
        for n, (name, change) in enumerate(ADVERSARIAL.items()):
            y, masks = change(shot), dict(where)
            if name == "static body":
                hidden = shot.other.actor.expand(K, T, S, S)
                masks = {what: mask & ~hidden for what, mask in where.items()} | {"on body": hidden}
            for m, network in enumerate([None, *networks]):
                heat = flat if network is None else activation(network(y), T, S)
                found[m, n, 0] = heat.mean() / before.setdefault(m, heat.mean())
                if name != "static video":
                    for what, mask in masks.items():
                        found[m, n, MEASURES.index(what)] = share(heat, mask)
        return found

    return over_videos(compute, samples, sampler, cfg, accelerator, "cam")


def table(mean, names: list[str]) -> list[dict]:
    """Means (1 + networks, inputs, measures) as rows: dict(network, input, response, ...), in %, None where NaN."""
    rows = []
    for network, inputs in zip(["uniform", *names], mean.tolist(), strict=True):
        for name, values in zip(ADVERSARIAL, inputs, strict=True):
            numbers = {m: 100 * v if v == v else None for m, v in zip(MEASURES, values, strict=True)}
            if network != "uniform" or any(v is not None for v in list(numbers.values())[1:]):
                rows.append({"network": network, "input": name, **numbers})
    return rows


# ---- pictures


@torch.no_grad()
def draw(out: Path, networks, samples, ok, others, partner, cfg, accelerator):
    """Strips and animations: some videos as they are, then the first of them tampered with."""
    readable = np.flatnonzero(ok.numpy())
    firsts = readable[np.unique(samples.labels[readable], return_index=True)[1]]  # a video of every class
    chosen = firsts[np.linspace(0, len(firsts) - 1, min(SHOWN, len(firsts))).round().astype(int)]
    sampler = partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    take = manipulate.taker(samples, sampler, cfg, cfg.scene == "rendered")
    plain, tampered = {}, {}
    for i, x in views(samples, sampler, cfg, accelerator, "pictures", chosen.tolist()):
        shot = take(x, i, manipulate.lent(others[partner[i]], x), Draws(cfg.seed, i, device=x.device))
        rows = {name: change(shot) for name, change in ADVERSARIAL.items() if name == "original" or i == chosen[0]}
        heats = {network: {name: activation(net(y), *y.shape[2:4])[0] for name, y in rows.items()}
                 for network, net in networks.items()}
        for name, y in rows.items():
            pixels = denormalise(y)[0].clamp(0, 1).permute(1, 2, 3, 0).cpu()  # (T, S, S, 3)
            panels = {"clip": pixels.numpy()}
            for network, heat in heats.items():
                panels[network] = overlaid(pixels, heat[name].cpu(), heat["original"].cpu())
            if name == "original":
                plain[samples.classes[samples.labels[i]]] = panels
            if i == chosen[0]:
                tampered[name] = panels
    adversarial = out.with_name(out.name.replace("cam-", "cam-adversarial-", 1))
    for path, pictures, what in ((out, plain, ""), (adversarial, tampered, f": {next(iter(plain))}, tampered with")):
        title = f"Where networks look, {cfg.dataset}{what}"
        strip(path.with_suffix(".png"), pictures, title)
        film(path, animation(pictures, title))


def film(path: Path, frames: list[np.ndarray], fps: int = 8):
    """Writes PATH.mp4 and PATH.gif, which any page shows. frames: uint8 (H, W, 3), even sides."""
    first, *rest = map(Image.fromarray, frames)
    for suffix, write in (
        (".mp4", lambda aside: encode(aside, frames, fps)),
        (".gif", lambda aside: first.save(aside, save_all=True, append_images=rest, duration=1000 // fps, loop=0)),
    ):
        aside = path.with_name(f".{path.name}{suffix}")  # the name tells both writers the format
        write(aside)
        aside.replace(path.with_suffix(suffix))


def overlaid(pixels, heat, reference) -> np.ndarray:
    """The clip in grey under its map. pixels (T, S, S, 3) in [0, 1]; heat (T, S, S); -> like pixels.

    From black to yellow stand the least and the largest of `reference`, the map of the unchanged clip.
    """
    low, high = reference.min(), reference.max()
    level = ((heat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colour = torch.from_numpy(pyplot().get_cmap("inferno")(level.numpy())[..., :3]).float()
    grey = pixels.mean(-1, keepdim=True).expand_as(pixels)
    return torch.lerp(grey, colour, 0.25 + 0.4 * level[..., None]).numpy()


def scale(figure):
    plt = pyplot()
    ticks = plt.cm.ScalarMappable(plt.Normalize(0, 1), "inferno")
    bar = figure.colorbar(ticks, ax=figure.axes, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("response: 0 and 1 are the least and\nthe largest in the unchanged clip", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def strip(path: Path, pictures: dict[str, dict[str, np.ndarray]], title: str):
    """COLUMNS frames side by side; a row for each clip {row: {panel: (T, S, S, 3)}} and each network's map of it."""
    plt = pyplot()
    lines = [(row, panel, clip) for row, panels in pictures.items() for panel, clip in panels.items()]
    shown = np.linspace(0, len(lines[0][2]) - 1, min(COLUMNS, len(lines[0][2]))).round().astype(int)
    figure, axes = plt.subplots(len(lines), len(shown), squeeze=False, layout="constrained",
                                figsize=(1.05 * len(shown) + 2.6, 1.05 * len(lines) + 0.6))
    for line, (row, panel, clip) in zip(axes, lines, strict=True):
        for axis, t in zip(line, shown, strict=True):
            axis.imshow(clip[t])
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{row}\n" if panel == "clip" else panel, rotation=0, ha="right", va="center", fontsize=8,
                           fontweight="bold" if panel == "clip" else None)
    for axis, t in zip(axes[0], shown, strict=True):
        axis.set_title(f"frame {t}", fontsize=7)
    scale(figure)
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def animation(pictures, title: str) -> list[np.ndarray]:
    """The frames (H, W, 3) uint8 of a film: a row for each clip, a column for each panel; sides are even."""
    plt = pyplot()
    rows, columns = len(pictures), len(next(iter(pictures.values())))
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(1.6 * columns + 1.6, 1.6 * rows + 0.5))
    panels = [(axis, clip) for line, clips in zip(axes, pictures.values(), strict=True)
              for axis, clip in zip(line, clips.values(), strict=True)]
    images = [axis.imshow(clip[0]) for axis, clip in panels]
    for axis, name in zip(axes[0], next(iter(pictures.values())), strict=True):
        axis.set_title(name, fontsize=8)
    for line, name in zip(axes, pictures, strict=True):
        line[0].set_ylabel(name, fontsize=8)
    for axis, _ in panels:
        axis.set(xticks=[], yticks=[])
    scale(figure)
    figure.suptitle(title, fontsize=9)
    frames = []
    for t in range(len(panels[0][1])):
        for image, (_, clip) in zip(images, panels, strict=True):
            image.set_data(clip[t])
        figure.canvas.draw()
        H, W = (side // 2 * 2 for side in figure.canvas.buffer_rgba().shape[:2])
        frames.append(np.array(figure.canvas.buffer_rgba())[:H, :W, :3])
    plt.close(figure)
    return frames
