"""Drawn videos whose background predicts the class: a diagnostic data set, in the layouts of the real ones.

The class of a video is a *motion* and nothing else. A textured actor, whose look is independent of the class, moves
before a scene, filmed by a drifting camera. Each class has its own family of scenes. With probability `scene_bias` a
video shows that family, so a single frame is enough to guess the class. Three subsets measure what was learned:

    train    the scene predicts the class
    test     other actors and other instances of the scenes, the same bias
    swapped  the twins of the test videos: same actor, motion and camera, before a scene of any family, uniformly.
             A network that sees only scenes is right once in len(MOTIONS) times, which is chance

Left and right are different classes: train here without horizontal flips. No single frame shows the motion. All that
can move (STATE) is a point on a torus, which starts uniformly at random, and a motion is a displacement on that torus.
A uniform distribution stays uniform when it is shifted, so a frame, taken alone, has the same distribution in every
class. The price: an actor who leaves on one side re-enters on the other.
"""

import colorsys
import json
import math
import multiprocessing
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from be.config import ConfigError, choose
from be.video import encode

# class -> how far it moves coordinates of STATE in a cycle. All are in cycles: 1.0 is back at the start.
# A new motion is a line here and its own family of scenes in SCENES.
STATE = ("y", "x", "turn", "pulse", "orbit")
MOTIONS = {
    "orbit": {"orbit": 1},
    "pulse": {"pulse": 1},
    "rotate_left": {"turn": -1},
    "rotate_right": {"turn": 1},
    "translate_down": {"y": 1},
    "translate_left": {"x": -1},
    "translate_right": {"x": 1},
    "translate_up": {"y": -1},
}
CYCLE = 32  # frames of a cycle, on average: one in a clip of 16 frames with stride 2
FPS = 25

# Lengths in short sides of the frame.
RADIUS, SWELL = 0.2, 0.3  # of the actor, and the part of it that a pulse adds and takes away
STRAY = 0.12  # radius of a stray
ORBIT = 0.13  # radius of an orbit
MARGIN = 0.2  # between the frame and the stage, on which the centres of orbits lie
REACH = 2  # the camera shakes by at most so many standard deviations

# Families of scenes: texture, its period in short sides, and the hues of its dark and bright parts, in [0, 1).
# Instances differ in direction, phase, noise, brightness and a little in hue.
# The i-th motion, in alphabetical order, has the i-th family for its own.
SCENES = {
    "red stripes": ("stripes", 0.40, 0.98, 0.08),
    "green checks": ("checks", 0.50, 0.40, 0.28),
    "blue blobs": ("blobs", 0.25, 0.66, 0.52),
    "pink clouds": ("clouds", 0.10, 0.80, 0.92),
    "teal stripes": ("stripes", 0.17, 0.58, 0.45),
    "purple checks": ("checks", 0.22, 0.70, 0.86),
    "brown blobs": ("blobs", 0.10, 0.04, 0.12),
    "grass clouds": ("clouds", 0.30, 0.30, 0.17),
}
assert len(SCENES) >= len(MOTIONS), "each of MOTIONS needs a family of SCENES for its own"

# What the textures become in `natural` videos: (slope, stretch) of `noise`. Photographs have slopes about 1, and more
# energy along the two axes, each kind of scene its own (Torralba & Oliva 2003, Network 14, 391).
NATURAL = {"stripes": (1.0, (4,)), "checks": (1.0, (4, 1 / 4)), "blobs": (0.8, (1,)), "clouds": (1.2, (1,))}


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
    # The demo leaves these out, the benchmark has them, see LOOK
    shake: float = 0.0  # px, how far the camera shakes, standard deviation
    zoom: float = 0.0  # the longest zoom over the video: by a factor of up to 1 + zoom, in or out
    actors: int = 1  # up to so many, all in the same motion, each with a look, a place and a speed of its own
    strays: int = 0  # up to so many smaller objects, whose motion is independent of the class
    tempo: float = 0.0  # speeds vary within a video by up to this part of their mean, 0 to 1
    natural: bool = False  # scenes with the spectra of photographs
    show: str = "all"  # static: one frame of it, all the time; background: without actors

    @property
    def short(self):
        return min(self.height, self.width)


