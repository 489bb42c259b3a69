"""Background bias: what does a network look at? Tests (verb `robustness`; docs/BIAS.md says what each is, and where
from), the same as videos (`biasset`), masks of actors.

    lenders, masked = lend(samples, cfg, accelerator)  # who lends his scene to whom, who has a mask
    for i, shot in shots(samples, sampler, cfg, accelerator, "test", lenders=lenders):
        y = MANIPULATIONS["Action-Swap"](shot, 0)  # with the first lender: clips (K, 3, T, S, S), normalised

The config key `scene` says where masks are from. Of persons in clips of HMDB51 `median` finds a quarter, and as much of
the scene (docs/evidence/masks.md). Frames are composed as they are decoded, before a square is cut from them, and are
functions of the video, not of the clip: SPREAD frames tell its scene. So `biasset` writes what `robustness` shows.
"""

import json
import os
import pickle
import sys
import zlib
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from be import datasets, synthetic
from be.augment import MEAN, Draws, denormalise, eval_view
from be.config import Config, ConfigError
from be.erase import draw_frame
from be.evaluate import load_classifier, load_list, over_videos, spread_clips
from be.report import page
from be.runs import make_accelerator, place, progress, provenance, write_text, writing
from be.video import Reader, VideoError, encode

THRESHOLD = 0.15  # difference in any colour, of pixels in [0, 1], above which a pixel counts as moving
SPREAD = 16  # frames, evenly over a video
DRAWS, LEAST, MOST = 3, 0.05, 0.5  # HAT's: of backgrounds; the part of a video's pixels that a mask has

# ---- masks

class Mask(NamedTuple):
    """Where the persons of a video are."""

    mask: np.ndarray  # bool (T, h, w): in each of the video's T frames, at a size of its own; (0, 1, 1): not known
    source: str  # who says so: `file`, the name of a model, `median`, `rendered`; `none`: nobody


NO_MASK = Mask(np.zeros((0, 1, 1), bool), "none")


def stored_masks(samples, folder):
    """The masks in a folder, as `run.py masks` writes them. -> read(i), the Mask of video i of the list, NO_MASK where
    there is none; and where it is broken or does not fit the video, which stderr is told. Raises ConfigError for a
    folder without masks."""
    if not any(Path(folder).glob("*/*.npz")):
        raise ConfigError(f"masks={folder} has no CLASS/NAME.npz: `run.py masks` finds persons; of pictures, boxes or "
                          f"puppets that you have, `python benchmarks/masks.py convert` makes such files")

    def read(i):
        file = mask_file(folder, samples.paths[i])
        if not file.exists():
            return NO_MASK
        try:
            with np.load(file, allow_pickle=False) as held:
                mask, source = held["mask"], str(held.get("source", "file"))
                mask = np.unpackbits(mask, axis=2, count=held["shape"][2]).astype(bool)
            with Reader(samples.path(i), samples.index(i)) as video:
                if len(mask) != video.frames:
                    raise ValueError(f"{mask.shape} is not (T, h, w) of a video of {video.frames} frames")
        except Exception as error:  # of what is no such file, numpy raises nearly anything
            print(f"no mask of {samples.path(i)}: {file}: {error}", file=sys.stderr)
            return NO_MASK
        return Mask(mask, source)
    return read


def mask_file(folder, path: bytes) -> Path:
    """Where the mask of a video is stored, of whose path the last two parts are its class and its name."""
    return Path(folder, *os.fsdecode(path).split("/")[-2:]).with_suffix(".npz")


def masks_of(samples, cfg: Config):
    """Where the actor is, by `cfg.scene`. -> actor_in(i, numbers (n,), frames (n, H, W, 3)) -> bool (n, H, W, 1)
    numbers: of frames of video i, of which the last SPREAD lie evenly over it. Raises ConfigError of `rendered` on
    other videos, of `masks` without them."""
    if cfg.scene == "median":
        return lambda i, numbers, frames: (
            (frames.short() - frames[-SPREAD:].median(0).values).abs().amax(3, keepdim=True) > 255 * THRESHOLD)
    read = stored_masks(samples, cfg.masks or "") if cfg.scene == "masks" else true_masks(samples)

    def actor_in(i, numbers, frames):
        mask = torch.from_numpy(read(i).mask).to(frames.device)[..., None]
        size = frames.shape[1:3]
        return fit(mask[numbers], *size) if len(mask) else mask.new_zeros(len(frames), *size, 1)
    return actor_in


