"""Pretext tasks: what was done to a clip can be undone by its label, and the heads follow their papers."""

from itertools import permutations

import numpy as np
import pytest
import torch

from be.augment import Draws
from be.config import ConfigError
from be.objectives import TASKS

DIM, B, T, S = 5, 6, 16, 32
NAMES = ["rotnet", "puzzles", "clip_order", "pace", "arrow_of_time", "order_verification"]


def make(name, frames=T, stride=1, seed=0):
    torch.manual_seed(seed)
    return TASKS[name](DIM, frames, stride)


def views_of(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, 3, T, S, S, generator=generator) for _ in task.views]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    """Shapes, classes, clips and the same rows on two processes as on one."""
    task = make(name)
    views = views_of(task)
    x, target = task.transform(views, Draws(0, 0))
    n, m = x.shape[1], target.shape[1]
    assert x.shape[:3] == (B, n, 3) and target.shape == (B, m) and target.dtype == torch.int64
    logits = task.logits(torch.randn(B, n, DIM), Draws(0, 0))
    assert logits.shape[:2] == (B, m) and target.min() >= 0 and target.max() < logits.shape[2]
    clips = task.sampler(300, np.random.default_rng(0))
    assert clips.shape == (1 + max(clip for clip, _ in task.views), T) and clips.max() < 300
    for rank in (0, 1):
        half = slice(3 * rank, 3 * rank + 3)
        part, label = task.transform([view[half] for view in views], Draws(0, 0, rank, 2))
        assert torch.equal(part, x[half]) and torch.equal(label, target[half])


def test_rotnet_labels_are_undone_by_turning_back():
    task = make("rotnet")
    (view,) = views_of(task)
    x, target = task.transform([view], Draws(0, 0))
    assert target.tolist() == [[0, 1, 2, 3]] * B
    for b in range(B):
        for i in range(4):
            for t in range(T):
                frame = x[b, i, :, t].permute(1, 2, 0).numpy()  # (S, S, 3), as a picture
                back = np.rot90(frame, -int(target[b, i]))
                assert np.array_equal(back, view[b, :, t].permute(1, 2, 0).numpy())


# ---- puzzles