def render(spec: Spec):
    """The video and its ground truth, a pure function of the spec.

    Returns frames, uint8 (T, H, W, 3); mask, bool (T, H, W), true where an actor covers at least half of a pixel;
    background, uint8 (T, H, W, 3), the same video without the actors.
    """
    pan, shake, row, column = camera(spec)
    y, x = (pan + shake + REACH * spec.shake)[..., None, None]
    frames = background = sample(canvas(spec), row + y, column + x)
    mask, rng = np.zeros(frames.shape[:3], bool), stream(spec.path_seed, 2)
    actors, strays = 1 + rng.integers(spec.actors), rng.integers(spec.strays + 1)
    for k in (*range(-1, -1 - strays, -1), *range(actors)):
        layer = film_actor(spec, k)
        frames = blend(frames, layer[..., :3], layer[..., 3:])
        if k < 0:  # a stray belongs to the background
            background = frames
        else:
            mask |= layer[..., 3] >= 0.5
    frames, background = (np.rint(part).astype(np.uint8) for part in (frames, background))
    if spec.show == "background":
        return background, np.zeros_like(mask), background
    if spec.show == "static":
        still = [stream(spec.path_seed, 1).integers(spec.frames)] * spec.frames
        return frames[still], mask[still], background[still]
    return frames, mask, background


def stream(seed, *keys):
    """Random numbers of their own for each (seed, *keys). Keys count from 1, since a last key of 0 is as none."""
    return np.random.default_rng((seed, *keys))


def blend(a, b, share):
    return a + share * (b - a)


def film_actor(spec, k):
    """What the camera sees of actor k, or of a stray if k < 0: (T, H, W, 4), colours in [0, 255] and opacity."""
    y, x, angle, size = (pose[:, None, None] for pose in poses(spec, k))
    unit, (_, _, row, column) = (RADIUS if k >= 0 else STRAY) * spec.short, camera(spec)
    dy, dx = (row - y) / (unit * size), (column - x) / (unit * size)
    c, s = np.cos(angle), np.sin(angle)
    v, u = c * dy - s * dx, c * dx + s * dy  # each pixel's place on the sprite, which spans [-1, 1]
    near, look = np.maximum(abs(v), abs(u)) < 1, sprite(stream(spec.actor_seed, k % 1000), unit)
    layer, half = np.zeros((*near.shape, 4), np.float32), (len(look) - 1) / 2
    layer[near] = sample(look, (v[near] + 1) * half, (u[near] + 1) * half)
    return layer


def camera(spec):
    """How the camera moves: pan and shake, each (2, T) px, y and x; rows (T, H, 1) and columns (T, 1, W).

    The corner of the frame stands on the canvas at pan, steady and from 0 up, plus shake, of which half outlasts a
    frame. Rows and columns are the pixels of each frame in those of a camera without zoom.
    """
    rng, shaking, zooming = (stream(spec.camera_seed, key) for key in (0, 1, 2))
    length, angle = rng.uniform(0, (spec.drift, math.tau))
    pan = np.outer((math.sin(angle), math.cos(angle)), np.linspace(0, length, spec.frames))
    noise, reach = shaking.standard_normal((2, spec.frames + 1)), REACH * spec.shake
    shake = (spec.shake * (noise[:, 1:] + noise[:, :-1]) / math.sqrt(2)).clip(-reach, reach)
    factor = np.linspace(1, 1 + zooming.uniform(0, spec.zoom), spec.frames)[:: zooming.choice((-1, 1)), None]
    row, column = (c + np.arange(-c, c + 1) / factor for c in ((spec.height - 1) / 2, (spec.width - 1) / 2))
    return pan - pan.min(axis=1, keepdims=True), shake, row[:, :, None], column[:, None]


