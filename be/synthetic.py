"""Drawn videos whose background predicts the class: a diagnostic data set, in the layouts of the real ones.

The class of a video is the *motion* of a textured actor before a scene, filmed by a drifting camera. Each class has its
own family of scenes, which a video shows with probability `scene_bias`, so that a single frame is enough to guess the
class. Three lists measure what was learned:

    train    the scene predicts the class
    test     other actors and other instances of the scenes, the same bias
    swapped  the twins of the test videos: same actor, motion and camera, before a scene of any family, uniformly.
             A network that sees only scenes is right once in len(MOTIONS) times, which is chance

Left and right are different classes: train without horizontal flips. No single frame shows the motion: all that can
move (STATE) is a point on a torus, uniform at random. So an actor who leaves on one side re-enters on the other.
"""

import colorsys
import json
import math
import multiprocessing
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import default_rng  # with keys behind a seed; a last key of 0 is as none
from tqdm import tqdm

from be.config import Amount, ConfigError, Count, Natural, Share, choose, cores
from be.video import encode

# class -> how far it moves coordinates of STATE in a cycle. All are in cycles: 1.0 is back at the start.
STATE = ("y", "x", "turn", "pulse", "orbit")
MOTIONS = {
    "orbit": {"orbit": 1}, "pulse": {"pulse": 1}, "rotate_left": {"turn": -1}, "rotate_right": {"turn": 1},
    "translate_down": {"y": 1}, "translate_left": {"x": -1}, "translate_right": {"x": 1}, "translate_up": {"y": -1},
}
CYCLE, FPS = 32, 25  # frames of a cycle, on average: one in a clip of 16 frames with stride 2; and of a second
RADIUS, STRAY, ORBIT = 0.2, 0.12, 0.13  # of the actor, a stray and an orbit, in short sides of the frame
MARGIN = 0.2  # short sides between the frame and the stage, on which the centres of orbits lie
SWELL = 0.3  # the part of its size that a pulse adds and takes away
REACH = 2  # the camera shakes by at most so many standard deviations

# Families of scenes: texture, its period in short sides, and the hues of its dark and bright parts, in [0, 1). The i-th
# motion, in alphabetical order, has the i-th for its own.
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
# Textures of `natural` videos: (slope, stretch) of `noise`. Photographs have slopes about 1 (Field 1987, J. Opt. Soc.
# Am. A 4, 2379), and more energy along the two axes (Torralba & Oliva 2003, Network 14, 391).
NATURAL = {"stripes": (1.0, (4,)), "checks": (1.0, (4, 1 / 4)), "blobs": (0.8, (1,)), "clouds": (1.2, (1,))}


@dataclass(frozen=True)
class Spec:
    """All there is to know of a video. `dataclasses.replace(spec, scene=...)` films the same actor elsewhere."""

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
    shake: float = 0.0  # px, how far the camera shakes, standard deviation
    zoom: float = 0.0  # the longest zoom over the video: by a factor of up to 1 + zoom, in or out
    actors: int = 1  # at most, all in the same motion, each with a look, a place and a speed of its own
    strays: int = 0  # at most: smaller objects, whose motion is independent of the class
    tempo: float = 0.0  # speeds vary within a video by up to this part of their mean, 0 to 1
    natural: bool = False  # scenes with the spectra of photographs
    show: str = "all"  # static: one frame of it, all the time; background: without actors

    @property
    def short(self):
        return min(self.height, self.width)


def render(spec: Spec):
    """The video and its truth, a pure function of the spec. -> frames, uint8 (T, H, W, 3); mask, bool (T, H, W), true
    where an actor covers at least half of a pixel; background, as frames, without the actors"""
    pan, shake, row, column = camera(spec)
    y, x = (pan + shake + REACH * spec.shake)[..., None, None]
    frames = background = sample(canvas(spec), row + y, column + x)
    mask, rng = np.zeros(frames.shape[:3], bool), default_rng((spec.path_seed, 2))
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
    still = [default_rng((spec.path_seed, 1)).integers(spec.frames)] * spec.frames
    return tuple(part[still] if spec.show == "static" else part for part in (frames, mask, background))


def blend(a, b, share):
    return a + share * (b - a)


