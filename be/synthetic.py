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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from be.config import ConfigError, choose
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
STRAY = 0.12  # radius of a stray
ORBIT = 0.13  # radius of an orbit
MARGIN = 0.2  # between the frame and the stage, on which the centres of orbits lie
REACH = 2  # standard deviations of the camera's trembling that it never passes


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


# What the textures become in `natural` videos: (slope of the amplitude spectrum, and for each of the layers how much
# longer its structures are than high). Photographs have slopes about 1, and more energy along the two axes, the
# horizon's or a building's, each kind of scene its own (Torralba & Oliva 2003, Network 14, 391).
NATURAL = {stripes: (1.0, (4,)), checks: (1.0, (4, 1 / 4)), blobs: (0.8, (1,)), clouds: (1.2, (1,))}


def landscape(rng, height, width, texture):
    """Gaussian noise of variance 1 with a spectrum like that of a photograph, at all scales."""
    slope, layers = NATURAL[texture]
    f_y, f_x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    field = 0.0
    for longer in layers:
        f = np.hypot(f_y * longer**-0.5, f_x * longer**0.5)
        gain = 1 / np.maximum(f, 1 / max(height, width)) ** slope
        gain[0, 0] = 0
        field = field + np.fft.irfft2(gain * np.fft.rfft2(rng.standard_normal((height, width))), s=(height, width))
    return field / field.std()


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
    # What the demo leaves out and the benchmark has, see SCENEBIAS
    shake: float = 0.0  # px, how far the camera trembles, standard deviation
    zoom: float = 0.0  # the longest zoom over the video: by a factor of up to 1 + zoom, in or out
    actors: int = 1  # up to so many, all in the same motion, each with a look, a place and a speed of its own
    strays: int = 0  # up to so many others, smaller, which move without meaning
    tempo: float = 0.0  # speeds vary within a video by up to this part of their mean, 0 to 1
    natural: bool = False  # scenes with the spectra of photographs
    show: str = "all"  # static: one frame of it, all the time; background: without actors

    @property
    def short(self):
        return min(self.height, self.width)


def render(spec: Spec):
    """The video and its truth, a pure function of the spec.

    Returns frames, uint8 (T, H, W, 3); mask, bool (T, H, W), true where the actor covers at least half of a
    pixel; background, uint8 (T, H, W, 3), the same video without the actor.
    """
    actors, strays = cast(spec)
    background, covered = film_scene(spec), 0.0
    for k in strays:
        background = over(background, film_actor(spec, k))
    frames = background
    for k in actors:
        layer = film_actor(spec, k)
        frames, covered = over(frames, layer), np.maximum(covered, layer[..., 3])
    frames, background = np.rint(frames).astype(np.uint8), np.rint(background).astype(np.uint8)
    mask = covered >= 0.5
    if spec.show == "static":
        still = stream(spec.path_seed, 1).integers(spec.frames)
        frames, mask, background = (np.repeat(part[still][None], spec.frames, 0) for part in (frames, mask, background))
    elif spec.show == "background":
        frames, mask = background, np.zeros_like(mask)
    return frames, mask, background


def stream(seed, *keys):
    """Random numbers apart from those of default_rng(seed), others for all keys; keys count from 1."""
    return np.random.default_rng((seed, *keys))


def cast(spec):
    """The numbers of the actors, from 0, and of the strays, from -1 down."""
    rng = stream(spec.path_seed, 2)
    return range(1 + rng.integers(spec.actors)), range(-1, -1 - rng.integers(spec.strays + 1), -1)


def over(picture, layer):
    return picture + layer[..., 3:] * (layer[..., :3] - picture)


def film_scene(spec):
    """What the camera sees of the scene: (T, H, W, 3) in [0, 255]."""
    pans, shakes, pixels = camera(spec), tremble(spec), magnify(spec)
    y, x = (pixel + (pan + shake + REACH * spec.shake)[:, None, None]
            for pan, shake, pixel in zip(pans, shakes, pixels, strict=True))
    return sample(canvas(spec), y, x)