def poses(spec, k=0):
    """Actor k in each frame, or a stray: centre y, x (px), angle (radians, clockwise) and size (1 on average), (T,)."""
    rng, lively = stream(spec.path_seed, *((3, k % 1000) if k else ())), stream(spec.path_seed, 4, 1 + k % 1000)
    frames, short, (pan, shake, _, _) = np.arange(spec.frames), spec.short, camera(spec)

    def swing():  # a sine in [-1, 1] with a period of 40 to 80 frames
        return np.sin(math.tau * (frames / lively.uniform(40, 80) + lively.random()))

    state, speed = rng.random((len(STATE), 1)) + 0 * frames, rng.uniform(0.75, 1.25) / CYCLE
    if k < 0:  # a stray: y, x and turn go to and fro
        state[:3] += 1.4 * speed * np.cumsum([swing(), swing(), swing()], axis=1)
    else:
        pace = 1 + spec.tempo * swing()
        for name, way in MOTIONS[spec.motion].items():
            state[STATE.index(name)] += way * ((pace.cumsum() - pace[0]) * speed)
    turn, pulse, orbit = math.tau * state[2:]
    stage = np.array([[spec.height], [spec.width]]) - 2 * MARGIN * short
    base = MARGIN * short + (state[:2] * stage - pan) % stage  # the pan moves the actor just as the scene
    y, x = base + ORBIT * short * np.stack([np.sin(orbit), np.cos(orbit)]) - shake
    return y, x, turn, 1 + SWELL * np.sin(pulse)


def canvas(spec):
    """The scene as far as the camera may come: float32 (height + drift, width + drift, 3) in [0, 255]."""
    rng, (texture, period, dark, bright) = stream(spec.scene_seed), SCENES[spec.scene]
    shape = [side + math.ceil(spec.drift + 2 * REACH * spec.shake) + 1 for side in (spec.height, spec.width)]
    if spec.natural:
        field = 0.5 * noise(rng, shape, 0, *NATURAL[texture])
    else:
        field = 0.8 * np.tanh(pattern(rng, shape, texture, period * spec.short))
        field += 0.15 * noise(rng, shape, 2)  # the grain that all families share
    hue, low, high = rng.uniform((-0.03, 0.25, 0.7), (0.03, 0.4, 0.9))
    return paint(field.clip(-1, 1), (dark + hue, 0.7, low), (bright + hue, 0.55, high))


def pattern(rng, shape, texture, period):
    """A texture of the demo, (height, width), before tanh; its period in px."""
    if texture in ("blobs", "clouds"):
        return 3 * noise(rng, shape, period, 0) if texture == "blobs" else noise(rng, shape, period, 1.5)
    y, x = np.indices(shape) * (math.tau / period)
    angle, *phase = rng.uniform(0, math.tau, 3)
    c, s = math.cos(angle), math.sin(angle)
    across, along = np.sin(c * x + s * y + phase[0]), np.sin(c * y - s * x + phase[1])
    return 3 * across if texture == "stripes" else 6 * (across * along)


def noise(rng, shape, period=0, slope=1, stretch=(1,)):
    """Gaussian noise of variance 1, (height, width), with amplitude 1 / frequency^slope.

    period: px; there are no waves much shorter. stretch: how much longer than high the structures are, of each layer.
    Natural images have slope 1 (Field 1987, J. Opt. Soc. Am. A 4, 2379); slope 0 leaves blobs of one size.
    """
    field = 0.0
    for s in stretch:
        f = np.hypot(np.fft.fftfreq(shape[0])[:, None] * s**-0.5, np.fft.rfftfreq(shape[1]) * s**0.5)
        gain = np.exp(-((f * period) ** 2)) / np.maximum(f, 1 / max(shape)) ** slope
        gain[0, 0] = 0  # no mean
        field = field + np.fft.irfft2(gain * np.fft.rfft2(rng.standard_normal(shape)), s=shape)
    return field / field.std()


def sprite(rng, radius):
    """The look of an actor: float32 (n, n, 4), colours and opacity, about twice as fine as a frame."""
    n = 4 * math.ceil(radius) + 1
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    angle, outline = np.arctan2(y, x), 1.0
    for lobes in (1, 2, 3):  # all three at once: no symmetry could hide that it turns
        outline = outline + rng.uniform(0.1, 0.25) * np.cos(lobes * angle + rng.uniform(0, math.tau))
    opacity = (0.9 * outline / outline.max() - np.hypot(y, x)) * radius + 0.5  # the edge is 1 px wide
    dark, bright = rng.random(2)
    look = paint(np.tanh(2 * noise(rng, (n, n), n / 3, 0)), (dark, 0.8, 0.15), (bright, 0.5, 1.0))
    return np.dstack([look, opacity.clip(0, 1).astype(np.float32)])


