"""What a network sees: `show-batch`, `cam` (activation maps, Figures 6 and 7), `errors` of fine-tuned models; and where
persons are: `masks`, `actors` (Actor-HMDB51, Figure 5).

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

import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, InitProcessGroupKwargs
from torchvision.models import detection, get_model, list_models

from be import backbones, bias, datasets
from be.augment import Draws, denormalise
from be.bias import MANIPULATIONS, THRESHOLD, compare, lend, masks_of, pasted, publish, short, shots
from be.config import Config, choose
from be.erase import ERASE
from be.evaluate import features, over_videos
from be.report import answers, confusion, panels, save
from be.runs import RunError, make_accelerator, progress, provenance, write_aside, write_text
from be.train import make_views
from be.video import Reader, VideoError, encode, even_clips, random_clips
from be.weights import find, load, load_weights

INPUTS = ("original", "frozen", "static body", "foreign frame")
MEASURES = ("response", "on moving", "on actor", "on body")
SHOWN = 4  # videos in the picture, the first of them also manipulated
DRAWS = 8  # of `show-batch`
COLUMNS = 8  # frames of a clip in a picture
SMALLEST, BATCH = 32, 16  # of `actors`: px; frames that the detector gets at once


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
    actors = masks_of(samples, replace(cfg, scene="rendered")) if samples.scenes else None

    def compute(whole, i):
        x, (K, _, T, S, _) = whole.x, whole.x.shape
        where = {"on moving": moving_pixels(x)}
        if actors:
            where["on actor"] = whole.seen(actors(i, whole.numbers, whole.frames))
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

    They must have been tested on `subset` (evaluate). Into each run's directory goes confusion-SUBSET.csv: how many
    videos of a class (row) were taken for which (column). To OUT/errors-DATASET-SUBSET.json and .md go the expected
    calibration error, and how much of the variance of the features (pooled, of each video's central clip) lies between
    classes and, of synthetic videos, between scenes.
    """
    for out, about, rows in compare("errors", runs, analyse):
        publish(out, "Error analysis in %", about, rows)


def analyse(model, samples, cfg, accelerator, path, subset):
    """Draws what one run, which lies in `path`, confuses. -> its numbers, in %."""
    tested = [{"path": str(path), "subset": subset}]
    kept = answers(tested)
    if accelerator.is_main_process:
        matrix, classes = confusion(tested)
        rows = [["class", *classes, "unreadable"]]
        rows += [[name, *counts] for name, counts in zip(classes, matrix.tolist(), strict=True)]
        write_text(path / f"confusion-{subset}.csv", "".join(",".join(map(str, row)) + "\n" for row in rows))
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


# ---- where persons are: models and files

def masks(dataset: str, data: str = "data", source: str = "maskrcnn_resnet50_fpn_v2", weights: str | None = None,
          score: float = 0.8, to: str | None = None):
    """masks: find the persons in all videos of a data set and store where they are, for robustness and actors

    source     one of torchvision's detectors for COCO: maskrcnn_... gives outlines, the others boxes; median: what
               differs from the median of all frames, for a still camera; rendered: the truth of synthetic videos; or
               a folder that you have, with any of these for each video:
                   CLASS/NAME.npz               mask (T, h, w), bool, or bits packed along the width, and then `shape`
                   CLASS/NAME/puppet_mask.mat   of JHMDB, whose videos are parts of HMDB51's
                   CLASS/NAME/00001.png ...     a picture for each frame, black where there is nobody
                   CLASS/NAME.csv               boxes: a line of titles, then frame (from 0), left, top, right, bottom
    weights    a file of the detector's weights; default: torchvision's own, downloaded once
    score      the least confidence, 0 to 1, of what is taken for a person
    to         the folder to write to; default DATA/masks/DATASET

    What has a mask in TO is not done again: the command goes on after a crash, and a second one with another source
    does the rest. Each TO/CLASS/NAME.npz tells its source; TO/masks.json counts them, and has a hash of all masks.
    Under `accelerate launch` each process takes its share.
    """
    accelerator, known = patient_accelerator(), choose(datasets.DATASETS, dataset, "dataset")
    samples, to = all_videos(known, data), Path(to or Path(data) / "masks" / dataset)
    locate = locator(source, weights, score, accelerator.device, samples)
    todo = [i for i, path in enumerate(samples.paths) if not bias.mask_file(to, path).exists()]
    for i in part_of(accelerator, todo, "masks"):
        try:
            mask, found_by = locate(i)
        except VideoError as error:
            print(f"no mask: {error}", file=sys.stderr)
            continue
        if len(mask):
            file, data = bias.mask_file(to, samples.paths[i]), BytesIO()
            np.savez_compressed(data, mask=np.packbits(mask, axis=2), shape=mask.shape, source=found_by)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_aside(file, partial(Path.write_bytes, data=data.getvalue()))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        summary = {"videos": len(samples), **count_masks(samples, to)}
        write_text(to / "masks.json", json.dumps(summary, indent=1) + "\n")
        print(", ".join(f"{key} {value}" for key, value in summary.items()) + f"; in {to}")