def film_actor(spec, k):
    """What the camera sees of actor k, or of a stray if k < 0: (T, H, W, 4), colours in [0, 255] and opacity."""
    y, x, angle, size = (pose[:, None, None] for pose in poses(spec, k))
    unit, (_, _, row, column) = (RADIUS if k >= 0 else STRAY) * spec.short, camera(spec)
    dy, dx = (row - y) / (unit * size), (column - x) / (unit * size)
    c, s = np.cos(angle), np.sin(angle)
    v, u = c * dy - s * dx, c * dx + s * dy  # each pixel's place on the sprite, which spans [-1, 1]
    near, look = np.maximum(abs(v), abs(u)) < 1, sprite(default_rng((spec.actor_seed, k % 1000)), unit)
    layer, half = np.zeros((*near.shape, 4), np.float32), (len(look) - 1) / 2
    layer[near] = sample(look, (v[near] + 1) * half, (u[near] + 1) * half)
    return layer


def camera(spec):
    """How the camera moves: pan and shake, each (2, T) px, y and x, both of the frame's corner on the canvas; rows
    (T, H, 1) and columns (T, 1, W), the pixels of each frame in those of a camera without zoom. The pan is steady and
    starts or ends at 0, half of the shake outlasts a frame."""
    rng, shaking, zooming = (default_rng((spec.camera_seed, key)) for key in (0, 1, 2))
    length, angle = rng.uniform(0, (spec.drift, math.tau))
    pan = np.outer((math.sin(angle), math.cos(angle)), np.linspace(0, length, spec.frames))
    noise, reach = shaking.standard_normal((2, spec.frames + 1)), REACH * spec.shake
    shake = (spec.shake * (noise[:, 1:] + noise[:, :-1]) / math.sqrt(2)).clip(-reach, reach)
    factor = np.linspace(1, 1 + zooming.uniform(0, spec.zoom), spec.frames)[:: zooming.choice((-1, 1)), None]
    row, column = (c + np.arange(-c, c + 1) / factor for c in ((spec.height - 1) / 2, (spec.width - 1) / 2))
    return pan - pan.min(axis=1, keepdims=True), shake, row[:, :, None], column[:, None]


def poses(spec, k=0):
    """Actor k in each frame, or a stray: centre y, x (px), angle (radians, clockwise) and size (1 on average), (T,)."""
    rng = default_rng((spec.path_seed, 3, k % 1000) if k else spec.path_seed)
    lively = default_rng((spec.path_seed, 4, 1 + k % 1000))
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
    rng, (texture, period, dark, bright) = default_rng(spec.scene_seed), SCENES[spec.scene]
    shape = [side + math.ceil(spec.drift + 2 * REACH * spec.shake) + 1 for side in (spec.height, spec.width)]
    period *= spec.short  # px
    if spec.natural:
        field = 0.5 * noise(rng, shape, 0, *NATURAL[texture])
    elif texture == "blobs":
        field = 3 * noise(rng, shape, period, 0)
    elif texture == "clouds":
        field = noise(rng, shape, period, 1.5)
    else:
        y, x = np.indices(shape) * (math.tau / period)
        angle, *phase = rng.uniform(0, math.tau, 3)
        c, s = math.cos(angle), math.sin(angle)
        across, along = np.sin(c * x + s * y + phase[0]), np.sin(c * y - s * x + phase[1])
        field = 3 * across if texture == "stripes" else 6 * (across * along)
    if not spec.natural:
        field = 0.8 * np.tanh(field) + 0.15 * noise(rng, shape, 2)  # the grain that all families share
    hue, low, high = rng.uniform((-0.03, 0.25, 0.7), (0.03, 0.4, 0.9))
    return paint(field.clip(-1, 1), (dark + hue, 0.7, low), (bright + hue, 0.55, high))


def noise(rng, shape, period=0, slope=1, stretch=(1,)):
    """Gaussian noise of variance 1, (height, width), with amplitude 1 / frequency^slope. period: px; there are no waves
    much shorter. slope: 0 leaves blobs of one size. stretch: how much longer than high structures are, of each layer"""
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
    outline = sum((rng.uniform(0.1, 0.25) * np.cos(lobes * np.arctan2(y, x) + rng.uniform(0, math.tau))
                   for lobes in (1, 2, 3)), 1.0)  # all three at once: no symmetry could hide that it turns
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
    a, b, c, d = (pixels.take(corner + step, axis=0) for step in (0, 1, w, w + 1))
    return blend(blend(a, b, fx), blend(c, d, fx), fy)