def paint(field, dark, bright):
    """Field in [-1, 1], (H, W) -> (H, W, 3) in [0, 255] between two colours (hue, saturation, value)."""
    dark, bright = (np.array(colorsys.hsv_to_rgb(h % 1, s, v)) * 255 for h, s, v in (dark, bright))
    return blend(dark, bright, (field[..., None] + 1) / 2).astype(np.float32)


def sample(image, y, x):
    """Bilinear look-up of image (h, w, C) at pixels y, x, which broadcast -> (..., C). The border repeats."""
    h, w, _ = image.shape
    y, x = y.clip(0, h - 1), x.clip(0, w - 1)
    top, left = np.minimum(y.astype(int), h - 2), np.minimum(x.astype(int), w - 2)
    fy, fx = (part[..., None].astype(image.dtype) for part in (y - top, x - left))
    pixels, corner = image.reshape(h * w, -1), top * w + left
    upper, lower = (blend(pixels.take(at, axis=0), pixels.take(at + 1, axis=0), fx) for at in (corner, corner + w))
    return blend(upper, lower, fy)


# ---- files and lists


@dataclass(frozen=True)
class Video:
    """One file. A group is a biased take (c01 in UCF101) and, if a split tests it, its swapped twin (c02). With
    `stills`, if split 1 tests it, also the biased take as one still frame (c03) and without its actors (c04)."""

    path: str  # relative to the root
    label: int  # from 0, in alphabetical order of the motions
    group: int  # from 0; a group is on one side of a split
    swapped: bool
    spec: Spec


class Layout(NamedTuple):
    """Of a data set, as templates: where a video lies, the list that names it and its line there."""

    video: str
    listed: str
    line: str
    splits: tuple = (1,)
    classes: tuple = ("", "")  # the file that names all classes, and a line of it
    ends: tuple = ("", "", "")  # what stands before, between and after the lines of each file


LAYOUTS = {
    "ucf101": Layout(
        "UCF-101/{title}/v_{title}_g{number:02d}_c{take:02d}.avi", "ucfTrainTestlist/{subset}list{split:02d}.txt",
        "{path.parent.name}/{path.name}{mark}\r\n", (1, 2, 3),
        ("ucfTrainTestlist/classInd.txt", "{number} {title}\r\n")),
    "hmdb51": Layout(
        "hmdb51/{motion}/{motion}{number:02d}_{motion}_f_cm_np1_fr_goo_{swapped:d}.avi",
        "testTrainMulti_7030_splits/{path.parent.name}_{table}_split{split}.txt", "{path.name} {state} \n", (1, 2, 3)),
    "kinetics400": Layout(
        "{part}/{motion}/{motion}-{group:03d}_000000_000010.mp4", "annotations/{path.parts[0]}.csv",
        "{path.parent.name},{path.parent.name}-{video.group:03d},0,10,{subset}\n",
        ends=("label,youtube_id,time_start,time_end,split\n", "", "")),
    "diving48": Layout(
        "rgb/{motion}-{group:03d}_{swapped:05d}.mp4", "Diving48_V2_{subset}.json",
        '{{"vid_name": "{path.stem}", "label": {video.label}, "start_frame": 0, "end_frame": {video.spec.frames}}}',
        classes=("Diving48_vocab.json", "{parts}"), ends=("[", ", ", "]")),
}


