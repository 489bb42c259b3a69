import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from videos import decode, probe

from be import synthetic, transcode, video
from be.config import UserError
from be.datasets import Clips, load
from be.prepare import prepare
from be.transcode import agreement, copy_dataset

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """DATA with 12 videos of 24 frames in UCF101's layout, and the number of frames of each."""
    data = tmp_path_factory.mktemp("source") / "data"
    synthetic.make(data / "ucf101", train=1, test=1, frames=24, height=32, width=48, workers=1)
    for extra in (data / "ucf101" / "UCF-101").glob("*/*_g02_*"):  # half of them are enough
        extra.unlink()
    for file in (data / "ucf101" / "ucfTrainTestlist").glob("*list*.txt"):
        text = [line for line in file.read_text().splitlines() if "_g02_" not in line]
        file.write_text("\n".join(text)) if text else file.unlink()
    return data


def videos(data):
    return {str(path.relative_to(data)): 24 for path in sorted(data.glob("UCF-101/*/*.avi"))}


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_a_copy_is_used_like_its_source(source, capsys):
    prepare("ucf101", str(source), transcode=True, short_side=20, gop=6)
    copy = source.with_name("data-20")
    assert "videos to transcode, about 0.00 GB, " in capsys.readouterr().out
    for path in videos(source / "ucf101"):
        with video.Reader(source / "ucf101" / path) as a, video.Reader(copy / "ucf101" / path) as b:
            assert a.frames == b.frames == 24 and (b.info.codec, b.info.height, b.info.fps) == ("h264", 20, a.info.fps)
            assert np.flatnonzero(b.index.key).tolist() == [0, 6, 12, 18]
            every = np.arange(24)
            frames, copied = a.decode(every, 20), b.decode(every, 20)
            agree = [agreement(x, y) for x, y in zip(frames, copied, strict=True)]
            assert min(agree) > transcode.PSNR and psnr(frames, copied) > 24
    split = next(split for split in (1, 2, 3) if (source / f"ucf101/ucfTrainTestlist/trainlist0{split}.txt").exists())
    ours, theirs = (load("ucf101", data, "train", split) for data in (copy, source))
    assert ours.paths.tolist() == theirs.paths.tolist() and ours.labels.tolist() == theirs.labels.tolist()
    assert ours.index(0) is not None and ours.manifest_hash not in (None, theirs.manifest_hash)
    item = Clips(ours, partial(video.even_clips, K=2, T=4, stride=2), 20, 0, train=False)[0, 0]
    assert item.ok and item.clips.shape == (2, 4, 20, 30, 3)

    times = {path: (copy / "ucf101" / path).stat().st_mtime_ns for path in videos(copy / "ucf101")}
    first, *_ = times
    (copy / "ucf101" / first).unlink()
    (copy / "ucf101" / "UCF-101" / ".123.part.mp4").touch()  # of a run that was killed
    prepare("ucf101", str(source), transcode=True, short_side=20, gop=6)
    again = {path: (copy / "ucf101" / path).stat().st_mtime_ns for path in videos(copy / "ucf101")}
    assert again.keys() == times.keys() and [path for path in times if times[path] != again[path]] == [first]
    assert not [*copy.rglob(".*.part.mp4")]
    with pytest.raises(UserError, match="was made with .*'gop': 6.* not .*'gop': 1"):
        prepare("ucf101", str(source), transcode=True, short_side=20, gop=1)


def test_what_cannot_be_copied_is_told(source, tmp_path, capsys):
    root = tmp_path / "data/ucf101"
    shutil.copytree(source / "ucf101", root)
    first, second, *_ = videos(root)
    (root / first).write_bytes(b"text")  # found out since it was looked at
    copy_dataset(root, tmp_path / "copy", [], {first: 24, second: 24}, 1, short_side=16, gop=4)
    assert videos(tmp_path / "copy").keys() == {second}
    assert f"not copied: {first}: {root / first}: cannot be opened" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare("ucf101", str(tmp_path / "data"), transcode=True, short_side=16)


