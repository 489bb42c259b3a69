"""Videos: official annotation files in, batches of clips out.

    samples = load("ucf101", "data", "train", split=1)
    clips = Clips(samples, sampler, short_side=128, seed=0, train=True)
    for batch in loader(clips, epoch_batches(len(clips), 32, seed=0, epoch=0), workers=4): ...

A dataset is one function that reads its official lists, registered with what is known of them; `plain` is
a short one to copy. What all have in common (checks, counts, missing files) is done once, in `Source`.

Every number of an item follows from (seed, epoch, index) and the files, so a batch depends neither on how
many workers or processes decode it nor on what they decoded before.
"""

import atexit
import csv
import errno
import gc
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from be.config import ConfigError, UserError, choose
from be.manifest import Manifest
from be.video import Index, Reader, VideoError

PATIENCE = 120  # seconds that the clips of one video may take, some thousand times what they do take


class DatasetMissing(UserError, FileNotFoundError):
    """The videos or their lists are not where they were looked for; the message says what belongs there."""


class NothingReadable(UserError, RuntimeError):
    """Not one video of the list can be decoded."""


@dataclass(frozen=True)
class Samples:
    """A list of labelled videos. Arrays only: of one Python object per video, every loader worker would
    come to own a copy, as its reference counts are touched (pytorch/pytorch#13246)."""

    root: str  # absolute
    paths: np.ndarray  # (N,) bytes, relative to root, in the order of the list
    labels: np.ndarray  # (N,) int64, positions in `classes`
    groups: np.ndarray  # (N,) int64, equal for clips cut from one source video
    classes: list[str]
    manifest: Manifest | None = None  # what `prepare` knows of the files
    rows: np.ndarray | None = None  # (N,) int64, each video's place in it; -1: it has none

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[i]))

    def take(self, which) -> "Samples":
        """The samples selected by `which`, an index array or a boolean mask (N,)."""
        columns = {k: v[which] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **columns)

    def index(self, i: int) -> Index | None:
        """Which packet of video i holds which frame, if the manifest knows the file as it is.

        Raises VideoError if `prepare` lost a process to that file: training would lose a worker, and end.
        """
        if self.manifest is None or self.rows[i] < 0:
            return None
        row, path = self.rows[i], self.path(i)
        if self.manifest.deadly[row] and self.manifest.knows(row, path):
            raise VideoError(f"{path}: `prepare` found that it crashes, or halts, the process that reads it")
        known = self.manifest.frame_index(row, path)
        return known and Index(*known)

    @property
    def crc(self) -> int:
        """CRC-32 of paths and labels in their order: which list this is, in whatever folder it lies."""
        return zlib.crc32(self.labels.tobytes(), zlib.crc32(b"\n".join(self.paths.tolist())))

    @property
    def manifest_hash(self) -> str | None:
        """Of all paths, contents and labels: the same wherever the same videos lie. None without a manifest."""
        return self.manifest and self.manifest.hash(self.rows, self.paths, self.labels)


# --------------------------------------------------------------------------------------------------------
# The registry