def plan(layout, *, train, test, scene_bias, seed, stills=False, **shape) -> list[Video]:
    """The videos by class, group and take. Each is a function of its (seed, motion, group, take) alone, and all but
    its scene does not depend on `scene_bias`."""
    families, videos = list(SCENES)[: len(MOTIONS)], []
    for (label, motion), group in product(enumerate(sorted(MOTIONS)), range(train + test)):
        key, takes = (seed, *motion.encode(), group), []
        shared = stream(*key, 0).integers(2**53, size=3).tolist()  # actor, path, camera
        for swapped in range(1 + (group < 3 * test)):  # one of three splits tests it
            rng = stream(*key, 1 + swapped)
            own = rng.random() < scene_bias and not swapped
            scene = families[label if own else rng.integers(len(families))]
            takes.append(Spec(motion, scene, *shared, int(rng.integers(2**53)), **shape))
        if stills and group < test:
            takes += [replace(takes[0], show=show) for show in ("static", "background")]
        names = dict(motion=motion, group=group, number=group + 1, title=motion.title().replace("_", ""))
        for take, spec in enumerate(takes, 1):
            swapped = take == 2
            part = "swapped" if swapped else "val" if group < test else "train"
            path = LAYOUTS[layout].video.format(**names, take=take, swapped=swapped, part=part)
            videos.append(Video(path, label, group, swapped, spec))
    return videos


def subset_of(video, split, *, train, test):
    """'train', 'test', 'swapped', 'static', 'background' or None. Split k tests the k-th run of `test` groups, in a
    circle; stills are tested in split 1 alone."""
    tested = (video.group - (split - 1) * test) % (train + test) < test
    if video.spec.show != "all":
        return video.spec.show if split == 1 else None
    return ((None, "swapped") if video.swapped else ("train", "test"))[tested]


def split_lists(layout, videos, train, test):
    """{path: text}: the lists of a layout, in the form of the official ones to the byte."""
    form, lists = LAYOUTS[layout], defaultdict(list)
    for split, video in product(form.splits, videos):
        if subset := subset_of(video, split, train=train, test=test):
            words = dict(video=video, path=Path(video.path), split=split, subset=subset,
                         mark=f" {video.label + 1}" * (subset == "train"),  # for UCF101
                         table=subset.replace("train", "test"), state=1 + (subset == "test"))  # for HMDB51
            lists[form.listed.format(**words)].append(form.line.format(**words))
    path, line = form.classes
    for i, motion in enumerate(sorted(MOTIONS), 1):
        lists[path].append(line.format(
            number=i, title=motion.title().replace("_", ""), parts=json.dumps(motion.split("_"))))
    start, between, end = form.ends
    return {path: start + between.join(lines) + end for path, lines in lists.items() if path}


def make(root, layout="ucf101", *, train, test, frames=64, height=40, width=48, scene_bias=0.9, drift=24, seed=0,
         stills=False, workers=None, **look) -> Path:
    """Write a data set below `root`, and return `root`.

    layout: one of LAYOUTS. train, test: videos per class, in each split; the splits divide the same files.
    frames: of a video. height, width: px, even, at least 16. drift: px, the camera's longest pan over the video.
    scene_bias: in [0, 1], how often the scene is of the class's own family; else it is of any, uniformly, so
        that own ones have a share of scene_bias + (1 - scene_bias) / len(MOTIONS).
    seed: the same values give the same decoded frames, whatever `workers`.
    stills: two more test lists, of layout ucf101 in split 1, `static` and `background`, see `Video`.
    look: the other fields of Spec, shake to natural.
    workers: processes that render, None for one per core, 1 for this one. They are spawned, so a script that
        asks for more keeps its call under `if __name__ == "__main__":`.

    Called again after a kill it goes on, and keeps existing files: delete the folder after you change this module.
    `synthetic.json` holds the values; `synthetic.jsonl`, which `load` reads, a line per video. That and the lists are
    written last: where they are, all videos are there.

    Raises ConfigError for a value out of range, and if `root` holds a data set of other values, or other files.
    """
    choose(LAYOUTS, layout, "layout")
    values = dict(scene_bias=scene_bias, seed=seed, train=train, test=test, frames=frames, height=height, width=width,
                  drift=drift, **look, **{"stills": True} if stills else {})
    for rule, holds in {
        "train and frames must be at least 1": min(train, frames) >= 1,
        "test, drift and seed must be at least 0": min(test, drift, seed) >= 0,
        "height and width must be even and at least 16": min(height, width) >= 16 and (height | width) % 2 == 0,
        "scene_bias must be in [0, 1]": 0 <= scene_bias <= 1,
        "stills are for layout ucf101": layout == "ucf101" or not stills,
    }.items():
        if not holds:
            raise ConfigError(f"{rule}, not as in layout={layout}, {values}")
    root, workers = Path(root), workers or os.cpu_count()
    claim(root, dict(layout=layout, motions=list(MOTIONS), scenes=list(SCENES), fps=FPS, **values))
    videos = plan(layout, **values)
    missing = [video for video in videos if not (root / video.path).exists()]
    # Spawned: the caller may hold threads or a GPU, which do not survive a fork
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        done = (map if workers == 1 else pool.map)(write, repeat(root), missing)
        list(tqdm(done, "synthetic videos", len(missing), mininterval=0.1 if sys.stderr.isatty() else 60))
    lists = split_lists(layout, videos, train, test)
    lists["synthetic.jsonl"] = "\n".join(json.dumps(asdict(video)) for video in videos)
    for path, text in lists.items():
        with whole(root / path) as aside:
            aside.write_bytes(text.encode())
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
            raise ConfigError(f"{root} is not empty and has no synthetic.json: name a new folder")
        with whole(note) as aside:
            aside.write_text(json.dumps(values, indent=1))
    held = json.loads(note.read_text())
    if differ := [f"{k} {held.get(k)!r} (asked: {values.get(k)!r})" for k in held | values
                  if held.get(k) != values.get(k)]:
        raise ConfigError(f"{root} was made with {', '.join(differ)}: ask for that, name another folder or delete this")