@pytest.mark.parametrize("shape, short_side, gop", [((7, 33, 47), 128, 2), ((1, 20, 80), 10, 8), ((40, 18, 16), 16, 1)])
def test_write_copy(tmp_path, monkeypatch, shape, short_side, gop):
    monkeypatch.setattr(transcode, "BUFFER", 16 * 3 * 32 * 32 * 2)  # some frames at a time
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    video.encode(tmp_path / "a.avi", frames, 30000 / 1001, codec="ffv1", pix_fmt="bgr0")
    transcode.write_copy(tmp_path / "a.avi", tmp_path / "b.mp4", short_side, gop)
    info = probe(tmp_path / "b.mp4")
    side = min(short_side, min(shape[1:]) // 2 * 2)
    assert info.frames == shape[0] and min(info.height, info.width) == side and abs(info.fps - 29.97) < 0.01
    assert max(info.height, info.width) <= 2 * side


def test_a_clip_with_a_stride_leaves_most_pictures_of_a_copy_undecoded(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    video.encode(tmp_path / "a.avi", frames, 25, codec="ffv1", pix_fmt="bgr0")
    transcode.write_copy(tmp_path / "a.avi", tmp_path / "b.mp4", 32, 16)
    given, feed = [], video.Reader._feed
    monkeypatch.setattr(video.Reader, "_feed", lambda *args: given.extend((out := feed(*args))[0]) or out)
    for first, pictures in (0, 4), (1, 9), (2, 9):  # of the 16 of a group: I, P, P, P and, elsewhere, a B for each
        given.clear()
        decode(tmp_path / "b.mp4", np.arange(first, first + 16, 4)[:4])
        assert len(given) <= pictures


def test_a_wrong_copy_is_refused(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    video.encode(tmp_path / "a.mp4", frames, 25, options={"crf": "1"})
    real = transcode.encode
    for spoil, complaint in [(lambda f: f[1:], "11 frames instead of 12"), (lambda f: f[::-1], "agrees with it by"),
                             (lambda f: [x[..., ::-1] for x in f], "agrees with it by")]:
        monkeypatch.setattr(transcode, "encode", lambda p, f, *a, spoil=spoil, **k: real(p, spoil([*f]), *a, **k))
        with pytest.raises(video.VideoError, match=complaint):
            transcode.write_copy(tmp_path / "a.mp4", tmp_path / "b.mp4", 32, 4)


def test_agreement():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    total = 0
    for y, x, c in np.ndindex(3, 4, 3):
        block = slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2), c
        total += (a[block].mean() - b[block].mean()) ** 2 / 36
    assert np.isclose(agreement(a, b), 20 * np.log10(255) - 10 * np.log10(total))
    assert agreement(a, a) > 100


KILLED = """
import os, pathlib, signal
from be import transcode
def watch(work, total, what):
    for n, result in enumerate(work):
        if n == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield result
transcode.watch = watch
transcode.copy_dataset(pathlib.Path({root!r}), pathlib.Path({copy!r}), [], {frames}, 2, short_side=16, gop=4)
"""


def test_killed_in_the_middle_it_goes_on(source, tmp_path):
    frames = videos(source / "ucf101")
    code = KILLED.format(root=str(source / "ucf101"), copy=str(tmp_path), frames=frames)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in videos(tmp_path)}
    assert 0 < len(before) < len(frames)
    copy_dataset(source / "ucf101", tmp_path, [], frames, 2, short_side=16, gop=4)
    assert videos(tmp_path).keys() == frames.keys() and not [*tmp_path.rglob(".*.part.mp4")]
    assert all(probe(tmp_path / path).frames == 24 for path in frames)
    assert all((tmp_path / path).stat().st_mtime_ns == time for path, time in before.items())


def test_too_little_room_is_told_before(source, tmp_path, monkeypatch):
    monkeypatch.setattr(transcode, "SAMPLE", 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    frames = videos(source / "ucf101")
    with pytest.raises(UserError, match="would need about 0.00 GB, and 0.00 GB are free"):
        copy_dataset(source / "ucf101", tmp_path, [], frames, 1, short_side=16, gop=4)
    assert 0 < len(videos(tmp_path)) < len(frames)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, and how to make it larger."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield tmp_path, lambda: subprocess.run(["mount", "-o", "remount,size=9m", tmp_path], check=True)
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk_stops_it_and_it_goes_on(source, small_disk, monkeypatch):
    disk, enlarge = small_disk
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    frames = videos(source / "ucf101")
    again = partial(copy_dataset, source / "ucf101", disk, [], frames, 2, short_side=32, gop=1)
    with pytest.raises(UserError, match="No space left on device.* done"):
        again()
    assert 0 < len(videos(disk)) < len(frames) and not [*disk.rglob(".*.part.mp4")]
    assert all(probe(disk / path).frames == 24 for path in videos(disk))
    enlarge()
    again()
    assert videos(disk).keys() == frames.keys()
