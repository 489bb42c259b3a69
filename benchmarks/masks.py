"""Masks of persons from elsewhere, for `run.py masks`; and what the median is worth beside them.

    python benchmarks/masks.py convert FROM VIDEOS TO       what you have, of VIDEOS/CLASS/NAME.*, as TO/CLASS/NAME.npz
    python benchmarks/masks.py boxes UCF101v2-GT.pkl FROM   or pyannot.pkl: UCF101-24's boxes as FROM/CLASS/NAME.csv
    python benchmarks/masks.py mediapipe VIDEOS TO          of VIDEOS/CLASS/NAME.avi: TO/CLASS/NAME.npz
    python benchmarks/masks.py measure DATA OUT.json        DATA/hmdb51 beside DATA/masks/hmdb51

`convert` reads for each video the first that there is of
    FROM/CLASS/NAME.npz               mask (T, h, w), bool
    FROM/CLASS/NAME.csv               boxes: a line of titles, then frame (from 0), left, top, right, bottom in px
    FROM/CLASS/NAME/puppet_mask.mat   of JHMDB, whose videos are parts of HMDB51's
    FROM/CLASS/NAME/00001.png ...     a picture for each frame, black where there is nobody
TO is DATA/masks/DATASET. Then `run.py masks --cfg DATASET data=DATA` finds the persons in the other videos, or with
source=none in none.

`mediapipe` wants an environment of its own, which needs nothing else, and no download of models:
python3.11 -m venv mp && mp/bin/pip install mediapipe==0.10.21 av pyyaml. Later versions come without models.
"""

import json
import math
import os
import pickle
import sys
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from be.config import ConfigError, UserError, cores
from be.video import Reader, VideoError

# ---- what others have


def convert(source: str, videos: str, to: str):
    """Masks and boxes in the usual formats, packed. What does not fit its video is named, and left out."""
    made = 0
    for path in sorted(Path(videos).glob("*/*")):
        stem = Path(source, path.parent.name, path.stem)
        known = (Path(f"{stem}.npz"), Path(f"{stem}.csv"), stem / "puppet_mask.mat", stem)
        if file := next((file for file in known if file.exists()), None):
            try:
                with Reader(path) as video:
                    mask = read_mask(file, video)
                    if mask.ndim != 3 or len(mask) != video.frames:
                        raise ValueError(f"{mask.shape} is not (T, h, w) of a video of {video.frames} frames")
                store(Path(to, path.parent.name, f"{path.stem}.npz"), mask, source="file")
                made += 1
            except Exception as error:  # of what is not the format that its name says, readers raise nearly anything
                print(f"no mask of {path}: {file}: {error}", file=sys.stderr)
    print(f"masks of {made} videos in {to}")
    if not made:
        sys.exit(f"{source} has no mask of a video in {videos}: both are folders of classes\n{__doc__}")