def count_masks(samples, folder) -> dict:
    """How many videos have masks of which source, and a hash of all masks in the order of the list."""
    read, sources, state = bias.stored_masks(samples, folder), Counter(), blake2b(digest_size=8)
    for i in range(len(samples)):
        mask, source = read(i)
        sources[source] += 1
        state.update(b"%d %d %d " % mask.shape + np.packbits(mask).tobytes())
    return {"sources": dict(sources), "hash": state.hexdigest()}


def patient_accelerator() -> Accelerator:
    """Who has done his share waits for the others, as long as it takes."""
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))])


def all_videos(source, data) -> datasets.Samples:
    """The videos of all lists of a data set, each once."""
    lists = [source(data, *which) for which in source.subsets(source.find(data)[1])]
    paths = np.unique(np.concatenate([samples.paths for samples in lists]))
    return datasets.Samples(lists[0].root, paths, np.zeros(len(paths), int), np.arange(len(paths)), ["any"])


def part_of(accelerator, work, what: str):
    """What this process does of a list of work."""
    mine = work[accelerator.process_index :: accelerator.num_processes]
    return progress(mine, len(mine), what) if accelerator.is_main_process else mine


def locator(source: str, weights: str | None, score: float, device, samples):
    """What tells where persons are: locate(i) -> Mask of video i of the list. Raises ConfigError for an unknown source,
    see `masks`; `locate` raises VideoError."""
    if source == "rendered":
        return bias.true_masks(samples)
    if os.path.isdir(source):
        return bias.stored_masks(samples, source)
    if still := source == "median":
        look, name = moving, source
    else:
        look = torchvision_detector(source, weights, score, device)
        name = f"{source}, score {score}, weights {weights or 'of torchvision'}"

    def locate(i):
        with Reader(samples.path(i)) as video:
            frames = [video.decode(np.arange(video.frames))] if still else batches(video)
            return bias.Mask(np.concatenate([*map(look, frames)]), name)

    return locate


def moving(frames) -> np.ndarray:
    """uint8 (T, H, W, 3) -> bool (T, H, W): what differs from the median frame by more than THRESHOLD."""
    x = torch.from_numpy(frames)
    return ((x.short() - x.median(0).values).abs().amax(3) > 255 * THRESHOLD).numpy()


def torchvision_detector(name: str, weights: str | None, score: float, device):
    """One of torchvision's for COCO. -> detect(frames, uint8 (N, H, W, 3)): where the persons are in each, bool
    (N, H, W); boxes, of a detector without masks. Raises ConfigError for an unknown name, WeightsError for the file."""
    choose(dict.fromkeys(["rendered", "median", *list_models(module=detection)]), name, "detector or folder")
    model = get_model(name, weights=None, weights_backbone=None)
    load(find(weights or f"torchvision:{name}") or weights, model, strict=True)
    if name.endswith(("rcnn_resnet50_fpn", "retinanet_resnet50_fpn")):  # as torchvision does for its weights of these
        for module in filter(lambda module: isinstance(module, torch.nn.BatchNorm2d), model.modules()):
            module.eps = 0.0
    model.to(device).eval()

    @torch.inference_mode()
    def detect(frames):
        found = np.zeros(frames.shape[:3], bool)
        answers = model([*torch.from_numpy(frames).to(device).permute(0, 3, 1, 2) / 255])
        for mask, one in zip(found, answers, strict=True):
            persons = (one["labels"] == 1) & (one["scores"] >= score)  # of all of them, label 1 is a person
            if "masks" in one:  # (n, 1, H, W), probabilities
                mask |= (one["masks"][persons, 0] > 0.5).any(0).cpu().numpy()
            else:
                bias.paint(mask, one["boxes"][persons].cpu().numpy())
        return found

    return detect


# ---- Actor-HMDB51 (paper 4.6, Figure 5)

