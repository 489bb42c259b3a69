"""Before a run: check every video of a data set, note what is in it, copy it so that it decodes fast; and `make NAME`.

In DATA/NAME, `prepare` leaves `manifest.npz`, `prepare-report.txt`, and `prepare-journal.jsonl`, a line per file.
Stop it, kill it, add files: the next run reads what is new or changed. With `shard` any number of jobs share the work:
they know of each other by their journals alone.

A copy has the paths and lists of the original, and H.264 in MP4 behind every name. Nothing is predicted from its
B-pictures, so a reader skips those it does not need: of I b b b P b b b P, three pictures are decoded at stride 4.
"""

import base64
import errno
import fnmatch
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np

from be import config
from be.config import Config, ConfigError, UserError, changes, choose, experiments, load, paper_numbers, run_dir
from be.datasets import COPIED, DATASETS, MANIFEST, Manifest
from be.video import Reader, VideoError, encode

REPORT, JOURNAL = "prepare-report.txt", "prepare-journal{}.jsonl"
# H.264's quantiser: films come out at about 39 dB. Key frames and B-pictures at fixed places.
QP, FIXED = 22, {"bf": "3", "b_strategy": "0", "b-pyramid": "none", "sc_threshold": "0", "tune": "fastdecode"}
BUFFER = 2**27  # bytes of frames held in memory
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)  # errors that are no video's fault


def prepare(dataset: str, data: str = "data", check: Literal["decode", "packets"] = "decode",
            accept_missing: config.Natural = 0, shortest: config.Natural = 16, transcode: bool = False,
            short_side: Annotated[int, 2, 8192] = 128, gop: config.Count = 16, workers: config.Natural | None = None,
            shard: str = "1/1", videos: str | None = None, lists: str | None = None):
    """Checks every video of DATA/DATASET against the lists, writes manifest and report; makes a copy, if asked

    check: decode all frames; or only read the packets, which is many times faster, but blind to damage inside them.
    accept_missing: the exit code is 1 if there are more problems than that.
    shortest: frames; a shorter video is a problem.
    transcode: also write what can be read to DATA-SHORT_SIDE/DATASET, lists included, for use as data=DATA-SHORT_SIDE:
        H.264 with a key frame at every `gop`th frame, the short side at `short_side` px unless it is smaller.
    workers: processes; by default one per core.
    shard: such as 3/16, of 16 jobs the 3rd, for as many jobs on any machines that see DATA. Each does its part of the
        files; who finds that all parts are done writes manifest and report. A job that was killed is started again.
    videos, lists: the folders of these, if they are not found in DATA.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    source, data, mine = choose(DATASETS, dataset, "dataset"), Path(data).expanduser().absolute(), part_of(shard)
    root, lists = source.find(data, videos, lists)
    try:
        records, problems = survey(source, root, lists, check, shortest, workers, shard)
        readable = [r.path for r in records if r.frames and mine(r.path)]
        if transcode and (readable or shard == "1/1"):
            copy = data.with_name(f"{data.name}-{short_side}") / dataset
            copy_dataset(root, copy, source.list_files(lists), readable, workers, short_side=short_side, gop=gop)
            problems = max(problems, survey(source, *source.find(copy), "packets", shortest, workers, shard)[1])
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise UserError(f"{error.filename or root}: {error.strerror}; the same command goes on from here") from error
    if problems > accept_missing:
        raise SystemExit(1)


def part_of(shard: str):
    """path -> bool: is a file of the part K/N? Its name decides, and not its folder, which a copy may not have yet.
    Raises ConfigError unless K is in 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise ConfigError(f"shard={shard} must be K/N, K from 1 to N, such as shard=3/16 for the 3rd of 16 jobs")
    return lambda path: zlib.crc32(os.fsencode(os.path.basename(path))) % parts == part - 1


