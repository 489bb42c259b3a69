"""A small world in which a network can cheat with the background, written as real video files.

The class of a video is a *motion* and nothing else: a textured actor, whose look says nothing of the class,
moves before a scene, filmed by a drifting camera. But each class is mostly seen before its own family of
scenes (with probability `scene_bias`), so that a single frame is enough to guess it. Three subsets ask what
was learned:

    train    the scene betrays the class
    test     other actors and other instances of the scenes, the same bias: cheating still pays
    swapped  the twins of the test videos: same actor, motion and camera, before a scene of any family,
             uniformly. Who looks at scenes alone is now right once in len(MOTIONS) times, which is chance

Files and lists stand on the disk exactly as those of UCF101 or HMDB51, so the parsers of the real data read
them. The swapped subset adds `swappedlist0N.txt` to the one, `CLASS_swapped_splitN.txt` to the other. Left
and right are different classes: train here without horizontal flips.

No single frame betrays the motion. All that can move (STATE) is a point on a torus, which starts uniformly at
random, and a motion is a displacement on that torus. What is uniform stays uniform when it is shifted, so a
frame, taken alone, has the same distribution in every class. The price: who leaves the stage on one side
re-enters on the other.
"""

import colorsys
import json
import math
import multiprocessing
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from be.config import ConfigError
from be.jobs import watch
from be.video import encode

STATE = ("y", "x", "turn", "pulse", "orbit")  # what can move, each in cycles: 1.0 is back at the start

# class -> how far each coordinate of STATE has come after c cycles, c an array over the frames.
# A new motion is a line here and its own family of scenes in SCENES.
MOTIONS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "orbit": lambda c: {"orbit": c},
    "pulse": lambda c: {"pulse": c},
    "rotate_left": lambda c: {"turn": -c},
    "rotate_right": lambda c: {"turn": c},
    "translate_down": lambda c: {"y": c},
    "translate_left": lambda c: {"x": -c},
    "translate_right": lambda c: {"x": c},
    "translate_up": lambda c: {"y": -c},
}
CYCLE = 32  # frames of a cycle, on average: one in a clip of 16 frames with stride 2

# Lengths in short sides of the frame.
RADIUS, SWELL = 0.2, 0.3  # of the actor, and the part of it that a pulse adds and takes away
ORBIT = 0.13  # radius of an orbit
MARGIN = 0.2  # between the frame and the stage, on which the centres of orbits lie


# Textures: (rng, height, width, period in px) -> field (height, width) in [-1, 1]


def waves(rng, height, width, period):
    """Two plane waves at right angles, in a random direction."""
    y, x = np.mgrid[:height, :width] * (2 * math.pi / period)
    angle, *phase = rng.uniform(0, 2 * math.pi, 3)
    c, s = math.cos(angle), math.sin(angle)
    return np.sin(c * x + s * y + phase[0]), np.sin(c * y - s * x + phase[1])


def noise(rng, height, width, period, slope):
    """Gaussian noise of variance 1 without waves much shorter than `period`, amplitude 1 / frequency^slope.

    Natural images have slope 1 (Field 1987, J. Opt. Soc. Am. A 4, 2379); slope 0 leaves blobs of one size.
    """
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    gain = np.exp(-((f * period) ** 2)) / np.maximum(f, 1 / max(height, width)) ** slope
    gain[0, 0] = 0  # no mean
    field = np.fft.irfft2(gain * np.fft.rfft2(rng.standard_normal((height, width))), s=(height, width))
    return field / field.std()


def stripes(rng, *shape):
    return np.tanh(3 * waves(rng, *shape)[0])


def checks(rng, *shape):
    return np.tanh(6 * np.prod(waves(rng, *shape), axis=0))


def blobs(rng, *shape):
    return np.tanh(3 * noise(rng, *shape, slope=0))


def clouds(rng, *shape):
    return np.tanh(noise(rng, *shape, slope=1.5))


class Scene(NamedTuple):
    """A family of scenes. Its instances differ in direction, phase, noise, brightness and a little in hue."""

    texture: Callable
    period: float  # in short sides
    dark: float  # hue of the dark parts, in [0, 1)
    bright: float  # hue of the bright parts


