"""Look at every video of a dataset once, before the weeks of training: is it all there, and whole?

    run.py prepare --cfg ucf101                                    a manifest and a report
    run.py prepare --cfg ucf101 transcode=true short_side=128    and data-128/ucf101, a copy that decodes fast

In DATA/NAME this leaves `manifest.npz` (what is in it: `datasets.Manifest`), `prepare-report.txt` and
`prepare-journal.jsonl`, a line per file. Stop it, kill it, add files: the next run looks at what is new or changed.
"""

import base64
import errno
import json
import os
from collections import Counter, defaultdict
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from be.config import UserError, choose
from be.datasets import DATASETS, MANIFEST, DatasetMissing, Manifest
from be.jobs import run, watch
from be.transcode import FULL, copy_dataset
from be.video import Reader, VideoError

REPORT, JOURNAL = "prepare-report.txt", "prepare-journal.jsonl"
CHECKS = ("packets", "decode")  # the second finds all that the first does


def prepare(dataset: str, data: str = "data", check: Literal["decode", "packets"] = "decode", accept_missing: int = 0,
            shortest: int = 16, transcode: bool = False, short_side: int = 128, gop: int = 16,
            workers: int | None = None):
    """Checks every video of DATA/DATASET against the lists, writes manifest and report; makes a copy, if asked

    check: decode all frames; or only read the packets, which is many times faster, but blind to damage inside them.
    accept_missing: the exit code is 1 if more than so many things are amiss.
    shortest: frames; shorter videos are amiss.
    transcode: also write what can be read to DATA-SHORT_SIDE/DATASET, lists included, for use as data=DATA-SHORT_SIDE:
        H.264 with a key frame at every `gop`th frame, the short side at `short_side` px unless it is smaller.
    workers: processes; by default one per core.
    """
    source = choose(DATASETS, dataset, "dataset")
    root = Path(data).expanduser().absolute() / dataset
    try:
        records, amiss = survey(source, root, check, shortest, workers)
        if transcode:
            copy = root.parent.with_name(f"{root.parent.name}-{short_side}") / dataset
            frames = {r.path: r.frames for r in records if r.frames}
            copy_dataset(root, copy, source.list_files(root), frames, workers, short_side=short_side, gop=gop)
            amiss = max(amiss, survey(source, copy, "packets", shortest, workers)[1])
    except OSError as error:
        if error.errno not in (*FULL, errno.EACCES, errno.EROFS):
            raise
        raise UserError(f"{error.filename or root}: {error.strerror}") from error
    if amiss > accept_missing:
        raise SystemExit(1)


# --------------------------------------------------------------------------------------------------------
# Looking at files


@dataclass
class Record:
    """What is known of a file: a line of the journal, a row of the manifest."""

    path: str  # relative to the dataset's folder
    size: int = -1  # bytes; -1: there is no such file
    mtime: int = -1  # ns
    check: str = ""
    digest: str = ""  # BLAKE2b of the content
    frames: int = 0  # 0: cannot be read
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    index: str = ""  # packed, in base64
    deadly: bool = False  # the process that read it crashed, or got no further
    problem: str = ""


def look(root, paths, check, workers) -> list[Record]:
    """The records of all `paths`, in order. A file that the journal knows as it is, is not looked at again."""
    known = {}
    if (root / JOURNAL).exists():
        for line in (root / JOURNAL).read_text().splitlines():
            with suppress(json.JSONDecodeError, TypeError):  # a line cut by a kill, or of another version
                record = Record(**json.loads(line))
                known[record.path] = record
    records, todo = {}, []
    for path in paths:
        try:
            stat = os.stat(root / path)
        except OSError as error:
            records[path] = Record(path, problem=error.strerror)
            continue
        records[path] = record = known.get(path, Record(path))
        same = (record.size, record.mtime) == (stat.st_size, stat.st_mtime_ns)
        if not same or CHECKS.index(record.check) < CHECKS.index(check):
            todo.append(path)
    work = run(partial(examine, root, check), todo, workers, partial(patience, root))
    with open(root / JOURNAL, "a") as journal, closing(work):
        for path, record, problem in watch(work, len(todo), f"looking at {root.name}"):
            stat = os.stat(root / path)
            records[path] = record or Record(path, stat.st_size, stat.st_mtime_ns, problem=problem, deadly=True)
            if record:  # otherwise let it try again next time; the line break comes first, to end a line that was cut
                journal.write("\n" + json.dumps(asdict(record)))
                journal.flush()
    return list(records.values())