def actors(data: str = "data", detector: str = "fasterrcnn_resnet50_fpn_v2", weights: str | None = None,
           score: float = 0.8, masks: str | None = None):
    """actors: make Actor-HMDB51, which is HMDB51 cropped to its persons: DATA/actor_hmdb51 from DATA/hmdb51 (Figure 5)

    detector   one of torchvision's for COCO, by name; or another `source` of the verb `masks`
    weights    a file of its weights; default: torchvision's own, downloaded once
    score      the least confidence, 0 to 1, of what is taken for a person
    masks      a folder of stored masks, such as DATA/masks/hmdb51, in place of the detector

    The authors did not publish theirs. As they say (paper 4.6), the detector looks at every frame, and the video is
    cropped to the smallest box that holds all persons of all its frames, with even sides of at least 32 px, as far as
    the picture goes. Use it as dataset=actor_hmdb51, with HMDB51's lists and names. Beside each video, NAME.json says
    its size, frames, box, how often a person was seen, and what was done: `cropped`; `kept whole`, as no person was
    seen; or `unreadable`: there is no copy, and a test counts the video as wrong, here as in HMDB51. After a crash the
    same command goes on where it stopped. Under `accelerate launch` each process takes its share.
    """
    accelerator, detector = patient_accelerator(), masks or detector
    hmdb51, target = datasets.DATASETS["hmdb51"], Path(data) / "actor_hmdb51"
    samples, lists = all_videos(hmdb51, data), target / hmdb51.folders[0]
    locate = locator(detector, weights, score, accelerator.device, samples)
    how = {"detector": detector, "weights": weights, "score": score}
    if accelerator.is_main_process:
        lists.mkdir(parents=True, exist_ok=True)
        for file in hmdb51.list_files(hmdb51.find(data)[1]):
            shutil.copy(file, lists)
        note = target / "actors-how.json"
        if note.exists() and (held := json.loads(note.read_text())) != how:
            raise RunError(f"{target} was made with {held}, not {how}: ask for the same, or remove it")
        write_text(note, json.dumps(how))
    accelerator.wait_for_everyone()
    copies = [Path(target, "actor-hmdb51", *os.fsdecode(path).split("/")[-2:]) for path in samples.paths]  # CLASS/NAME
    for i in part_of(accelerator, range(len(samples)), "cropping"):
        if not (log := copies[i].with_suffix(".json")).exists():
            write_text(log, json.dumps(crop_video(samples.path(i), copies[i], partial(locate, i))))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        lines = [json.loads(copy.with_suffix(".json").read_text()) for copy in copies]
        summary = {**how, "videos": len(lines), **Counter(line["done"] for line in lines)}
        write_text(target / "actors.json", json.dumps(summary, indent=1) + "\n")
        print(", ".join(f"{key} {value}" for key, value in summary.items()) + f"; logs beside the videos in {target}")


def crop_video(source, copy: Path, locate) -> dict:
    """Makes the copy of one video. -> its log. Raises RunError if the copy cannot be written."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        mask, _ = locate()
        with Reader(source) as video:
            info = video.info
            line = {"done": "kept whole", "width": info.width, "height": info.height, "frames": video.frames,
                    "frames_with_persons": int(mask.any((1, 2)).sum())}
            if mask.any():
                left, top, right, bottom = box = smallest_box(mask.any(0), (info.width, info.height))
                line |= {"done": "cropped", "box": box,
                         "area_kept": 100 * (right - left) * (bottom - top) / (info.width * info.height)}
                pictures = np.concatenate([frames[:, top:bottom, left:right] for frames in batches(video)])
    except VideoError as error:
        return {"done": "unreadable", "problem": str(error)}
    aside = copy.with_name(f".{copy.name}")
    try:
        if line["done"] == "cropped":
            # The codec of HMDB51 at a fixed fine quantiser: what it loses once more cannot be seen
            encode(aside, pictures, info.fps, codec="mpeg4", options={"qmin": "2", "qmax": "2"})
        else:
            shutil.copyfile(source, aside)
        aside.replace(copy)
    except (VideoError, OSError) as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"{copy} could not be written ({error}); make room and give the same command again") from None
    return line


def batches(video: Reader):
    """All frames of a video, BATCH at a time: an iterator of uint8 (N, H, W, 3)."""
    return map(video.decode, np.split(np.arange(video.frames), range(BATCH, video.frames, BATCH)))


def smallest_box(mask, size: tuple[int, int]) -> list[int]:
    """The smallest box of whole pixels that holds all of `mask`, bool (h, w), then made even: [left, top, right,
    bottom] in px of a picture of `size` (width, height). No side is less than SMALLEST, where the picture has that."""
    size, per_pixel = np.array(size), np.array(size) / mask.shape[::-1]
    along = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]
    low = np.floor(per_pixel * [found[0] for found in along]).astype(int)
    high = np.ceil(per_pixel * [found[-1] + 1 for found in along]).astype(int)
    side = ((high - low + 1) // 2 * 2).clip(SMALLEST).clip(max=size // 2 * 2)
    low = ((low + high - side + 1) // 2).clip(0, size - side)
    return [*low.tolist(), *(low + side).tolist()]
