"""DATA/NAME/manifest.npz: what `prepare` found out about the videos, so that training need not look again.

A table with a row per file, as plain numpy arrays, the paths sorted. Of the columns, training reads those of
`Manifest`; the others (see `prepare.write_manifest`) are for people: `np.load(file)`.
"""

import os
import zipfile
import zlib
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path

import numpy as np

from be.config import UserError

FILE = "manifest.npz"


@dataclass(frozen=True, eq=False)
class Manifest:
    """Arrays only: they are shared with the workers of a loader, not copied."""

    path: np.ndarray  # (V,) bytes, relative to the root, sorted
    size: np.ndarray  # (V,) int64, bytes; -1: there is no such file
    mtime: np.ndarray  # (V,) int64, ns
    digest: np.ndarray  # (V, 16) uint8, BLAKE2b of the content
    frames: np.ndarray  # (V,) int32; 0: cannot be read
    deadly: np.ndarray  # (V,) bool: the process that read it crashed, or got no further
    packed: np.ndarray  # (bytes,) uint8, the frame indices, one behind the other
    end: np.ndarray  # (V,) int64, where each of those ends

    @classmethod
    def read(cls, root) -> "Manifest | None":
        """The manifest of a dataset's folder, if it has one. Raises UserError if it is of another version."""
        try:
            with np.load(Path(root) / FILE, allow_pickle=False) as table:
                return cls(**{column.name: table[column.name] for column in fields(cls)})
        except FileNotFoundError:
            return None
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{Path(root) / FILE} cannot be used ({error}): run `prepare` again") from None

    def rows(self, paths) -> np.ndarray:
        """Where each of `paths`, bytes (N,), stands in the table: int64 (N,), -1 if nowhere."""
        at = np.searchsorted(self.path, paths).clip(max=len(self.path) - 1)
        return np.where(self.path[at] == paths, at, -1)

    def knows(self, row: int, path) -> bool:
        """Whether the file is the one of the table, by size and time."""
        try:
            stat = os.stat(path)
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size[row], self.mtime[row])

    def frame_index(self, row: int, path) -> tuple | None:
        """(order, pts, key) of `video.Index`; None if the file cannot be read, or is not the one of the table."""
        if not self.frames[row] or not self.knows(row, path):
            return None
        start = self.end[row - 1] if row else 0
        return unpack(self.packed[start : self.end[row]], self.frames[row])

    def hash(self, rows, paths, labels) -> str:
        """Of a list of videos: their paths, contents and labels, so equal wherever the same videos lie."""
        state = blake2b(digest_size=8)
        for path, label, row in zip(paths.tolist(), labels.tolist(), rows.tolist(), strict=True):
            state.update(b"%d %b\0" % (label, path))
            state.update(self.digest[row] if row >= 0 else bytes(16))
        return state.hexdigest()


def pack(order, pts, key) -> bytes:
    """The arrays of a `video.Index` in about a hundred bytes: their differences repeat."""
    steps = (np.diff(order, prepend=0).astype(np.int32), np.diff(pts, prepend=0).astype(np.int64))
    return zlib.compress(b"".join(part.tobytes() for part in (*steps, key.astype(bool))), 9)


def unpack(packed, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `pack` was given."""
    data = zlib.decompress(packed)
    packets = (len(data) - 4 * frames) // 9  # 4 bytes a frame, 8 + 1 a packet
    order = np.frombuffer(data, np.int32, frames).cumsum(dtype=np.int32)
    pts = np.frombuffer(data, np.int64, packets, 4 * frames).cumsum()
    return order, pts, np.frombuffer(data, bool, packets, 4 * frames + 8 * packets)
