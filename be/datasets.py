"""Data sets: official annotation files in, batches of clips out.

    samples = load("ucf101", "data", "train", split=1)
    clips = Clips(samples, sampler, short_side=128, seed=0, train=True)
    for batch in loader(clips, epoch_batches(len(clips), 32, seed=0, epoch=0), workers=4): ...

A data set is a parser of its official lists, registered with what is known of it; `plain` is a short one to copy.
Lists are read without torch. Every number of an item follows from (seed, epoch, index) and the files: a batch does not
depend on how many workers or processes decode it.
"""

import atexit
import csv
import gc
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from be.config import ConfigError, UserError, choose
from be.video import Index, Reader, VideoError

MANIFEST = "manifest.npz"  # of a data set's folder
COPIED = "transcode.json"  # in a copy: how `prepare` made it
DRAWN = "synthetic.jsonl"  # beside the lists of drawn videos: what each was made of
TIME_LIMIT = 120  # seconds of a processor for the clips of one video
in_worker = False  # is this process one of a loader's?


class DatasetMissing(UserError, FileNotFoundError):
    """The videos or their lists are not where they were looked for; the message says what belongs there."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """What `prepare` found out about the videos, a row per file: the columns of manifest.npz that training reads."""

    path: np.ndarray  # (V,) bytes, relative to the root, sorted
    size: np.ndarray  # (V,) int64, bytes; -1: there is no such file
    mtime: np.ndarray  # (V,) int64, ns
    digest: np.ndarray  # (V, 16) uint8, BLAKE2b of the content
    frames: np.ndarray  # (V,) int32; 0: cannot be read
    deadly: np.ndarray  # (V,) bool: the process that read it crashed, or got no further
    packed: np.ndarray  # (bytes,) uint8, each video's `Index.pack()`, one behind the other
    end: np.ndarray  # (V,) int64, where each of those ends

    @classmethod
    def read(cls, root) -> "Manifest | None":
        """That of a data set's folder; None if it has none. Raises UserError if it is of another version."""
        file = Path(root, MANIFEST)
        try:
            with np.load(file, allow_pickle=False) as table:
                return cls(**{column.name: table[column.name] for column in fields(cls)})
        except FileNotFoundError:
            return None
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{file} cannot be used ({error}): run `prepare` again") from None


@dataclass(frozen=True)
class Samples:
    """A list of labelled videos. Columns are arrays: of Python objects, every worker would come to own a copy, as it
    counts references to them (pytorch/pytorch#13246)."""

    root: str  # absolute
    paths: np.ndarray  # (N,) bytes, relative to root, in the order of the list
    labels: np.ndarray  # (N,) int64, positions in `classes`
    groups: np.ndarray  # (N,) int64, equal for clips cut from one source video
    classes: list[str]
    manifest: Manifest | None = None  # what `prepare` knows of the files
    rows: np.ndarray | None = None  # (N,) int64, each video's place in it; -1: it has none
    scene: np.ndarray | None = None  # (N,) int64, of drawn videos, positions in `scenes`; -1: not known
    scenes: list[str] | None = None  # the families of scenes of all drawn videos in root, sorted
    damaged: set[int] = field(default_factory=set, init=False)  # `evaluate.views` collects the places of such videos

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[i]))

    def take(self, which) -> "Samples":
        """The samples selected by `which`, an index array or a boolean mask (N,)."""
        return replace(self, **{k: v[which] for k, v in vars(self).items() if isinstance(v, np.ndarray)})

    def with_manifest(self, manifest: Manifest) -> "Samples":
        at = np.searchsorted(manifest.path, self.paths).clip(max=len(manifest.path) - 1)
        return replace(self, manifest=manifest, rows=np.where(manifest.path[at] == self.paths, at, -1))

    def index(self, i: int) -> Index | None:
        """Which packet of video i holds which frame, if the manifest knows the file as it is, by size and time.
        Raises VideoError if `prepare` lost a process to that file: training would lose a worker, and end."""
        known, path = self.manifest, self.path(i)
        if known is None or (row := self.rows[i]) < 0 or not os.path.exists(path):
            return None
        stat, start = os.stat(path), known.end[row - 1] if row else 0
        if (stat.st_size, stat.st_mtime_ns) != (known.size[row], known.mtime[row]):
            return None
        if known.deadly[row]:
            raise VideoError(f"{path}: `prepare` found that it crashes, or halts, the process that reads it")
        return Index.unpack(known.packed[start : known.end[row]], known.frames[row]) if known.frames[row] else None

    @property
    def crc(self) -> int:
        """CRC-32 of paths and labels in their order: which list this is, in whatever folder it lies."""
        return zlib.crc32(self.labels.tobytes(), zlib.crc32(b"\n".join(self.paths.tolist())))

    @property
    def manifest_hash(self) -> str | None:
        """Of all paths, contents and labels: the same wherever the same videos lie. None without a manifest."""
        if self.manifest is None:
            return None
        content = np.where(self.rows[:, None] < 0, np.uint8(0), self.manifest.digest[self.rows])
        rows = zip(self.labels.tolist(), self.paths.tolist(), content, strict=True)
        return blake2b(b"".join(b"%d %b\0%b" % (*row, content) for *row, content in rows), digest_size=8).hexdigest()


