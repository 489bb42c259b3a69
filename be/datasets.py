"""Data sets: official annotation files in, batches of clips out.

    samples = load("ucf101", "data", "train", split=1)
    clips = Clips(samples, sampler, short_side=128, seed=0, train=True)
    for batch in loader(clips, [[(0, 7), (0, 1)], [(0, 4), (0, 2)]], workers=4): ...  # epoch 0, two videos a batch

A data set is a parser of its official lists, registered with what is known of it; `plain` is a short one to copy.
Lists are read without torch. Every number of an item follows from (seed, epoch, index) and the files alone.
"""

import atexit
import csv
import errno
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
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from be.config import ConfigError, UserError, choose
from be.video import Index, Reader, VideoError, opens, walk

MANIFEST = "manifest.npz"  # of a data set's folder
COPIED = "transcode.json"  # in a copy: how `prepare` made it
DRAWN = "synthetic.jsonl"  # beside the lists of drawn videos: what each was made of
VIDEO = frozenset(["avi", "flv", "gif", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv"])  # suffixes
REPLACED = "replacement"  # CVDF's folder of whole files for broken ones
DATASETS: dict[str, "Source"] = {}  # by name
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
        """With this manifest, unless it knows none of the videos: then it is another data set's."""
        at = np.searchsorted(manifest.path, self.paths).clip(max=len(manifest.path) - 1)
        rows = np.where(manifest.path[at] == self.paths, at, -1)
        return replace(self, manifest=manifest, rows=rows) if rows.max() >= 0 else self

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

    `parse(folder, subset, split)` reads the lists in that folder. It returns the class names and, per video, a row
    (where it was listed, path, class name or number). A FileNotFoundError it lets through becomes DatasetMissing."""

    name: str
    parse: Callable
    lists: str  # a pattern for the names of its lists, that tells their subset and split where the name does
    folders: tuple[str, ...] = ("",)  # of the lists, the official one first; "": its own, where they may always be
    videos: tuple[str, ...] = ("",)  # of the videos, the official one first; "": its own; ("",): lists tell the folders
    group: Callable[[str], str] = str  # a listed path -> the source video it was cut from
    classes: int = 0  # of the official lists; then the number of videos of each (subset, split)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)
    test: str = "test"  # the subset to test on
    partial: bool = False  # nobody has all videos: those that are absent are left out
    mirrors: bool = True  # a mirrored video has the same label; False: its classes tell left from right

    @property
    def splits(self) -> tuple[int, ...]:
        """The numbers of its splits; (1,) if it has but one."""
        return tuple(sorted({1} | {split for _, split in self.expected}))

    def __call__(self, data, subset: str, split: int = 1, classes=None, videos=None, lists=None) -> Samples:
        root, lists = self.find(data, videos, lists)
        manifest = Manifest.read(root)
        try:
            listed, there = self.read(root, lists, subset, split, classes, manifest)
            absent = None if there.any() else listed.path(0)
        except (FileNotFoundError, NotADirectoryError) as error:
            absent = error.filename
        if absent:
            raise DatasetMissing(self.missing(absent, *pick(self.videos, root), root, lists))
        problems = [] if classes else [self.other_length(subset, split, listed)]
        names = [listed.classes[label] for label in np.unique(listed.labels[there])]
        of = f", of {len(names)} of {len(listed.classes)} classes; for these alone: " + shlex.quote(
            f"classes={json.dumps(names, ensure_ascii=False)}") if len(names) < len(np.unique(listed.labels)) else ""
        if of or (self.partial and not there.all()):
            problems.append(f"{there.sum()} of {len(there)} listed videos ({there.mean():.1%}) are in {root}{of}")
        for problem in filter(None, problems):
            print(f"warning: {self.name} {subset}, split {split}: {problem}", file=sys.stderr)
        samples = listed.take(there) if self.partial else listed
        if manifest is not None:
            samples = samples.with_manifest(manifest)
        return with_scenes(samples) if (root / DRAWN).exists() else samples

    def read(self, root, lists, subset: str, split: int, classes=None, manifest=None) -> tuple[Samples, np.ndarray]:
        """The whole list, and which of its videos are there, bool (N,). As `load`, but lets FileNotFoundError pass.
        A manifest is believed: then the videos are not looked for."""
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}; it has {', '.join(map(str, self.splits))}")
        own = "val" if subset == self.test else subset  # in MMAction2's lists
        theirs = [path.name.replace(f"_{own}_", "_{}_") for path in self.list_files(lists)
                  if re.match(rf"{self.name}_{own}_(split_{split}|list)_", path.name)]
        names, rows = plain.parse(lists, own, split, theirs) if theirs else self.parse(lists, subset, split)
        for name in classes or ():
            choose(dict.fromkeys(names), name, f"class of {self.name}")
        kept = [i for i, name in enumerate(names) if not classes or name in classes]
        number = {i: n for n, i in enumerate(kept)}
        label_of = {key: number.get(i) for i, name in enumerate(names) for key in (i, name)}  # None: not asked for
        paths, labels, groups, sources, inside = [], [], [], {}, f"{root}/"
        for where, path, label in rows:
            path = path.removeprefix(inside)
            if ".." in path.split("/") or (self.videos[0] and path.startswith("/")):
                raise ConfigError(f"{where}: {path!r} leaves the folder of the data")
            if label not in label_of:
                raise ConfigError(f"{where}: {label!r} is none of the {len(names)} classes")
            if label_of[label] is not None:
                paths.append(path)
                labels.append(label_of[label])
                groups.append(sources.setdefault(self.group(path), len(sources)))
        if not paths:
            of = ", ".join(classes or ["any class"])
            raise ConfigError(f"{self.name}: the {subset!r} list of split {split} in {root} names no video of {of}")
        paths, there = self.locate(root, subset, paths, manifest)
        columns = np.array([*map(os.fsencode, paths)]), np.array(labels, np.int64), np.array(groups, np.int64)
        return Samples(str(root), *columns, [names[i] for i in kept]), there

    def locate(self, root: Path, subset: str, listed: list[str], manifest) -> tuple[list[str], np.ndarray]:
        """The paths of the listed videos, and which are there, bool (N,). Their suffixes do not count. Of several files
        of one name it takes one that opens: CVDF's replacement, or the one with the listed suffix, or any other."""
        keys = [self.key(path) for path in listed]
        found = dict.fromkeys(keys, "")  # key -> path; or paths, with a NUL between them
        short = {re.sub(r"_\d{6}_\d{6}$", "", key): key for key in keys} if self.partial else {}  # clips by video
        for path in self.offers(root, subset, listed, found, manifest):
            key = self.key(path)
            if (key := key if key in found else short.get(key)) and found[key] != path:
                found[key] += f"\0{path}" if found[key] else path
        paths = [found[key] for key in keys]
        taken = {*listed} if not self.videos[0] and paths != listed else ()  # these belong to lines of their own
        several = [i for i, path in enumerate(paths) if "\0" in path or (path in taken and path != listed[i])]
        for i in several:
            suffix, free = os.path.splitext(listed[i])[1], [
                path for path in paths[i].split("\0") if path == listed[i] or path not in taken]
            free.sort(key=lambda path: (REPLACED not in path, not path.endswith(suffix)))
            paths[i] = next((path for path in free if len(free) == 1 or opens(root / path)), free[0] if free else "")
        if several and not taken:
            print(f"note: {len(several)} videos lie more than once in {root}; one that opens is used", file=sys.stderr)
        official = self.videos[0].format(subset=subset)
        there = np.array([path != "" for path in paths])
        return [path or os.path.join(official, name) for path, name in zip(paths, listed, strict=True)], there

    def key(self, path: str) -> str:
        """What a video is known by: its name or its path (see `videos`), without the suffix of a video."""
        name = path[path.rfind("/") + 1 :] if self.videos[0] else path
        stem, dot, suffix = name.rpartition(".")
        return stem if dot and suffix.lower() in VIDEO else name

    def offers(self, root: Path, subset: str, listed, found: dict, manifest) -> Iterator[str]:
        """Paths that the manifest knows, if that is enough; or of what is in the folders, from the likeliest one on,
        until one has any of what is wanted, which are the keys of `found`."""
        if manifest is not None:
            yield from map(os.fsdecode, manifest.path[manifest.size >= 0].tolist())
            if all(found.values()) or (self.partial and any(found.values())):
                return
        if not self.videos[0]:
            for folder in dict.fromkeys(map(os.path.dirname, listed)):
                yield from walk(root, folder, found, 0)
            return
        names = [name.format(subset=subset) for name in self.videos]
        near, own = chain(pick([REPLACED], root), pick(names, root)), [root] if "" in names else []
        for top in chain(near, pick(names, root, "*/*"), own):
            yield from walk(root, str(top.relative_to(root)), found, 2 if top == root else 99)
            if any(found.values()) and top.name != REPLACED:
                return

    def find(self, data, videos=None, lists=None) -> tuple[Path, Path]:
        """(where paths of videos begin, the folder of the lists): in DATA/NAME, in DATA itself or in DATA/ANY/NAME, or
        what `videos` and `lists` say. If there is no list: where it should be."""
        data, videos, lists = (one and Path(os.path.abspath(Path(one).expanduser())) for one in (data, videos, lists))
        for home in chain(pick([self.name], data), [data], pick([self.name], data, "*/*")):
            top = lists or home
            deep = pick({*self.folders} - {"annotations"}, top, "*/*")  # that is a name others use, too
            for folder in chain(pick(self.folders, top), [top], deep):
                if any(match["subset"] for match in self.list_files(folder).values()):
                    return videos or home, folder
        return videos or data / self.name, lists or data / self.name / self.folders[0]

    def other_length(self, subset: str, split: int, samples: Samples) -> str:
        """What is odd about a list that has all the official classes, but not as many videos; else ""."""
        number = self.expected.get((subset, split), len(samples))
        odd = len(samples.classes) == self.classes and len(samples) != number
        return f"{len(samples)} videos, the official list has {number}" if odd else ""

    def list_files(self, folder) -> dict[Path, re.Match]:
        """The lists in a folder and what belongs to them, {path: the match of its name with `lists`}."""
        matches = ((path, re.fullmatch(self.lists, path.name)) for path in sorted(Path(folder).glob("[!.]*")))
        return {path: match for path, match in matches if match}

    def subsets(self, lists) -> list[tuple[str, int]]:
        """All (subset, split) that are official or have a list in that folder."""
        named = (match.groupdict() for match in self.list_files(lists).values())
        found = {(name["subset"], int(name.get("split", 1))) for name in named if name["subset"]}
        return sorted(found | self.expected.keys(), key=lambda known: (known[1], known[0] != "train", known[0]))

    def missing(self, absent, *places) -> str:
        """The message: what is not there, what is in its place and in these places, and what can be done."""
        text, near = f"{absent} does not exist.\n", next(folder for folder in Path(absent).parents if folder.is_dir())
        for place in dict.fromkeys([near, *filter(Path.is_dir, places)]):
            names = [path.name for path in sorted(place.glob("[!.]*"))]
            text += f"{place} holds {', '.join(names[:10]) or 'nothing'}{' ...' if len(names) > 10 else ''}\n"
        return (f"{text}If it lies elsewhere: videos=FOLDER, lists=FOLDER. docs/DATA.md says what {self.name} is,\n"
                "where from, and in which layouts it is found. To try the code without any data: make demo")


def load(dataset: str, data, subset: str, split: int = 1, classes=None, videos=None, lists=None) -> Samples:
    """The videos of `subset` ('train', 'test' or any other that has a list), in the order of the list.

    data: the folder that holds the data sets, or the data set itself; docs/DATA.md says which layouts work.
    classes: names. Only their videos, with labels that number these classes in their official order. None or (): all.
    videos, lists: their folders, if `data` is not enough to find them.

    Raises ConfigError for an unknown data set, split or class and, with file and line, for a wrong line;
    DatasetMissing if a list or all videos are absent. Warns of absent classes and of a list of another length."""
    return choose(DATASETS, dataset, "dataset")(data, subset, split, classes, videos, lists)


def load_for(cfg, subset: str, data: str | None = None) -> Samples:
    """The list `subset` of a config's data set, split and classes, from its folder or from another one, or from `data`
    itself where that is a `plain` set. Raises ConfigError where its videos are a copy that is smaller than
    `short_side`: they would be enlarged."""
    if data and Path(data, "classes.txt").exists():
        samples = load("plain", data, subset, 1, cfg.classes)
    else:
        folders = () if data else (cfg.videos, cfg.lists)
        samples = load(cfg.dataset, data or cfg.data, subset, cfg.split, cfg.classes, *folders)
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
    """("file:line", groups of `pattern`...) of every line that is not blank, with or without a BOM, LF or CRLF."""
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as text:  # file names may be any bytes
        for n, line in enumerate(text, 1):
            if line := line.strip():
                if not (match := re.fullmatch(pattern, line)):
                    raise ConfigError(f"{file}:{n}: expected {form!r}, got {line!r}")
                yield f"{file}:{n}", *match.groups()


def pick(names, top: Path, pattern="*") -> Iterator[Path]:
    """The folders in `top` that have one of the names, in any spelling: UCF-101 is ucf101, Kinetics-400 is k400."""
    def spelled(name):
        return re.sub(r"[\W_]|inetics", "", name.lower())

    wanted = {spelled(name) for name in names} - {""}
    yield from (path for path in sorted(top.glob(pattern)) if spelled(path.name) in wanted and path.is_dir())


# ---- the parsers

@register(
    lists=r"classInd\.txt|(?:ucf101_)?(?P<subset>.+?)(?:list0?|_split_)(?P<split>\d+)(?:_videos|_rawframes)?\.txt",
    folders=("ucfTrainTestlist", "annotations"),
    videos=("UCF-101", "videos", ""),
    group=lambda path: path.rpartition("_c")[0] or path,  # gNN: the clips cNN of one source video
    classes=101,
    expected={("train", 1): 9537, ("train", 2): 9586, ("train", 3): 9624,
              ("test", 1): 3783, ("test", 2): 3734, ("test", 3): 3696},
)
def ucf101(folder, subset, split):
    """Subset S is `Slist01.txt`. The class is the folder, whatever label stands behind."""
    classes = [name for _, name in lines(folder / "classInd.txt", r"\d+[\s,]+(\S.*)", "NUMBER CLASS")]
    file, line = folder / f"{subset}list{split:02d}.txt", r"(([^/]+)/[^/]+\.\w+)(?:[\s,]+\d+)?"
    return classes, lines(file, line, "CLASS/NAME.avi LABEL")


@register(
    lists=r".+_(?P<subset>[^_]+)_split_?(?P<split>\d)(?:_videos|_rawframes)?\.txt",
    folders=("testTrainMulti_7030_splits", "annotations"),
    videos=("hmdb51", "hmdb51_org", "videos", ""),
    # The name up to its action. A film may lend clips to several actions, so without the class folder.
    group=lambda path: re.sub(r"(?:.*/)?([^/]+)/([^/]+)_\1_[^/]*", r"\2", path),
    classes=51,
    expected={(subset, split): n for subset, n in (("train", 3570), ("test", 1530)) for split in (1, 2, 3)},
)
def hmdb51(folder, subset, split):
    """A list per class. CLASS_test_splitN.txt: 1 is train, 2 test, 0 neither; CLASS_S_splitN.txt: 1 is subset S."""
    tail = f"_test_split{split}.txt"
    classes = sorted(file.name.removesuffix(tail) for file in folder.glob(f"[!.]*{tail}"))
    kind, wanted = {"train": ("test", "1"), "test": ("test", "2")}.get(subset, (subset, "1"))
    files = {c: file for c in classes if (file := folder / f"{c}_{kind}_split{split}.txt").exists()}
    if not files:
        os.stat(folder / f"CLASS_{kind}_split{split}.txt")  # FileNotFoundError
    listed = ((c, line) for c in files for line in lines(files[c], r"([^/]+\.\w+)[\s,]+([012])", "NAME.avi 0|1|2"))
    return classes, [(where, f"{c}/{name}", c) for c, (where, name, state) in listed if state == wanted]


DATASETS["actor_hmdb51"] = replace(  # every clip cropped to its persons (the paper's Figure 5)
    hmdb51, name="actor_hmdb51", videos=("actor-hmdb51",))


@register(
    lists=r"Diving48_(?:vocab|V2_(?P<subset>.+))\.json",
    folders=("", "annotations"),
    videos=("rgb", "videos", ""),
    group=lambda path: path.rpartition("_")[0] or path,  # the broadcast a dive was cut from
    classes=48,  # declared; 47 occur
    expected={("train", 1): 15027, ("test", 1): 1970},
)
def diving48(folder, subset, split):
    """Every file is one dive already: start_frame is 0 throughout and end_frame the length. So the whole
    file is used, and a start other than 0, which would mean uncut videos, is refused."""
    def read(file):
        try:
            return json.loads(file.read_text("utf-8-sig"))
        except ValueError as error:
            raise ConfigError(f"{file}: {error}") from None

    classes = ["_".join(dive) for dive in read(folder / "Diving48_vocab.json")]
    file, rows = folder / f"Diving48_V2_{subset}.json", []
    for n, entry in enumerate(read(file), 1):
        match entry:
            case {"vid_name": str(name), "label": int(label), "start_frame": 0}:
                rows.append((f"{file}, entry {n}", f"{name}.mp4", label))
            case _:
                raise ConfigError(f"{file}, entry {n}: expected vid_name, label, start_frame 0, got {entry}")
    return classes, rows


@register(
    lists=r"(?:kinetics[^_]*_)?(?P<subset>.+?)(?:idate)?(?:\.csv|_list_(?:videos|rawframes)\.txt)",
    folders=("annotations",),
    videos=("{subset}", "videos_{subset}", "{subset}idate", "videos", ""),
    classes=400,
    expected={("train", 1): 246534, ("val", 1): 19906},
    test="val",
    partial=True,
)
def kinetics400(folder, subset, split):
    """A clip is named by its video and its seconds. Classes are the sorted labels of train.csv, for every subset."""
    def listed(part):
        files = [folder / name for name in (f"{part}.csv", f"kinetics_{part}.csv", f"{part}idate.csv")]
        file = next(filter(Path.exists, files), files[0])
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            table = csv.DictReader(text)
            if "label" not in (table.fieldnames or ()):  # CVDF's test.csv
                raise FileNotFoundError(errno.ENOENT, "", f"{file} with a column `label`")
            for row in table:
                where = f"{file}:{table.line_num}"
                try:
                    name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
                    yield where, name, row["label"]
                except (KeyError, TypeError, ValueError):
                    raise ConfigError(f"{where}: expected label,youtube_id,time_start,time_end, got {row}") from None

    train = [*listed("train")]
    return sorted({label for _, _, label in train}), train if subset == "train" else [*listed(subset)]


@register(lists=r"(?:classes|(?P<subset>(?!prepare-report).+))\.(?:txt|csv)")
def plain(folder, subset, split, forms=("{}.txt", "{}.csv")):
    """Between path and label there may be spaces, tabs or commas, and the number of frames. Without classes.txt a class
    is called as the folder of its videos, if each has one, or else by its number."""
    def listed(part):
        files = [folder / form.format(part) for form in forms]
        rows = lines(next(filter(Path.exists, files), files[0]), r'"?(.*[^\s,"])"?[\s,]+(\d+)', "PATH LABEL")
        return ((where, re.sub(r"[\s,]+\d+$", "", path), int(label)) for where, path, label in rows)

    if (folder / "classes.txt").exists():
        return [name for _, name in lines(folder / "classes.txt", "(.+)", "CLASS")], listed(subset)
    pairs = {(label, os.path.basename(os.path.dirname(path))) for _, path, label in listed("train")}
    names = dict(sorted(pairs))
    if not len(pairs) == len(names) == len({*names.values()}) == max(names) + 1:
        names = {label: str(label) for label in range(max(names) + 1)}
    return [*names.values()], listed(subset)


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