def film_actor(spec, k=0):
    """What the camera sees of an actor or stray: (T, H, W, 4), colours in [0, 255] and opacity in [0, 1]."""
    y, x, angle, radius = (pose[:, None, None] for pose in poses(spec, k))
    row, column = magnify(spec)
    dy, dx = (row - y) / radius, (column - x) / radius
    c, s = np.cos(angle), np.sin(angle)
    v, u = c * dy - s * dx, c * dx + s * dy  # each pixel's place on the sprite, which spans [-1, 1]
    near, look = np.maximum(abs(v), abs(u)) < 1, sprite(spec, k)
    layer, half = np.zeros((*near.shape, 4), np.float32), (len(look) - 1) / 2
    layer[near] = sample(look, (v[near] + 1) * half, (u[near] + 1) * half)
    return layer


def camera(spec):
    """Where the corner of the frame stands on the canvas: y, x, each (T,) px, from 0 up. A steady pan."""
    rng = np.random.default_rng(spec.camera_seed)
    way, angle = np.linspace(0, rng.uniform(0, spec.drift), spec.frames), rng.uniform(0, 2 * math.pi)
    return tuple(pan - pan.min() for pan in (way * math.sin(angle), way * math.cos(angle)))


def tremble(spec):
    """How far the camera is off its pan: y, x, each (T,) px, within +-REACH * shake. Half of it outlasts a frame."""
    noise = stream(spec.camera_seed, 1).standard_normal((2, spec.frames + 1))
    return tuple((spec.shake * (noise[:, 1:] + noise[:, :-1]) / math.sqrt(2)).clip(-REACH * spec.shake,
                                                                                   REACH * spec.shake))


def magnify(spec):
    """The pixels of each frame, in those of a camera without zoom: rows (T, H, 1) and columns (T, 1, W)."""
    rng = stream(spec.camera_seed, 2)
    factor = np.linspace(1, 1 + rng.uniform(0, spec.zoom), spec.frames)[:: rng.choice((-1, 1)), None]
    row, column = ((n - 1) / 2 + (np.arange(n) - (n - 1) / 2) / factor for n in (spec.height, spec.width))
    return row[:, :, None], column[:, None]


def swing(rng, frames):
    """Something that changes within a video: a sine of a period of 1 to 2 times 40 frames, (T,) in [-1, 1]."""
    return np.sin(2 * math.pi * (np.arange(frames) / rng.uniform(40, 80) + rng.random()))


def poses(spec, k=0):
    """Actor k in each frame, or a stray: centre y, x (px), angle (radians, clockwise) and radius (px), each (T,)."""
    rng = np.random.default_rng(spec.path_seed) if k == 0 else stream(spec.path_seed, 3, k % 1000)
    state = {name: np.full(spec.frames, rng.random()) for name in STATE}
    speed, lively = rng.uniform(0.75, 1.25) / CYCLE, stream(spec.path_seed, 4, 1 + k % 1000)
    if k >= 0:
        pace = 1 + spec.tempo * swing(lively, spec.frames)
        for name, moved in MOTIONS[spec.motion]((pace.cumsum() - pace[0]) * speed).items():
            state[name] = state[name] + moved
    else:
        for name in ("y", "x", "turn"):
            state[name] = state[name] + 1.4 * speed * swing(lively, spec.frames).cumsum()
    turn, pulse, orbit = (2 * math.pi * state[name] for name in ("turn", "pulse", "orbit"))

    def on_stage(place, pan, side):  # the pan moves the actor just as it moves the scene
        stage = side - 2 * MARGIN * spec.short
        return MARGIN * spec.short + (place * stage - pan) % stage

    pan_y, pan_x = camera(spec)
    shake_y, shake_x = tremble(spec)
    y = on_stage(state["y"], pan_y, spec.height) + ORBIT * spec.short * np.sin(orbit) - shake_y
    x = on_stage(state["x"], pan_x, spec.width) + ORBIT * spec.short * np.cos(orbit) - shake_x
    return y, x, turn, (RADIUS if k >= 0 else STRAY) * spec.short * (1 + SWELL * np.sin(pulse))