# ---- the registry

@dataclass(frozen=True)
class Source:
    """A data set: what is known of it without reading a file, and the parser of its lists. Call it as `load`.

    `parse(root, subset, split)` returns the class names and, per video, a row (where it was listed, path
    relative to root, class name or number). A FileNotFoundError it lets through becomes DatasetMissing."""

    name: str
    parse: Callable
    layout: str  # the expected files, a line each; docs/DATA.md says where from, and under which licence
    lists: str  # a pattern for the paths of its lists, that tells their subset and split where the name does
    group: Callable[[str], str] = str  # path -> the source video it was cut from
    classes: int = 0  # of the official lists; then the number of videos of each (subset, split)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)
    test: str = "test"  # the subset to test on
    scattered: bool = False  # videos may lie anywhere below ROOT/SUBSET, and nobody has them all
    mirrors: bool = True  # a mirrored video has the same label; False: its classes tell left from right

    @property
    def splits(self) -> tuple[int, ...]:
        """The numbers of its splits; (1,) if it has but one."""
        return tuple(sorted({1} | {split for _, split in self.expected}))

    def __call__(self, root, subset: str, split: int = 1, classes=None) -> Samples:
        root = Path(root).expanduser().absolute()
        try:
            listed, there = self.read(root, subset, split, classes)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DatasetMissing(self.missing(root, error.filename)) from None
        if not there.any():
            raise DatasetMissing(self.missing(root, listed.path(0)))
        problems = [] if classes else [self.other_length(subset, split, listed)]
        names = [listed.classes[label] for label in np.unique(listed.labels[there])]
        of = f", of {len(names)} of {len(listed.classes)} classes; for these alone: " + shlex.quote(
            f"classes={json.dumps(names, ensure_ascii=False)}") if len(names) < len(np.unique(listed.labels)) else ""
        if of or (self.scattered and not there.all()):
            problems.append(f"{there.sum()} of {len(there)} listed videos ({there.mean():.1%}) are in {root}{of}")
        for problem in filter(None, problems):
            print(f"warning: {self.name} {subset}, split {split}: {problem}", file=sys.stderr)
        samples = listed.take(there) if self.scattered else listed
        if (manifest := Manifest.read(root)) is not None:
            samples = samples.with_manifest(manifest)
        return with_scenes(samples) if (root / DRAWN).exists() else samples

    def read(self, root: Path, subset: str, split: int, classes=None) -> tuple[Samples, np.ndarray]:
        """The whole list, and which of its videos are there, bool (N,). As `load`, but lets FileNotFoundError pass."""
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}; it has {', '.join(map(str, self.splits))}")
        names, rows = self.parse(root, subset, split)
        for name in classes or ():
            choose(dict.fromkeys(names), name, f"class of {self.name}")
        kept = [i for i, name in enumerate(names) if not classes or name in classes]
        number = {i: n for n, i in enumerate(kept)}
        label_of = {key: number.get(i) for i, name in enumerate(names) for key in (i, name)}  # None: not asked for
        places = files_below(root, subset) if self.scattered else {}
        paths, labels, groups, sources = [], [], [], {}
        for where, path, label in rows:
            if path.startswith("/") or ".." in path.split("/"):
                raise ConfigError(f"{where}: {path!r} leaves the folder of the data")
            if label not in label_of:
                raise ConfigError(f"{where}: {label!r} is none of the {len(names)} classes")
            if label_of[label] is not None:
                paths.append(places.get(os.path.basename(path), path))
                labels.append(label_of[label])
                groups.append(sources.setdefault(self.group(path), len(sources)))
        if not paths:
            of = ", ".join(classes or ["any class"])
            raise ConfigError(f"{self.name}: the {subset!r} list of split {split} in {root} names no video of {of}")
        content = cache(lambda folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else set())
        there = [name in content(folder) for folder, name in map(os.path.split, paths)]
        columns = np.array([*map(os.fsencode, paths)]), np.array(labels, np.int64), np.array(groups, np.int64)
        return Samples(str(root), *columns, [names[i] for i in kept]), np.array(there)

    def other_length(self, subset: str, split: int, samples: Samples) -> str:
        """What is odd about a list that has all the official classes, but not as many videos; else ""."""
        number = self.expected.get((subset, split), len(samples))
        odd = len(samples.classes) == self.classes and len(samples) != number
        return f"{len(samples)} videos, the official list has {number}" if odd else ""

    def list_files(self, root) -> dict[str, re.Match]:
        """The lists and what belongs to them, {path relative to root: its match with `lists`}."""
        paths = sorted(str(path.relative_to(root)) for path in Path(root, os.path.dirname(self.lists)).glob("*"))
        return {path: match for path in paths if (match := re.fullmatch(self.lists, path))}

    def subsets(self, root) -> list[tuple[str, int]]:
        """All (subset, split) that are official or have a list."""
        named = (match.groupdict() for match in self.list_files(root).values())
        found = {(name["subset"], int(name.get("split", 1))) for name in named if name["subset"]}
        return sorted(found | self.expected.keys(), key=lambda known: (known[1], known[0] != "train", known[0]))

    def missing(self, root, looked_for) -> str:
        place = next(folder for folder in Path(looked_for).absolute().parents if folder.is_dir())
        found, tree = sorted(os.listdir(place)), self.layout.replace("\n", "\n    ")
        return (f"{looked_for} does not exist.\n"
                f"{place} holds {', '.join(found[:10]) or 'nothing'}{' ...' if len(found) > 10 else ''}\n"
                f"docs/DATA.md says what {self.name} is and where from. It should stand like this:\n"
                f"  {root}\n    {tree}\n"
                "To try the code without any data: make demo")