def true_masks(samples):
    """Of synthetic videos, as `stored_masks`."""
    known = specs(samples.root)
    return lambda i: Mask(synthetic.render(known[samples.paths[i]])[1], "rendered")


@cache
def specs(root: str) -> dict[bytes, synthetic.Spec]:
    """Path below root -> what the video is made of. Raises ConfigError of videos that are not synthetic."""
    if not Path(root, datasets.DRAWN).exists():
        raise ConfigError(f"`rendered` actors are of synthetic videos, which those in {root} are not")
    return {os.fsencode(video.path): video.spec for video in synthetic.load(root)}


# ---- what is shown

@dataclass(frozen=True, eq=False)
class Shot:
    """Frames of a video, where the actor is in them, and what others lend. Frames are uint8, masks bool."""

    frames: Tensor  # (n, H, W, 3), as decoded
    actor: Tensor  # (n, H, W, 1)
    numbers: Tensor  # (n,) which frames of the video these are
    spread: Tensor  # (SPREAD, H, W, 3), evenly over the video
    spread_actor: Tensor  # (SPREAD, H, W, 1)
    cfg: Config
    key: tuple[int, int]  # seed, and the video whatever the list: what is drawn for it follows from that
    lent: dict[int, "Shot"] = field(default_factory=dict)  # of the draws that have one, a video at the same moments
    still: tuple[np.ndarray, ...] = ()  # for each draw a picture (H, W, 3)

    @cached_property
    def x(self) -> Tensor:
        """The clips as a network sees them, (K, 3, T, S, S), normalised."""
        return self.look(self.frames)

    @cached_property
    def scene(self) -> Tensor:
        """The frames without the actor and a rim of a 24th of the short side. Behind him is the median of the SPREAD
        frames in which he is not there, and where he always is, the mean colour of that."""
        spread_actor, actor = (grown(mask, min(mask.shape[1:3]) // 24) for mask in (self.spread_actor, self.actor))
        behind = self.spread.float().masked_fill(spread_actor, torch.nan).nanmedian(0).values  # (H, W, 3)
        behind = torch.where(behind.isnan(), behind.nanmean((0, 1)), behind).nan_to_num().round().byte()
        return torch.where(actor, behind, self.frames)

    def look(self, frames: Tensor) -> Tensor:
        """Frames (n, H, W, 3) as a network sees them, see `x`. Of a single one T is 1."""
        clips = frames.unflatten(0, (-1, min(self.cfg.frames, len(frames))))
        size = torch.tensor(clips.shape[2:4], device=clips.device).expand(len(clips), 2)
        return eval_view(clips, size, self.cfg.size)

    def seen(self, mask: Tensor) -> Tensor:
        """A mask (n, H, W, 1) likewise: bool (K, T, S, S)."""
        return denormalise(self.look(255 * mask.byte().expand(-1, -1, -1, 3)))[:, 0] > 0.5


class Takes(datasets.Clips):
    """What the loader decodes for a Shot. Key (i, j, ...): video i, then videos j, ... at the same moments of theirs.
    -> of each an Item, with frames (n, H, W, 3) for clips, of which the last are the SPREAD ones, and their numbers"""

    def __getitem__(self, key):
        numbers, takes = [], []

        def sampler(n, rng):
            own = numbers[0][:-SPREAD] * n // (numbers[0][-1] + 1) if numbers else self.sampler(n, rng).ravel()
            numbers.append(np.concatenate([own, np.linspace(0, n - 1, SPREAD).astype(np.int64)]))
            return numbers[-1]

        for j in key:
            item = super(Takes, replace(self, sampler=sampler)).__getitem__((0, j))
            takes.append((item._replace(clips=torch.from_numpy(item.clips)), torch.from_numpy(numbers[-1])))
        return takes


def shots(samples, sampler, cfg: Config, accelerator, what: str, mine=None, lenders=None):
    """Yields each video's place in the list and its Shot, None where that or a lender is unreadable; as
    `evaluate.views`. lenders: (draws, N), places of the videos that lend in each draw, -1 for none."""
    mine = range(accelerator.process_index, len(samples), accelerator.num_processes) if mine is None else mine
    lenders = np.empty((0, len(samples)), int) if lenders is None else lenders
    keys = [(i, *lenders[lenders[:, i] >= 0, i].tolist()) for i in mine]
    actor_in, still = masks_of(samples, cfg), backgrounds(cfg.backgrounds)
    videos = Takes(samples, sampler, cfg.short_side, cfg.seed, False, cfg.cache_gb, cfg.strict)
    loader = datasets.loader(videos, [[key] for key in keys], cfg.workers, accelerator.device, itemgetter(0))

    def shot(item, numbers):
        numbers, frames = numbers.to(accelerator.device), item.clips.to(accelerator.device)
        actor, n = actor_in(item.index, numbers, frames), len(frames) - SPREAD
        key = cfg.seed, zlib.crc32(samples.paths[item.index])
        return Shot(frames[:n], actor[:n], numbers[:n], frames[n:], actor[n:], cfg, key)

    takes = progress(loader, len(keys), what) if accelerator.is_main_process else loader
    for key, found in zip(keys, takes, strict=True):
        samples.damaged.update(item.index for item, _ in found if item.damaged)
        if not all(item.ok for item, _ in found):
            yield key[0], None
            continue
        one, *others = (shot(*take) for take in found)
        yield key[0], replace(
            one, lent=dict(zip(np.flatnonzero(lenders[:, key[0]] >= 0).tolist(), others, strict=True)),
            still=tuple(still(np.random.default_rng((*one.key, draw)), *one.frames.shape[1:3])
                        for draw in range(len(lenders))))


def lend(samples, cfg: Config, accelerator):
    """Who lends his scene to whom: for each draw the place of a readable video of another class, -1 where there is
    none, (draws, N); of `cfg.pairs`, or at random, of a video with a mask where one has it. And who has a mask, (N,)
    bool. Says how many. Decodes SPREAD frames of each video. RunError where none can be read."""
    none = np.empty((0, cfg.frames), np.int64)
    found = over_videos(lambda shot, i: shot.spread_actor.float().mean(), samples, lambda *_: none, cfg, accelerator,
                        "masks", look=shots)
    share, ok = (of.numpy() for of in found)
    masked, label = ok & (share >= LEAST) & (share <= MOST), samples.labels
    if cfg.pairs:
        files = sorted(Path(cfg.pairs).glob("*.p*k*l*")) or [cfg.pairs]  # a file has no files below it
        lenders = np.array([read_pairs(file, samples, accelerator.print) for file in files])
        lenders[~ok[lenders] | (label[lenders] == label)] = -1
    else:
        pools = {c: np.flatnonzero(ok & (label != c)) for c in np.unique(label)}
        pools = {c: pool[masked[pool]] if masked[pool].any() else pool for c, pool in pools.items()}
        lenders = np.array([[np.random.default_rng((cfg.seed, draw, i)).choice(pools[c]) if len(pools[c]) else -1
                             for i, c in enumerate(label)] for draw in range(DRAWS)])
    accelerator.print(
        f"{masked.sum()} of {len(ok)} videos have a mask on {LEAST:.0%} to {MOST:.0%} of their pixels, "
        f"{(ok & (share == 0)).sum()} none at all, {(~ok).sum()} cannot be read; "
        f"{(lenders < 0).any(0).sum()} lack a video of another class that lends them its scene")
    return lenders, masked


class PlainPickle(pickle.Unpickler):
    """Reads texts, numbers, arrays and containers of them. Code that a pickle names to be run is not run."""

    ALLOWED = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.zeros(1).__reduce__()[0],
               "scalar": np.float64(0).__reduce__()[0], "encode": lambda text, _: text.encode("latin1")}

    def find_class(self, module, name):
        if module.split(".")[0] in ("numpy", "_codecs") and name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may run code")


def read_pairs(file, samples, say=print) -> np.ndarray:
    """The pairs of HAT and DEVIAS: a pickle of {"CLASS/NAME": ["CLASS/NAME of the background", ...]}, found by NAME,
    with or without extension. -> (N,), the place of each video's background, -1 for none. Says what the list lacks. No
    code runs from the file. Raises ConfigError for one that cannot be read, or holds anything else."""
    names = [Path(os.fsdecode(path)) for path in samples.paths]
    place = {name: i for i, path in enumerate(names) for name in (path.stem, path.name)}
    try:
        with open(file, "rb") as data:
            pairs = PlainPickle(data, encoding="latin1").load().items()
        pairs = [(os.path.basename(one), os.path.basename(other)) for one, (other, *_) in pairs]
    except Exception as error:  # of what is no pickle, or another one, the unpickler raises nearly anything
        raise ConfigError(f"pairs={file} cannot be read: {error}; it should be a pickle (or a folder of some) of "
                          '{"CLASS/NAME": ["CLASS/NAME of the background", ...]}') from None
    known = {place[one]: place[other] for one, other in pairs if one in place and other in place}
    absent = sorted({name for pair in pairs for name in pair} - place.keys())
    say(f"{file}: of {len(pairs)} pairs {len(known)} are in the list of {len(names)} videos; {len(absent)} names are "
        f"not: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}")
    return np.array([known.get(i, -1) for i in range(len(names))])


def fit(pictures: Tensor, H: int, W: int) -> Tensor:
    """Pictures (n, h, w, C), uint8 or bool, scaled until they fill H x W px, of which the centre is cut out."""
    if pictures.dtype == torch.bool:
        return fit(255 * pictures.byte(), H, W) > 127
    h, w = pictures.shape[1:3]
    if (h, w) == (H, W):
        return pictures
    scale = max(H / h, W / w)
    h, w = (side if abs(scale * own - side) < 2 else round(scale * own) for own, side in ((h, H), (w, W)))
    x = F.interpolate(pictures.movedim(-1, 1).float(), (h, w), mode="bilinear", antialias=True)
    top, left = (h - H) // 2, (w - W) // 2
    return x[:, :, top : top + H, left : left + W].round().clamp(0, 255).byte().movedim(1, -1)


def grown(mask: Tensor, rim: int) -> Tensor:
    """A mask (n, H, W, 1) with all that is at most `rim` px beside it, above and below."""
    return F.max_pool2d(mask.movedim(-1, 1).float(), 2 * rim + 1, 1, rim).movedim(1, -1) > 0


def centre(mask: Tensor) -> Tensor:
    """The centre of mass of a mask (n, H, W, 1), y and x in px; of the picture if nothing is masked."""
    return (mask if mask.any() else ~mask).nonzero()[:, 1:3].double().mean(0)


# ---- manipulations

def sinusoid(rng, H: int, W: int) -> np.ndarray:
    """A sine wave's stripes, in a random colour and its complement, at a random angle; with the ranges of StillMix (Li
    et al., ICCV 2023), whose pictures have 256 px. -> uint8 (H, W, 3)"""
    unit, colour, (turn, phase) = min(H, W) / 256, rng.random(3), rng.uniform(0, 2 * np.pi, 2)
    half, length, height = rng.uniform((5, 4, 10), (20, 1004, 110)) * unit  # of a stripe's width; of the wave
    period = rng.uniform(3, 5) * half
    y, x = np.indices((H, W)) - np.array([H, W]).reshape(2, 1, 1) / 2
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    off = across - height * np.sin(2 * np.pi * along / length + phase)
    inside = abs((off + period / 2) % period - period / 2) < half
    return np.rint(255 * np.where(inside[..., None], 1 - colour, colour)).astype(np.uint8)


def backgrounds(folder: str | None):
    """-> still(rng, H, W), a picture uint8 (H, W, 3): one of those below the folder, or a `sinusoid`. Raises
    ConfigError where there is none, and for one that cannot be read."""
    if folder is None:
        return sinusoid
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ConfigError(f"backgrounds={folder} has no JPEG or PNG below it")

    def still(rng, H, W):
        try:
            with Reader(files[rng.integers(len(files))]) as picture:
                return fit(torch.from_numpy(picture.decode([0])), H, W)[0].numpy()
        except VideoError as error:
            raise ConfigError(f"{error}; take it out of backgrounds={folder}") from None
    return still


def human_only(shot: Shot, _):
    """All but the actor is grey, the mean of ImageNet."""
    return torch.where(shot.actor, shot.frames, (255 * torch.tensor(MEAN)).round().byte().to(shot.frames.device))


def swap(shot: Shot, draw: int):
    """The actor in the scene of the lender, at whose actor's centre of mass, over the video, his own is."""
    lender, (H, W) = shot.lent[draw], shot.frames.shape[1:3]
    y, x = (centre(fit(lender.spread_actor, H, W)) - centre(shot.spread_actor)).round().int().tolist()
    frames, actor = (F.pad(part, (0, 0, x, -x, y, -y)) for part in (shot.frames, shot.actor))
    return torch.where(actor, frames, fit(lender.scene, H, W))


def scuba(shot: Shot, draw: int):
    """The actor on a still picture."""
    return torch.where(shot.actor, shot.frames, torch.from_numpy(shot.still[draw]).to(shot.frames.device))


def scufo(shot: Shot, draw: int):
    """One frame of SCUBA, drawn from the SPREAD ones with an actor, in place of all."""
    n = np.random.default_rng((*shot.key, draw, 1)).choice(shot.spread_actor.any((1, 2, 3)).nonzero()[:, 0].cpu())
    one = replace(shot, frames=shot.spread[n, None], actor=shot.spread_actor[n, None])
    return scuba(one, draw).expand_as(shot.frames)


# Asked of videos with a mask, and written by `biasset`: (Shot, draw) -> frames, uint8 (n, H, W, 3)
KINDS = {"Human-Only": human_only, "Scene-Only": lambda shot, _: shot.scene, "Action-Swap": swap, "SCUBA": scuba,
         "SCUFO": scufo}
DRAWN = ("Action-Swap", "SCUBA", "SCUFO")
LENT = ("Action-Swap", "static body", "foreign frame")  # asked of videos that another one lends to
BODY = LENT[:2]  # and of which the lender must have a mask


def composed(shot: Shot, draw: int = 0, kind: str = "SCUBA"):
    frames = KINDS[kind](shot, draw)
    return shot.look(frames[: shot.cfg.frames] if kind == "SCUFO" else frames)  # all of its clips are one


def pasted(shot: Shot) -> tuple[Tensor, Tensor]:
    """The lender's frame in the middle (1, H, W, 3), at the size of this video's, and where the actor is in it."""
    lender, n, size = shot.lent[0], len(shot.frames) // 2, shot.frames.shape[1:3]
    return fit(lender.frames[n, None], *size), fit(lender.actor[n, None], *size)


def static_body(shot: Shot, _=0):
    frame, body = pasted(shot)
    return shot.look(torch.where(body, frame, shot.frames))


def shuffled(shot: Shot, _=0):
    order = Draws(*shot.key, device=shot.x.device).rand(len(shot.x), shot.x.shape[2]).argsort(1)  # (K, T)
    return shot.x.take_along_dim(order[:, None, :, None, None], 2)


def erased(shot: Shot, _=0, lam: float = 0.3):
    """Eq. 1 with `lam` given. The frame is drawn, the same for all lam."""
    return torch.lerp(shot.x, draw_frame(shot.x, Draws(*shot.key, device=shot.x.device)), lam)


MANIPULATIONS = {  # (Shot, draw) -> clips like Shot.x
    "original": lambda shot, _=0: shot.x,
    "frozen": lambda shot, _=0: shot.x[:, :, shot.x.shape[2] // 2, None].expand_as(shot.x),
    "shuffled": shuffled,
    "reversed": lambda shot, _=0: shot.x.flip(2),
    **{kind: partial(composed, kind=kind) for kind in KINDS},
    "static body": static_body,
    "foreign frame": lambda shot, _=0: torch.lerp(shot.x, shot.look(pasted(shot)[0]), 0.3),
    **{f"BE, {lam}": partial(erased, lam=lam) for lam in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)},
}


# ---- robustness

# What is asked: which answer, beside a model of scenes, speaks for a model of motion (neither: no arrow), who asks it
QUESTIONS = {
    "original": "↑", "original, masked": "↑ the videos with a mask alone", "frozen": "↓ paper 4.7: static video",
    "shuffled": "", "reversed": "", "Human-Only": "↑ HAT, NeurIPS 2022", "Scene-Only": "↓ HAT",
    "SHAcc": "↑ HAT: Action-Swap", "SBErr": "↓ HAT: Action-Swap", "SCUBA": "↑ StillMix, ICCV 2023",
    "SCUFO": "↓ StillMix", "contrasted": "↑ StillMix: SCUBA and not SCUFO", "static body": "↑ paper 4.7",
    "foreign frame": "↑ paper 4.7", **{name: "↑ paper, Eq. 1" for name in MANIPULATIONS if name.startswith("BE")},
    "conflict: motion": "↑", "conflict: scene": "↓",
}


def robustness(*runs: tuple[Path, Config]):
    """robustness: test fine-tuned models on videos without motion, without actors, before other scenes

    docs/BIAS.md says what each test is, which way it points, and where it is from. The lists are `subset`, such as
    test,swapped; the clips are the `test_clips` of `evaluate`. `scene` says where the masks of actors are from, `pairs`
    which videos are swapped, `backgrounds` which pictures are put behind the actor. Runs of one experiment (seeds,
    splits) are averaged; of a single run the draws of a test are. All is in % of the videos that are asked about; the
    unreadable are wrong. To OUT go robustness-DATASET-SUBSET.json and .md.
    """
    for out, about, rows in compare("robustness", runs, measure):
        what = f"Top-1 in %, {about['test_clips']} clips a video, masks: {about['scene']}"
        publish(out, what, about, rows, table(rows, about["classes"]))


def compare(verb: str, runs, one):
    """Calls one(model, samples, cfg, accelerator, path, subset) -> dict of numbers for each finished run and each list.

    For each list of the first run's `subset` the main process then gets where results go (no suffix), a dict of what
    they are of, and a row for each run. ConfigError where data sets differ; RunError or it where a run does not fit.
    """
    first = runs[0][1]
    if len({cfg.dataset for _, cfg in runs}) > 1:
        raise ConfigError(f"runs on different data sets cannot stand side by side: {[c.dataset for _, c in runs]}")
    accelerator, names = make_accelerator(first), short([path.parent for path, _ in runs])
    for subset in first.subset.split(","):
        rows = []
        for name, (path, cfg) in zip(names, runs, strict=True):
            model, classes = load_classifier(cfg, path)
            samples = load_list(cfg, subset, classes)
            numbers = one(place(model, accelerator.device, cfg.precision), samples, cfg, accelerator, path, subset)
            name += ", frozen" * path.name.startswith("linear-")
            rows.append({"experiment": name, "run": str(path), "split": cfg.split, "seed": cfg.seed, **numbers})
        if accelerator.is_main_process:
            keys = ("dataset", "test_clips", "scene", "masks", "pairs", "backgrounds")
            about = {"subset": subset, "classes": len(classes), **provenance(samples, accelerator)}
            about |= {key: getattr(first, key) for key in keys}
            about |= {key: sum(row[key] for row in rows) for key in ("n_scored", "n_expected")}
            yield Path(first.out) / f"{verb}-{first.dataset}-{subset}", about, rows


def short(paths: list[Path]) -> list[str]:
    """The paths without the folders that all of them lie in."""
    return [os.path.relpath(path, os.path.commonpath([other.parent for other in paths])) for path in paths]


def publish(out: Path, what: str, about: dict, rows: list[dict], shown: list[dict] | None = None):
    """Writes OUT.json, with all rows, and OUT.md, a table of those `shown` or of all; prints that."""
    head = "{}, {dataset} {subset}, {n_scored} of {n_expected} videos scored".format(what, **about)
    text = page([{"about": head, "rows": shown or rows}], out.parent)
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]  # NaN: null
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out.with_suffix(".json"), json.dumps({**about, "rows": rows}, indent=1) + "\n")
    write_text(out.with_suffix(".md"), text)
    print(f"{text}\nwritten to {out}.*")