@dataclass(frozen=True)
class Video:
    """One file. A group is a biased take; if a split tests it, its swapped twin; and perhaps its stills."""

    path: str  # relative to the root
    label: int  # from 0, in alphabetical order of the motions
    group: int  # from 0; a group is on one side of a split
    swapped: bool
    spec: Spec


class Layout(NamedTuple):
    video: str  # a template: where it lies
    listed: str  # the list that names it
    line: str  # its line there
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
    """The videos by class, group and take, each a function of its (seed, motion, group, take) alone, and all but its
    scene whatever the `scene_bias`. shape: fields of Spec from frames on."""
    families, videos = list(SCENES), []
    for (label, motion), group in product(enumerate(sorted(MOTIONS)), range(train + test)):
        key, takes = (seed, *motion.encode(), group), []
        shared = default_rng((*key, 0)).integers(2**53, size=3).tolist()  # actor, path, camera
        for swapped in range(1 + (group < 3 * test)):  # one of three splits tests it
            rng = default_rng((*key, 1 + swapped))
            scene = families[label if rng.random() < scene_bias and not swapped else rng.integers(len(families))]
            takes.append(Spec(motion, scene, *shared, int(rng.integers(2**53)), **shape))
        if stills and group < test:
            takes += [replace(takes[0], show=show) for show in ("static", "background")]
        for take, spec in enumerate(takes, 1):
            swapped = take == 2
            path = LAYOUTS[layout].video.format(
                motion=motion, title=title(motion), group=group, number=group + 1, take=take, swapped=swapped,
                part="swapped" if swapped else "val" if group < test else "train")
            videos.append(Video(path, label, group, swapped, spec))
    return videos


def title(motion):
    return motion.title().replace("_", "")


def subset_of(video, split, *, train, test):
    """Which list names it, or None. Split k tests the k-th run of `test` groups, in a circle."""
    tested = (video.group - (split - 1) * test) % (train + test) < test
    if video.spec.show != "all":
        return video.spec.show if split == 1 else None
    return ((None, "swapped") if video.swapped else ("train", "test"))[tested]


def split_lists(layout, videos, train, test):
    """{path: text}, in the form of the official lists to the byte."""
    form, lists = LAYOUTS[layout], defaultdict(list)
    for split, video in product(form.splits, videos):
        if subset := subset_of(video, split, train=train, test=test):
            words = dict(video=video, path=Path(video.path), split=split, subset=subset,
                         mark=f" {video.label + 1}" * (subset == "train"),  # for UCF101
                         table=subset.replace("train", "test"), state=1 + (subset == "test"))  # for HMDB51
            lists[form.listed.format(**words)].append(form.line.format(**words))
    (path, line), (start, between, end) = form.classes, form.ends
    for i, motion in enumerate(sorted(MOTIONS), 1):
        lists[path].append(line.format(number=i, title=title(motion), parts=json.dumps(motion.split("_"))))
    return {path: start + between.join(lines) + end for path, lines in lists.items() if path}


