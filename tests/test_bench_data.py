"""The benchmark measures what it says, held to readers that are wrong, slow or greedy on purpose."""

import mmap
import sys

import numpy as np
import pytest

from be import bench_data, datasets
from be.bench_data import PER_CLIP, WORKLOADS, Measured, compare, in_turns, memory_slope, ours, same_frames
from be.config import ConfigError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The benchmark's videos, small and short."""
    data, film = tmp_path_factory.mktemp("bench"), bench_data.film
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_data, "film", lambda frames, height, width, seed: film(frames // 4, 100, 120, seed))
        bench_data.make(data, 32, 16)
    return data


def other_frames(samples, i, clips, size):
    return ours(samples, i, np.maximum(clips - 1, 0), size)


def twice(samples, i, clips, size):
    ours(samples, i, clips, size)
    return ours(samples, i, clips, size)


def test_a_film_moves_and_is_the_same_each_time():
    one, two = (np.array(list(bench_data.film(3, 100, 120, seed=0))) for _ in range(2))
    assert one.shape == (3, 100, 120, 3) and one.dtype == np.uint8 and np.array_equal(one, two)
    assert np.abs(np.diff(one.astype(int), axis=0)).mean() > 3 and one.std() > 20


def test_the_videos_are_of_the_kinds_they_should_be(data):
    for name, codec, keys in ("raw", "h264", [0]), ("xvid", "mpeg4", [0]), ("copy", "h264", [0, 16, 32, 48, 64]):
        samples = datasets.load("plain", data, name)
        assert len(samples) == 2 and samples.manifest_hash
        with bench_data.video.Reader(samples.path(1), samples.index(1)) as reader:
            assert reader.info.codec == codec and np.flatnonzero(reader.index.key).tolist() == keys
    assert b"XVID" in (data / "plain/0.avi").read_bytes()


def test_wrong_frames_are_found_out(data):
    for name in "raw", "xvid", "copy":
        samples = datasets.load("plain", data, name)
        assert same_frames(ours, samples, (32, 38)) == 1
        assert same_frames(other_frames, samples, (32, 38)) < 0.2


def test_all_get_the_same_in_turns(data):
    samples, asked = datasets.load("plain", data, "copy"), []
    found = {name: lambda samples, i, clips, size, name=name: asked.append((name, i, clips)) for name in "abc"}
    spent = in_turns(found, samples, WORKLOADS["MoCo+BE"], (32, 38), rounds=2, draws=2)
    assert {name: times.shape for name, times in spent.items()} == dict.fromkeys("abc", (2, 2))
    assert "".join(name for name, *_ in asked[::4]) == "bcaabccab"  # a warm-up and two rounds of 2 videos x 2 draws
    for turn in range(3):
        jobs = [np.array([[i, *clips.ravel()] for name, i, clips in asked[12 * turn : 12 * turn + 12] if name == who])
                for who in "abc"]
        assert np.array_equal(jobs[0], jobs[1]) and np.array_equal(jobs[0], jobs[2]) and len(np.unique(jobs[0], 0)) > 1


def test_who_takes_twice_the_time_is_said_to(data, monkeypatch, capsys):
    found = {"be": ours, PER_CLIP: twice, "decord": twice, "torchcodec": other_frames}
    monkeypatch.setattr(bench_data, "readers", lambda: found)
    monkeypatch.delitem(WORKLOADS, "Clip Order")
    monkeypatch.delitem(WORKLOADS, "fine-tuning")
    ratios = compare(data, 32, rounds=3, draws=2)
    assert 1.5 < np.median(ratios["raw: a read per clip"]) < 2.7
    assert 0.6 < np.median(ratios["copy: torchcodec"]) < 1.5  # the faster of two for raw, too
    assert np.median(ratios["raw: the faster peer, in one pass"]) < 1.5
    said = capsys.readouterr().out
    assert "torchcodec gives other frames than it is asked for" in said and "decord gives" not in said
    assert "| copy | ten test clips |" in said


def test_without_peers(data, monkeypatch, capsys):
    for name in "decord", "torchcodec":
        monkeypatch.setitem(sys.modules, name, None)  # as if not installed
    assert list(bench_data.readers()) == ["be"]
    assert "decord not installed" in (said := capsys.readouterr().out) and "torchcodec not installed" in said


class Greedy(Measured):
    def __getitem__(self, key):
        kept = mmap.mmap(-1, 2**19)  # not of the heap, of which the worker has inherited free room
        kept.write(bytes([1]) * 2**19)
        self.kept = [*getattr(self, "kept", []), kept]
        return super().__getitem__(key)


def test_memory_stays_flat_and_would_be_seen_to_grow(data):
    samples = datasets.load("plain", data, "copy")
    flat, greedy = (memory_slope(samples, 32, 200, clips)[0] for clips in (Measured, Greedy))
    assert abs(flat) < 10 and greedy == pytest.approx(500 + flat, abs=30)  # MiB per 1,000 samples


def test_workers_are_recommended(data, monkeypatch, capsys):
    monkeypatch.setattr(bench_data.os, "cpu_count", lambda: 1)
    bench_data.recommend_workers(data, 32)
    assert "recommended: workers=1, " in capsys.readouterr().out


def test_wrong_words():
    with pytest.raises(ConfigError, match="rounds=0"):
        bench_data.bench(rounds=0)