def measure(model, samples, cfg: Config, accelerator, *_) -> dict:
    """All numbers of one model on one list, in %, NaN where there is no video to ask about. "NAME, draws": each one's;
    "NAME, videos": how many were asked about, in each draw."""
    model.eval()
    lenders, masked = lend(samples, cfg, accelerator)
    asked = {(name, draw): (masked | (name not in KINDS)) & ((lender >= 0) | (name not in LENT))
             & (masked[lender] | (name not in BODY))
             for draw, lender in enumerate(lenders) for name in (DRAWN if draw else MANIPULATIONS)}

    def compute(shot, i):
        rows = shot.x.new_zeros(len(asked), len(samples.classes))
        for row, ((name, draw), videos) in zip(rows, asked.items(), strict=True):
            if videos[i]:
                row[:] = model.logits(MANIPULATIONS[name](shot, draw)).float().softmax(1).mean(0)
        return rows

    probabilities, ok = over_videos(compute, samples, spread_clips(cfg, cfg.test_clips), cfg, accelerator, "robustness",
                                    look=partial(shots, lenders=lenders))  # (N, tests, classes)
    answers = dict(zip(asked, probabilities.argmax(2).masked_fill(~ok[:, None], -1).numpy().T, strict=True))
    numbers = {"n_scored": int(ok.sum()), "n_expected": len(samples), "n_masked": int(masked.sum()),
               "n_damaged": len(samples.damaged)}
    for name, draws in judge(answers, asked, samples, lenders, masked).items():
        percent = [100 * float(hit[videos].mean()) if videos.any() else np.nan for hit, videos in draws]
        numbers |= {name: float(np.mean(percent)), f"{name}, videos": [int(videos.sum()) for _, videos in draws]}
        if len(draws) > 1:
            numbers[f"{name}, draws"] = [None if value != value else value for value in percent]
    return numbers