def synth(root: str, layout: str = "ucf101", train: Count = 96, test: Natural = 16, frames: Count = 64,
          height: Count = 40, width: Count = 48, scene_bias: Share = 0.6, drift: Amount = 24, seed: Natural = 0,
          stills: bool = False, workers: Natural | None = None, look: dict | None = None):
    """Writes synthetic videos in the layout of a real data set, in ROOT

    layout                  ucf101, hmdb51, kinetics400 or diving48
    train, test             videos per class in each split; the splits divide the same files
    frames, height, width   of a video; height and width in pixels, even, at least 16
    scene_bias              how often the scene is of the class's own family, 0 to 1; else it is of any, own ones too
    drift                   the camera's longest pan over a video, in pixels
    stills                  two more test lists of ucf101: `static`, one frame of each; `background`, without actors
    workers                 processes, by default one per core; a script needs `if __name__ == "__main__":` or 1
    look                    other fields of Spec, as {shake: 0.5}

    The same values give the same frames; after a kill it goes on. Raises ConfigError if ROOT holds anything else.
    """
    choose(LAYOUTS, layout, "layout")
    if stills and layout != "ucf101":
        raise ConfigError(f"stills are for layout=ucf101, not {layout}")
    if min(height, width) < 16 or (height | width) % 2:
        raise ConfigError(f"height and width must be even and at least 16, not {height} and {width}")
    values = dict(scene_bias=scene_bias, seed=seed, train=train, test=test, frames=frames, height=height, width=width,
                  drift=drift) | (look or {}) | ({"stills": True} if stills else {})
    claim(root := Path(root), dict(layout=layout, motions=list(MOTIONS), scenes=list(SCENES), fps=FPS, **values))
    videos = plan(layout, **values)
    missing = {root / video.path: video.spec for video in videos if not (root / video.path).exists()}
    # Spawned: the caller may hold threads or a GPU, which do not survive a fork
    with ProcessPoolExecutor(workers or cores(), multiprocessing.get_context("spawn")) as pool:
        done = (map if workers == 1 else pool.map)(write, missing, missing.values())
        list(tqdm(done, "synthetic videos", len(missing), mininterval=0.1 if sys.stderr.isatty() else 60))
    for path, text in split_lists(layout, videos, train, test).items():
        write(root / path, text)
    write(root / "synthetic.jsonl", "\n".join(json.dumps(asdict(video)) for video in videos))
    print(f"{len(videos)} videos in {root}")


def load(root) -> list[Video]:
    """The videos that `synth` wrote, with their specs: to ask for their scenes or `render` the true masks."""
    lines = map(json.loads, (Path(root) / "synthetic.jsonl").read_text().splitlines())
    return [Video(**line | {"spec": Spec(**line["spec"])}) for line in lines]


def claim(root, values):
    """Note in synthetic.json what `root` is going to hold; refuse a folder that holds anything else."""
    note = root / "synthetic.json"
    if not note.exists():
        if any(root.glob("[!.]*")):
            raise ConfigError(f"{root} is not empty and has no synthetic.json: name a new folder")
        write(note, json.dumps(values, indent=1))
    held = json.loads(note.read_text())
    if differ := [key for key in held | values if held.get(key) != values.get(key)]:
        made, asked = ({key: of.get(key) for key in differ} for of in (held, values))
        raise ConfigError(f"{root} was made with {made}, not {asked}: ask for that, name another folder or delete this")


def write(path, content):
    """A text, or the film of a Spec, finely quantised, or MPEG-4 smears the actor. Named once all of it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    if isinstance(content, Spec):
        encode(aside, render(content)[0], FPS, codec="mpeg4", options={"qmin": "2", "qmax": "2"})
    else:
        aside.write_bytes(content.encode())
    aside.replace(path)


# ---- the benchmark; drift and shake in short sides of the frame. A change that changes a frame is a new VERSION.
VERSION = "v1"
LOOK = dict(drift=0.6, shake=0.0125, zoom=0.25, actors=2, strays=2, tempo=0.8, natural=True)
SIZES = {  # videos per class to pre-train on, to fine-tune on and to test on, frames, height, width
    "tiny": (64, 64, 16, 64, 40, 48),
    "small": (256, 128, 32, 64, 40, 48),
    "full": (1000, 500, 100, 128, 128, 160),
}


def scenebias(data: str = "data", size: str = "tiny"):
    """scenebias: write the benchmark of background reliance, in DATA/scenebias-VERSION-SIZE

    size            tiny, small or full

    Folders in the layout of UCF101: `pretrain`, of scene bias 0.9, has the list `train` to pre-train on and all test
    lists. bias0.9, bias0.5 and bias0 are to fine-tune on: the same actors, motions and cameras, before other scenes.
    docs/EVIDENCE.md says why.
    """
    pretrain, train, test, frames, height, width = choose(SIZES, size, "size")
    look = {key: value * height if key in ("drift", "shake") else value for key, value in LOOK.items()}
    folder = Path(data) / f"scenebias-{VERSION}-{size}"
    shape = dict(frames=frames, height=height, width=width, look=look)
    synth(folder / "pretrain/ucf101", train=pretrain, test=test, scene_bias=0.9, stills=True, **shape)
    for bias in (0.9, 0.5, 0.0):
        synth(folder / f"bias{bias:g}/ucf101", train=train, test=0, scene_bias=bias, seed=1, **shape)