def examine(root, check, path) -> Record:
    """Reads all of a file. This runs in a process of its own."""
    file = os.path.join(root, path)
    stat = os.stat(file)
    record = Record(path, stat.st_size, stat.st_mtime_ns, check)
    try:
        with Reader(file) as video:
            info, index = video.info, video.index
            if check == "decode":
                video.decode(np.arange(video.frames), short_side=16)
        record.digest, record.problem = digest(file), cut_short(file)
        record.index = base64.b64encode(index.pack()).decode()
        record.fps, record.width, record.height, record.codec = info.fps, info.width, info.height, info.codec
        record.frames = info.frames
    except VideoError as error:
        record.problem = str(error).removeprefix(f"{file}: ")
    return record


def patience(root, path) -> float:
    """Seconds after which a file is given up: far more than any machine needs for one that is in order."""
    return 60 + os.path.getsize(root / path) / 1e5


def digest(file) -> str:
    state = blake2b(digest_size=16)
    with open(file, "rb") as content:
        while part := content.read(2**20):
            state.update(part)
    return state.hexdigest()


def cut_short(file) -> str:
    """What is wrong if the end of an AVI, MP4, MOV, Matroska or WebM file is missing; "" if nothing is.

    Such a file may well be decoded, up to where it breaks off. But its outermost parts say how long they are.
    """
    size, end = os.path.getsize(file), 0
    with open(file, "rb") as content:
        head = content.read(4096)
        if head.startswith(b"RIFF"):
            end = 8 + int.from_bytes(head[4:8], "little") - 1  # its last byte may be padding
        elif head.startswith(b"\x1a\x45\xdf\xa3"):  # Matroska: a header and a segment, each an id and a length
            length, at = _vint(head, 4)
            length, at = _vint(head, at + length + 4)
            end = at + length
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):  # MP4: a row of boxes
            while end + 8 <= size and head[4:8].isalnum():
                length = int.from_bytes(head[:4], "big")
                end += max(8, int.from_bytes(head[8:16], "big") if length == 1 else length or size - end)
                content.seek(end)
                head = content.read(16)
    return f"breaks off after {size} of {end} bytes" if end > size else ""


def _vint(data, at) -> tuple[int, int]:
    """A number of Matroska, whose first 1 bit tells its width, and where it ends. All ones mean unknown: 0."""
    width = 9 - data[at].bit_length()
    unknown = (1 << 7 * width) - 1
    return (int.from_bytes(data[at : at + width], "big") & unknown) % unknown, at + width


# --------------------------------------------------------------------------------------------------------
# What is amiss


def survey(source, root, check, shortest, workers) -> tuple[list[Record], int]:
    """Looks at all files of all lists and writes manifest and report. Returns the records and how much is amiss."""
    lists, notes = {}, []
    amiss = {kind: [] for kind in ("wrong lists", "missing", "unreadable", "cut short", "too short")}
    for subset, split in source.subsets(root):
        try:
            samples, there = source.read(root, subset, split)
        except (FileNotFoundError, NotADirectoryError) as error:
            notes.append(f"{subset} {split}: not there, for want of {error.filename}")
            continue
        except ValueError as error:
            amiss["wrong lists"].append(str(error))
            continue
        lists[subset, split] = samples, there
        if not source.official(subset, split, samples):
            official = source.expected[subset, split]
            amiss["wrong lists"].append(f"{subset} {split}: {len(samples)} videos, the official list has {official}")
        for path, times in Counter(samples.paths.tolist()).items():
            if times > 1:
                amiss["wrong lists"].append(f"{subset} {split}: {os.fsdecode(path)} stands there {times} times")
    paths = sorted({path for samples, _ in lists.values() for path in samples.paths.tolist()})
    if not any(os.path.exists(os.path.join(os.fsencode(root), path)) for path in paths):
        looked_for = root / os.fsdecode(paths[0]) if paths else f"a list in {root}"
        raise DatasetMissing("\n".join([*amiss["wrong lists"], source.missing(root, looked_for)]))

    records = look(root, [os.fsdecode(path) for path in paths], check, workers)
    for r in records:
        if r.size < 0:
            amiss["missing"].append(f"{r.path}: {r.problem}")
        elif not r.frames:
            amiss["unreadable"].append(f"{r.path}: {r.problem}")
        elif r.problem:
            amiss["cut short"].append(f"{r.path}: {r.problem}")
        elif r.frames < shortest:
            amiss["too short"].append(f"{r.path}: {r.frames} frames, {shortest} are wanted")
    amiss |= same_content(records, lists)

    write_manifest(root, records, lists)
    table = Manifest.read(root)
    for (subset, split), (samples, there) in lists.items():
        mark = samples.take(there).with_manifest(table).manifest_hash
        notes.append(f"{subset} {split}: {len(samples)} videos, manifest_hash {mark}")
    return records, report(root, records, notes, amiss, check)