@dataclass(frozen=True)
class Source:
    """A dataset: the function that reads its lists and what is known of it. Call it to get `Samples`.

    `parse(root, subset, split)` returns the class names and, per video, a row (where it was listed, path
    relative to root, class name or number). A FileNotFoundError it lets through becomes DatasetMissing.
    """

    name: str
    parse: Callable
    page: str  # the official page, by name: addresses move
    licence: str  # what its authors say of its use
    layout: str  # the expected files, a line each
    lists: str  # a pattern for the paths of its lists, that tells their subset and split where the name does
    group: Callable[[str], str]  # path -> the source video it was cut from
    classes: int = 0  # of the official lists; then the number of videos of each (subset, split)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)
    scattered: bool = False  # videos may lie anywhere below ROOT/SUBSET, and nobody has them all
    mirrors: bool = True  # a mirrored video has the same label; False: its classes tell left from right

    def __call__(self, root, subset: str, split: int = 1) -> Samples:
        """The videos of `subset` ('train', 'test' or any other that has a list), in the order of the list.

        Raises DatasetMissing if a list or the videos are absent; ValueError, with file and line, if a line
        is malformed, leaves `root` or names a class that does not exist. A number of videos other than the
        official one is a warning, given only where the number of classes is the official one: anybody may
        keep smaller lists in the same layout.
        """
        try:
            listed, there = self.read(root, subset, split)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DatasetMissing(self.missing(root, error.filename)) from None
        samples = listed.take(there)
        some = range(0, len(samples), max(1, len(samples) // 10))
        if not any(os.path.exists(samples.path(i)) for i in some):  # a wrong folder, not a lost file
            raise DatasetMissing(self.missing(root, listed.path(0)))
        if not self.official(subset, split, listed):
            print(f"warning: {self.name} {subset}, split {split}: {len(listed)} videos; "
                  f"the official list has {self.expected[subset, split]}", file=sys.stderr)
        if len(samples) < len(listed):
            print(f"warning: {self.name} {subset}: {len(listed) - len(samples)} of {len(listed)} listed videos "
                  f"are not in {listed.root}/{subset}; they are left out", file=sys.stderr)
        if (manifest := Manifest.read(root)) is not None:
            samples = replace(samples, manifest=manifest, rows=manifest.rows(samples.paths))
        return samples

    def read(self, root, subset: str, split: int) -> tuple[Samples, np.ndarray]:
        """The whole list, and which of its videos a `scattered` dataset has: bool (N,), true for the others.

        Lets the FileNotFoundError of a list pass; otherwise as a call."""
        root = Path(root).expanduser().absolute()
        splits = sorted({1} | {split for _, split in self.expected})
        if split not in splits:
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(map(str, splits))}")
        classes, rows = self.parse(root, subset, split)
        if not rows:
            raise ValueError(f"{self.name}: the {subset!r} list of split {split} in {root} names no video")

        places = files_below(root, subset) if self.scattered else {}
        number = {name: i for i, name in enumerate(classes)} | {i: i for i in range(len(classes))}
        paths, labels, groups, sources = [], [], [], {}
        for where, path, label in rows:
            if path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"{where}: {path!r} leaves the folder of the data")
            if label not in number:
                raise ValueError(f"{where}: {label!r} is none of the {len(classes)} classes")
            paths.append(os.fsencode(places.get(os.path.basename(path), path)))
            labels.append(number[label])
            groups.append(sources.setdefault(self.group(path), len(sources)))
        there = np.array([not self.scattered or os.path.basename(path) in places for _, path, _ in rows])
        samples = Samples(str(root), np.array(paths), np.array(labels, np.int64), np.array(groups, np.int64), classes)
        return samples, there

    def official(self, subset: str, split: int, samples: Samples) -> bool:
        """Whether a list that claims to be an official one, by its number of classes, has the number of videos."""
        number = self.expected.get((subset, split), len(samples))
        return len(samples.classes) != self.classes or len(samples) == number

    def list_files(self, root) -> dict[str, re.Match]:
        """The lists and what belongs to them, {path relative to root: its match with `lists`}."""
        folder = os.path.dirname(self.lists)
        paths = sorted(str(path.relative_to(root)) for path in (Path(root) / folder).glob("*"))
        return {path: match for path in paths if (match := re.fullmatch(self.lists, path))}

    def subsets(self, root) -> list[tuple[str, int]]:
        """All (subset, split) that are official or have a list."""
        named = (match.groupdict() for match in self.list_files(root).values())
        found = {(name["subset"], int(name.get("split", 1))) for name in named if name["subset"]}
        return sorted(found | self.expected.keys(), key=lambda known: (known[1], known[0] != "train", known[0]))

    def missing(self, root, looked_for) -> str:
        tree = "\n".join(f"    {line}" for line in self.layout.splitlines())
        return (f"{looked_for} does not exist.\n{self.name} is {self.page}; {self.licence}.\n"
                f"It should stand like this:\n  {Path(root).expanduser().absolute()}\n{tree}\n"
                "To try the code without any data: make demo")