def write(root, video):
    # A fixed fine quantiser: left alone, MPEG-4 aims at a bit rate and smears the actor.
    with whole(root / video.path) as aside:
        encode(aside, render(video.spec)[0], FPS, codec="mpeg4", options={"qmin": "2", "qmax": "2"})


@contextmanager
def whole(path):
    """Where to write a file that gets its name once it is all there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    yield aside
    aside.replace(path)


def synth(root: str, layout: str = "ucf101", train: int = 96, test: int = 16, frames: int = 64, height: int = 40,
          width: int = 48, scene_bias: float = 0.6, drift: float = 24, seed: int = 0):
    """Writes synthetic videos in the layout of a real data set, in ROOT

    layout                  ucf101, hmdb51, kinetics400 or diving48
    train, test             videos per class
    frames, height, width   of a video
    scene_bias              how often the scene is of the class's own family, 0 to 1
    drift                   the camera's longest pan over a video, in pixels
    """
    make(**locals())
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


def scenebias(data: str = "data", size: str = "tiny", biases: list[float] = (0.9, 0.5, 0.0),
              pretrain_bias: float = 0.9, drift: float = LOOK["drift"]):
    """scenebias: write the benchmark of background reliance, in DATA/scenebias-VERSION-SIZE

    size            tiny, small or full
    biases          scene bias of the fine-tuning sets
    pretrain_bias   scene bias of the pre-training set and the list `test`
    drift           the camera's longest pan over a video, in short sides of the picture

    Folders in the layout of UCF101: `pretrain` has the list to pre-train on (`train`; ignore its labels) and the test
    lists `test`, `swapped`, `static` and `background`; `bias0.9`, `bias0.5` and `bias0` those to fine-tune on: the same
    actors, motions and cameras, before other scenes. docs/EVIDENCE.md says what each property stands for. Other values
    than the defaults make another folder beside.
    """
    sizes = choose(SIZES, size, "size")
    short, look = min(sizes["height"], sizes["width"]), {key: sizes[key] for key in ("frames", "height", "width")}
    look |= LOOK | dict(drift=drift * short, shake=LOOK["shake"] * short)
    pretrain = dict(train=sizes["pretrain"], test=sizes["test"], stills=True)
    tuning = dict(train=sizes["train"], test=0, seed=1)
    for part, bias, values in (("pretrain", pretrain_bias, pretrain), *(("bias", bias, tuning) for bias in biases)):
        root = Path(data) / f"scenebias-{VERSION}-{size}" / part_name(part, bias, drift) / "ucf101"
        make(root, scene_bias=bias, **values, **look)


def part_name(part: str, bias: float, drift: float) -> str:
    """Of a folder of the benchmark; only what differs from the benchmark's own values is named."""
    name = part if (part, bias) == ("pretrain", 0.9) else f"{part}{bias:g}"
    return name if drift == LOOK["drift"] else f"{name}-drift{drift:g}"