# The i-th motion, in alphabetical order, has the i-th family for its own.
SCENES = {
    "red stripes": Scene(stripes, 0.40, 0.98, 0.08),
    "green checks": Scene(checks, 0.50, 0.40, 0.28),
    "blue blobs": Scene(blobs, 0.25, 0.66, 0.52),
    "pink clouds": Scene(clouds, 0.10, 0.80, 0.92),
    "teal stripes": Scene(stripes, 0.17, 0.58, 0.45),
    "purple checks": Scene(checks, 0.22, 0.70, 0.86),
    "brown blobs": Scene(blobs, 0.10, 0.04, 0.12),
    "grass clouds": Scene(clouds, 0.30, 0.30, 0.17),
}


@dataclass(frozen=True)
class Spec:
    """All there is to know of a video. `dataclasses.replace(spec, motion=...)` films the same actor anew."""

    motion: str  # one of MOTIONS: the class
    scene: str  # one of SCENES
    actor_seed: int  # shape and texture of the actor
    path_seed: int  # where its state starts and how fast it moves
    camera_seed: int  # direction and length of the pan
    scene_seed: int  # the instance of the family
    frames: int
    height: int  # px, as width and drift
    width: int
    drift: float  # the longest pan from the first frame to the last

    @property
    def short(self):
        return min(self.height, self.width)


def render(spec: Spec):
    """The video and its truth, a pure function of the spec.

    Returns frames, uint8 (T, H, W, 3); mask, bool (T, H, W), true where the actor covers at least half of a
    pixel; background, uint8 (T, H, W, 3), the same video without the actor.
    """
    background, actor = film_scene(spec), film_actor(spec)
    colours, opacity = actor[..., :3], actor[..., 3:]
    frames = background + opacity * (colours - background)
    return np.rint(frames).astype(np.uint8), opacity[..., 0] >= 0.5, np.rint(background).astype(np.uint8)


def film_scene(spec):
    """What the camera sees of the scene: (T, H, W, 3) in [0, 255]."""
    y, x = (pan[:, None, None] for pan in camera(spec))
    return sample(canvas(spec), y + np.arange(spec.height)[:, None], x + np.arange(spec.width))


def film_actor(spec):
    """What the camera sees of the actor: (T, H, W, 4), colours in [0, 255] and opacity in [0, 1]."""
    y, x, angle, radius = (pose[:, None, None] for pose in poses(spec))
    dy, dx = (np.arange(spec.height)[:, None] - y) / radius, (np.arange(spec.width) - x) / radius
    c, s = np.cos(angle), np.sin(angle)
    v, u = c * dy - s * dx, c * dx + s * dy  # each pixel's place on the sprite, which spans [-1, 1]
    near, look = np.maximum(abs(v), abs(u)) < 1, sprite(spec)
    layer, half = np.zeros((*near.shape, 4), np.float32), (len(look) - 1) / 2
    layer[near] = sample(look, (v[near] + 1) * half, (u[near] + 1) * half)
    return layer


def camera(spec):
    """Where the corner of the frame stands on the canvas: y, x, each (T,) px, from 0 up. A steady pan."""
    rng = np.random.default_rng(spec.camera_seed)
    way, angle = np.linspace(0, rng.uniform(0, spec.drift), spec.frames), rng.uniform(0, 2 * math.pi)
    return tuple(pan - pan.min() for pan in (way * math.sin(angle), way * math.cos(angle)))


def poses(spec):
    """The actor in each frame: centre y, x (px), angle (radians, clockwise) and radius (px), each (T,)."""
    rng = np.random.default_rng(spec.path_seed)
    state = {name: np.full(spec.frames, rng.random()) for name in STATE}
    cycles = np.arange(spec.frames) * rng.uniform(0.75, 1.25) / CYCLE
    for name, moved in MOTIONS[spec.motion](cycles).items():
        state[name] = state[name] + moved
    turn, pulse, orbit = (2 * math.pi * state[name] for name in ("turn", "pulse", "orbit"))

    def on_stage(place, pan, side):  # the pan moves the actor just as it moves the scene
        stage = side - 2 * MARGIN * spec.short
        return MARGIN * spec.short + (place * stage - pan) % stage

    pan_y, pan_x = camera(spec)
    y = on_stage(state["y"], pan_y, spec.height) + ORBIT * spec.short * np.sin(orbit)
    x = on_stage(state["x"], pan_x, spec.width) + ORBIT * spec.short * np.cos(orbit)
    return y, x, turn, RADIUS * spec.short * (1 + SWELL * np.sin(pulse))