DATASETS: dict[str, Source] = {}


def load(dataset: str, data, subset: str, split: int = 1, classes: Iterable[str] | None = None) -> Samples:
    """The videos of `subset` ('train', 'test' or any other that has a list) in DATA/DATASET, in the order of the list.

    classes: names. Only their videos, with labels that number these classes in their official order. None or (): all.

    Raises ConfigError for an unknown data set, split or class and, with file and line, for a wrong line;
    DatasetMissing if a list or all videos are absent. Warns of absent classes and of a list of another length."""
    return choose(DATASETS, dataset, "dataset")(Path(data) / dataset, subset, split, classes)


def load_for(cfg, subset: str, data: str | None = None) -> Samples:
    """The list `subset` of a config's data set, split and classes, from its folder or from another one, or from `data`
    itself where that is a `plain` set. Raises ConfigError where its videos are a copy that is smaller than
    `short_side`: they would be enlarged."""
    if data and Path(data, "classes.txt").exists():
        samples = DATASETS["plain"](data, subset, 1, cfg.classes)
    else:
        samples = load(cfg.dataset, data or cfg.data, subset, cfg.split, cfg.classes)
    if (side := copied_at(samples.root)) and side < cfg.short_side:
        raise ConfigError(f"{samples.root} is a copy made with short_side={side}, too small for short_side="
                          f"{cfg.short_side}; give data= the original, or a copy that `prepare transcode=true "
                          f"short_side={cfg.short_side}` makes (it enlarges no video), or short_side={side}")
    return samples


