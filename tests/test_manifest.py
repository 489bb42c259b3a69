import os
from dataclasses import fields

import numpy as np
import pytest

from be import video
from be.config import UserError
from be.manifest import FILE, Manifest, pack, unpack


def test_pack_keeps_an_index_and_makes_it_small(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
    indices = [video.Index(np.arange(3, dtype=np.int32), np.empty(0, np.int64), np.empty(0, bool)),
               video.Index(np.array([2, 0], np.int32), np.array([2**40, -7, 5]), np.array([True, False, True]))]
    for name, how in {"a.mp4": dict(options={"bf": "3"}), "b.avi": dict(codec="mpeg4")}.items():
        video.encode(tmp_path / name, frames, 25, **how)
        with video.Reader(tmp_path / name) as reader:
            indices.append(reader.index)
    for index in indices:
        packed = np.frombuffer(pack(index.order, index.pts, index.key), np.uint8)
        for got, want in zip(unpack(packed, len(index.order)), vars(index).values(), strict=True):
            assert got.dtype == want.dtype and np.array_equal(got, want)
        assert len(packed) < 400


def table(root, names):
    """A manifest of the files `names` in root, each said to have one frame and the index of one."""
    index = pack(np.zeros(1, np.int32), np.array([7]), np.array([True]))
    stats, n = [os.stat(root / name) for name in names], len(names)
    return Manifest(
        path=np.array([name.encode() for name in names]),
        size=np.array([stat.st_size for stat in stats]),
        mtime=np.array([stat.st_mtime_ns for stat in stats]),
        digest=np.arange(16 * n, dtype=np.uint8).reshape(n, 16),
        frames=np.ones(n, np.int32),
        deadly=np.zeros(n, bool),
        packed=np.frombuffer(index * n, np.uint8),
        end=np.cumsum([len(index)] * n),
    )


def test_rows_index_and_hash(tmp_path):
    names = ["a b.avi", "b", "c/d.mp4"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(i))
    known = table(tmp_path, names)
    rows = known.rows(np.array([b"c/d.mp4", b"a", b"zz", b"a b.avi", b"c/d.mp4 and longer"]))
    assert rows.tolist() == [2, -1, -1, 0, -1]
    order, pts, key = known.frame_index(2, tmp_path / "c/d.mp4")
    assert (order.tolist(), pts.tolist(), key.tolist()) == ([0], [7], [True])
    assert known.frame_index(1, tmp_path / "gone") is None
    os.utime(tmp_path / "b", ns=(0, 0))  # changed since, by its time ...
    (tmp_path / "a b.avi").write_bytes(b"longer")  # ... or by its size
    stat = os.stat(tmp_path / "a b.avi")
    os.utime(tmp_path / "a b.avi", ns=(stat.st_atime_ns, int(known.mtime[0])))
    assert known.frame_index(1, tmp_path / "b") is known.frame_index(0, tmp_path / "a b.avi") is None

    paths, labels, rows = np.array([b"b", b"c/d.mp4"]), np.array([0, 1]), np.array([1, 2])
    marks = [known.hash(*columns) for columns in (
        (rows, paths, labels), (rows[::-1], paths, labels), (rows, paths[::-1], labels), (rows, paths, 1 - labels),
        (np.array([1, -1]), paths, labels), (rows[:1], paths[:1], labels[:1]),
    )]
    assert len(set(marks)) == 6 and {len(mark) for mark in marks} == {16}
    other = table(tmp_path, names)  # other times and sizes, same content: the same videos
    assert other.mtime[1] != known.mtime[1] and other.hash(rows, paths, labels) == marks[0]


def test_read(tmp_path):
    assert Manifest.read(tmp_path) is None
    (tmp_path / "b").touch()
    known = table(tmp_path, ["b"])
    np.savez(tmp_path / FILE, **vars(known), more=np.zeros(3))
    again = Manifest.read(tmp_path)
    assert all(np.array_equal(getattr(again, column.name), getattr(known, column.name)) for column in fields(known))
    whole = (tmp_path / FILE).read_bytes()
    without = {name: column for name, column in vars(known).items() if name != "end"}
    for spoil in (lambda: (tmp_path / FILE).write_bytes(b""), lambda: (tmp_path / FILE).write_bytes(whole[:-9]),
                  lambda: (tmp_path / FILE).write_bytes(b"text"), lambda: np.savez(tmp_path / FILE, **without),
                  lambda: np.savez(tmp_path / FILE, **vars(known) | {"path": np.array([print], object)})):
        spoil()
        with pytest.raises(UserError, match="run `prepare` again"):
            Manifest.read(tmp_path)