def canvas(spec):
    """The scene as far as the camera may come: float32 (height + drift, width + drift, 3) in [0, 255]."""
    rng, family = np.random.default_rng(spec.scene_seed), SCENES[spec.scene]
    height, width = (side + math.ceil(spec.drift) + 1 for side in (spec.height, spec.width))
    field = 0.8 * family.texture(rng, height, width, family.period * spec.short)
    field += 0.15 * noise(rng, height, width, 2, slope=1)  # the grain that all families share
    hue, dark, bright = rng.uniform(-0.03, 0.03), rng.uniform(0.25, 0.4), rng.uniform(0.7, 0.9)
    return paint(field.clip(-1, 1), (family.dark + hue, 0.7, dark), (family.bright + hue, 0.55, bright))


def sprite(spec):
    """The look of the actor: float32 (n, n, 4), colours and opacity, about twice as fine as a frame."""
    rng, radius = np.random.default_rng(spec.actor_seed), RADIUS * spec.short
    n = 4 * math.ceil(radius) + 1
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    angle, outline = np.arctan2(y, x), 1.0
    for lobes in (1, 2, 3):  # all three at once: no symmetry could hide that it turns
        outline = outline + rng.uniform(0.1, 0.25) * np.cos(lobes * angle + rng.uniform(0, 2 * math.pi))
    opacity = (0.9 * outline / outline.max() - np.hypot(y, x)) * radius + 0.5  # the edge is 1 px wide
    dark, bright = rng.random(2)
    look = paint(np.tanh(2 * noise(rng, n, n, n / 3, slope=0)), (dark, 0.8, 0.15), (bright, 0.5, 1.0))
    return np.dstack([look, opacity.clip(0, 1).astype(np.float32)])


def paint(field, dark, bright):
    """Field in [-1, 1], (H, W) -> (H, W, 3) in [0, 255] between two colours (hue, saturation, value)."""
    dark, bright = (np.array(colorsys.hsv_to_rgb(h % 1, s, v)) * 255 for h, s, v in (dark, bright))
    return (dark + (bright - dark) * (field[..., None] + 1) / 2).astype(np.float32)


def sample(image, y, x):
    """Bilinear look-up of image (h, w, C) at pixels y, x, which broadcast -> (..., C). The border repeats."""
    h, w, _ = image.shape
    y, x = y.clip(0, h - 1), x.clip(0, w - 1)
    top, left = np.minimum(y.astype(np.int64), h - 2), np.minimum(x.astype(np.int64), w - 2)
    fy, fx = (part[..., None].astype(image.dtype) for part in (y - top, x - left))
    pixels, corner = image.reshape(h * w, -1), top * w + left
    upper, upper_right, lower, lower_right = (pixels.take(corner + step, axis=0) for step in (0, 1, w, w + 1))
    upper += fx * (upper_right - upper)
    lower += fx * (lower_right - lower)
    return upper + fy * (lower - upper)


class Video(NamedTuple):
    """One file. A group is a biased take (c01 in UCF101) and, if a split tests it, its swapped twin (c02)."""

    path: str  # relative to the root
    label: int  # from 0, in alphabetical order of the motions
    group: int  # from 0; a group is on one side of a split
    swapped: bool
    spec: Spec


SPLITS = (1, 2, 3)


def subset_of(video, split, *, train, test):
    """'train', 'test', 'swapped' or None. Split k tests the k-th run of `test` groups, in a circle."""
    tested = (video.group - (split - 1) * test) % (train + test) < test
    if video.swapped:
        return "swapped" if tested else None
    return "test" if tested else "train"


# A layout is two functions: where a video lies (tested: whether split 1 tests its group), and all its lists


def ucf101_path(motion, group, swapped, tested):
    name = motion.title().replace("_", "")
    return f"UCF-101/{name}/v_{name}_g{group + 1:02d}_c{swapped + 1:02d}.avi"


def ucf101_lists(videos, subset):
    """{path: text}. Labels count from 1 and stand in the train lists only, and lines end in CRLF."""
    classes = dict.fromkeys(video.path.split("/")[1] for video in videos)
    lists = {"classInd": [f"{i} {name}" for i, name in enumerate(classes, 1)]}
    for split in SPLITS:
        lists |= {f"{wanted}list{split:02d}": [] for wanted in ("train", "test", "swapped")}
        for video in videos:
            if wanted := subset(video, split):
                label = f" {video.label + 1}" if wanted == "train" else ""
                lists[f"{wanted}list{split:02d}"].append(video.path.removeprefix("UCF-101/") + label)
    return {f"ucfTrainTestlist/{k}.txt": "".join(f"{line}\r\n" for line in v) for k, v in lists.items()}


def hmdb51_path(motion, group, swapped, tested):
    return f"hmdb51/{motion}/{motion}{group + 1:02d}_{motion}_f_cm_np1_fr_goo_{swapped:d}.avi"