def copied_at(root) -> int | None:
    """The short side in pixels at which `prepare` made the copy in `root`; None if it made none there."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(Path(root, COPIED).read_text())["short_side"])


def register(**known):
    """Puts the decorated parser into DATASETS under its own name, with what is `known` of the data set."""
    return lambda parse: DATASETS.setdefault(parse.__name__, Source(parse.__name__, parse, **known))


def with_scenes(samples: Samples) -> Samples:
    """With the columns of videos that `synthetic` drew."""
    with open(Path(samples.root, DRAWN), encoding="utf-8") as text:
        scene_of = {os.fsencode(line["path"]): line["spec"]["scene"] for line in map(json.loads, text)}
    names = ["", *sorted(set(scene_of.values()))]
    scene = np.array([names.index(scene_of.get(path, "")) - 1 for path in samples.paths.tolist()])
    return replace(samples, scene=scene, scenes=names[1:])


def lines(file: Path, pattern: str, form: str) -> Iterator[tuple[str, ...]]:
    """("file:line", groups of `pattern`...) of every line that is not blank, whether lines end in LF or CRLF."""
    with open(file, encoding="utf-8", errors="surrogateescape") as text:  # file names may be any bytes
        for n, line in enumerate(text, 1):
            if line := line.strip():
                if not (match := re.fullmatch(pattern, line)):
                    raise ConfigError(f"{file}:{n}: expected {form!r}, got {line!r}")
                yield f"{file}:{n}", *match.groups()


def files_below(root, folder: str) -> dict[str, str]:
    """{name: path relative to root} of all files below ROOT/FOLDER. Links are followed, but not in circles."""
    found, seen = {}, set()
    for top, folders, names in os.walk(os.path.join(root, folder), followlinks=True):
        if (real := os.path.realpath(top)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found |= {name: os.path.join(os.path.relpath(top, root), name) for name in names}
    return found


# ---- the parsers

@register(
    layout="UCF-101/CLASS/v_CLASS_gNN_cNN.avi\n"
           "ucfTrainTestlist/classInd.txt, trainlist01.txt, testlist01.txt ... testlist03.txt",
    lists=r"ucfTrainTestlist/(?:classInd|(?P<subset>.+)list(?P<split>\d\d))\.txt",
    group=lambda path: path.rpartition("_c")[0] or path,  # gNN: the clips cNN of one source video
    classes=101,
    expected={("train", 1): 9537, ("train", 2): 9586, ("train", 3): 9624,
              ("test", 1): 3783, ("test", 2): 3734, ("test", 3): 3696},
)
def ucf101(root, subset, split):
    """Subset S is `Slist01.txt`. The class is the folder, whatever label stands behind."""
    lists = root / "ucfTrainTestlist"
    classes = [name for _, name in lines(lists / "classInd.txt", r"\d+ +(\S.*)", "NUMBER CLASS")]
    listed = lines(lists / f"{subset}list{split:02d}.txt", r"(([^/]+)/[^/]+\.\w+)(?: +\d+)?", "CLASS/NAME.avi LABEL")
    return classes, [(where, f"UCF-101/{path}", folder) for where, path, folder in listed]


@register(
    layout="hmdb51/CLASS/NAME.avi   (or CLASS/NAME.avi)\n"
           "testTrainMulti_7030_splits/CLASS_test_split1.txt ... CLASS_test_split3.txt",
    lists=r"testTrainMulti_7030_splits/.+_(?P<subset>[^_]+)_split(?P<split>\d)\.txt",
    # The name up to its action. A film may lend clips to several actions, so without the class folder.
    group=lambda path: re.sub(r"(?:.*/)?([^/]+)/([^/]+)_\1_[^/]*", r"\2", path),
    classes=51,
    expected={(subset, split): n for subset, n in (("train", 3570), ("test", 1530)) for split in (1, 2, 3)},
)
def hmdb51(root, subset, split, folders=("hmdb51/", "")):
    """A list per class. Of `CLASS_test_splitN.txt`, state 1 is train, 2 test and 0 neither; another subset S
    is state 1 of `CLASS_S_splitN.txt`. The videos are in the first of `folders` that has a class."""
    lists, tail = root / "testTrainMulti_7030_splits", f"_test_split{split}.txt"
    classes = sorted(file.name.removesuffix(tail) for file in lists.glob(f"*{tail}"))
    kind, wanted = {"train": ("test", "1"), "test": ("test", "2")}.get(subset, (subset, "1"))
    files = {c: file for c in classes if (file := lists / f"{c}_{kind}_split{split}.txt").exists()}
    if not files:
        os.stat(lists / f"CLASS_{kind}_split{split}.txt")  # FileNotFoundError
    folder = next((f for f in folders if any((root / f / c).is_dir() for c in classes)), folders[0])
    listed = ((c, line) for c in files for line in lines(files[c], r"([^/]+\.\w+) +([012])", "NAME.avi 0|1|2"))
    return classes, [(where, f"{folder}{c}/{name}", c) for c, (where, name, state) in listed if state == wanted]


DATASETS["actor_hmdb51"] = replace(  # every clip cropped to its persons (the paper's Figure 5)
    hmdb51, name="actor_hmdb51", parse=partial(hmdb51.parse, folders=("actor-hmdb51/",)),
    layout=hmdb51.layout.replace("hmdb51/CLASS/NAME.avi   (or CLASS/NAME.avi)", "actor-hmdb51/CLASS/NAME.avi"))


@register(
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
            return json.loads(file.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{file}: {error}") from None

    classes = ["_".join(dive) for dive in read(root / "Diving48_vocab.json")]
    file, rows = root / f"Diving48_V2_{subset}.json", []
    for n, entry in enumerate(read(file), 1):
        match entry:
            case {"vid_name": str(name), "label": int(label), "start_frame": 0}:
                rows.append((f"{file}, entry {n}", f"rgb/{name}.mp4", label))
            case _:
                raise ConfigError(f"{file}, entry {n}: expected vid_name, label, start_frame 0, got {entry}")
    return classes, rows


@register(
    layout="train/ID_000010_000020.mp4   (or train/CLASS/ID_000010_000020.mp4), and so val/\n"
           "annotations/train.csv, val.csv",
    lists=r"annotations/(?P<subset>.+)\.csv",
    classes=400,
    expected={("train", 1): 246534, ("val", 1): 19906},
    test="val",
    scattered=True,
)
def kinetics400(root, subset, split):
    """A clip is named by its video and its seconds. Classes are the sorted labels of train.csv, so that every
    subset numbers them alike."""
    def listed(part):
        file = root / "annotations" / f"{part}.csv"
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            for row in (table := csv.DictReader(text)):
                where = f"{file}:{table.line_num}"
                try:
                    name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
                    yield where, f"{part}/{name}", row["label"]
                except (KeyError, TypeError, ValueError):
                    raise ConfigError(f"{where}: expected label,youtube_id,time_start,time_end, got {row}") from None

    train = [*listed("train")]
    os.stat(root / subset)  # FileNotFoundError: who has train and val need not have test
    return sorted({label for _, _, label in train}), train if subset == "train" else listed(subset)


@register(
    layout="SUBSET.txt    'PATH LABEL' (or 'PATH FRAMES LABEL') of each video, PATH below this folder, LABEL from 0\n"
           "classes.txt   the names of the classes, a line each, that of label 0 first",
    lists=r"(?:classes|(?P<subset>(?!prepare-report).+))\.txt",
)
def plain(root, subset, split):
    classes = [name for _, name in lines(root / "classes.txt", "(.+)", "CLASS")]
    listed = lines(root / f"{subset}.txt", r"(.*\S) +(\d+)", "PATH LABEL")

    def path_of(text):  # lists of SCUBA, and other folders of frames, have their number between path and label
        return text if (root / text).exists() else re.sub(r" +\d+$", "", text)

    return classes, [(where, path_of(text), int(label)) for where, text, label in listed]


def holdout(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Splits a training list into (rest, held out), to choose a model without looking at the test list.

    Clips of one source video are near copies of each other, so they stay together. The source videos come in random
    order, and one is held out if that brings the classes nearer to `fraction` of their videos, which is in (0, 1)."""
    target = fraction * np.bincount(samples.labels, minlength=len(samples.classes))
    order = np.argsort(samples.groups, kind="stable")
    members = np.split(order, np.unique(samples.groups[order], return_index=True)[1][1:])
    held, out = np.zeros(len(target)), np.zeros(len(samples), bool)
    for g in np.random.default_rng(seed).permutation(len(members)):
        more = np.bincount(samples.labels[members[g]], minlength=len(target))
        if np.abs(held + more - target).sum() < np.abs(held - target).sum():
            held += more
            out[members[g]] = True
    if not out.any():
        raise ConfigError(f"every source video is too long to hold out {fraction} of {len(samples)} videos")
    return samples.take(~out), samples.take(out)


