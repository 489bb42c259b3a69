"""Actor-HMDB51: HMDB51 cropped to its persons, so that hardly any background is left (verb `actors`, Figure 5).

The authors did not publish theirs. It is made as they say (paper 4.6): a person detector looks at every frame, and the
video is cropped to the smallest box that holds all persons of all its frames. DATA/actor_hmdb51 then has HMDB51's lists
and, under the same names, the cropped videos, and is used as dataset=actor_hmdb51. Its log, actors-*.jsonl, has a line
for each video: its size, frames, box, in how many frames a person was seen, how many in all, and what was done:

    cropped        to the box, with even sides of at least SMALLEST px, as far as the picture goes
    kept whole     no person was seen in any frame: the video stays as it is
    unreadable     there is no copy: a test counts the video as wrong, here as in HMDB51
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torchvision.models import detection, get_model, get_model_weights, list_models

from be import datasets, manipulate, synthetic
from be.config import ConfigError, choose
from be.jobs import watch
from be.runs import RunError, write_text
from be.video import Reader, VideoError, encode
from be.weights import find, read

LISTS, SMALLEST = "testTrainMulti_7030_splits", 32
BATCH = 16  # frames that the detector gets at once

# (frames uint8 (N, H, W, 3), their numbers (N,), path of the video below its root) -> for each frame the boxes of its
# persons, float (n, 4): left, top, right, bottom in px
Detector = Callable[[np.ndarray, np.ndarray, bytes], list[np.ndarray]]


def actors(data: str = "data", detector: str = "fasterrcnn_resnet50_fpn_v2", weights: str | None = None,
           score: float = 0.8):
    """actors: make Actor-HMDB51, which is HMDB51 cropped to its persons: DATA/actor_hmdb51 from DATA/hmdb51 (Figure 5)

    detector   one of torchvision's for COCO, by name; or `rendered`: the true actors of synthetic videos
    weights    a file of its weights; default: torchvision's own, downloaded once
    score      the least confidence, 0 to 1, of what is taken for a person

    After a crash the same command goes on where it stopped. Under `accelerate launch` each process takes its share of
    the videos. What is done with a video without persons: be/actors.py.
    """
    # Who has done his share waits for the others, as long as it takes
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))])
    root = Path(data) / "hmdb51"
    lists = [datasets.load("hmdb51", data, *which) for which in datasets.DATASETS["hmdb51"].subsets(root)]
    paths = sorted({path for samples in lists for path in samples.paths.tolist()})
    how = {"detector": detector, "weights": weights, "score": score}
    if detector == "rendered":
        detect = rendered(lists[0].root)
    else:
        detect = torchvision_detector(detector, weights, score, accelerator.device)
    make(root, Path(data) / "actor_hmdb51", paths, detect, how, accelerator)


def make(root: Path, target: Path, paths: list[bytes], detect: Detector, how: dict, accelerator: Accelerator):
    """Crops the videos PATHS below ROOT into TARGET. RunError if TARGET was made in another way than `how`."""
    if accelerator.is_main_process:
        (target / LISTS).mkdir(parents=True, exist_ok=True)
        note = target / "actors-how.json"
        if note.exists() and (held := json.loads(note.read_text())) != how:
            raise RunError(f"{target} was made with {held}, not {how}: ask for the same, or remove it")
        write_text(note, json.dumps(how))
        for file in (root / LISTS).glob("*.txt"):
            shutil.copyfile(file, target / LISTS / file.name)
    accelerator.wait_for_everyone()
    known, rank = logged(target), accelerator.process_index
    accelerator.wait_for_everyone()  # all have read before one writes: their shares depend on it
    left = [path for path in paths if not done(known.get(os.fsdecode(path)), target, path)]
    mine = left[rank :: accelerator.num_processes]
    with open(target / f"actors-{rank}.jsonl", "a") as log:
        for path in watch(mine, len(mine), "cropping") if rank == 0 else mine:
            line = {"path": os.fsdecode(path), **crop(root, target, path, detect)}
            log.write("\n" + json.dumps(line))  # the line break first, to end a line that was cut by a kill
            log.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        lines = logged(target)
        lines = [lines[os.fsdecode(path)] for path in paths]
        area = [(r - x) * (b - y) / (line["width"] * line["height"])
                for line in lines if line["done"] == "cropped" for x, y, r, b in [line["box"]]]
        summary = {**how, "videos": len(lines), **Counter(line["done"] for line in lines),
                   "area_kept": 100 * float(np.mean(area)) if area else None}
        write_text(target / "actors.json", json.dumps(summary, indent=1) + "\n")
        print(", ".join(f"{key} {value}" for key, value in summary.items()) + f"; log in {target}/actors-*.jsonl")


def logged(target: Path) -> dict[str, dict]:
    """The newest line of the log for each video."""
    lines = {}
    for file in sorted(target.glob("actors-*.jsonl"), key=lambda file: file.stat().st_mtime):
        for text in file.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                lines[line["path"]] = line
    return lines


def done(line: dict | None, target: Path, path: bytes) -> bool:
    return line is not None and (line["done"] == "unreadable" or place(target, path).exists())


def place(target: Path, path: bytes) -> Path:
    return Path(target, "actor-hmdb51", *Path(os.fsdecode(path)).parts[-2:])  # CLASS/NAME.avi


def crop(root: Path, target: Path, path: bytes, detect: Detector) -> dict:
    """Makes the copy of one video. -> what there is to say of it in the log. RunError if it cannot be written."""
    source, copy = root / os.fsdecode(path), place(target, path)
    aside = copy.with_name(f".{copy.stem}.part.avi")
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Reader(source) as video:
            boxes = [found for frames, numbers in batches(video) for found in detect(frames, numbers, path)]
            said = {"width": video.info.width, "height": video.info.height, "frames": video.frames,
                    "frames_with_persons": sum(len(found) > 0 for found in boxes), "persons": sum(map(len, boxes))}
    except VideoError as error:
        return {"done": "unreadable", "problem": str(error)}
    try:
        if not said["persons"]:
            shutil.copyfile(source, aside)
            said |= {"done": "kept whole"}
        else:
            x, y, right, bottom = box = smallest_box(np.concatenate(boxes), said["width"], said["height"])
            with Reader(source) as video:
                pictures = (frame[y:bottom, x:right] for frames, _ in batches(video) for frame in frames)
                # The codec of HMDB51 at a fixed fine quantiser: what it loses once more cannot be seen
                encode(aside, pictures, video.info.fps, codec="mpeg4", options={"qmin": "2", "qmax": "2"})
            said |= {"done": "cropped", "box": box}
    except (VideoError, OSError) as error:
        raise RunError(f"{copy} could not be written ({error}); make room and give the same command again") from None
    finally:
        if "done" not in said:
            aside.unlink(missing_ok=True)
    aside.replace(copy)
    return said


def batches(video: Reader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All frames of a video, BATCH at a time: uint8 (N, H, W, 3), and their numbers (N,)."""
    for start in range(0, video.frames, BATCH):
        numbers = np.arange(start, min(start + BATCH, video.frames))
        yield video.decode(numbers), numbers