def hmdb51_lists(videos, subset):
    """{path: text}. Each file of a class has a state: 1 train, 2 test, 0 unused; or 1 swapped, 0 unused."""
    states = {"test": {"train": 1, "test": 2}, "swapped": {"swapped": 1}}
    lists = {}
    for video in videos:
        _, motion, name = video.path.split("/")
        for split in SPLITS:
            for wanted in ("test", "swapped"):
                path = f"testTrainMulti_7030_splits/{motion}_{wanted}_split{split}.txt"
                state = states[wanted].get(subset(video, split), 0)
                lists[path] = lists.get(path, "") + f"{name} {state} \n"
    return lists


def kinetics400_path(motion, group, swapped, tested):
    folder = "swapped" if swapped else "val" if tested else "train"
    return f"{folder}/{motion}/{motion}-{group:03d}_000000_000010.mp4"


def kinetics400_lists(videos, subset):
    """{path: text}. A line per video: its class, its name on YouTube and the seconds that were cut out."""
    header = "label,youtube_id,time_start,time_end,split"
    lists = {f"annotations/{part}.csv": [header] for part in ("train", "val", "swapped")}
    for video in videos:
        if wanted := subset(video, 1):
            part, motion, name = video.path.split("/")
            video_id = name.removesuffix("_000000_000010.mp4")
            lists[f"annotations/{part}.csv"].append(f"{motion},{video_id},0,10,{wanted}")
    return {path: "\n".join(lines) + "\n" for path, lines in lists.items()}


def diving48_path(motion, group, swapped, tested):
    return f"rgb/{motion}-{group:03d}_{swapped:05d}.mp4"


def diving48_lists(videos, subset):
    """{path: text}. One split, and a vocabulary whose words are the parts of a class name."""
    lists = {"V2_train": [], "V2_test": [], "V2_swapped": []}
    for video in videos:
        if wanted := subset(video, 1):
            name = video.path.removeprefix("rgb/").removesuffix(".mp4")
            entry = {"vid_name": name, "label": video.label, "start_frame": 0, "end_frame": video.spec.frames}
            lists[f"V2_{wanted}"].append(entry)
    lists["vocab"] = [motion.split("_") for motion in sorted(MOTIONS)]
    return {f"Diving48_{name}.json": json.dumps(entries) for name, entries in lists.items()}


LAYOUTS = {
    "ucf101": (ucf101_path, ucf101_lists),
    "hmdb51": (hmdb51_path, hmdb51_lists),
    "kinetics400": (kinetics400_path, kinetics400_lists),
    "diving48": (diving48_path, diving48_lists),
}


def plan(layout, *, train, test, scene_bias, seed, **shape) -> list[Video]:
    """The videos by class, group and take. Each is a function of its (seed, motion, group, take) alone."""
    path, scenes, videos = LAYOUTS[layout][0], list(SCENES)[: len(MOTIONS)], []
    for label, motion in enumerate(sorted(MOTIONS)):
        for group in range(train + test):
            key = (seed, *motion.encode(), group)
            shared = np.random.default_rng((*key, 0)).integers(2**53, size=3).tolist()  # actor, path, camera
            for swapped in (False, True)[: 2 if group < len(SPLITS) * test else 1]:
                rng = np.random.default_rng((*key, 1 + swapped))
                own = rng.random() < scene_bias and not swapped
                scene = scenes[label if own else rng.integers(len(scenes))]
                spec = Spec(motion, scene, *shared, int(rng.integers(2**53)), **shape)
                videos.append(Video(path(motion, group, swapped, group < test), label, group, swapped, spec))
    return videos