# ---- items and batches

class Item(NamedTuple):
    clips: np.ndarray  # (K, T, H, W, 3) uint8, K clips of one video
    label: int
    index: int  # of the video shown, in the samples
    ok: bool  # False: the video cannot be decoded and the clips are zeros
    skipped: int  # videos that cannot be decoded and were passed over for this one
    damaged: bool = False  # the clips rest on damage inside the file: they are what FFmpeg makes of it


class Batch(NamedTuple):
    """Items, stacked: a tuple of tensors, which torch and accelerate pin and move as it is."""

    clips: Any  # (B, K, T, H, W, 3) uint8, zeros to the right of and below the smaller items
    size: Any  # (B, 2) int64, the true H and W of each
    label: Any  # (B,) int64
    index: Any  # (B,) int64
    ok: Any  # (B,) bool
    skipped: Any  # (B,) int64
    damaged: Any = None  # (B,) bool


class VideoCache(OrderedDict):
    """Decoded videos, (path, short_side) -> uint8 (n, H, W, 3), the least recently used of which goes first."""
    bytes = 0

    def add(self, key, frames: np.ndarray, max_gb: float):
        self[key] = frames
        self.bytes += frames.nbytes
        while self.bytes > max_gb * 2**30:
            self.bytes -= self.popitem(last=False)[1].nbytes