def same_content(records, lists) -> dict[str, list[str]]:
    """Files with equal content: those that a split both trains and tests on, and the others."""
    alike = defaultdict(list)
    for r in records:
        if r.frames:
            alike[r.digest].append(r.path)
    digest_of = {os.fsencode(path): digest for digest, paths in alike.items() for path in paths}
    held = {key: {digest_of[path]: os.fsdecode(path) for path in samples.paths.tolist() if path in digest_of}
            for key, (samples, _) in lists.items()}  # {list: {digest: path}}
    leaks, leaked = [], set()
    for (subset, split), videos in held.items():
        train = held.get(("train", split), {}) if subset != "train" else {}
        for digest in [digest for digest in videos if digest in train]:
            leaks.append(f"{videos[digest]} of {subset} {split} is {train[digest]} of train {split}")
            leaked.add(digest)
    others = [" = ".join(paths) for digest, paths in alike.items() if len(paths) > 1 and digest not in leaked]
    return {"both trained and tested on": leaks, "duplicates": others}


def write_manifest(root, records, lists):
    """The columns of `Manifest` and, for people, those of Record, classes and the rows and labels of each list."""
    packed = [base64.b64decode(r.index) for r in records]
    columns = {name: np.array([getattr(r, name) for r in records])
               for name in ("size", "mtime", "fps", "width", "height", "codec", "deadly")}
    columns |= dict(
        path=np.array([os.fsencode(r.path) for r in records]),
        problem=np.array([os.fsencode(r.problem) for r in records]),
        digest=np.array([list(bytes.fromhex(r.digest or "00" * 16)) for r in records], np.uint8),
        frames=np.array([r.frames for r in records], np.int32),
        packed=np.frombuffer(b"".join(packed), np.uint8),
        end=np.cumsum([len(part) for part in packed], dtype=np.int64),
    )
    for (subset, split), (samples, _) in lists.items():
        rows = np.searchsorted(columns["path"], samples.paths)
        columns |= {f"{subset}-{split}-rows": rows, f"{subset}-{split}-labels": samples.labels,
                    "classes": np.array(samples.classes)}
    aside = root / f".{MANIFEST}"
    with open(aside, "wb") as file:
        np.savez_compressed(file, **columns)
    aside.replace(root / MANIFEST)


def report(root, records, notes, amiss, check) -> int:
    """Writes the report, prints it with long lists cut, and returns how many things are amiss."""
    good = [r for r in records if r.frames]
    frames = np.array([r.frames for r in good] or [0])
    hours, size = sum(r.frames / r.fps for r in good) / 3600, sum(r.size for r in good) / 1e9

    def common(kinds):
        counts = Counter(kinds).most_common()
        return ", ".join(f"{kind} ({n})" for kind, n in counts[:4]) + (", ..." if len(counts) > 4 else "")

    head = [
        f"{root}, check={check}", *(f"  {note}" for note in notes),
        f"{len(records)} videos are listed, {len(good)} of them readable: {hours:.2f} hours, {size:.3f} GB",
        f"  frames  {frames.min()} to {frames.max()}, median {np.median(frames):.0f}, {frames.sum()} in all",
        f"  fps     {common(f'{r.fps:.2f}' for r in good)}",
        f"  pixels  {common(f'{r.width} x {r.height}' for r in good)}",
        f"  codec   {common(r.codec for r in good)}",
    ]
    total = sum(map(len, amiss.values()))

    def text(limit):
        for kind, found in amiss.items():
            if found:
                yield f"{kind}: {len(found)}"
                yield from (f"  {line}" for line in found[:limit])
                if len(found) > limit:
                    yield f"  ... and {len(found) - limit} more, see {REPORT}"
        yield f"{total} amiss; to go on with that: accept_missing={total}" if total else "nothing is amiss"

    (root / REPORT).write_text("\n".join([*head, *text(total)]) + "\n", "utf-8", "surrogateescape")
    for line in [*head, *text(5)]:
        print(line.encode("utf-8", "backslashreplace").decode())
    return total