def read_mask(file: Path, video: Reader) -> np.ndarray:
    """The mask of a video, bool (T, h, w). file: in one of the formats of `convert`."""
    if file.is_dir():
        with Reader(file) as pictures:
            return pictures.decode(np.arange(pictures.frames)).any(3)
    if file.suffix == ".mat":
        from scipy.io import loadmat
        return loadmat(file)["part_mask"].transpose(2, 0, 1) > 0
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as held:
            return held["mask"] if held["mask"].dtype == bool else unpacked(held)
    mask = np.zeros((video.frames, video.info.height, video.info.width), bool)
    for frame, *box in np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2):
        left, top, right, bottom = np.maximum(box, 0)
        mask[int(frame), math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    return mask


def unpacked(held) -> np.ndarray:
    return np.unpackbits(held["mask"], axis=2, count=held["shape"][2]).astype(bool)


def store(file: Path, mask, **about):
    """As `run.py masks` has it: the bits packed along the width."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(aside, mask=np.packbits(mask, axis=2), shape=mask.shape, **about)
    aside.replace(file)


def boxes(file: str, to: str):
    """The boxes of UCF101-24, in either of the files that are published, as tables that `convert` reads."""
    from be.bias import PlainPickle
    try:
        with open(file, "rb") as stream:
            held = PlainPickle(stream, encoding="latin1").load()  # they are of Python 2
        videos = held.get("gttubes", held)
        rows = {video: tubes(about) if "gttubes" in held else annotations(about) for video, about in videos.items()}
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError,
            pickle.UnpicklingError) as error:
        raise ConfigError(f"{file} is neither UCF101v2-GT.pkl nor pyannot.pkl ({error!r}). Of other files make a table "
                          f"CLASS/NAME.csv for each video: frame,left,top,right,bottom") from None
    for video, table in rows.items():
        path = Path(to, f"{video}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, table, "%g", ",", header="frame,left,top,right,bottom", comments="")
    print(f"boxes of {len(rows)} videos in {to}, in px of 320 x 240: if the videos are smaller, so must they be")


def tubes(about) -> np.ndarray:
    """Of UCF101v2-GT.pkl (Kalogeiton et al. 2017): frames count from 1. -> (n, 5): frame, left, top, right, bottom"""
    return np.concatenate([tube for of_label in about.values() for tube in of_label]) - [1, 0, 0, 0, 0]


def annotations(about) -> np.ndarray:
    """Of pyannot.pkl (Singh et al. 2017): frames sf to ef - 1, from 0; left, top, width, height. -> as `tubes`"""
    parts = []
    for one in about["annotations"]:
        start, size = one["boxes"][:, :2], one["boxes"][:, 2:]
        parts.append(np.column_stack([np.arange(one["sf"], one["ef"]), start, start + size]))
    return np.concatenate(parts)


# ---- mediapipe


def mediapipe(videos: str, to: str):
    """The pose network's segmentation; where it finds nobody, the portrait segmenter's. `found` says which: 1, 2; 0."""
    todo = [(path, target) for path in sorted(Path(videos).glob("*/*"))
            if not (target := Path(to, path.parent.name, path.name).with_suffix(".npz")).exists()]
    with Pool(cores()) as pool:
        for n, said in enumerate(pool.imap_unordered(segment, todo), 1):
            print(f"{n}/{len(todo)} {said}", flush=True)


def segment(job) -> str:
    from mediapipe import __version__
    from mediapipe.python.solutions.pose import Pose
    from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

    path, target = job
    try:
        with Reader(path) as video:
            frames = video.decode(np.arange(video.frames))
    except VideoError as error:
        return str(error)
    mask, found = np.zeros(frames.shape[:3], bool), np.zeros(len(frames), np.uint8)
    with Pose(enable_segmentation=True) as pose, SelfieSegmentation(model_selection=0) as portrait:
        for t, frame in enumerate(frames):
            for by, network in ((1, pose), (2, portrait)):
                share = network.process(frame).segmentation_mask  # (H, W), 0 to 1; None: nobody
                if share is not None and (share > 0.5).mean() > 0.01:
                    mask[t], found[t] = share > 0.5, by
                    break
    store(target, mask, found=found, source=f"mediapipe {__version__}")
    return f"{target}: {(found > 0).mean():.0%} of the frames"


# ---- the median beside masks of persons

BINS = (0, 1, 3, 10, np.inf)  # how far the camera moves, in % of the short side
STEP = 4  # frames, between which the camera's shift is measured: of less than a tenth of a pixel it sees too little


def camera_path(frames, mask) -> np.ndarray:
    """Where the camera looks in every STEP-th frame, (n, 2) px, y and x, the first being 0: the sum of the shifts from
    one to the next, each the peak of the phase correlation of what is not person.

    frames: uint8 (T, H, W, 3); mask: bool (T, H, W).
    """
    grey, mask = frames[::STEP].mean(3), mask[::STEP]
    wide = np.stack([np.roll(mask, shift, (1, 2)) for shift in np.ndindex(3, 3)]).any(0)  # with a rim of 2 px ...
    wide |= np.stack([np.roll(mask, (-dy, -dx), (1, 2)) for dy, dx in np.ndindex(3, 3)]).any(0)  # ... on both sides
    rest = np.ma.masked_array(grey, wide)
    level = rest.mean((1, 2), keepdims=True).filled(0)
    window = np.hanning(grey.shape[1] + 2)[1:-1, None] * np.hanning(grey.shape[2] + 2)[1:-1]
    spectrum = np.fft.fft2((rest.filled(0) + wide * level - level) * window)
    cross = spectrum[:-1] * spectrum[1:].conj()  # a camera that goes right shifts the picture left
    surface = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-9)).real
    return np.concatenate([np.zeros((1, 2)), np.cumsum([peak(one) for one in surface], 0)])


def peak(surface) -> np.ndarray:
    """Where a periodic surface is highest, to a part of a pixel: the top of a parabola along each axis."""
    at = np.unravel_index(surface.argmax(), surface.shape)
    shift = []
    for axis, n in enumerate(surface.shape):
        line = np.take(surface, at[1 - axis], 1 - axis)
        before, top, after = line[(at[axis] + np.array([-1, 0, 1])) % n]
        part = 0.5 * (before - after) / min(before - 2 * top + after, -1e-12)
        shift.append((at[axis] + part + n / 2) % n - n / 2)
    return np.array(shift)


def moving(frames) -> np.ndarray:
    """uint8 (T, H, W, 3) -> bool (T, H, W): what differs from the median frame, of an even number the lower
    one, by more than 0.15 of the range in any colour."""
    middle = np.sort(frames, 0)[(len(frames) - 1) // 2]
    return np.abs(frames.astype(np.int16) - middle).max(3) > 0.15 * 255


def beside(folder: Path, path: Path) -> dict | None:
    """Of one video: how well the median finds its persons, in the frames that show some, and how the camera moves."""
    with Reader(path) as video:
        frames = video.decode(np.arange(video.frames))
    with np.load((folder / path.parent.name / path.name).with_suffix(".npz")) as held:
        true = unpacked(held)
    seen, found = true.any((1, 2)), moving(frames)
    if not seen.any():
        return None
    both, either = (found & true)[seen].sum(), (found | true)[seen].sum()
    reach = np.ptp(camera_path(frames, true), 0).max()
    return {"video": f"{path.parent.name}/{path.name}", "share": true.mean(), "iou": both / either,
            "recall": both / true[seen].sum(), "precision": both / max(1, found[seen].sum()),
            "camera": 100 * reach / min(frames.shape[1:3])}


def measure(data: str, out: str):
    """Of all videos of whose pixels 5 to 50 % are person. iou: of the median's mask of the whole video with the stored
    one, over all frames with a person; camera: the larger side of the box around its path, in % of the short side."""
    from scipy.stats import spearmanr
    folder, paths = Path(data, "masks/hmdb51"), sorted(Path(data, "hmdb51/hmdb51").glob("*/*.avi"))
    with Pool(cores()) as pool:
        rows = [row for row in pool.imap(partial(beside, folder), paths, 8) if row]
    used = [row for row in rows if 0.05 <= row["share"] <= 0.5]
    column = {key: np.array([row[key] for row in used]) for key in ("iou", "recall", "precision", "share", "camera")}
    which = np.digitize(column["camera"], BINS) - 1
    table = [{"camera_%": f"{low:g} to {high:g}", **told(column, which == n)}
             for n, (low, high) in enumerate(zip(BINS, BINS[1:], strict=False))]
    rank = spearmanr(column["camera"], column["iou"])
    about = {"videos": len(paths), "with_a_mask": len(rows), "of_5_to_50_percent": len(used),
             "all": told(column, which >= 0), "by_camera": table,
             "spearman_camera_iou": {"rho": round(rank.statistic, 3), "p": float(f"{rank.pvalue:.1e}")}}
    Path(out).write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


def told(column, chosen) -> dict:
    if not chosen.any():
        return {"n": 0}
    quarters = np.percentile(column["iou"][chosen], [25, 50, 75]).round(3).tolist()
    return {"n": int(chosen.sum()), "iou_quartiles": quarters,
            **{f"{key}_mean": round(float(values[chosen].mean()), 3) for key, values in column.items()}}


if __name__ == "__main__":
    verbs = {"convert": convert, "boxes": boxes, "mediapipe": mediapipe, "measure": measure}
    verb, *words = sys.argv[1:] or [""]
    if verb not in verbs or len(words) != (3 if verb == "convert" else 2):
        sys.exit(__doc__)
    try:
        verbs[verb](*words)
    except UserError as error:
        sys.exit(f"masks.py: {error}")