def canvas(spec):
    """The scene as far as the camera may come: float32 (height + drift, width + drift, 3) in [0, 255]."""
    rng, family = np.random.default_rng(spec.scene_seed), SCENES[spec.scene]
    height, width = (side + math.ceil(spec.drift + 2 * REACH * spec.shake) + 1 for side in (spec.height, spec.width))
    if spec.natural:
        field = 0.5 * landscape(rng, height, width, family.texture)
    else:
        field = 0.8 * family.texture(rng, height, width, family.period * spec.short)
        field += 0.15 * noise(rng, height, width, 2, slope=1)  # the grain that all families share
    hue, dark, bright = rng.uniform(-0.03, 0.03), rng.uniform(0.25, 0.4), rng.uniform(0.7, 0.9)
    return paint(field.clip(-1, 1), (family.dark + hue, 0.7, dark), (family.bright + hue, 0.55, bright))


def sprite(spec, k=0):
    """The look of actor k: float32 (n, n, 4), colours and opacity, about twice as fine as a frame."""
    rng = np.random.default_rng(spec.actor_seed) if k == 0 else stream(spec.actor_seed, k % 1000)
    radius = (RADIUS if k >= 0 else STRAY) * spec.short
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
    """One file. A group is a biased take (c01 in UCF101), if a split tests it its swapped twin (c02), and with
    `stills`, if split 1 tests it, the biased take again as one still frame (c03) and without its actors (c04)."""

    path: str  # relative to the root
    label: int  # from 0, in alphabetical order of the motions
    group: int  # from 0; a group is on one side of a split
    swapped: bool
    spec: Spec


SPLITS = (1, 2, 3)


def subset_of(video, split, *, train, test):
    """'train', 'test', 'swapped', 'static', 'background' or None. Split k tests the k-th run of `test` groups, in a
    circle; what needs `stills` is tested in split 1 alone."""
    tested = (video.group - (split - 1) * test) % (train + test) < test
    if video.spec.show != "all":
        return video.spec.show if split == 1 else None
    if video.swapped:
        return "swapped" if tested else None
    return "test" if tested else "train"


# A layout is two functions: where a video lies (tested: whether split 1 tests its group), and all its lists


def ucf101_path(motion, group, take, tested):
    name = motion.title().replace("_", "")
    return f"UCF-101/{name}/v_{name}_g{group + 1:02d}_c{take + 1:02d}.avi"


def ucf101_lists(videos, subset):
    """{path: text}. Labels count from 1 and stand in the train lists only, and lines end in CRLF."""
    classes = dict.fromkeys(video.path.split("/")[1] for video in videos)
    lists = {"classInd": [f"{i} {name}" for i, name in enumerate(classes, 1)]}
    for split in SPLITS:
        lists |= {f"{wanted}list{split:02d}": [] for wanted in ("train", "test", "swapped")}
        for video in videos:
            if wanted := subset(video, split):
                label = f" {video.label + 1}" if wanted == "train" else ""
                line = video.path.removeprefix("UCF-101/") + label
                lists.setdefault(f"{wanted}list{split:02d}", []).append(line)
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


def plan(layout, *, train, test, scene_bias, seed, stills=False, **shape) -> list[Video]:
    """The videos by class, group and take. Each is a function of its (seed, motion, group, take) alone, and all but
    its scene does not depend on `scene_bias`."""
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
            if stills and group < test:
                biased = videos[-2].spec
                videos += [Video(path(motion, group, take, True), label, group, False, replace(biased, show=show))
                           for take, show in ((2, "static"), (3, "background"))]
    return videos