def judge(answers, asked, samples, lenders, masked) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Of each question and draw: which videos are answered so, and which are asked about, (N,) bool both. answers: the
    classes (N,) that a network names, -1 for an unreadable video; of each manipulation and draw, as `asked`."""
    label, found = samples.labels, {}
    right = {key: answer == label for key, answer in answers.items()}
    for (name, draw), hit in right.items():
        found.setdefault("SHAcc" if name == "Action-Swap" else name, []).append((hit, asked[name, draw]))
    found["SBErr"] = [(answers["Action-Swap", draw] == label[lender], asked["Action-Swap", draw])
                      for draw, lender in enumerate(lenders)]
    found["contrasted"] = [(right["SCUBA", draw] & ~right["SCUFO", draw], masked) for draw in range(len(lenders))]
    found["original, masked"] = [(right["original", 0], masked)]
    if samples.scenes:
        family = np.array([list(synthetic.SCENES).index(name) for name in samples.scenes])
        scene, answer = family[samples.scene], answers["original", 0]  # the class whose own family it is
        conflict = (answer >= 0) & (scene != label)
        found |= {"conflict: motion": [(answer == label, conflict)], "conflict: scene": [(answer == scene, conflict)]}
    return found


def table(rows, classes: int) -> list[dict]:
    """A line for each question: what guessing gets; of how many videos it is asked; of each experiment the numbers of
    its runs, of a single run those of its draws, None where one lacks it."""
    lines = []
    for what, told in QUESTIONS.items():
        videos = sorted({n for row in rows for n in row.get(f"{what}, videos", ())})
        guess = 100 / classes * (1 - (what == "contrasted") / classes)
        lines.append({"": f"{what} {told}", "chance": guess, "videos": " to ".join(map(str, videos))})
        for name in dict.fromkeys(row["experiment"] for row in rows):
            mine = [row for row in rows if row["experiment"] == name]
            values = [row.get(what) for row in mine]
            values = np.array(mine[0].get(f"{what}, draws", values) if len(mine) == 1 else values, float)
            lines[-1][name] = None if np.isnan(values).any() else values.tolist()
    return lines


# ---- generated sets

def biasset(cfg: Config):
    """biasset: write a test of `robustness` as videos, for other code: OUT/bias-DATASET-.../KIND/.../NAME__DRAW.mp4

    `kind` says which. A test of them, with the same short_side, seed and masks, is that of `robustness`, to the bit:
    H.264 without loss, in RGB (docs/BIAS.md). A video without a mask, or without a lender, is not written, and counted.
    The folder is a `plain` data set: test_data=FOLDER subset=KIND tests a network on it. KIND.json says what each was
    made from, the BLAKE2b of its frames, and one hash of all. Under `accelerate launch` each process takes its share.
    """
    accelerator, kind = make_accelerator(cfg), {name.lower(): name for name in KINDS}[cfg.kind]
    samples = datasets.load_for(cfg, cfg.subset, cfg.test_data)
    out = Path(cfg.out, f"bias-{cfg.dataset}-{cfg.subset}-split{cfg.split}-seed{cfg.seed}")
    lenders, masked = lend(samples, cfg, accelerator)
    lenders = lenders if kind in DRAWN else lenders[:1]
    wanted = masked & ((lenders >= 0) & masked[lenders] | (kind != "Action-Swap"))  # (draws, N)
    names = [f"{cfg.kind}/{os.path.splitext(os.fsdecode(path))[0]}__" for path in samples.paths]

    def write(shot, i):
        digests = torch.zeros(len(wanted), 16, dtype=torch.uint8)
        with Reader(samples.path(i), samples.index(i)) as video:
            fps = video.info.fps
        for draw in np.flatnonzero(wanted[:, i]):
            frames, aside = KINDS[kind](shot, draw).cpu().numpy(), out / f"{names[i]}{draw}.part.mp4"
            aside.parent.mkdir(parents=True, exist_ok=True)
            with writing(aside, aside):
                encode(aside, frames, fps, "libx264rgb", {"qp": "0", "g": "16"}, "rgb24")
                aside.replace(out / f"{names[i]}{draw}.mp4")
            digests[draw] = torch.tensor([*blake2b(frames.tobytes(), digest_size=16).digest()])
        return digests

    look = partial(shots, lenders=lenders if kind == "Action-Swap" else np.full_like(lenders, -1))
    digests, ok = over_videos(write, samples, lambda n, _: np.arange(n)[None], cfg, accelerator, kind, look=look)
    if accelerator.is_main_process:
        rows = [{"path": f"{names[i]}{draw}.mp4", "label": int(samples.labels[i]),
                 "digest": bytes(digests[i, draw].int().tolist()).hex(),
                 "made_from": [os.fsdecode(samples.paths[j]) for j in (i, lenders[draw, i])[: 1 + (kind in LENT)]]}
                for i, draw in np.argwhere(wanted.T & ok[:, None].numpy())]
        about = {"hash": blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest(), "written": len(rows),
                 "asked": wanted.size, "videos_without_mask": int(sum(~masked)), "unreadable_videos": int(sum(~ok))}
        print(", ".join(f"{key} {value}" for key, value in about.items()) + f"; {out / cfg.kind}.*")
        keys = ("kind", "dataset", "split", "short_side", "seed", "scene", "masks", "backgrounds", "pairs")
        about |= {key: getattr(cfg, key) for key in keys} | provenance(samples, accelerator) | {"videos": rows}
        write_text(out / f"{cfg.kind}.json", json.dumps(about, indent=1) + "\n")
        write_text(out / f"{cfg.kind}.txt", "".join(f"{row['path']} {row['label']}\n" for row in rows))
        write_text(out / "classes.txt", "".join(f"{name}\n" for name in samples.classes))