def make(root, layout="ucf101", *, train=60, test=20, frames=64, height=40, width=48, fps=25, scene_bias=0.9,
         drift=24, seed=0, workers=None) -> Path:
    """Write a dataset below `root`, and return `root`.

    layout: one of LAYOUTS, the dataset to pass for.
    train, test: videos per class, in each of the three splits, which part the same files in three ways.
    frames, fps: of a video. height, width: px, even, at least 16.
    scene_bias: in [0, 1], how often the scene is of the class's own family; else it is of any, uniformly, so
        that own ones have a share of scene_bias + (1 - scene_bias) / len(MOTIONS).
    drift: px, the longest pan of the camera over the video.
    seed: the same values give the same decoded frames, whatever `workers`.
    workers: processes that render, None for one per core, 1 for this one. They are spawned, so a script that
        asks for more keeps its call under `if __name__ == "__main__":`.

    Killed and called again, it goes on: files that are there are kept (so delete the folder after you change
    this module). `synthetic.json` holds the values; `synthetic.jsonl`, which `load` reads, a line per video.
    That and the lists come last: where they are, all is there.

    Raises ValueError for a value out of range, and if `root` holds a dataset of other values, or other files.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    for fits, rule in (
        (len(SCENES) >= len(MOTIONS), f"{len(MOTIONS)} MOTIONS need as many SCENES, not {len(SCENES)}"),
        (min(train, test, frames) > 0, f"train, test, frames must be above 0, not {train}, {test}, {frames}"),
        (min(height, width) >= 16, f"height and width must be at least 16, not {height}, {width}"),
        (height % 2 == width % 2 == 0, f"height and width must be even, not {height}, {width}"),
        (0 <= scene_bias <= 1, f"scene_bias must be in [0, 1], not {scene_bias}"),
        (fps > 0 and drift >= 0 and seed >= 0, f"fps > 0, drift >= 0, seed >= 0, not {fps}, {drift}, {seed}"),
    ):
        if not fits:
            raise ValueError(rule)

    root, counts = Path(root), dict(train=train, test=test)
    shape = dict(frames=frames, height=height, width=width, drift=drift)
    values = dict(scene_bias=scene_bias, seed=seed, **counts, **shape)
    claim(root, dict(layout=layout, motions=list(MOTIONS), scenes=list(SCENES), fps=fps, **values))
    videos = plan(layout, **values)

    missing = [video for video in videos if not (root / video.path).exists()]
    job, workers = partial(write, root=root, fps=fps), min(workers or os.cpu_count() or 1, len(missing))
    if workers > 1:  # spawned: the caller may hold threads or a GPU, which do not survive a fork
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            done = pool.map(job, missing, chunksize=4)
            deque(watch(done, len(missing), "synthetic videos"), maxlen=0)
    else:
        deque(watch(map(job, missing), len(missing), "synthetic videos"), maxlen=0)

    lists = LAYOUTS[layout][1](videos, partial(subset_of, **counts))
    lines = (json.dumps(video._asdict() | {"spec": asdict(video.spec)}) for video in videos)
    for path, text in (lists | {"synthetic.jsonl": "\n".join(lines)}).items():
        put(root / path, text)
    return root


def load(root) -> list[Video]:
    """The videos that `make` wrote, with their specs: to ask for their scenes or `render` the true masks."""
    lines = map(json.loads, (Path(root) / "synthetic.jsonl").read_text().splitlines())
    return [Video(**line | {"spec": Spec(**line["spec"])}) for line in lines]


def claim(root, values):
    """Note in synthetic.json what `root` is going to hold; refuse a folder that holds anything else."""
    note = root / "synthetic.json"
    if not note.exists():
        if any(root.glob("[!.]*")):
            raise ValueError(f"{root} is not empty and has no synthetic.json: name a new folder")
        return put(note, json.dumps(values, indent=1))
    held = json.loads(note.read_text())
    differ = [k for k in held | values if held.get(k) != values.get(k)]
    if differ:
        what = ", ".join(f"{k} {held.get(k)!r} (asked: {values.get(k)!r})" for k in differ)
        raise ValueError(f"{root} was made with {what}. Ask for that, name another folder or delete this one")


def write(video, root, fps):
    """Render and encode one video; only a whole file gets its name."""
    path = root / video.path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    frames, _, _ = render(video.spec)
    # A fixed fine quantiser: left alone, MPEG-4 aims at a bit rate and smears the actor.
    encode(aside, frames, fps, codec="mpeg4", options={"qmin": "2", "qmax": "2"})
    aside.replace(path)


def put(path, text):
    """Write text as it is (CRLF too), and whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(text.encode())
    aside.replace(path)


def synth(root: str, layout: str = "ucf101", train: int = 96, test: int = 16, frames: int = 64, height: int = 40,
          width: int = 48, scene_bias: float = 0.6, drift: float = 24, seed: int = 0):
    """Writes synthetic videos in the layout of a real data set, in ROOT

    layout                  ucf101, hmdb51, kinetics400 or diving48
    train, test             videos per class
    frames, height, width   of a video
    scene_bias              how often the scene betrays the class, 0 to 1
    drift                   the camera's longest pan over a video, in pixels
    """
    try:
        make(root, layout, train=train, test=test, frames=frames, height=height, width=width, scene_bias=scene_bias,
             drift=drift, seed=seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(f"{len(load(root))} videos in {root}")