def codes():
    """A clip (B, 3, T, S, S) that holds in every place where that is: 100 * cell in time + 10 * quadrant + channel."""
    t, h, w = torch.meshgrid(torch.arange(T), torch.arange(S), torch.arange(S), indexing="ij")
    cell = 100 * (t // (T // 4)) + 10 * (2 * (h // (S // 2)) + w // (S // 2))
    return torch.stack([cell, cell + 1, cell + 2]).float().expand(B, 3, T, S, S)


def test_puzzles_permutation_is_inverted_by_its_label():
    task, seen, fixed, channels = make("puzzles"), set(), set(), set()
    for step in range(60):
        x, target = task.transform([codes()], Draws(0, step))
        assert (x == x[..., :1, :1, :1]).all()  # a piece lies in one cell
        assert (x == x[:, :, :1]).all()  # three equal channels
        place = x[:, :, 0, 0, 0, 0].int()  # (B, 4)
        for b in range(B):
            label = int(target[b])
            quarter, quadrant, channel = place[b] // 100, place[b] // 10 % 10, place[b] % 10
            moved, shared = (quadrant, quarter) if label < 24 else (quarter, quadrant)
            assert len(shared.unique()) == len(channel.unique()) == 1
            solved = torch.empty(4, dtype=torch.int32)
            for j, home in enumerate(list(permutations(range(4)))[label % 24]):
                solved[home] = moved[j]  # put piece j where its label says it belongs
            assert solved.tolist() == [0, 1, 2, 3]
            seen.add(label)
            fixed.add((label < 24, int(shared[0])))
            channels.add(int(channel[0]))
    assert seen == set(range(48)) and len(fixed) == 8 and channels == {0, 1, 2}


def test_puzzles_pieces_are_cut_anywhere_in_their_cell():
    """Against slicing: a piece starts where its first number says, and over many draws everywhere it can."""
    task, offsets = make("puzzles"), set()
    view = torch.arange(T * S * S).view(1, 1, T, S, S).expand(B, 3, T, S, S).float()
    cell, piece = (4, 16, 16), (3, 12, 12)
    for step in range(100):
        x, _ = task.transform([view], Draws(1, step))
        assert x.shape == (B, 4, 3, *piece)
        for part in x.flatten(0, 1):
            start = np.unravel_index(int(part[0, 0, 0, 0]), (T, S, S))
            offset = tuple(int(s) % c for s, c in zip(start, cell, strict=True))
            assert all(o + p <= c for o, p, c in zip(offset, piece, cell, strict=True))
            t, h, w = (slice(s, s + p) for s, p in zip(start, piece, strict=True))
            assert torch.equal(part, view[0, :, t, h, w])
            offsets.update(enumerate(offset))
    assert offsets == {(0, o) for o in range(2)} | {(axis, o) for axis in (1, 2) for o in range(5)}


@pytest.mark.parametrize("frames, size, piece", [(48, 112, (9, 42, 42)), (16, 32, (3, 12, 12)), (4, 16, (1, 6, 6))])
def test_puzzles_fit_the_paper_and_the_demo(frames, size, piece):
    x, _ = make("puzzles", frames).transform([torch.zeros(2, 3, frames, size, size)], Draws(0, 0))
    assert x.shape == (2, 4, 3, *piece)


def test_puzzles_need_four_frames():
    with pytest.raises(ConfigError, match="frames=3 are too few"):
        make("puzzles", frames=3)


# ---- tuples of clips


def test_clip_order_is_restored_by_its_label():
    task, seen = make("clip_order"), set()
    views = views_of(task)
    for step in range(20):
        x, target = task.transform(views, Draws(0, step))
        for b in range(B):
            order = list(permutations(range(3)))[int(target[b])]
            for clip in range(3):
                assert torch.equal(x[b, order.index(clip)], views[clip][b])
            seen.add(order)
    assert len(seen) == 6


def test_clip_order_spans_64_frames():
    """Table 1: 3 clips of 16 frames and 2 gaps of 8, in order."""
    for seed in range(20):
        clips = make("clip_order").sampler(100, np.random.default_rng(seed))
        assert clips.ravel().tolist() == [clips[0, 0] + 24 * k + t for k in range(3) for t in range(16)]
        assert clips[-1, -1] - clips[0, 0] + 1 == 64


@pytest.mark.parametrize("train", [True, False])
def test_clip_order_head_is_vcops(train):
    """One video, one pair at a time."""
    task = make("clip_order").train(train)
    z = torch.randn(B, 3, DIM)
    logits = task.logits(z, Draws(0, 0))
    keep = Draws(0, 0).rand(B, 3 * 512) >= 0.5
    for b in range(B):
        pairs = []
        for i, j in ((0, 1), (0, 2), (1, 2)):
            pairs.append(torch.relu(task.pair.weight @ torch.cat([z[b, i], z[b, j]]) + task.pair.bias))
        pairs = torch.cat(pairs)
        if train:
            pairs = pairs * keep[b] / 0.5
        torch.testing.assert_close(logits[b, 0], task.head.weight @ pairs + task.head.bias)
    assert task.pair.weight.shape == (512, 2 * DIM) and task.head.weight.shape == (6, 1536)


def test_order_verification_asks_about_a_true_and_a_false_order():
    task = make("order_verification")
    views = views_of(task)
    x, target = task.transform(views, Draws(0, 0))
    assert torch.equal(x, torch.stack(views, 1)) and target.tolist() == [[1, 0]] * B
    z = torch.randn(B, 4, DIM)
    logits = task.logits(z, Draws(0, 0))
    for row in range(B):
        a, b, c, d = z[row]
        torch.testing.assert_close(logits[row, 0], task.head(torch.cat([b, c, d])))  # in order
        torch.testing.assert_close(logits[row, 1], task.head(torch.cat([b, a, d])))  # the middle is from before both
    clips = task.sampler(200, np.random.default_rng(0))
    assert (np.diff(clips.ravel()) >= 1).all() and (clips[1:, 0] - clips[:-1, -1] == 9).all()


# ---- time


def test_pace_is_the_stride_of_the_clip():
    task = make("pace", frames=5, stride=2)
    starts = set()
    for seed in range(30):
        clips = task.sampler(100, np.random.default_rng(seed))
        assert [set(np.diff(clip)) for clip in clips] == [{2}, {4}, {6}, {8}]
        starts.add(tuple(clips[:, 0]))
    assert len(starts) == 30
    views = views_of(task)
    x, target = task.transform(views, Draws(0, 0))
    assert target.tolist() == [[0, 1, 2, 3]] * B and torch.equal(x[:, 2], views[2])


def test_arrow_of_time_labels_are_undone_by_playing_backwards():
    task = make("arrow_of_time")
    (view,) = views_of(task)
    x, target = task.transform([view], Draws(0, 0))
    assert target.tolist() == [[0, 1]] * B and torch.equal(x[:, 0], view)
    assert np.array_equal(x[:, 1].numpy()[:, :, ::-1], view.numpy())
