"""What a network looks at: `show-batch`, and `cam` (activation maps, Figures 6 and 7). Where persons are: `masks`, and
`actors` (Actor-HMDB51, Figure 5).

The map is the mean over the channels of the last feature map, which is nowhere negative, resized to the clip in space
and time (paper 4.7). Networks see each clip as it is, and manipulated (docs/BIAS.md). One that looks at motion should
respond little to `frozen`, not at all to the `static body`, and under a `foreign frame` as before.
"""

import json
import os
import shutil
import sys
from collections import Counter
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
from matplotlib import colormaps
from torchvision.models import get_model
from torchvision.ops import masks_to_boxes

from be import backbones, bias, datasets
from be.augment import Draws, denormalise
from be.config import Config, ConfigError, choose
from be.erase import ERASE
from be.prepare import part_of
from be.report import panels, save
from be.runs import RunError, make_accelerator, progress, provenance, write_aside, write_text, writing
from be.train import make_views
from be.video import Reader, VideoError, encode, even_clips, random_clips
from be.weights import find, load, load_weights

INPUTS = ("original", "frozen", "static body", "foreign frame")
SOME = 32  # videos of a list, of which two are shown
COLUMNS = 8  # frames of a clip in a picture
DETECTOR = "maskrcnn_resnet50_fpn_v2"  # of torchvision
BATCH = 16  # frames that it gets at once
SMALLEST = 32  # px, the least side of a cropped video


# ---- pictures

def show_batch(cfg: Config):
    """show-batch: draw OUT/what-the-network-sees.png: three training clips as they enter the network, and distracted"""
    samples = datasets.load_for(cfg, "train")
    sampler = partial(random_clips, K=1, T=cfg.frames, stride=cfg.stride)
    clips = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, train=True)
    batch = datasets.collate([clips[0, i] for i in np.linspace(0, len(samples) - 1, 3).astype(int).tolist()])
    draws = Draws(cfg.seed, 0)
    (x,) = make_views(batch, ((0, 0),), draws, cfg)  # (B, 3, T, S, S)
    distracted = choose(ERASE, cfg.erase, "erase")(x, draws, cfg.gamma)
    rows = []
    for label, *pair in zip(batch.label, x, distracted, strict=True):
        for what, clip in zip(("original", "distracted"), pair, strict=True):
            rows.append((f"{what}\n{samples.classes[label]}", pixels(clip)))
    path = Path(cfg.out) / "what-the-network-sees.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path, rows, f"Clips, and distracted by {cfg.erase}")
    print(f"written to {path}")


def pixels(clip):
    """A normalised clip (3, T, S, S) as pictures in [0, 1], (T, S, S, 3), on the CPU."""
    return denormalise(clip[None])[0].clamp(0, 1).permute(1, 2, 3, 0).cpu()


def overlay(clip, heat, low, high):
    """A map (T, S, S) over the clip (T, S, S, 3) in grey, in colours that run from `low` to `high`."""
    colours = colormaps["inferno"](((heat - low) / (high - low)).numpy())[..., :3]
    return (clip.mean(-1, keepdim=True) + torch.from_numpy(colours)) / 2


def draw(path, rows, title: str):
    """COLUMNS frames of each clip side by side. rows: (name, clip (T, S, S, 3) in [0, 1])"""
    figure, axes = panels(len(rows), 1, 1.1 * COLUMNS + 2, 1.1, title)
    for axis, (name, clip) in zip(axes, rows, strict=True):
        shown = np.linspace(0, len(clip) - 1, min(COLUMNS, len(clip))).round().astype(int)
        axis.imshow(torch.cat([*clip[shown]], dim=1).numpy())  # (S, COLUMNS * S, 3)
        axis.set(xticks=[], yticks=[], anchor="E")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    save(figure, path)


# ---- activation maps

def activation(features, T, S):
    """Mean over channels of a feature map (K, C, T', H', W'), resized to the clip, trilinearly -> (K, T, S, S)."""
    return F.interpolate(features.float().mean(1, keepdim=True), (T, S, S), mode="trilinear")[:, 0]