CACHE = VideoCache()  # of this process, for all lists


@dataclass(eq=False)
class Clips:
    """Clips of videos. An item's key is (epoch, i), and what is drawn for it follows from (seed, epoch, i).

    `sampler(n_frames, rng) -> (K, T)` says which frames, `short_side` in pixels how large they are decoded.
    cache_gb: GiB of decoded videos that each process keeps, for lists that fit; a file is then taken for unchanged.

    A video that cannot be decoded is named on stderr, once per worker. With `train`, the next readable one of the
    list takes its place, with its own label and index; UserError if there is none. Without, it keeps its place, to be
    scored as a miss: zeros (K, T, short_side, short_side, 3), not ok. strict: a damaged one counts as such."""

    samples: Samples
    sampler: Callable
    short_side: int
    seed: int
    train: bool
    cache_gb: float = 0
    strict: bool = False
    named: set[int] = field(default_factory=set)  # unreadable videos this worker has reported

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, i = key
        if not 0 <= i < len(self):
            raise IndexError(f"item {i} of {len(self)} videos")
        for skipped in range(len(self) if self.train else 1):
            j, rng = (i + skipped) % len(self), np.random.default_rng((self.seed, epoch, i))
            try:
                clips, damaged = self.decode(j, rng)
                return Item(clips, int(self.samples.labels[j]), j, True, skipped, damaged)
            except VideoError as error:  # anything else is a bug, and not hidden
                if j not in self.named:
                    print(f"unreadable video: {error}", file=sys.stderr)
                    self.named.add(j)
        if self.train:
            raise UserError(f"none of the {len(self)} videos in {self.samples.root} can be decoded")
        black = np.zeros((*self.sampler(1, rng).shape, self.short_side, self.short_side, 3), np.uint8)
        return Item(black, int(self.samples.labels[i]), i, False, 0)

    def decode(self, j: int, rng) -> tuple[np.ndarray, bool]:  # (K, T, H, W, 3), is it damaged?
        key = path, short_side = self.samples.path(j), self.short_side
        if self.cache_gb and key in CACHE:
            CACHE.move_to_end(key)
            return CACHE[key][self.sampler(len(CACHE[key]), rng)], False
        with time_limit(path), Reader(path, self.samples.index(j), self.strict) as video:
            indices = self.sampler(video.frames, rng)
            if self.cache_gb:
                with suppress(VideoError):  # damaged somewhere: what is asked for may still be sound
                    frames = video.decode(np.arange(video.frames), short_side)
                    if not video.damaged:
                        CACHE.add(key, frames, self.cache_gb)
                        return frames[indices], False
            return video.decode(indices, short_side), video.damaged