DATASETS: dict[str, Source] = {}


def load(dataset: str, data, subset: str, split: int = 1) -> Samples:
    """A list of the dataset in the folder DATA/DATASET, with errors for the person who typed its name.

    Raises ConfigError for an unknown dataset or a list that is wrong, DatasetMissing where files are.
    """
    source = choose(DATASETS, dataset, "dataset")
    try:
        return source(Path(data) / dataset, subset, split)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def register(**known):
    """Puts the decorated parser into DATASETS under its own name, with what is `known` of the dataset."""
    def add(parse) -> Source:
        return DATASETS.setdefault(parse.__name__, Source(parse.__name__, parse, **known))
    return add


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of every line that is not blank, whether lines end in LF or CRLF."""
    with open(file, encoding="utf-8", errors="surrogateescape") as text:  # file names may be any bytes
        for n, line in enumerate(text, 1):
            if line.strip():
                yield f"{file}:{n}", line.strip()


def files_below(root, folder: str) -> dict[str, str]:
    """{name: path relative to root} of all files below ROOT/FOLDER. Links are followed, but not in circles."""
    found, seen = {}, {os.path.realpath(os.path.join(root, folder))}
    for top, folders, names in os.walk(os.path.join(root, folder), followlinks=True):
        place = os.path.relpath(top, root)
        found |= {name: f"{place}/{name}" for name in names}
        real = {name: os.path.realpath(os.path.join(top, name)) for name in folders}
        folders[:] = sorted(name for name in folders if real[name] not in seen)
        seen.update(real.values())
    return found


def fields(where: str, line: str, pattern: str, form: str) -> tuple:
    if not (match := re.fullmatch(pattern, line)):
        raise ValueError(f"{where}: expected {form!r}, got {line!r}")
    return match.groups()


# --------------------------------------------------------------------------------------------------------
# The parsers


@register(
    page="'UCF101 - Action Recognition Data Set' (CRCV, University of Central Florida)",
    licence="no licence is stated, the videos are YouTube's users'",
    layout="UCF-101/CLASS/v_CLASS_gNN_cNN.avi\n"
           "ucfTrainTestlist/classInd.txt, trainlist01.txt, testlist01.txt ... testlist03.txt",
    lists=r"ucfTrainTestlist/(?:classInd|(?P<subset>.+)list(?P<split>\d\d))\.txt",
    group=lambda path: path.rpartition("_c")[0] or path,  # gNN: the clips cNN of one source video
    classes=101,
    expected={("train", 1): 9537, ("train", 2): 9586, ("train", 3): 9624,
              ("test", 1): 3783, ("test", 2): 3734, ("test", 3): 3696},
)
def ucf101(root, subset, split):
    """Subset S is `Slist01.txt`. The class is the folder; a label on the line must agree with it."""
    lists, classes, rows = root / "ucfTrainTestlist", [], []
    for n, (where, line) in enumerate(lines(lists / "classInd.txt"), 1):
        classes += fields(where, line, rf"{n} +(\S.*)", f"{n} CLASS")
    for where, line in lines(lists / f"{subset}list{split:02d}.txt"):
        path, folder, label = fields(where, line, r"(([^/]+)/[^/]+\.\w+)(?: +(\d+))?", "CLASS/NAME.avi LABEL")
        if label and not (1 <= int(label) <= len(classes) and classes[int(label) - 1] == folder):
            raise ValueError(f"{where}: label {label} is not that of {folder!r} in classInd.txt")
        rows.append((where, f"UCF-101/{path}", folder))
    return classes, rows


def hmdb_lists(root, subset, split, folders):
    """A list per class. Of `CLASS_test_splitN.txt`, state 1 is train, 2 test and 0 neither; another subset S
    is state 1 of `CLASS_S_splitN.txt`. The videos are in the first of `folders` that has a class."""
    lists, tail = root / "testTrainMulti_7030_splits", f"_test_split{split}.txt"
    classes = sorted(file.name.removesuffix(tail) for file in lists.iterdir() if file.name.endswith(tail))
    kind, wanted = {"train": ("test", "1"), "test": ("test", "2")}.get(subset, (subset, "1"))
    files = {c: file for c in classes if (file := lists / f"{c}_{kind}_split{split}.txt").exists()}
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no list", str(lists / f"CLASS_{kind}_split{split}.txt"))
    folder = next((f for f in folders if any((root / f / c).is_dir() for c in classes)), folders[0])
    rows = []
    for c, file in files.items():
        for where, line in lines(file):
            name, state = fields(where, line, r"([^/]+\.\w+) +([012])", "NAME.avi 0|1|2")
            if state == wanted:
                rows.append((where, f"{folder}{c}/{name}", c))
    return classes, rows


def hmdb_source(path):
    """The name up to its action. A film may lend clips to several actions, so without the class folder."""
    action, name = path.split("/")[-2:]
    return name.rpartition(f"_{action}_")[0] or path


HMDB = dict(
    licence="Creative Commons BY 4.0, the films belong to their makers",
    lists=r"testTrainMulti_7030_splits/.+_(?P<subset>[^_]+)_split(?P<split>\d)\.txt",
    group=hmdb_source,
    classes=51,
    expected={(subset, split): n for subset, n in (("train", 3570), ("test", 1530)) for split in (1, 2, 3)},
)
HMDB_LISTS = "testTrainMulti_7030_splits/CLASS_test_split1.txt ... CLASS_test_split3.txt"


@register(page="'HMDB: a large human motion database' (Serre Lab, Brown University)",
          layout=f"hmdb51/CLASS/NAME.avi   (or CLASS/NAME.avi)\n{HMDB_LISTS}", **HMDB)
def hmdb51(root, subset, split):
    return hmdb_lists(root, subset, split, ["hmdb51/", ""])


@register(page="HMDB51, every clip cropped to its persons (the paper's Figure 5), which nobody has published",
          layout=f"actor-hmdb51/CLASS/NAME.avi\n{HMDB_LISTS}", **HMDB)
def actor_hmdb51(root, subset, split):
    return hmdb_lists(root, subset, split, ["actor-hmdb51/"])


@register(
    page="the 'Diving48 Dataset' (RESOUND, SVCL, UC San Diego), V2 annotations",
    licence="no licence is stated, the videos are the broadcasters'",
    layout="rgb/NAME.mp4\nDiving48_vocab.json, Diving48_V2_train.json, Diving48_V2_test.json",
    lists=r"Diving48_(?:vocab|V2_(?P<subset>.+))\.json",
    group=lambda path: path.rpartition("_")[0] or path,  # the broadcast a dive was cut from
    classes=48,  # declared; 47 occur
    expected={("train", 1): 15027, ("test", 1): 1970},
)
def diving48(root, subset, split):
    """Every file is one dive already: start_frame is 0 throughout and end_frame the length. So the whole
    file is used, and a start other than 0, which would mean uncut videos, is refused."""
    def read(file):
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{error.lineno}: {error.msg}") from None

    classes = ["_".join(dive) for dive in read(root / "Diving48_vocab.json")]
    file, rows = root / f"Diving48_V2_{subset}.json", []
    for n, entry in enumerate(read(file), 1):
        match entry:
            case {"vid_name": str(name), "label": int(label), "start_frame": 0}:
                rows.append((f"{file}, entry {n}", f"rgb/{name}.mp4", label))
            case _:
                raise ValueError(f"{file}, entry {n}: expected vid_name, label, start_frame 0, got {entry}")
    return classes, rows


@register(
    page="'kinetics-dataset' (cvdfoundation on GitHub)",
    licence="the annotations are Creative Commons BY 4.0, the videos are YouTube's users'",
    layout="train/ID_000010_000020.mp4   (or train/CLASS/ID_000010_000020.mp4), and so val/\n"
           "annotations/train.csv, val.csv",
    lists=r"annotations/(?P<subset>.+)\.csv",
    group=lambda path: path,  # one clip per source video
    classes=400,
    expected={("train", 1): 246534, ("val", 1): 19906},
    scattered=True,
)
def kinetics400(root, subset, split):
    """A clip is named by its video and its seconds. Classes are the sorted labels of train.csv, so that every
    subset numbers them alike."""
    header = "label,youtube_id,time_start,time_end"

    def listed(part):
        file = root / "annotations" / f"{part}.csv"
        with open(file, encoding="utf-8-sig", newline="") as text:
            for row in (reader := csv.DictReader(text)):
                where = f"{file}:{reader.line_num}"
                try:
                    label, video, start, end = (row[column] for column in header.split(","))
                    yield where, f"{subset}/{video}_{int(start):06d}_{int(end):06d}.mp4", label
                except (KeyError, TypeError, ValueError):
                    raise ValueError(f"{where}: expected {header}, got {row}") from None

    classes = sorted({label for _, _, label in listed("train")})
    os.stat(root / subset)  # FileNotFoundError: who has train and val need not have test
    return classes, list(listed(subset))


@register(
    page="your own: any videos, listed in plain text",
    licence="yours",
    layout="SUBSET.txt    'PATH LABEL' for each video, PATH relative to this folder, LABEL from 0\n"
           "classes.txt   the names of the classes, a line each, that of label 0 first",
    lists=r"(?:classes|(?P<subset>(?!prepare-report).+))\.txt",
    group=lambda path: path,
)
def plain(root, subset, split):
    classes = [line for _, line in lines(root / "classes.txt")]
    rows = []
    for where, line in lines(root / f"{subset}.txt"):
        path, label = fields(where, line, r"(.*\S) +(\d+)", "PATH LABEL")
        rows.append((where, path, int(label)))
    return classes, rows


def holdout(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Splits a training list into (rest, held out), to choose a model without looking at the test list.

    Clips of one source video are near copies of each other, so they stay together. The source videos come
    in random order, and one is held out if that brings the classes nearer to `fraction` of their videos.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    target = fraction * np.bincount(samples.labels, minlength=len(samples.classes))
    order = np.argsort(samples.groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(samples.groups[order])) + 1)
    held, out = np.zeros(len(target)), np.zeros(len(samples), bool)
    for g in np.random.default_rng(seed).permutation(len(members)):
        more = np.bincount(samples.labels[members[g]], minlength=len(target))
        if np.abs(held + more - target).sum() < np.abs(held - target).sum():
            held += more
            out[members[g]] = True
    if not out.any():
        raise ConfigError(f"every source video is too long to hold out {fraction} of {len(samples)} videos")
    return samples.take(~out), samples.take(out)


# --------------------------------------------------------------------------------------------------------
# Items and batches


class Item(NamedTuple):
    clips: torch.Tensor  # (K, T, H, W, 3) uint8, K clips of one video
    size: torch.Tensor  # (2,) int64, H and W
    label: int
    index: int  # of the video shown, in the samples
    ok: bool  # False: the video cannot be decoded and the clips are zeros
    skipped: int  # videos that cannot be decoded and were passed over for this one


class Batch(NamedTuple):
    """Items, stacked. Being a tuple of tensors, it is pinned and moved by torch and accelerate as it is."""

    clips: torch.Tensor  # (B, K, T, H, W, 3) uint8, zeros to the right of and below the smaller items
    size: torch.Tensor  # (B, 2) int64, the true H and W of each
    label: torch.Tensor  # (B,) int64
    index: torch.Tensor  # (B,) int64
    ok: torch.Tensor  # (B,) bool
    skipped: torch.Tensor  # (B,) int64


class Kept:
    """Videos as they were decoded, the least recently used of which goes first."""

    def __init__(self):
        self.videos: OrderedDict[tuple, np.ndarray] = OrderedDict()  # (path, short_side) -> (n, H, W, 3) uint8
        self.bytes = 0

    def take(self, path, short_side) -> np.ndarray | None:
        if (path, short_side) not in self.videos:
            return None
        self.videos.move_to_end((path, short_side))
        return self.videos[path, short_side]

    def keep(self, path, short_side, frames, most_gb: float):
        self.videos[path, short_side] = frames
        self.bytes += frames.nbytes
        while self.bytes > most_gb * 2**30:
            self.bytes -= self.videos.popitem(last=False)[1].nbytes


KEPT = Kept()  # of this process, whichever list a video stands in


class Clips(Dataset):
    """Clips of videos. An item's key is (epoch, i), and what is drawn for it follows from (seed, epoch, i).

    `sampler(n_frames, rng) -> (K, T)` says which frames, `short_side` in pixels how large they are decoded.
    All K clips come from one opening of the file.

    A video that cannot be decoded is named on stderr, once per worker. With `train`, the next readable one
    of the list takes its place, with its own label and index, and `skipped` counts those passed over;
    NothingReadable if there is none. Without, it keeps its place, as zeros (K, T, short_side, short_side, 3)
    with ok=False: an evaluation scores it as a miss. Where `prepare` has left a manifest, frames are found
    without a pass over the file.

    cache_gb: GiB of decoded videos that each process keeps, for lists that fit; a file is then taken for unchanged.
    """

    def __init__(self, samples: Samples, sampler: Callable, short_side: int, seed: int, train: bool,
                 cache_gb: float = 0):
        self.samples, self.sampler, self.short_side = samples, sampler, short_side
        self.seed, self.train, self.cache_gb = seed, train, cache_gb
        self.named: set[int] = set()  # unreadable videos this worker has reported

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, i = key
        if not 0 <= i < len(self):
            raise IndexError(f"item {i} of {len(self)} videos")
        for skipped in range(len(self) if self.train else 1):
            j = (i + skipped) % len(self)
            try:
                clips = self.decode(j, np.random.default_rng((self.seed, epoch, i)))
                return self.item(clips, j, ok=True, skipped=skipped)
            except VideoError as error:  # anything else is a bug, and not hidden
                if j not in self.named:
                    print(f"unreadable video: {error}", file=sys.stderr)
                    self.named.add(j)
        if self.train:
            raise NothingReadable(f"none of the {len(self)} videos in {self.samples.root} can be decoded")
        K, T = self.sampler(1, np.random.default_rng((self.seed, epoch, i))).shape
        black = np.zeros((K, T, self.short_side, self.short_side, 3), np.uint8)
        return self.item(black, i, ok=False, skipped=0)

    def decode(self, j: int, rng) -> np.ndarray:  # (K, T, H, W, 3)
        path = self.samples.path(j)
        if self.cache_gb and (frames := KEPT.take(path, self.short_side)) is not None:
            return frames[self.sampler(len(frames), rng)]
        with give_up(path), Reader(path, self.samples.index(j)) as video:
            indices = self.sampler(video.frames, rng)
            if self.cache_gb:
                with suppress(VideoError):  # damaged somewhere: what is asked for may still be sound
                    frames = video.decode(np.arange(video.frames), self.short_side)
                    KEPT.keep(path, self.short_side, frames, self.cache_gb)
                    return frames[indices]
            return video.decode(indices, self.short_side)

    def item(self, clips: np.ndarray, j: int, ok: bool, skipped: int) -> Item:
        size = torch.tensor(clips.shape[2:4])
        return Item(torch.from_numpy(clips), size, int(self.samples.labels[j]), j, ok, skipped)


@contextmanager
def give_up(path):
    """VideoError after PATIENCE seconds in a loader's worker. Elsewhere a person can press Ctrl-C."""
    ticks = itertools.count(1)  # of a second in which this process ran: it may be suspended for longer

    def stop(*_):
        if next(ticks) >= PATIENCE:
            raise VideoError(f"{path}: makes no progress, given up after {PATIENCE} s")

    if get_worker_info() is None:
        yield
        return
    signal.signal(signal.SIGALRM, stop)
    signal.siginterrupt(signal.SIGALRM, False)  # a slow disk's open() is not to fail by a tick
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def collate(items: list[Item]) -> Batch:
    """Items of any sizes into one batch, zero-padded to the largest height and the largest width."""
    K, T = items[0].clips.shape[:2]
    size = torch.stack([item.size for item in items])  # (B, 2)
    clips = torch.zeros(len(items), K, T, *size.amax(0).tolist(), 3, dtype=torch.uint8)  # (B, K, T, H, W, 3)
    if get_worker_info():  # into shared memory while it is empty: cheaper than a copy of the full batch later
        clips.share_memory_()
    for row, item, (H, W) in zip(clips, items, size.tolist(), strict=True):
        row[:, :, :H, :W] = item.clips
    return Batch(clips, size, *(torch.tensor(column) for column in list(zip(*items, strict=True))[2:]))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1,
                  start: int = 0) -> Iterator[list[tuple[int, int]]]:
    """The keys (epoch, i) of this rank's part of every training batch of an epoch, from batch `start` on.

    A permutation of the n videos is cut into batches of `batch_size`, all processes together; rank r has the
    r-th of `world` equal parts of each, so that all parts joined are the batch of a single process. An
    incomplete last batch is dropped. Raises ValueError if a batch does not divide by `world` or exceeds n.
    """
    if batch_size % world or not 0 < batch_size <= n:
        raise ValueError(f"batch_size must be a multiple of world={world}, at most n={n}, got {batch_size}")
    # Items draw from (seed, epoch, i) with i < n, so (seed, epoch, n) is a stream apart. (seed, epoch) is
    # not: numpy pads seeds with zeros, which makes it that of item 0.
    order = np.random.default_rng((seed, epoch, n)).permutation(n)
    share = batch_size // world
    for step in range(start, n // batch_size):
        first = step * batch_size + rank * share
        yield [(epoch, i) for i in order[first : first + share].tolist()]


def loader(clips: Clips, batches: Iterable[list[tuple[int, int]]], workers: int = 0,
           device="cpu") -> DataLoader:
    """The `batches` of keys, in order, decoded by `workers` processes (0: by this one); pinned for CUDA.

    Training chains its epochs into one `batches`, so that the workers never run dry in between. Each worker
    runs torch on one thread, which DataLoader sees to, and keeps two batches ready, in shared memory.
    """
    return DataLoader(
        clips, batch_sampler=batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None, pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator().manual_seed(clips.seed),  # or it would draw from the global one
        worker_init_fn=_begin,
    )


def _begin(_):
    """What a worker does first.

    Of the objects that came with it, nothing will be freed: a garbage collector that keeps looking at them takes a
    twentieth of the time, and memory, as it makes copies of their pages.

    Ctrl-C, and a cluster's SIGTERM, reach the workers too, but the training process still needs their batches to
    finish its step and write a checkpoint. So they let both pass, and go when it goes.
    """
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def end_workers():
    """Ends the workers that an error left behind: multiprocessing would send the SIGTERM that they let pass, and wait.

    Registered after multiprocessing's own, so called before it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would raise at the end of each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