@torch.no_grad()
def cam(*runs: tuple[Path, Config]):
    """cam: show where networks look, in two videos of another class each (Figures 6 and 7)

    Runs of pre-training or fine-tuning stand side by side, and see the clips that the first one's config describes:
    size, frames, stride. The lists are `subset`, such as test,swapped, of `dataset`, which need not be the one they
    were trained on. `scene` says how an actor is cut out. To OUT go cam-DATASET-SUBSET.png, and .json, what it shows.
    """
    cfg = runs[0][1]
    accelerator, networks = make_accelerator(cfg), {}
    paths = [path for path, _ in runs]
    for name, (path, own) in zip(bias.short(paths), runs, strict=True):
        networks[name] = backbones.build(own.backbone, own.width)
        load_weights(path / "backbone.safetensors", networks[name])
        networks[name].to(accelerator.device).eval()
    sampler = partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    for subset in cfg.subset.split(","):
        samples = datasets.load_for(cfg, subset)
        samples = samples.take(np.linspace(0, len(samples) - 1, min(SOME, len(samples))).astype(int))
        lenders, _ = bias.lend(samples, cfg, accelerator)
        lent = np.flatnonzero(lenders[0] >= 0).tolist()
        if accelerator.is_main_process:
            shown = [(i, shot) for i, shot in bias.shots(samples, sampler, cfg, accelerator, "cam", lent[:: max(
                1, len(lent) // 2)][:2], lenders[:1]) if shot]
            if not shown:
                raise RunError(f"{samples.root}: of {len(samples)} videos none is readable with one of another class "
                               f"beside it that lends it a body")
            out = Path(cfg.out) / f"cam-{cfg.dataset}-{subset}"
            out.parent.mkdir(parents=True, exist_ok=True)
            draw_maps(out.with_suffix(".png"), networks, samples, shown)
            about = {**vars(cfg), "subset": subset, "runs": [*map(str, paths)],
                     "videos": [os.fsdecode(samples.paths[i]) for i, _ in shown], **provenance(samples, accelerator)}
            write_text(out.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
            print(f"written to {out}.*")


def draw_maps(path, networks, samples, shown):
    """Videos as they are and manipulated; below each the maps of the networks. shown: as `bias.shots` yields them."""
    rows = []
    for (i, shot), name in product(shown, INPUTS):
        first = torch.stack([shot.x[0], bias.MANIPULATIONS[name](shot)[0]])
        clip = pixels(first[1])
        rows.append((f"{samples.classes[samples.labels[i]]}\n{name}", clip))
        for label, network in networks.items():
            usual, heat = activation(network(first), *first.shape[2:4]).cpu()
            rows.append((label, overlay(clip, heat, usual.min(), usual.max())))
    draw(path, rows, "Where networks look: from the least (black) to the most (yellow) of the unchanged clip")


# ---- where persons are

def masks(dataset: str, data: str = "data", source: str = DETECTOR, weights: str | None = None, score: float = 0.8,
          to: str | None = None, shard: str = "1/1"):
    """masks: find the persons in all videos of a data set and store where they are, for robustness and actors

    source     maskrcnn_resnet50_fpn_v2: torchvision's Mask R-CNN, trained on COCO; rendered: the truth of synthetic
               videos; none: what is there is counted, no more
    weights    a file of the detector's weights; default: torchvision's own, downloaded once
    score      the least confidence, 0 to 1, of what is taken for a person
    to         the folder to write to; default DATA/masks/DATASET
    shard      such as 3/16: of 16 jobs on any machines the 3rd; when all are done, source=none counts

    What has a mask in TO is not done again: the command goes on after a crash, and does the rest where you have masks
    of some videos. `python benchmarks/masks.py convert` makes them of pictures, boxes and JHMDB's puppets. Each
    TO/CLASS/NAME.npz tells its source; TO/masks.json counts them, and has a hash of all masks. Under `accelerate
    launch` each process takes its share.
    """
    mine, accelerator, samples = part_of(shard), patient_accelerator(), all_videos(dataset, data)
    to = Path(to or Path(data) / "masks" / dataset)
    files = [bias.mask_file(to, path) for path in samples.paths]
    if source != "none":
        locate = locator(source, weights, score, accelerator.device, samples)
        told = f"{source}, score {score}, weights {weights or 'of torchvision'}" if source == DETECTOR else source
        make_missing(files, partial(store_mask, locate, told), accelerator, "masks", mine)
    if accelerator.is_main_process and (shard == "1/1" or source == "none"):
        tell(to / "masks.json", {"videos": len(samples), **count_masks(samples, to)})


def store_mask(locate, source: str, i: int, file: Path):
    """Writes where the persons are in video i, unless it cannot be read. The bits are packed along the width."""
    try:
        mask = locate(i)
    except VideoError as error:
        print(f"no mask: {error}", file=sys.stderr)
        return
    data = BytesIO()
    np.savez_compressed(data, mask=np.packbits(mask, axis=2), shape=mask.shape, source=source)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_aside(file, partial(Path.write_bytes, data=data.getvalue()))


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


def all_videos(dataset: str, data) -> datasets.Samples:
    """The videos of all lists of a data set, each once, in the order of their paths."""
    source = choose(datasets.DATASETS, dataset, "dataset")
    lists = [source(data, *which) for which in source.subsets(source.find(data)[1])]
    paths = np.unique(np.concatenate([samples.paths for samples in lists]))
    return datasets.Samples(lists[0].root, paths, np.zeros(len(paths), int), np.arange(len(paths)), ["any"])


def make_missing(files: list[Path], make, accelerator, what: str, wanted=lambda file: True):
    """Calls make(i, file) for each file that is `wanted` and not there. The processes share them, and wait for each
    other."""
    todo = [(i, file) for i, file in enumerate(files) if wanted(file) and not file.exists()]
    accelerator.wait_for_everyone()  # until all have looked: they must see the same
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    for one in progress(mine, len(mine), what) if accelerator.is_main_process else mine:
        make(*one)
    accelerator.wait_for_everyone()


def tell(path: Path, summary: dict):
    """Writes a summary, and prints it."""
    text = json.dumps(summary, indent=1)
    write_text(path, f"{text}\n")
    print(f"{text}\nwritten to {path}")


def locator(source: str, weights: str | None, score: float, device, samples):
    """What tells where persons are, see `masks`: locate(i) -> bool (T, h, w) of video i of the list. Raises ConfigError
    for an unknown source, WeightsError for the file; `locate` raises VideoError."""
    if source == "rendered":
        true = bias.true_masks(samples)
        return lambda i: true(i).mask
    if source != DETECTOR:
        raise ConfigError(f"unknown source {source!r}; choices: {DETECTOR}, rendered, none. Masks or boxes that you "
                          f"have: `python benchmarks/masks.py convert` makes NPZ of them, which source=none counts")
    model = get_model(DETECTOR, weights=None, weights_backbone=None)
    load(find(weights or f"torchvision:{DETECTOR}") or weights, model, strict=True)
    model.to(device).eval()

    @torch.inference_mode()
    def locate(i):
        frames, _ = all_frames(samples.path(i))
        persons = []
        for part in torch.from_numpy(frames).permute(0, 3, 1, 2).split(BATCH):
            for found in model([*part.to(device) / 255]):
                sure = (found["labels"] == 1) & (found["scores"] >= score)  # label 1 is a person
                persons.append((found["masks"][sure, 0] > 0.5).any(0).cpu())  # (n, 1, H, W), probabilities
        return torch.stack(persons).numpy()
    return locate


def all_frames(path):
    """A whole video: uint8 (T, H, W, 3), and its frames a second. Raises VideoError."""
    with Reader(path) as video:
        return video.decode(np.arange(video.frames)), video.info.fps


# ---- Actor-HMDB51 (paper 4.6, Figure 5)

def actors(data: str = "data"):
    """actors: make Actor-HMDB51, which is HMDB51 cropped to its persons: DATA/actor_hmdb51 from DATA/hmdb51 (Figure 5)

    `run.py masks --cfg hmdb51` comes first, which finds the persons. The authors did not publish theirs. As they say
    (paper 4.6), a person detector looks at every frame, and the video is cropped to the smallest box that holds all
    persons of all its frames, with even sides of at least 32 px, as far as the picture goes. Theirs was Faster R-CNN;
    Mask R-CNN is that with outlines. Use it as dataset=actor_hmdb51, with HMDB51's lists and names. A video in which no
    person was seen is kept whole. Of one that cannot be read there is no copy, and a test counts it as wrong, here as
    in HMDB51. After a crash the same command goes on. Under `accelerate launch` each process takes its share.
    """
    accelerator, samples = patient_accelerator(), all_videos("hmdb51", data)
    folder, target = Path(data) / "masks/hmdb51", Path(data) / "actor_hmdb51"
    counted, note, hmdb51 = folder / "masks.json", target / "actors-how.json", datasets.DATASETS["hmdb51"]
    if not counted.exists():
        raise RunError(f"{counted} does not exist: run.py masks --cfg hmdb51 data={data} finds the persons and writes "
                       f"it, with source=none of the masks that are there")
    how = counted.read_text()
    if note.exists() and note.read_text() != how:
        raise RunError(f"{target} was made of other masks than {folder}, those of {note}: remove {target}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        lists = target / hmdb51.folders[0]
        lists.mkdir(parents=True, exist_ok=True)
        for file in hmdb51.list_files(hmdb51.find(data)[1]):
            shutil.copy(file, lists)
        write_text(note, how)
    read = bias.stored_masks(samples, folder)
    copies = [Path(target, "actor-hmdb51", *os.fsdecode(path).split("/")[-2:]) for path in samples.paths]  # CLASS/NAME
    make_missing(copies, lambda i, copy: crop_video(samples.path(i), copy, read(i).mask), accelerator, "cropping")
    if accelerator.is_main_process:
        tell(target / "actors.json", {**json.loads(how), "unreadable": sum(not copy.exists() for copy in copies)})


def crop_video(source, copy: Path, mask):
    """Makes the copy of a video, whose persons are at mask, bool (T, h, w), if it can be read. Raises RunError if the
    copy cannot be written."""
    try:
        frames, fps = all_frames(source)
    except VideoError as error:
        print(f"no copy: {error}", file=sys.stderr)
        return
    aside = copy.with_name(f".{copy.name}")
    copy.parent.mkdir(parents=True, exist_ok=True)
    with writing(copy, aside):
        if mask.any():
            left, top, right, bottom = smallest_box(mask.any(0), *frames.shape[1:3])
            # The codec of HMDB51 at a fixed fine quantiser: what it loses once more cannot be seen
            encode(aside, frames[:, top:bottom, left:right], fps, "mpeg4", {"qmin": "2", "qmax": "2"})
        else:
            shutil.copyfile(source, aside)
        aside.replace(copy)


def smallest_box(mask, height: int, width: int) -> list[int]:
    """The smallest box with even sides that holds all of mask, bool (h, w), in a picture of height x width px: [left,
    top, right, bottom] in px. No side is less than SMALLEST, where the picture has that."""
    touched = F.adaptive_max_pool2d(torch.from_numpy(mask)[None].float(), (height, width))  # by pixels of the mask
    first, last = masks_to_boxes(touched)[0].int().numpy().reshape(2, 2)  # (x, y)
    size = np.array([width, height])
    side = ((last - first) // 2 * 2 + 2).clip(SMALLEST).clip(max=size // 2 * 2)
    low = ((first + last + 2 - side) // 2).clip(0, size - side)
    return [*low.tolist(), *(low + side).tolist()]