def smallest_box(boxes, width: int, height: int) -> list[int]:
    """The smallest box of whole pixels that holds all boxes (n, 4), then made even: [left, top, right, bottom]."""
    low, high = np.floor(boxes[:, :2].min(0)), np.ceil(boxes[:, 2:].max(0))
    sides = []
    for start, stop, most in zip(low, high, (width, height), strict=True):
        start, stop = int(max(0, min(start, most))), int(max(0, min(stop, most)))
        side = min(max(stop - start + (stop - start) % 2, SMALLEST), most // 2 * 2)
        start = max(0, min(start - (side - (stop - start)) // 2, most - side))
        sides.append((start, start + side))
    (left, right), (top, bottom) = sides
    return [left, top, right, bottom]


# ---- detectors


def torchvision_detector(name: str, weights: str | None, score: float, device) -> Detector:
    """One of torchvision's detectors for COCO. Raises ConfigError for an unknown name or weights that do not fit."""
    choose(dict.fromkeys([*list_models(module=detection), "rendered"]), name, "detector")
    official = get_model_weights(name).DEFAULT
    person = official.meta["categories"].index("person")
    model = get_model(name, weights=None, weights_backbone=None, num_classes=len(official.meta["categories"]))
    file = find(weights or f"torchvision:{name}")
    if file is None:
        raise ConfigError(f"weights={weights!r} is no file")
    tensors, own = read(file), model.state_dict()
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}  # which frozen BatchNorm lacks
    wrong = sorted(wanted ^ {key for key in tensors if not key.endswith("num_batches_tracked")})
    wrong += [key for key in sorted(wanted & tensors.keys()) if own[key].shape != tensors[key].shape]
    if wrong:
        raise ConfigError(f"{file} does not fit {name}: {len(wrong)} tensors differ, such as {', '.join(wrong[:3])}")
    model.load_state_dict(tensors, strict=False)
    if name.endswith(("rcnn_resnet50_fpn", "retinanet_resnet50_fpn")):  # as torchvision does for its weights of these
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
    model.to(device).eval()

    @torch.inference_mode()
    def detect(frames, numbers=None, path=None):
        pictures = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
        return [found["boxes"][(found["labels"] == person) & (found["scores"] >= score)].cpu().numpy()
                for found in model(list(pictures))]

    return detect


def rendered(root: str) -> Detector:
    """The true actors of the synthetic videos below ROOT. Raises ConfigError where those are not synthetic."""
    if not (specs := manipulate.specs(root)):
        raise ConfigError(f"detector=rendered is for synthetic videos, which those in {root} are not")

    @lru_cache(1)
    def masks(path):
        return synthetic.render(specs[path])[1]  # (T, H, W)

    def detect(frames, numbers, path):
        boxes = []
        for mask in masks(path)[numbers]:
            y, x = mask.nonzero()
            sides = [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if len(x) else []
            boxes.append(np.array(sides, float).reshape(-1, 4))
        return boxes

    return detect