def make(root, layout="ucf101", *, train=60, test=20, frames=64, height=40, width=48, fps=25, scene_bias=0.9,
         drift=24, seed=0, stills=False, workers=None, **look) -> Path:
    """Write a dataset below `root`, and return `root`.

    layout: one of LAYOUTS, the dataset to pass for.
    train, test: videos per class, in each of the three splits, which part the same files in three ways.
    frames, fps: of a video. height, width: px, even, at least 16.
    scene_bias: in [0, 1], how often the scene is of the class's own family; else it is of any, uniformly, so
        that own ones have a share of scene_bias + (1 - scene_bias) / len(MOTIONS).
    drift: px, the longest pan of the camera over the video.
    seed: the same values give the same decoded frames, whatever `workers`.
    stills: two more test lists, of layout ucf101 in split 1, `static` and `background`, see `Video`.
    look: what else a Spec can hold, shake to natural.
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
        (min(train, frames) > 0 <= test, f"train, frames > 0 and test >= 0, not {train}, {frames}, {test}"),
        (min(height, width) >= 16, f"height and width must be at least 16, not {height}, {width}"),
        (height % 2 == width % 2 == 0, f"height and width must be even, not {height}, {width}"),
        (0 <= scene_bias <= 1, f"scene_bias must be in [0, 1], not {scene_bias}"),
        (fps > 0 and drift >= 0 and seed >= 0, f"fps > 0, drift >= 0, seed >= 0, not {fps}, {drift}, {seed}"),
        (layout == "ucf101" or not stills, f"stills are for layout ucf101, not {layout}"),
    ):
        if not fits:
            raise ValueError(rule)

    from be.runs import progress  # here, since the processes that draw do without torch

    root, counts = Path(root), dict(train=train, test=test)
    shape = dict(frames=frames, height=height, width=width, drift=drift, **look)
    values = dict(scene_bias=scene_bias, seed=seed, **counts, **shape, **{"stills": True} if stills else {})
    claim(root, dict(layout=layout, motions=list(MOTIONS), scenes=list(SCENES), fps=fps, **values))
    videos = plan(layout, **values)

    missing = [video for video in videos if not (root / video.path).exists()]
    job, workers = partial(write, root=root, fps=fps), min(workers or os.cpu_count() or 1, len(missing))
    if workers > 1:  # spawned: the caller may hold threads or a GPU, which do not survive a fork
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            done = pool.map(job, missing, chunksize=4)
            deque(progress(done, len(missing), "synthetic videos"), maxlen=0)
    else:
        deque(progress(map(job, missing), len(missing), "synthetic videos"), maxlen=0)

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


# ---- the benchmark

# In short sides of the frame, speeds and counts. A change that changes a frame is a new VERSION.
VERSION = "v1"
LOOK = dict(drift=0.6, shake=0.0125, zoom=0.25, actors=2, strays=2, tempo=0.8, natural=True)
SIZES = {  # videos per class; the demo's pictures, the same twice as large, those of C3D
    "tiny": dict(pretrain=64, train=64, test=16, frames=64, height=40, width=48),
    "small": dict(pretrain=256, train=128, test=32, frames=64, height=40, width=48),
    "full": dict(pretrain=1000, train=500, test=100, frames=128, height=128, width=160),
}
BIASES = (0.9, 0.5, 0.0)  # of the fine-tuning sets


def scenebias(data: str = "data", size: str = "tiny", biases: list[float] = BIASES, pretrain_bias: float = 0.9,
              drift: float = LOOK["drift"]) -> dict[str, str]:
    """scenebias: write the benchmark of background reliance, in DATA/scenebias-VERSION-SIZE

    size            tiny, small or full
    biases          scene bias of the fine-tuning sets
    pretrain_bias   scene bias of the pre-training set and the list `test`
    drift           the camera's longest pan over a video, in short sides of the picture

    Folders in the layout of UCF101: `pretrain` holds the list to pre-train on (`train`, labels not to be looked at) and
    the test lists `test` (biased as pre-training), `swapped`, `static` and `background`; `bias0.9`, `bias0.5` and
    `bias0` those to fine-tune on: the same actors, motions and cameras, before other scenes. EVIDENCE.md says what each
    property stands for. Other values than the defaults make another folder, beside. Returns {part: its folder}.
    """
    shape = dict(choose(SIZES, size, "size"))
    pretrain, train, test = (shape.pop(part) for part in ("pretrain", "train", "test"))
    short, roots = min(shape["height"], shape["width"]), {}
    look = LOOK | shape | {"drift": drift * short, "shake": LOOK["shake"] * short}
    for part, bias, values in (("pretrain", pretrain_bias, dict(train=pretrain, test=test, seed=0, stills=True)),
                               *(("bias", bias, dict(train=train, test=0, seed=1)) for bias in biases)):
        root = Path(data) / f"scenebias-{VERSION}-{size}" / part_name(part, bias, drift)
        try:
            make(root / "ucf101", scene_bias=bias, **values, **look)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        roots[part if part == "pretrain" else f"bias{bias:g}"] = str(root)
    return roots


def part_name(part: str, bias: float, drift: float) -> str:
    """Of a folder of the benchmark; what is as in the benchmark itself is not said."""
    name = part if part == "pretrain" and bias == 0.9 else f"{part}{bias:g}"
    return name if drift == LOOK["drift"] else f"{name}-drift{drift:g}"