@contextmanager
def time_limit(path):
    """VideoError after TIME_LIMIT seconds of the processor, in a worker. Elsewhere a person can press Ctrl-C."""
    def stop(*_):
        raise VideoError(f"{path}: makes no progress, given up after {TIME_LIMIT} s")

    if in_worker:
        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)  # stands still while the process is suspended
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def collate(items: list[Item]) -> Batch:
    """Items of any sizes into one batch, zero-padded to the largest height and the largest width."""
    import torch
    clips, *columns = zip(*items, strict=True)
    size = torch.tensor([one.shape[2:4] for one in clips])  # (B, 2)
    batch = torch.zeros(len(clips), *clips[0].shape[:2], *size.amax(0).tolist(), 3, dtype=torch.uint8)
    if in_worker:  # into shared memory while it is empty: cheaper than a copy of the full batch later
        batch.share_memory_()
    for row, one in zip(batch, clips, strict=True):
        row[:, :, : one.shape[2], : one.shape[3]] = torch.from_numpy(one)
    return Batch(batch, size, *map(torch.tensor, columns))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1,
                  start: int = 0) -> Iterator[list[tuple[int, int]]]:
    """The keys (epoch, i) of this rank's part of every training batch of an epoch, from batch `start` on.

    A permutation of the n videos is cut into batches of `batch_size`, of which rank r has the r-th of `world` equal
    parts. An incomplete last one is dropped. `train.check_batch` sees to it that the numbers fit."""
    # Items draw from (seed, epoch, i) with i < n. (seed, epoch) is that of item 0: numpy pads seeds with zeros.
    order = np.random.default_rng((seed, epoch, n)).permutation(n)
    part = batch_size // world
    for step in range(start, n // batch_size):
        first = step * batch_size + rank * part
        yield [(epoch, i) for i in order[first : first + part].tolist()]


def loader(clips: Clips, batches: Iterable[list[tuple[int, int]]], workers: int = 0, device="cpu", collate=collate):
    """The `batches` of keys, in order, decoded by `workers` processes (0: by this one); pinned for CUDA.
    Each worker runs torch on one thread, which DataLoader sees to, and keeps two batches ready, in shared memory."""
    import torch
    return torch.utils.data.DataLoader(
        clips, batch_sampler=batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None, pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator().manual_seed(clips.seed),  # or it would draw from the global one
        worker_init_fn=init_worker)


def init_worker(_):
    """A worker lets Ctrl-C and a cluster's SIGTERM pass: training still needs batches to finish its step."""
    global in_worker
    in_worker = True
    gc.freeze()  # what it was born with is not collected: looking for that takes a twentieth of the time, and memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def end_workers():
    """Ends the workers that an error left behind: multiprocessing would send the SIGTERM that they let pass, and wait.
    Registered after multiprocessing's own, so called before it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would raise at the end of each
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