@contextmanager
def whole_file(path: Path):
    """A name to write to. The file then becomes `path`, so that other jobs see the old one or the new one."""
    aside = path.with_name(f".{os.uname().nodename}-{os.getpid()}-{path.name}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


# ---- one file

@dataclass
class Record:
    """What is known of a file: a line of the journal, a row of the manifest."""

    path: str  # relative to the data set's folder
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
    deadly: bool = False  # the process that read it crashed, or made no progress
    problem: str = ""

    @property
    def key(self):
        return self.path, self.size, self.mtime

    @property
    def rank(self):
        return self.check == "decode", not self.deadly


def look(root, path) -> Record:
    """A file as it is now, not read yet."""
    try:
        stat = os.stat(root / path)
        return Record(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        return Record(path, problem=error.strerror)


def inspect_file(root, check, record) -> Record:
    """Reads all of a file, if there is one. This runs in a process of its own."""
    file, state = os.path.join(root, record.path), blake2b(digest_size=16)
    if record.size < 0:
        return record
    try:
        with Reader(file, strict=True) as video:
            info = vars(video.info)
            if check == "decode":
                video.decode(np.arange(video.frames), short_side=16)
    except VideoError as error:
        return replace(record, check=check, problem=str(error).removeprefix(f"{file}: "))
    for name in video.files:
        with open(name, "rb") as content:
            while part := content.read(2**20):
                state.update(part)
    packed = base64.b64encode(video.index.pack()).decode()
    return replace(record, check=check, digest=state.hexdigest(), index=packed, **info)


def transcode(root, copy, short_side, gop, path) -> str | OSError | None:
    """Writes the copy of one file, whole or not at all, in a process of its own. Returns the problem, if any."""
    target = copy / path  # beside it, of the same name for every job: written over when the file's turn comes again
    aside = target.with_name(f".{zlib.crc32(os.fsencode(target.name)):08x}.part.mp4")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_copy(root / path, aside, short_side, gop)
        aside.replace(target)
    except (VideoError, OSError) as error:
        code = getattr(error.__cause__ or error, "errno", None)
        return OSError(code, os.strerror(code), str(target)) if code in DISK else str(error)
    finally:
        aside.unlink(missing_ok=True)


def write_copy(source, target, short_side, gop):
    """Raises VideoError unless the copy has as many frames as its source."""
    with Reader(source, strict=True) as video:
        side = min(short_side, video.info.width, video.info.height) // 2 * 2
        n, step = video.frames, max(1, BUFFER // (side * 2 * side * 3))
        parts = (video.decode(np.arange(start, min(n, start + step)), side) for start in range(0, n, step))
        encode(target, chain.from_iterable(parts), video.info.fps, options={"qp": str(QP), "g": str(gop), **FIXED})
    with Reader(target) as copy:
        if copy.frames != n:
            raise VideoError(f"{source}: its copy has {copy.frames} frames instead of {n}")


# ---- many files

def parallel(job, items, what, workers=None, limit=lambda item: 600):
    """Yields (item, job(item), None) of every item, from `workers` processes (None: one per core), as they finish.

    Some files make FFmpeg crash or never return: if the process dies, or takes over `limit(item)` seconds and is
    killed, this yields (item, None, what happened). An exception in a job is a bug: its traceback is printed, and
    RuntimeError raised. Close the generator, which kills the processes. Left to the end of the interpreter, when its
    threads stand still, it may wait for them for ever. The processes are spawned, as threads and GPUs of the caller do
    not survive a fork, so `job` is a function of a module, or a partial of one."""
    from be.runs import progress  # it imports torch: seconds and 300 MB that processes which read files do without

    context, own, started = multiprocessing.get_context("spawn"), threading.local(), []
    # No process starts once the others are killed; and only one thread at a time learns that a process ended
    lock, over = threading.Lock(), threading.Event()

    def attempt(item):  # in a thread, each with a process of its own
        if not hasattr(own, "process"):
            own.pipe, theirs = context.Pipe()
            with lock:
                if over.is_set():
                    return item, None, "not begun"
                own.process = context.Process(target=_serve, args=(job, theirs), daemon=True)
                own.process.start()
                started.append(own.process)
            theirs.close()  # so that the pipe ends when the process does
        seconds = int(limit(item))
        try:
            own.pipe.send(item)
            # Second by second: one in which all was suspended counts once, however long it was
            if any(own.pipe.poll(1) for _ in range(seconds)):
                return item, own.pipe.recv(), None
            own.process.kill()
            problem = f"makes no progress, given up after {seconds} s"
        except (EOFError, ConnectionError):
            with lock:
                own.process.join()
            if own.process.exitcode == 1:
                raise RuntimeError(f"the job failed on {item}; its traceback is above") from None
            problem = f"crashes the process that reads it (exit code {own.process.exitcode})"
        del own.process
        return item, None, problem

    pool = ThreadPool(max(1, min(workers or config.cores(), len(items))))
    try:
        yield from progress(pool.imap_unordered(attempt, items), len(items), what)
    finally:
        pool.terminate()
        with lock:
            over.set()
            for process in started:
                process.kill()
                process.join()


def _serve(job, pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on
    with suppress(EOFError, ConnectionError):  # no more work, or the parent is dead
        while True:
            pipe.send(job(pipe.recv()))


def read_journals(root, check) -> dict[tuple, Record]:
    """What is known of files by `Record.key`: those that were checked at least so well, killed their reader, or were
    missing. Of several lines the best counts, of equals the last."""
    known = {}
    for line in chain.from_iterable(file.read_text().splitlines() for file in sorted(root.glob(JOURNAL.format("*")))):
        with suppress(ValueError, TypeError):  # a line cut by a kill, or of another version
            new = Record(**json.loads(line))
            if (new.check in (check, "decode") or new.deadly or new.size < 0) and (
                    new.rank >= known.get(new.key, new).rank):
                known[new.key] = new
    return known


def inspect_files(root, paths, check, workers, shard) -> tuple[list[Record], int]:
    """Reads its part of the files. -> the records of all `paths`, in order, and how many are left to other jobs."""
    known, now = read_journals(root, check), [look(root, path) for path in filter(part_of(shard), paths)]
    # What killed its reader is tried again, once in a run
    todo = [new for new in now if new.key not in known or known[new.key].deadly]
    work = parallel(partial(inspect_file, root, check), todo, f"inspecting {root.name}", workers,
                    lambda record: 60 + record.size / 1e5)  # far more than any machine needs for a sound file
    own = "" if shard == "1/1" else f"-{shard.replace('/', '-of-')}"
    with closing(work), open(root / JOURNAL.format(own), "a", buffering=1) as file:
        for old, new, problem in work:
            known[old.key] = new = new or replace(old, problem=problem, deadly=True)
            file.write(f"\n{json.dumps(asdict(new))}\n")  # the first break ends a line that was cut
    if own:
        known, now = read_journals(root, check), [look(root, path) for path in paths]
    return [known.get(new.key, new) for new in now], sum(new.key not in known for new in now)


def copy_dataset(root, copy, lists, paths, workers=None, *, short_side, gop):
    """Copies the `lists`, in which paths may begin with ROOT, and transcodes the videos `paths` that COPY lacks yet.
    Raises UserError if COPY holds copies made in another way, or ROOT lacks a video; OSError if the disk is full."""
    if outside := [path for path in paths if os.path.isabs(path)]:
        common = os.path.commonpath([*map(os.path.dirname, outside)])
        raise UserError(f"{outside[0]} and others are not in {root}, so they cannot be copied; give videos={common}")
    copy.mkdir(parents=True, exist_ok=True)
    note, made = copy / COPIED, json.dumps(dict(short_side=short_side, gop=gop, qp=QP, bf=3))
    if note.exists() and note.read_text() != made:
        raise UserError(f"{copy} was made with {note.read_text()}, not {made}: delete it, or ask for the same")
    with whole_file(note) as file:
        file.write_text(made)
    for path in lists:
        target = copy / (path.relative_to(root) if path.is_relative_to(root) else path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as file:
            file.write_bytes(path.read_bytes().replace(os.fsencode(f"{root}/"), b""))
    todo = [path for path in paths if not (copy / path).exists()]
    work = parallel(partial(transcode, root, copy, short_side, gop), todo, "transcoding", workers, lambda path: 3600)
    with closing(work):
        for path, problem, crash in work:
            if isinstance(problem, OSError):
                raise problem
            if problem or crash:
                print(f"not copied: {path}: {problem or crash}")


# ---- the data set

def survey(source, root, folder, check, shortest, workers, shard) -> tuple[list[Record], int]:
    """Inspects its part of the listed files; the last part writes manifest and report. -> records, how many problems"""
    lists, names, notes, wrong, leaks = {}, {}, [f"{root}, check={check}"], [], []
    for subset, split in source.subsets(folder):
        on = f"{subset} {split}"
        try:
            samples, there = source.read(root, folder, subset, split)
        except (FileNotFoundError, NotADirectoryError) as error:
            notes.append(f"  {on}: no list, {error.filename} does not exist")
            continue
        except ValueError as error:
            wrong.append(str(error))
            continue
        lists[on], names[on] = (samples, there), [*map(os.fsdecode, samples.paths.tolist())]
        if odd := source.other_length(subset, split, samples):
            wrong.append(f"{on}: {odd}")
        wrong += [f"{on}: {path} is listed {n} times" for path, n in Counter(names[on]).items() if n > 1]
    if not any(there.any() for _, there in lists.values()):
        source(root, "train", videos=root, lists=folder)  # raises DatasetMissing, or says what is wrong with the list
    paths = sorted({*chain(*names.values())}, key=os.fsencode)
    records, left = inspect_files(root, paths, check, workers, shard)
    if left:
        print(f"{root}: {shard} done, {left} of {len(paths)} files left to other jobs; the last one writes {MANIFEST}")
        return records, 0
    table, content = write_manifest(root, records), {r.path: r.digest or r.path for r in records}
    for on, (samples, there) in lists.items():
        used = (samples.take(there) if source.partial else samples).with_manifest(table)
        notes.append(f"  {on}: {len(samples)} videos, manifest_hash {used.manifest_hash}")
        train = f"train {on.split()[-1]}"
        known = {content[path]: path for path in names.get(train, ())}
        if on != train:
            leaks += [f"{path} of {on} is {known[content[path]]} of {train}" for path in names[on]
                      if content[path] in known]
    problems = {"wrong lists": wrong, "missing": [], "unreadable": [], "too short": [],
                "both trained and tested on": leaks}
    for r in records:
        kind = "missing" if r.size < 0 else "unreadable" if not r.frames else "too short"
        if r.frames < max(1, shortest):
            problems[kind].append(f"{r.path}: {r.problem or f'{r.frames} frames, fewer than {shortest}'}")
    report(root, records, notes, problems)
    return records, sum(map(len, problems.values()))


def write_manifest(root, records) -> Manifest:
    """What training reads of the records; all that is known of a file stands in the journals."""
    columns = {name: np.array([getattr(r, name) for r in records]) for name in ("size", "mtime", "frames", "deadly")}
    packed = [base64.b64decode(r.index) for r in records]
    table = Manifest(
        path=np.array([os.fsencode(r.path) for r in records]), **columns,
        digest=np.array([bytearray.fromhex(r.digest or "00" * 16) for r in records]),
        packed=np.frombuffer(b"".join(packed), np.uint8), end=np.cumsum([*map(len, packed)]))
    with whole_file(root / MANIFEST) as file:
        np.savez_compressed(file, **vars(table))
    return table


def report(root, records, head, problems):
    """Writes the report, and prints it with long lists cut."""
    good, total = [r for r in records if r.frames], sum(map(len, problems.values()))
    hours, size = sum(r.frames / r.fps for r in good) / 3600, sum(r.size for r in good) / 1e9
    frames = [r.frames for r in good] or [0]
    kinds = Counter(f"{r.width} x {r.height} px, {r.fps:.2f} fps, {r.codec}" for r in good)

    def text(limit):
        yield from head
        yield f"{len(records)} videos are listed, {len(good)} of them readable: {hours:.2f} hours, {size:.3f} GB"
        yield f"  {sum(frames)} frames, {min(frames)} to {max(frames)} a video"
        yield from (f"  {kind}: {n} videos" for kind, n in kinds.most_common(5))
        for kind, found in problems.items():
            if found:
                yield f"{kind}: {len(found)}"
                yield from (f"  {line}" for line in found[:limit])
                if len(found) > limit:
                    yield f"  ... and {len(found) - limit} more, see {REPORT}"
        yield f"{total} problems; to go on with them: accept_missing={total}" if total else "no problems"

    with whole_file(root / REPORT) as file:
        file.write_text("\n".join(text(total)) + "\n", "utf-8", "surrogateescape")
    print(*text(5), sep="\n")


# ---- what stands behind `make NAME`: the commands that a person would type, without those whose work is done

# What groups need besides their own rows ...
NETWORKS = {"figure4": ("table1-moco", "table1-moco-be"), "analyses": ("table1-moco", "table1-moco-be"),
            "figure6": ("table1-random", "table2-moco-i3d-ucf101", "table1-moco-be-i3d-ucf101"),  # know UCF101
            "figure7": ("table1-k400", "table1-moco", "table1-moco-be")}  # know Kinetics-400 (paper 4.7)
# ... and commands that draw: the words, and the file below OUT that is there once it is done
CAM = ("cam --cfg {runs} data={data} out={out}/{target} dataset=hmdb51 split=1", "{target}/cam-hmdb51-test.json")
PICTURES = {
    "figure4": [("figure4 out={out} dataset=hmdb51", "gain-hmdb51-test.json")],
    "figure6": [CAM], "figure7": [CAM],
    "analyses": [("robustness --cfg {runs} data={data} out={out}", "robustness-hmdb51-test.json")]}
TRAIN, SPREAD = ("pretrain", "finetune", "evaluate", "retrieve", "linear"), ("masks", "actors", "cam", "robustness")
# SYNTH=1: the demo's networks on stand-ins for all data sets, 48 videos to train on and 16 to test on
STAND_IN = ("train=6", "test=2", "frames=48")
REHEARSAL = ("synthetic=true", "epochs=2", "lr_steps=[1]", "K=32", "log_every=1", "test_clips=3")
# The scene is known, then; and at the demo's 32 pixels I3D's map would have but one place
RENDERED = {"cam": ("scene=rendered", "size=96", "short_side=120"), "robustness": ("scene=rendered",)}


class Step(NamedTuple):
    """A command: the words behind run.py, the file that is there once it is done, and the data set it reads."""

    words: tuple[str, ...]
    end: Path
    dataset: str = "hmdb51"
    cfg: Config | None = None  # of a training
    picture: bool = False

    @property
    def done(self) -> bool:
        """Is it there, and of these settings? If not of these, the verb says in what they differ, and refuses."""
        saved = self.end.parent / "config.yaml"
        return self.end.exists() and not (self.cfg and saved.exists() and changes(saved, self.cfg))


def steps(target: str, words: str = "", splits: list[int] = (1, 2, 3), seeds: list[int] = (0,), synth: bool = False,
          force: bool = False, run: str = "python run.py", launch: str = "python run.py"):
    """steps: print the commands behind a target of the Makefile, without those whose work is done

    target         an experiment, or a group of them such as table1
    words          key=value words for each command, such as "data=/datasets accumulate=8"
    splits, seeds  of the test, and of everything
    synth          a small rehearsal on synthetic stand-ins for the data
    force          the target's runs are removed, to be done again
    run, launch    what a command starts with, the second on as many devices as there are
    """
    try:
        typed = shlex.split(words)
    except ValueError as error:
        raise ConfigError(f"words={words}: {error}") from None
    own = dict(word.partition("=")[::2] for word in typed)
    if len(own) < len(typed):
        raise ConfigError(f"words={words}: a key is given twice")
    for key in own.keys() & {"seed", "split"}:
        raise ConfigError(f"{key}={own[key]} cannot be one of the words, a target says it for each command; give make "
                          f"SEED=... and SPLIT=...")
    todo, again = collect(target, typed, splits, seeds, synth), False
    removed = sorted(filter(Path.exists, {step.end.parent for step in todo if force and step.words[0] in TRAIN}))
    for folder in removed:
        print(f"rm -r {shlex.quote(str(folder))}")
    for step in todo:
        if step.end.parent in removed or not step.done or (step.picture and again):
            again = True
            print(launch if spreads(step, launch) else run, shlex.join(step.words))
    names = own.get("name", target if target in experiments() else f"{target}-*")
    every = "name" not in own and not fnmatch.filter(experiments(), names)  # a group without rows of its own
    print(run, shlex.join(["report", *([] if every else [f"names={names}"]), f"out={own.get('out', 'runs')}"]))


def spreads(step: Step, launch: str) -> bool:
    """Whether a command can use all devices that `launch` starts. A training needs whole BatchNorm groups on each."""
    devices = re.search(r"--num_processes (\S+)", launch)
    if devices and not re.fullmatch("[1-9][0-9]*", devices[1]):
        raise ConfigError(f"GPUS={devices[1]} is no number of devices from 1 on")
    if not (devices and step.cfg):
        return step.words[0] in TRAIN + SPREAD
    each, rest = divmod(step.cfg.batch_size, int(devices[1]) * step.cfg.accumulate)
    return not rest and each % (step.cfg.bn_group or 1) == 0


def collect(target: str, typed, splits, seeds, synth) -> list[Step]:
    """All steps of a target, each once. Raises ConfigError for a target that does not exist."""
    known = [name for name in experiments() if not name.startswith("demo")]
    rows = [target] if target in known else [name for name in known if name.startswith(f"{target}-")]
    if not rows:
        choose({**dict.fromkeys(known), **PICTURES}, target, "target")
    if len(rows) != 1 and (named := [word for word in typed if word.startswith("name=")]):
        raise ConfigError(f"{target} has {len(rows)} rows, which cannot all have {named[0]}; give out=... in its place")
    typed, todo = [*(REHEARSAL if synth else ()), *typed], []
    for seed in seeds:
        words = [*typed, f"seed={seed}"]
        for name in rows:
            todo += row(name, words, splits, synth)
        todo += pictures(target, words, splits, synth)
    if synth:  # videos for every data set that is read; Actor-HMDB51 is made from HMDB51's
        data, read = load("table1-random", typed).data, {step.dataset for step in todo} - {"actor_hmdb51"}
        todo = [Step(("synth", f"root={data}/{name}", f"layout={name}", *STAND_IN, f"seed={seed}"),
                     Path(data, name, "synthetic.jsonl")) for seed, name in enumerate(DATASETS) if name in read] + todo
    once = {}
    for step in sorted(todo, key=lambda step: step.picture):  # pictures come last: they show the runs of all seeds
        once.setdefault((step.words[0], step.end), step)
    return list(once.values())


def row(name: str, typed: list[str], splits, synth, on: tuple[str, ...] = ()) -> Iterator[Step]:
    """An entry: pre-training, then fine-tuning and test on the data sets `on`: those under `paper`, or its own. Of one
    named linear-... the linear classifier in their place."""
    paper = paper_numbers(name)
    on = on or [key for key in paper if not re.fullmatch(r"R@\d+|pearson_r|p_value", key)]
    name = experiments()[name].get("same_runs_as", name)
    if synth and ":" in load(name, typed).pretrained:
        typed = [*typed, "pretrained=random"]  # published weights fit no small network, and may have to be fetched
    data = load(name, typed).data
    if drawn := re.fullmatch(r"(?:(.*)/)?scenebias-\w+-(\w+)/.+", data):  # the videos of the drawn benchmark
        words = ("scenebias", f"data={drawn[1] or '.'}", f"size={drawn[2]}")
        yield Step(words, Path(data).parent / "bias0/ucf101/synthetic.jsonl")  # the last that it writes
    yield from pretraining(name, typed, synth)
    if load(name, typed).pretrained in experiments() and any(word.startswith("name=") for word in typed):
        typed = [*typed, "pretrained=self"]  # the pre-training has got that name, too
    if "R@1" in paper:
        words = [*typed, f"dataset={load(name, stage='retrieve').dataset}", "split=1"]
        yield step("retrieve", name, words, "recall-{protocol}-test.json")
        return
    for dataset in on or [load(name, typed, "finetune").dataset]:
        if dataset == "actor_hmdb51":
            made, found = Path(data, "actor_hmdb51/actors.json"), Path(data, "masks/hmdb51/masks.json")
            source = ["source=rendered"] if synth else []
            yield Step(("masks", "--cfg", "hmdb51", f"data={data}", *source), made if made.exists() else found)
            yield Step(("actors", f"data={data}"), made)
        source = choose(DATASETS, dataset, f"data set under `paper` of {name}:")
        for split in splits if len(source.splits) > 1 else source.splits:
            choose(dict.fromkeys(source.splits), split, f"split of {dataset}:")  # not found out after the pre-training
            words = [*typed, f"dataset={dataset}", f"split={split}"]
            if load(name, words, "finetune").subset == "test" != source.test:
                words.append(f"subset={source.test}")
            if name.startswith("linear-"):
                yield step("linear", name, words, "linear-{subset}.json")
                continue
            yield step("finetune", name, words, "model.safetensors")
            yield step("evaluate", name, words, "result-{subset}.json")


def pretraining(name: str, typed: list[str], synth) -> Iterator[Step]:
    """The pre-training that an entry stands on: its own, another's, or none."""
    source = load(name, typed).pretrained
    if source == "self":
        dataset = load(name).dataset
        yield step("pretrain", name, [f"dataset={dataset}", *typed] if synth else typed, "backbone.safetensors")
    elif source in experiments():
        yield from pretraining(source, typed, synth)


def pictures(target: str, typed: list[str], splits, synth) -> Iterator[Step]:
    """What a group needs besides its own rows, and the commands that draw it."""
    cfg, runs = load("table1-moco-be", typed), []
    for name in NETWORKS.get(target, ()):
        if CAM in PICTURES[target]:  # the pre-trained networks are shown HMDB51, which they do not know
            needed = [*pretraining(name, typed, synth)] or [*row(name, typed, [1], synth, ("ucf101",))][:1]
        else:
            needed = [*row(name, typed, splits, synth, ("hmdb51",))]
        yield from needed
        first = min(needed, key=lambda one: one.words[0] != "finetune")  # the fine-tuning on the first split, if any
        runs.append(str(first.end.parent))
    said = dict(target=target, data=cfg.data, out=cfg.out, runs=",".join(runs))
    for words, end in PICTURES.get(target, ()):
        words = [word.format(**said) for word in words.split()]
        if synth:
            words += RENDERED.get(words[0], ())
        elif words[0] in RENDERED and (stored := Path(cfg.data, "masks/hmdb51")).is_dir():
            words += ["scene=masks", f"masks={stored}"]
        yield Step(tuple(words), Path(cfg.out, end.format(**said)), picture=True)


def step(verb: str, name: str, words: list[str], end: str) -> Step:
    stage = "finetune" if verb in ("evaluate", "linear") else verb
    words = [*{word.partition("=")[0]: word for word in words}.values()]  # of two of a key the later
    cfg = load(name, words, stage)
    where = run_dir(cfg, verb if verb == "linear" else stage)
    end = where / end.format(protocol=cfg.protocol, subset=cfg.subset.split(",")[-1])
    return Step((verb, "--cfg", name, *words), end, cfg.dataset, cfg if end.suffix == ".safetensors" else None)
