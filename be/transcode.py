"""A copy of a dataset that decodes fast: small pictures, few of them between key frames, nothing hard to decode.

    I b b b P b b b P b b b P b b P   I b b b P ...        nothing is predicted from a b, so it is skipped unless needed

A clip of stride 4 needs every fourth picture, so up to three quarters of its span are never decoded.

The copy has the paths and the lists of the original, so it is used by naming its folder: data=data-128. Its videos
are H.264 in MP4 even where a name says .avi, which no reader minds: they look at the content.
"""

import errno
import json
import os
import shutil
from contextlib import closing
from functools import partial

import numpy as np

from be.config import UserError
from be.jobs import run, watch
from be.video import Reader, VideoError, encode

NOTE, PART = "transcode.json", ".part.mp4"
# H.264's quantiser, lower is more faithful; films come out at about 39 dB. Key frames and B-pictures at fixed places.
QP, FIXED = 22, {"bf": "3", "b_strategy": "0", "b-pyramid": "none", "sc_threshold": "0", "tune": "fastdecode"}
PSNR = 25  # dB, what a frame has to agree with its source. Worst is noise in colours, which H.264 halves: 26 dB
SAMPLE = 8  # videos, or a few more, tell how much room all will take
BUFFER = 2**27  # bytes of frames held in memory
PATIENCE = 3600  # seconds for one video
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def copy_dataset(root, copy, lists, frames, workers=None, *, short_side, gop):
    """Copies the `lists` below ROOT and transcodes the videos {path: frames} that COPY lacks yet.

    Raises UserError if the disk is full, or would be, or COPY holds copies made in another way.
    """
    copy.mkdir(parents=True, exist_ok=True)
    claim(copy, dict(short_side=short_side, gop=gop, qp=QP, bf=3))
    for path in lists:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, copy / path)
    todo = [path for path in frames if not (copy / path).exists()]
    job, sample = partial(transcode, root, copy, short_side, gop), todo[:: max(1, len(todo) // SAMPLE)]
    try:
        written, rest = transcode_all(job, sample, workers, "transcoding a sample"), sorted({*todo} - {*sample})
        if rest:
            needed = written / sum(map(frames.get, sample)) * sum(map(frames.get, rest))
            room = f"about {needed / 1e9:.2f} GB, and {shutil.disk_usage(copy).free / 1e9:.2f} GB are free"
            if needed > shutil.disk_usage(copy).free:
                raise UserError(f"{copy} would need {room}")
            print(f"{copy}: {len(rest)} videos to transcode, {room}")
            transcode_all(job, rest, workers, "transcoding")
    finally:
        for left_over in copy.rglob(f"*{PART}"):  # by processes that were killed, now or in an earlier run
            left_over.unlink(missing_ok=True)


def claim(copy, values):
    """Refuse to mix copies made in different ways."""
    note, aside = copy / NOTE, copy / f".{NOTE}{PART}"
    if not note.exists():
        aside.write_text(json.dumps(values))
        aside.replace(note)
    elif (held := json.loads(note.read_text())) != values:
        raise UserError(f"{copy} was made with {held}, not {values}: delete it, or ask for the same")


def transcode_all(job, paths, workers, what) -> int:
    """Returns the number of bytes written."""
    total = done = 0
    with closing(run(job, paths, workers, limit=lambda path: PATIENCE)) as work:
        for path, result, problem in watch(work, len(paths), what):
            size, problem, full = result or (0, problem, False)
            if full:
                raise UserError(f"{problem} ({done} of {len(paths)} done). Make room and give the same command again")
            if problem:
                print(f"not copied: {path}: {problem}".encode("utf-8", "backslashreplace").decode())
            total, done = total + size, done + 1
    return total


def transcode(root, copy, short_side, gop, path) -> tuple[int, str, bool]:
    """Writes one file, whole or not at all, in a process of its own: (bytes, what went wrong, is the disk full)."""
    target = copy / path
    aside = target.with_name(f".{os.getpid()}{PART}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_copy(root / path, aside, short_side, gop)
        aside.replace(target)
        return target.stat().st_size, "", False
    except (VideoError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        return 0, str(error), getattr(cause, "errno", None) in FULL
    finally:
        aside.unlink(missing_ok=True)


def write_copy(source, target, short_side, gop):
    """Raises VideoError unless the copy has as many frames as its source, and they agree."""
    with Reader(source) as video:
        side = min(short_side, video.info.width, video.info.height) // 2 * 2
        n, step = video.frames, max(1, BUFFER // (side * 2 * side * 3))
        probes = np.unique(np.linspace(0, n - 1, 5).astype(int)).tolist()
        kept = {}

        def frames():
            for start in range(0, n, step):
                for i, rgb in enumerate(video.decode(np.arange(start, min(n, start + step)), side), start):
                    if i in probes:
                        kept[i] = rgb.copy()
                    yield rgb

        encode(target, frames(), video.info.fps, options={"qp": str(QP), "g": str(gop), **FIXED})
    with Reader(target) as copy:
        if copy.frames != n:
            raise VideoError(f"{source}: its copy has {copy.frames} frames instead of {n}")
        worst = min(map(agreement, kept.values(), copy.decode(probes)))
        if worst < PSNR:
            raise VideoError(f"{source}: a frame of its copy agrees with it by {worst:.1f} dB only, under {PSNR}")


def agreement(a, b) -> float:
    """PSNR in dB of two frames (H, W, 3) at half their size: H.264 keeps only colours of that size."""
    halves = [x.reshape(len(x) // 2, 2, -1, 2, 3).mean((1, 3)) for x in (a, b)]  # (H/2, W/2, 3)
    return 10 * np.log10(255**2 / max(1e-9, np.square(halves[0] - halves[1]).mean()))
