"""Files as the world has them: prepare says what is wrong with each, training passes over them, a test counts them."""

import os
import re
import wave
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from videos import remux

from be import datasets, prepare, video
from be.config import ConfigError
from be.datasets import Clips, load, loader

AWKWARD = "[a] (b) {c} 'd' \"e\" $HOME `f` ;|&<> %d %s \\n * ? ~ # café\u0301 日本 \udcff -.mp4"
LONG = "x" * 251 + ".mp4"


def film(path, frames=24, height=32, width=48, seed=0, movflags=None, **how):
    """A video of which no two frames are alike, with enough detail to be worth damaging."""
    rng = np.random.default_rng(seed)
    world = rng.integers(0, 256, (height // 4 + 8, width // 4 + frames, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    first = path.with_name("first.mp4") if movflags else path
    video.encode(first, [world[t % 16 :, 2 * t :][:height, :width] for t in range(frames)], 25, **how)
    if movflags:
        remux(first, path, lambda packets: packets, movflags=movflags)
        first.unlink()
    return path


def damaged(data, seed):
    """Some bytes turned over amid the pictures. Where containers keep their tables, it would be another error."""
    first = max(data.find(mark) for mark in (b"movi", b"mdat", b"\x1f\x43\xb6\x75")) + 16
    data = np.frombuffer(data, np.uint8).copy()
    data[np.random.default_rng(seed).integers(first, (first + len(data)) // 2, 100)] ^= 255
    return data.tobytes()


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """DATA with a `plain` dataset: {name: what prepare should say of it}, None for what is in order."""
    data = tmp_path_factory.mktemp("bad")
    root, said = data / "plain", {}
    root.mkdir()

    def put(name, content, reason):
        (root / name).write_bytes(content)
        said[name] = reason

    kinds = {"avi": dict(codec="mpeg4", options={"bf": "2"}), "mp4": {}, "mkv": {}, "mov": dict(options={"g": "4"})}
    for kind in "faststart", "frag_keyframe+empty_moov":  # as servers send them: the table comes first
        kinds[f"{kind}.mp4"] = dict(movflags=kind)
    for seed, (kind, how) in enumerate(kinds.items()):
        whole = film(root / f"whole.{kind}", seed=seed, **how).read_bytes()
        said[f"whole.{kind}"] = None
        for tenth in range(1, 6 if kind == "mkv" else 10):  # beyond that it passes for a shorter video
            put(f"cut at {tenth}0 %.{kind}", whole[: len(whole) * tenth // 10],
                "cannot be opened|breaks off|not one frame|no video stream|cannot be decoded|damaged|fewer than 16")
        put(f"flipped.{kind}", damaged(whole, seed), "decoded|damaged|timestamps|breaks off")
    put("empty.mp4", b"", "cannot be opened")
    put("zeros.avi", bytes(4096), "cannot be opened")
    put("text.avi", b"This is a text about videos.\n" * 99, "cannot be opened")
    with wave.open(str(root / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "")), sound.writeframes(bytes(8000))
    said["sound.mp4"] = "has no video stream"
    film(root / "one frame.mp4", frames=1)
    said["one frame.mp4"] = "1 frames, fewer than 16"
    film(root / "thread.avi", height=2, width=10_000, codec="ffv1")
    said["thread.avi"] = "10000 x 2 is over 16 times as long as wide"
    put("mp4 inside.avi", film(root / "inside.mp4", seed=60).read_bytes(), None)
    film(root / "title.mkv", seed=61)
    put("title.mkv", (root / "title.mkv").read_bytes().replace(b"ENCODER", b"ENC\xd6DER"), None)  # not UTF-8
    for seed, name in enumerate((AWKWARD, LONG), 50):
        film(root / name[-4:], seed=seed).rename(root / name)
        said[name] = None
    (root / "loop.mp4").symlink_to("loop.mp4")
    said["loop.mp4"] = os.strerror(40)
    (root / "nowhere.mp4").symlink_to("gone")
    said["nowhere.mp4"] = said["absent.mp4"] = "No such file"
    (root / "folder.mp4").mkdir()
    os.mkfifo(root / "pipe.mp4")  # who opens it waits for ever
    said["folder.mp4"] = said["pipe.mp4"] = "not a regular file"

    (root / "classes.txt").write_text("one\n")
    (root / "test.txt").write_text("whole.mp4 0\n../../x.mp4 0\n")
    (root / "train.txt").write_bytes(b"".join(os.fsencode(name) + b" 0\n" for name in said))
    return data, said


class Counting(Clips):
    """Tells, instead of label and index, how many KiB and open files the worker has."""

    def __getitem__(self, key):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
        return super().__getitem__(key)._replace(label=resident, index=len(os.listdir("/proc/self/fd")))


EVERY_FRAME = partial(video.even_clips, K=1, T=24, stride=1)


def test_prepare_names_each_with_its_reason(bad, capsys):
    data, said = bad
    with pytest.raises(SystemExit) as stop:
        prepare.prepare("plain", str(data), workers=2)
    assert stop.value.code == 1
    lines = (data / "plain" / prepare.REPORT).read_text("utf-8", "surrogateescape").splitlines()
    for name, reason in said.items():
        about = [line for line in lines if line.startswith(f"  {name}: ")]
        assert len(about) == (reason is not None) and (not about or re.search(reason, about[0])), (name, about)
    assert f"  {data}/plain/test.txt:2: '../../x.mp4' leaves the folder of the data" in lines
    problems = 1 + sum(reason is not None for reason in said.values())
    assert lines[-1].startswith(f"{problems} problems")
    assert "... and " in capsys.readouterr().out

    prepare.prepare("plain", str(data), accept_missing=problems)
    assert "inspecting" not in capsys.readouterr().err  # nothing is new
    with pytest.raises(ConfigError, match="leaves the folder"):
        load("plain", data, "test")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_skips_and_a_test_counts(bad, capfd, workers):
    data, said = bad
    samples = load("plain", data, "train")
    keys = [[(0, i)] for i in range(len(samples))]
    test = [*loader(Clips(samples, EVERY_FRAME, 24, 0, train=False), keys, workers)]
    readable = [batch.ok.item() for batch in test]
    for batch, name, ok in zip(test, said, readable, strict=True):
        if not (ok and name.startswith(("cut at ", "flipped"))):  # up to there, or over damage, some can be read
            assert ok == (said[name] is None or name == "one frame.mp4"), name
        assert batch.clips.any() == ok
    assert 8 < sum(readable) < len(said) / 2
    damaged = [ok for name, ok in zip(said, readable, strict=True) if name.startswith("flipped")]
    assert sum(damaged) > len(damaged) / 2  # what `prepare` names is tried all the same

    for i, batch in enumerate(loader(Clips(samples, EVERY_FRAME, 24, 0, train=True), keys, workers)):
        instead = next(j for j in range(i, 2 * len(samples)) if readable[j % len(samples)])
        assert batch.ok.item() and batch.skipped.item() == instead - i
        assert batch.index.item() == instead % len(samples) and torch.equal(batch.clips, test[batch.index].clips)
    assert capfd.readouterr().err.count("unreadable video: ") >= len(said) - sum(readable)


def test_a_worker_keeps_nothing(bad):
    samples = load("plain", bad[0], "train")
    keys = [[(epoch, i)] for epoch in range(6) for i in range(len(samples))]
    clips = Counting(samples, partial(video.random_clips, K=2, T=8, stride=1), 24, 0, train=False)
    seen = np.array([(batch.label.item(), batch.index.item()) for batch in loader(clips, keys, workers=1)])
    resident, files = np.array_split(seen, 4)[1:], seen[:, 1]  # a quarter to warm up
    growth = resident[-1][:, 0].mean() - resident[0][:, 0].mean()
    # One decoder or one batch kept a sample would make far over 10 MB. Files: batches in flight are some of them.
    assert growth < 8192 and files.max() < files.min() + 20


def test_a_video_without_progress_is_given_up(bad, monkeypatch, capfd):
    def sampler(n, rng):
        while n == 1:  # as a decoder might
            pass
        return EVERY_FRAME(n, rng)

    monkeypatch.setattr(datasets, "TIME_LIMIT", 0.5)
    samples = load("plain", bad[0], "train")
    samples = samples.take([samples.paths.tolist().index(name) for name in (b"one frame.mp4", b"whole.mp4")])
    (batch,) = loader(Clips(samples, sampler, 24, 0, train=True), [[(0, 0)]], workers=1)
    assert batch.skipped.item() == 1 and batch.index.item() == 1
    assert "one frame.mp4: makes no progress, given up after 0.5 s" in capfd.readouterr().err


def test_folders_of_frames_are_prepared_copied_and_read(tmp_path, capsys):
    """As files are: a broken picture is named by `prepare`, and costs no more than itself in training."""
    root = tmp_path / "plain"
    root.mkdir()
    for seed, name in enumerate(["whole", "broken"]):
        film(root / "film.mp4", seed=seed)
        with video.Reader(root / "film.mp4") as reader:
            frames = reader.decode(np.arange(24))
        (root / name).mkdir()
        for number, frame in enumerate(frames, 1):
            video.encode(root / name / f"img_{number:05d}.png", [frame], 25, "png", pix_fmt="rgb24")
    (root / "broken/img_00007.png").write_bytes(b"")
    (root / "classes.txt").write_text("one\n")
    (root / "train.txt").write_text("whole 0\nbroken 0\n")
    film(root / "test.mp4", seed=9), (root / "test.txt").write_text("test.mp4 0\n")
    prepare.prepare("plain", str(tmp_path), workers=1, accept_missing=1)
    assert "broken: damaged near frame 6: img_00007.png cannot be decoded" in capsys.readouterr().out
    samples = load("plain", tmp_path, "train")
    assert samples.index(0) is not None and samples.index(1) is None
    clips = Clips(samples, EVERY_FRAME, 32, 0, train=True)
    (whole, broken) = (clips[0, i].clips[0] for i in range(2))
    with video.Reader(root / "broken") as reader:
        assert np.array_equal(broken, reader.decode(np.arange(24), 32)) and reader.damaged
    assert np.array_equal(broken[6], broken[5]) and not np.array_equal(whole[6], whole[5])

    prepare.prepare("plain", str(tmp_path), workers=1, transcode=True, short_side=16, accept_missing=1)
    with video.Reader(tmp_path.with_name(f"{tmp_path.name}-16") / "plain/whole") as copy:
        assert (copy.frames, copy.info.height, copy.info.codec) == (24, 16, "h264")
