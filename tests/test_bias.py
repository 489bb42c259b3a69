"""Tests of background bias by slow loops, and against what synthetic videos are made of; generated sets.

The numbers of `robustness` are held against a slow transcription, on decoded videos and a network with random weights,
and against what is known of a network that knows nothing but scenes.
"""

import importlib
import json
import os
import pickle
import shutil
import zlib
from collections import Counter
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from networks import clips, tuned
from PIL import Image
from scipy.ndimage import binary_dilation
from videos import decode

from be import bias, config, datasets, evaluate, prepare, synthetic
from be.augment import MEAN, Draws, denormalise, eval_view
from be.bias import KINDS, MANIPULATIONS, SPREAD, Shot, lend, measure, shots
from be.config import ConfigError
from be.evaluate import accuracy, classify, spread_clips
from be.runs import make_accelerator
from be.video import Reader, encode

RENDER = cache(synthetic.render)


@pytest.fixture(autouse=True)
def rendered_once(monkeypatch):
    monkeypatch.setattr(synthetic, "render", RENDER)


# ---- what is shown


def shot_of(seed, H, W, n=15, actor=0.3, **more):
    """A Shot of noise, 15 frames for three clips of 5, a part `actor` of whose pixels is actor."""
    rng = np.random.default_rng(seed)
    cfg = SimpleNamespace(frames=5, size=min(H, W), seed=0)
    frames, spread = (torch.from_numpy(rng.integers(0, 256, (k, H, W, 3), np.uint8)) for k in (n, SPREAD))
    masks = (torch.from_numpy(rng.random((k, H, W, 1)) < actor) for k in (n, SPREAD))
    return Shot(frames, next(masks), torch.arange(n), spread, next(masks), cfg, (0, seed), **more)


def scene_by_loops(shot):
    """Of each pixel the lower median of the SPREAD frames in which it is not actor; the mean of these if none is."""
    behind = np.full(shot.frames.shape[1:], np.nan)
    for y, x, c in np.ndindex(behind.shape):
        free = sorted(shot.spread[t, y, x, c].item() for t in range(SPREAD) if not shot.spread_actor[t, y, x, 0])
        behind[y, x, c] = free[(len(free) - 1) // 2] if free else np.nan
    for c in range(3):
        behind[..., c][np.isnan(behind[..., c])] = np.nanmean(behind[..., c])
    return np.where(shot.actor, np.rint(behind), shot.frames)


def test_the_actor_is_taken_out_with_a_rim():
    shot = shot_of(3, 48, 50, actor=0)
    shot.actor[2, 10, 20] = shot.spread_actor[:, 30:, 40:] = True
    away = binary_dilation(shot.actor.numpy()[..., 0], np.ones((1, 5, 5)))  # 48 / 24 px on each side
    assert ((shot.scene != shot.frames).any(3).numpy() == away).mean() > 0.999 and away.sum() == 25
    nobody = np.ones((16, 48, 50, 1), bool)
    nobody[:, 28:, 38:] = False
    mean = shot.spread.numpy().transpose(1, 2, 0, 3)
    mean = np.sort(mean[nobody[0, ..., 0]], 1)[:, 7].mean(0)  # of the medians of all that is seen
    gone = replace(shot, actor=shot.actor | True).scene
    np.testing.assert_array_equal(gone[0, 40, 45], np.rint(mean))


def middle_of_mass(mask):
    where = [(y, x) for t, y, x in np.ndindex(mask.shape[:3]) if mask[t, y, x, 0]]
    return np.mean(where, 0)


def test_manipulations_by_loops():
    rng = np.random.default_rng(0)
    lender, pictures = shot_of(1, 6, 7), tuple(rng.integers(0, 256, (2, 6, 7, 3), np.uint8))
    lender.spread_actor[:, :, :3] = False  # he stands to the right
    shot = shot_of(2, 6, 7, lent={1: lender}, still=pictures)
    shot.spread_actor[:, 2, 4] = True  # there he always is
    made = {kind: KINDS[kind](shot, 1).numpy() for kind in KINDS}
    scene, other = scene_by_loops(shot), scene_by_loops(lender)
    np.testing.assert_array_equal(made["Scene-Only"], scene)
    down, right = np.rint(middle_of_mass(lender.spread_actor) - middle_of_mass(shot.spread_actor)).astype(int)
    assert right > 0
    for n, y, x in np.ndindex(15, 6, 7):
        own, actor = shot.frames[n, y, x].numpy(), shot.actor[n, y, x, 0]
        assert (made["Human-Only"][n, y, x] == (own if actor else np.rint(255 * np.array(MEAN)))).all()
        assert (made["SCUBA"][n, y, x] == (own if actor else pictures[1][y, x])).all()
        y0, x0 = y - down, x - right
        pasted = 0 <= y0 < 6 and 0 <= x0 < 7 and shot.actor[n, y0, x0, 0]
        assert (made["Action-Swap"][n, y, x] == (shot.frames[n, y0, x0].numpy() if pasted else other[n, y, x])).all()
    frozen = [np.where(shot.spread_actor[t], shot.spread[t], pictures[1]) for t in range(SPREAD)]
    assert any((made["SCUFO"] == frame).all() for frame in frozen)

    shot = replace(shot, lent={0: lender})
    y, x = {name: change(shot, 0) for name, change in MANIPULATIONS.items() if name != "Action-Swap"}, shot.x
    assert x.shape == (3, 3, 5, 6, 6)
    torch.testing.assert_close(denormalise(x), shot.frames[:, :, 1:].unflatten(0, (3, 5)).permute(0, 4, 1, 2, 3) / 255)
    frame, body = lender.frames[7], lender.actor[7]  # in the middle
    torch.testing.assert_close(y["static body"], shot.look(torch.where(body, frame, shot.frames)))
    torch.testing.assert_close(y["Scene-Only"], shot.look(shot.scene))
    assert y["SCUFO"].shape[0] == 1 and torch.equal(y["SCUFO"], shot.look(KINDS["SCUFO"](shot, 0))[:1])
    k = Draws(*shot.key).randint(5, 3)
    for c, t in np.ndindex(3, 5):
        assert torch.equal(y["frozen"][c, :, t], x[c, :, 2]) and torch.equal(y["reversed"][c, :, t], x[c, :, 4 - t])
        assert sum(torch.equal(y["shuffled"][c, :, t], x[c, :, s]) for s in range(5)) == 1
        lies = 0.7 * x[c, :, t] + 0.3 * shot.look(frame[None])[0, :, 0]
        torch.testing.assert_close(y["foreign frame"][c, :, t], lies)
        for lam in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):  # Eq. 1
            torch.testing.assert_close(y[f"BE, {lam}"][c, :, t], (1 - lam) * x[c, :, t] + lam * x[c, :, k[c]])
    assert torch.equal(y["shuffled"].sort(2).values, x.sort(2).values)  # each frame once
    assert torch.equal(MANIPULATIONS["shuffled"](shot), y["shuffled"])  # the same draws
    assert not torch.equal(MANIPULATIONS["shuffled"](replace(shot, key=(0, 3))), y["shuffled"])


def test_pictures_are_scaled_to_fill_and_cut():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 4, 9, 3), np.uint8))
    assert bias.fit(x, 4, 9) is x and torch.equal(bias.fit(x, 4, 5), x[:, :, 2:7])
    flat = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, 8, 8, 3)
    assert torch.equal(bias.fit(flat, 20, 11), flat[:, :1, :1].expand(1, 20, 11, 3))
    half = (torch.arange(8) < 4).view(1, 1, 8, 1).expand(1, 6, 8, 1)
    assert torch.equal(bias.fit(half, 12, 16), (torch.arange(16) < 8).view(1, 1, 16, 1).expand(1, 12, 16, 1))
    assert bias.centre(half).tolist() == [2.5, 1.5] and bias.centre(half & False).tolist() == [2.5, 3.5]


def test_stripes_by_a_loop():
    """Each pixel is one of two complementary colours; which, the nearest of the shifted sine waves says."""
    for seed in range(3):
        picture, rng = bias.sinusoid(np.random.default_rng(seed), 24, 32), np.random.default_rng(seed)
        colour, (turn, phase) = rng.random(3), rng.uniform(0, 2 * np.pi, 2)
        half, length, height = (rng.uniform(*ends) * 24 / 256 for ends in ((5, 20), (4, 1004), (10, 110)))
        period = rng.uniform(3, 5) * half
        for i, j in np.ndindex(24, 32):
            y, x = i - 12, j - 16
            u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
            away = min(abs(v - height * np.sin(2 * np.pi * u / length + phase) - k * period) for k in range(-40, 41))
            np.testing.assert_array_equal(picture[i, j], np.rint(255 * (1 - colour if away < half else colour)))
        assert 0.2 < (picture == picture[0, 0]).all(-1).mean() < 0.9


@cache
def drawn(drift):
    """16 videos, two of a motion: the spec, and Shots of two clips of it, by true masks and by medians."""
    look = dict(frames=64, height=40, width=48, drift=drift)
    plan = synthetic.plan("ucf101", train=1, test=1, scene_bias=0.9, seed=3, **look)
    return [(video.spec, *shots_of(video.spec)) for video in plan if not video.swapped]


def shots_of(spec):
    frames, mask, _ = map(torch.from_numpy, synthetic.render(spec))
    numbers = torch.cat([2 * torch.arange(16), 20 + 2 * torch.arange(16)])
    even = torch.from_numpy(np.linspace(0, 63, SPREAD).astype(int))
    cfg = config.load("demo-random", ["size=32", "short_side=40", "scene=median"])
    found = bias.masks_of(None, cfg)(0, None, torch.cat([frames, frames[even]]))[:64]
    return (Shot(frames[numbers], actor[numbers], numbers, frames[even], actor[even], cfg, (0, 0))
            for actor in (mask[..., None], found))


def levels(a, b):
    return (a.float() - b.float()).abs().mean().item()


def errors(drift):
    """motion -> |scene - true scene| in levels of 255, by true masks and by medians; overlap of the two masks."""
    found = {}
    for spec, true, median in drawn(drift):
        background = torch.from_numpy(synthetic.render(spec)[2])[true.numbers]
        overlap = (true.actor & median.actor).sum() / (true.actor | median.actor).sum()
        off = levels(true.scene, background), levels(median.scene, background), overlap.item()
        found.setdefault(spec.motion, []).append(off)
    return {motion: np.mean(rows, 0) for motion, rows in found.items()}


def test_the_scene_behind_the_actor_is_the_true_one_within_the_stated_error():
    still = errors(drift=0)
    by_truth, by_median, overlap = np.mean(list(still.values()), 0)
    assert by_truth < 1 and by_median < 2.5 and overlap > 0.6, still
    for motion, (_, off, overlap) in still.items():
        if motion.startswith("translate"):  # he leaves his place, which is what the median needs
            assert off < 1.5 and overlap > 0.75, (motion, off, overlap)
    by_truth, by_median, overlap = np.mean(list(errors(drift=24).values()), 0)
    assert by_truth < by_median / 2 and overlap < 0.5  # a panning camera: the docstring's warning


def test_a_swapped_actor_is_the_actor_filmed_there():
    """Held against a video rendered anew, of the one's actor before the other's scene; levels of 255, still camera. The
    lender's actor is on the same path, so that none is moved."""
    off = []
    for (spec, shot, _), (other, *_) in zip(drawn(0), drawn(0)[3:] + drawn(0)[:3], strict=True):  # of another motion
        there = {key: getattr(other, key) for key in ("scene", "scene_seed", "camera_seed")}
        filmed = synthetic.render(replace(spec, **there))[0][shot.numbers]
        lender, _ = shots_of(replace(spec, **there, actor_seed=other.actor_seed))
        swapped = KINDS["Action-Swap"](replace(shot, lent={0: lender}), 0)
        off.append((levels(swapped, torch.from_numpy(filmed)), levels(shot.frames, torch.from_numpy(filmed))))
    off = np.array(off)
    assert off[:, 0].mean() < 2 and off[:, 1].mean() > 40, off  # the edge: he is cut where he covers half of a pixel


def test_masks_are_cut_as_the_clip_is():
    """Before its own true scene the true actor is the video again, but for his edge; a larger file changes nothing."""
    spec, shot, _ = drawn(24)[0]
    large = replace(spec, height=80, width=96, drift=2 * spec.drift)
    mask = torch.from_numpy(synthetic.render(large)[1])[shot.numbers, ..., None]
    assert (bias.fit(mask, 40, 48) == shot.actor).float().mean() > 0.98
    assert (shot.seen(shot.actor) == shot.actor[:, 4:36, 8:40, 0].unflatten(0, (2, 16))).all()


# ---- robustness


def slow(cfg, samples):
    """take(i, numbers): frames of a video, where the actor is in them; the same of its SPREAD frames; the scene."""
    specs = bias.specs(samples.root)

    def take(i, numbers):
        even = np.linspace(0, 23, SPREAD).astype(int)
        frames, spread = (decode(samples.path(i), n, 24) for n in (numbers, even))
        if cfg.scene == "rendered":
            mask = synthetic.render(specs[samples.paths[i]])[1][..., None]
            actor, spread_actor = mask[numbers], mask[even]
        else:
            scene = np.sort(spread, 0)[(SPREAD - 1) // 2].astype(int)
            actor, spread_actor = (abs(part - scene).max(-1, keepdims=True) > 0.15 * 255 for part in (frames, spread))
        rim = np.ones((1, 3, 3))  # 24 px / 24 on each side
        wide = np.stack([binary_dilation(part, rim) for part in actor[..., 0]])[..., None]
        behind = np.broadcast_to(binary_dilation(spread_actor[..., 0], rim)[..., None], spread.shape)
        ranked, count = np.sort(np.where(behind, 999, spread), 0), (~behind).sum(0)
        behind = np.take_along_axis(ranked, np.maximum(count - 1, 0)[None] // 2, 0)[0].astype(float)
        for c in range(3):
            free = count[..., c] > 0
            behind[..., c][~free] = behind[..., c][free].mean()
        return frames, actor, spread, spread_actor, np.where(wide, np.rint(behind), frames).astype(np.uint8)

    return take


@pytest.mark.parametrize("scene", ["median", "rendered"])
def test_measure_by_hand(tiny, tmp_path, scene):
    _, cfg, model = tuned(tiny, tmp_path, scene=scene)
    samples = datasets.load("ucf101", tiny, "swapped", 1)
    N, accelerator, label = len(samples), make_accelerator(cfg), samples.labels
    found, (lenders, masked) = measure(model, samples, cfg, accelerator), lend(samples, cfg, accelerator)
    take, numbers = slow(cfg, samples), clips(samples, 0)[1]
    share = [take(i, numbers)[3].mean() for i in range(N)]
    assert masked.tolist() == [0.05 <= part <= 0.5 for part in share] and 4 < masked.sum() < N
    assert lenders.shape == (3, N) and masked[lenders].all() and (label[lenders] != label).all()
    assert len({*lenders.flatten()}) > 3 and (lenders[0] != lenders[1]).any()

    def answer(frames):  # (K, T, H, W, 3)
        with torch.no_grad():
            x = eval_view(torch.from_numpy(frames), torch.tensor(frames.shape[2:4]).expand(len(frames), 2), 16)
            return model.logits(x).softmax(1).mean(0).argmax().item()

    hits, seen = {}, dict(shots(samples, spread_clips(cfg, 3), cfg, accelerator, "by hand", lenders=lenders))
    for i in range(N):
        frames, actor, spread, spread_actor, empty = take(i, numbers)
        said = {"original": frames, "frozen": frames[:, [4] * 8], "reversed": frames[:, ::-1].copy()}
        said = {name: answer(shown) for name, shown in said.items()}
        for name, it in said.items():
            hits.setdefault(name, []).append(it == label[i])
        if not masked[i]:
            continue
        hits.setdefault("original, masked", []).append(said["original"] == label[i])
        grey = np.rint(255 * np.array(MEAN)).astype(np.uint8)
        hits.setdefault("Human-Only", []).append(answer(np.where(actor, frames, grey)) == label[i])
        hits.setdefault("Scene-Only", []).append(answer(empty) == label[i])
        for draw, lender in enumerate(lenders[:, i]):
            _, _, _, other_actor, other = take(lender, numbers)
            y, x = np.rint(middle_of_mass(other_actor) - middle_of_mass(spread_actor)).astype(int)
            swapped = other.copy()
            for k, t, r, c in zip(*actor[..., 0].nonzero(), strict=True):
                if 0 <= r + y < 24 and 0 <= c + x < 24:
                    swapped[k, t, r + y, c + x] = frames[k, t, r, c]
            it = answer(swapped)
            hits.setdefault("SHAcc", {}).setdefault(draw, []).append(it == label[i])
            hits.setdefault("SBErr", {}).setdefault(draw, []).append(it == label[lender])
            picture = bias.sinusoid(np.random.default_rng((cfg.seed, zlib.crc32(samples.paths[i]), draw)), 24, 24)
            scuba = answer(np.where(actor, frames, picture)) == label[i]
            hits.setdefault("SCUBA", {}).setdefault(draw, []).append(scuba)
            still = KINDS["SCUFO"](seen[i], draw)[0].numpy()
            assert any((np.where(spread_actor[n], spread[n], picture) == still).all() for n in range(SPREAD))
            scufo = answer(np.broadcast_to(still, frames.shape).copy()) == label[i]
            hits.setdefault("SCUFO", {}).setdefault(draw, []).append(scufo)
            hits.setdefault("contrasted", {}).setdefault(draw, []).append(scuba and not scufo)
    for name, right in hits.items():
        if isinstance(right, dict):
            draws = [100 * np.mean(right[draw]) for draw in range(3)]
            assert found[f"{name}, draws"] == pytest.approx(draws), name
            assert found[name] == pytest.approx(np.mean(draws))
            assert found[f"{name}, videos"] == 3 * [masked.sum()]
        else:
            assert found[name] == pytest.approx(100 * np.mean(right)), name
            assert found[f"{name}, videos"] == [len(right)]
    assert found["original"] > 80 and len({found[name] for name in hits}) > 4  # else little would have been compared
    assert (found["n_scored"], found["n_expected"], found["n_masked"]) == (N, N, masked.sum())


def test_a_network_that_knows_scenes_is_found_out(tiny, tmp_path):
    """It answers with the class of the video whose scene it knows, from the upper edge. Elsewhere it must be wrong."""
    _, cfg, _ = tuned(tiny, tmp_path, scene="rendered", test_clips=1)
    samples, accelerator = datasets.load("ucf101", tiny, "swapped", 1), make_accelerator(cfg)
    known = torch.stack([shot.look(shot.scene)[0, :, :, :2]
                         for _, shot in shots(samples, spread_clips(cfg, 1), cfg, accelerator, "scenes")])

    class Scenes(torch.nn.Module):
        def logits(self, x):
            off = (known - x[0, :, 4:5, :2]).abs().mean((1, 3, 4))  # (N, T)
            return 9.0 * torch.nn.functional.one_hot(torch.tensor(samples.labels)[off.amin(1).argmin(), None], 8)

    found = measure(Scenes(), samples, cfg, accelerator)
    for what, percent in {"original": 100, "frozen": 100, "shuffled": 100, "reversed": 100, "Scene-Only": 100,
                          "SHAcc": 0, "SBErr": 100}.items():
        assert found[what] == percent, (what, found)
    assert found["contrasted"] <= found["SCUBA"] < 60


def test_where_no_video_has_a_mask_nothing_is_said_of_bodies(tiny, tmp_path, monkeypatch):
    _, cfg, model = tuned(tiny, tmp_path, test_clips=1)
    samples, accelerator = datasets.load("ucf101", tiny, "test", 1), make_accelerator(cfg)
    monkeypatch.setattr(bias, "LEAST", 1.1)  # of the pixels
    found = measure(model, samples, cfg, accelerator)
    without = {name for name in bias.QUESTIONS if found.get(f"{name}, videos", [0])[0] == 0}
    assert without == {"original, masked", "static body", "SHAcc", "SBErr", "contrasted", *KINDS} - {"Action-Swap"}
    assert all(np.isnan(found[name]) for name in without)
    assert found["foreign frame, videos"] == found["frozen, videos"] == [len(samples)]


def test_scene_against_motion(tiny, tmp_path):
    """Of a network that mostly says the scene."""
    def family(samples):  # the number of the class whose own scene it is
        specs = bias.specs(samples.root)
        return torch.tensor([list(synthetic.SCENES).index(specs[path].scene) for path in samples.paths])

    _, cfg, model = tuned(tiny, tmp_path, knows=lambda s: torch.cat([family(s)[:9], torch.arange(7)]))
    samples, conflict = datasets.load("ucf101", tiny, "swapped", 1), []
    found = measure(model, samples, cfg, make_accelerator(cfg))
    for i, (label, scene) in enumerate(zip(samples.labels, family(samples), strict=True)):
        answer = model.logits(clips(samples, i)[0]).softmax(1).mean(0).argmax().item()
        conflict += [(answer == label, answer == scene)] if scene != label else []
    assert 4 < len(conflict) < 16
    assert [found["conflict: motion"], found["conflict: scene"]] == pytest.approx(100 * np.mean(conflict, 0))


def test_an_unreadable_video_is_wrong_everywhere_and_each_is_decoded_once(tiny, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny, tmp_path / "data")
    _, cfg, model = tuned(tmp_path / "data", tmp_path, scene="rendered", cache_gb=0)  # a file changes below
    samples, accelerator = datasets.load("ucf101", tmp_path / "data", "test", 1), make_accelerator(cfg)
    hit = classify(model, samples, cfg, accelerator)[0].argmax(1).numpy() == samples.labels
    with open(samples.path(hit.argmax()), "wb") as file:  # of one that was right
        file.write(b"no video")
    decoded, decode = Counter(), Reader.decode
    monkeypatch.setattr(Reader, "decode", lambda self, *a: decoded.update([self.path]) or decode(self, *a))
    found = measure(model, samples, cfg, accelerator)
    assert (found["n_scored"], found["n_expected"]) == (15, 16) and "1 cannot be read" in capsys.readouterr().out
    assert found["original"] == pytest.approx(100 * (hit.sum() - 1) / 16) and found["foreign frame, videos"] == [16]
    # for its mask, for all manipulations, and where it lends its scene
    decoded, (lenders, _) = Counter(decoded), lend(samples, cfg, accelerator)
    lent = Counter(samples.path(j) for j in lenders.flatten())
    assert decoded == {samples.path(i): 2 + lent[samples.path(i)] for i in range(16) if i != hit.argmax()}


def test_a_network_without_motion_is_shown_what_evaluate_shows_it(tiny, tmp_path):
    """One frame drawn from each video: the same as in the test, and in the truth of synthetic videos."""
    _, cfg, model = tuned(tiny, tmp_path, static="true", scene="rendered")
    samples, accelerator = datasets.load("ucf101", tiny, "swapped", 1), make_accelerator(cfg)
    probabilities, ok = classify(model, samples, cfg, accelerator)
    found = measure(model, samples, cfg, accelerator)
    top1 = accuracy(probabilities, torch.from_numpy(samples.labels), ok)["top1"]
    assert found["original"] == found["frozen"] == found["reversed"] == pytest.approx(top1)
    shown = dict(shots(samples, spread_clips(cfg, 3), cfg, accelerator, "clips"))
    assert len({shot.numbers[0].item() for shot in shown.values()}) > 4
    for i in (0, 9):
        frames = decode(samples.path(i), shown[i].numbers.numpy(), 24)
        assert len(shown[i].numbers.unique()) == 1 and torch.equal(torch.from_numpy(frames), shown[i].frames)


def test_lenders_are_shown_at_the_same_moments(tmp_path):
    for name, n in (("a", 10), ("b", 25)):
        frames = np.broadcast_to(9 * np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 16, 16, 3))
        encode(tmp_path / f"{name}.mp4", frames, 25, "libx264rgb", {"qp": "0"}, "rgb24")
    samples = datasets.Samples(str(tmp_path), np.array([b"a.mp4", b"b.mp4", b"no.mp4"]), np.arange(3), np.arange(3), [])
    takes = bias.Takes(samples, lambda n, rng: np.array([[0, 3], [7, n - 1]]), 16, 0, False)
    (_, a), (one, b), (lost, _) = takes[0, 1, 2]
    assert a[:4].tolist() == [0, 3, 7, 9] and b[:4].tolist() == [0, 7, 17, 22]  # of 10 and of 25 frames
    assert one.ok and not lost.ok
    assert (one.clips[:, 0, 0, 0] == 9 * b).all() and b[4:].tolist() == np.linspace(0, 24, SPREAD).astype(int).tolist()


def test_who_lends_and_what_is_said_of_it(tiny, tmp_path, capsys):
    _, cfg, model = tuned(tiny, tmp_path, scene="rendered")
    samples, accelerator = datasets.load("ucf101", tiny, "swapped", 1), make_accelerator(cfg)
    one = samples.take(samples.labels == samples.labels[0])
    lenders, masked = lend(one, cfg, accelerator)
    assert (lenders == -1).all() and "2 lack a video of another class" in capsys.readouterr().out
    found = measure(model, one, cfg, accelerator)  # nothing to swap: all else is asked
    assert np.isnan(found["SHAcc"]) and found["SHAcc, videos"] == [0, 0, 0] and found["SHAcc, draws"] == [None] * 3
    assert found["foreign frame, videos"] == [0] and found["original, videos"] == [2]

    names = [os.path.splitext(os.path.basename(os.fsdecode(path)))[0] for path in samples.paths]
    pairs = {f"Any/{names[0]}": ["Any/" + names[4], 24, np.int64(2)], f"Any/{names[1]}.avi": [names[0], "24"],
             "Any/nobody": ["Any/" + names[3], 24, 1], f"Any/{names[2]}": ["Any/never", 24, 1]}
    (tmp_path / "pairs").mkdir()
    for n, protocol in ((1, 2), (2, 4)):  # Python 2's and today's
        (tmp_path / f"pairs/actionswap_rand_{n}.pickle").write_bytes(pickle.dumps(pairs, protocol))
    lenders, _ = lend(samples, replace(cfg, pairs=str(tmp_path / "pairs")), accelerator)
    said = capsys.readouterr().out
    assert lenders.tolist() == 2 * [[4] + 15 * [-1]]  # the second pair is of one class
    assert "of 4 pairs 2 are in the list of 16 videos; 2 names are not: never, nobody" in said
    assert "15 lack a video" in said


class Evil:
    def __reduce__(self):
        return os.system, ("touch run",)


@pytest.mark.parametrize("content", [pickle.dumps({"a": [Evil()]}), b"text", pickle.dumps([1]),
                                     pickle.dumps({"a": [1, 2]}), pickle.dumps(np.zeros(3)), None])
def test_a_file_that_holds_no_pairs_is_refused(tiny, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "p.pickle").write_bytes(content)
    with pytest.raises(ConfigError, match="p.pickle cannot be read: .*CLASS/NAME"):
        bias.read_pairs(tmp_path / "p.pickle", datasets.load("ucf101", tiny, "test", 1))
    assert not (tmp_path / "run").exists()


def test_backgrounds_of_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="no JPEG or PNG below"):
        bias.backgrounds(str(tmp_path))
    (tmp_path / "beach").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "beach/1.png")
    still = bias.backgrounds(str(tmp_path))
    np.testing.assert_array_equal(still(np.random.default_rng(0), 20, 20), picture[:, 5:25])
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.jpg")
    still = bias.backgrounds(str(tmp_path))
    shown = {still(np.random.default_rng(seed), 10, 10).tobytes() for seed in range(20)}
    assert len(shown) == 2  # in grey, too
    (tmp_path / "grey.jpg").write_bytes(b"none")
    with pytest.raises(ConfigError, match="grey.jpg.*take it out"):
        for seed in range(20):
            still(np.random.default_rng(seed), 10, 10)


def test_the_verb_averages_runs_of_an_experiment(tiny, tmp_path, monkeypatch, capsys):
    def told(model, samples, cfg, *_):  # a number of one run is missing
        return {"frozen": 10.0 + cfg.seed, "SBErr": 1 / cfg.seed if cfg.seed else float("nan"), "frozen, videos": [16],
                "SBErr, draws": [1.0, 2.0, 3.0] if cfg.seed else [None] * 3, "n_scored": 15, "n_expected": 16,
                "SBErr, videos": [12, 12, 11 + cfg.seed]}

    runs = [tuned(tiny, tmp_path, seed)[:2] for seed in (0, 1)] + [tuned(tiny, tmp_path, 1, name="other")[:2]]
    monkeypatch.setattr(bias, "measure", told)
    bias.robustness(*runs)
    path, out = tmp_path / "robustness-ucf101-test", capsys.readouterr().out
    rows = json.loads(path.with_suffix(".json").read_text())["rows"]
    assert [row["experiment"] for row in rows] == ["demo-random", "demo-random", "other"]
    assert [row["SBErr"] for row in rows] == [None, 1, 1]
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:6]]
             for line in path.with_suffix(".md").read_text().splitlines()[4:]}
    assert list(lines) == [f"{what} {told}".strip() for what, told in bias.QUESTIONS.items()]
    assert lines["frozen ↓ paper 4.7: static video"] == ["12.5", "16", "10.5 ± 0.7", "11.0"]
    assert lines["SBErr ↓ HAT: Action-Swap"] == ["12.5", "11 to 12", "-", "2.0 ± 1.0"]
    assert lines["shuffled"] == ["12.5", "-", "-", "-"]
    assert lines["contrasted ↑ StillMix: SCUBA and not SCUFO"][0] == "10.9"  # 1/8 by 7/8
    assert "45 of 48 videos scored" in out
    bias.robustness(runs[0], tuned(tiny, tmp_path / "elsewhere")[:2])  # of the same name: no second seed
    rows = json.loads(path.with_suffix(".json").read_text())["rows"]
    assert [row["experiment"] for row in rows] == ["demo-random", "elsewhere/demo-random"]
    monkeypatch.syspath_prepend(ROOT)
    words = ["--cfg", "demo-random", f"data={tiny}", f"out={tmp_path}", "seed=1", "subset=swapped"]  # by its name
    assert importlib.import_module("run").main(["robustness", *words]) == 0
    (row,) = json.loads((tmp_path / "robustness-ucf101-swapped.json").read_text())["rows"]
    assert row["run"] == str(runs[1][0]) and row["seed"] == 1


# ---- generated sets


def test_a_generated_set_is_what_robustness_shows(tiny, tmp_path, capsys):
    """To the bit; and a test of its videos gives the same numbers, as of any `plain` set."""
    _, cfg, model = tuned(tiny, tmp_path, scene="rendered", subset="swapped")
    samples, accelerator = datasets.load("ucf101", tiny, "swapped", 1), make_accelerator(cfg)
    lenders, masked = lend(samples, cfg, accelerator)
    found, folder = measure(model, samples, cfg, accelerator), tmp_path / "bias-ucf101-swapped-split1-seed0"
    shown = dict(shots(samples, spread_clips(cfg, 3), cfg, accelerator, "shown", lenders=lenders))
    hashes = {}
    for kind in KINDS:
        bias.biasset(replace(cfg, kind=kind.lower()))
        said = json.loads((folder / f"{kind.lower()}.json").read_text())
        hashes[kind], draws = said["hash"], 3 if kind in bias.DRAWN else 1
        assert said["written"] == len(said["videos"]) == draws * masked.sum() and said["asked"] == 16 * draws
        assert said["videos_without_mask"] == 16 - masked.sum()
        written = datasets.load_for(cfg, kind.lower(), str(folder))
        assert written.classes == samples.classes and len(written) == said["written"]
        for n in range(0, len(written), 5):
            (source, *lender), name = said["videos"][n]["made_from"], os.fsdecode(written.paths[n])
            i, draw = samples.paths.tolist().index(source.encode()), int(name[-5])
            assert os.path.basename(name) == f"{os.path.basename(source)[:-4]}__{draw}.mp4"
            assert lender == ([os.fsdecode(samples.paths[lenders[draw, i]])] if kind == "Action-Swap" else [])
            frames = decode(written.path(n), np.arange(24), 24)
            assert bias.blake2b(frames.tobytes(), digest_size=16).hexdigest() == said["videos"][n]["digest"]
            np.testing.assert_array_equal(frames[shown[i].numbers], KINDS[kind](shown[i], draw))
        probabilities, ok = classify(model, written, cfg, accelerator)
        top1 = accuracy(probabilities, torch.from_numpy(written.labels), ok)["top1"]
        assert top1 == pytest.approx(found["SHAcc" if kind == "Action-Swap" else kind]), kind
    assert len({*hashes.values()}) == len(KINDS) and f"hash {hashes['SCUFO']}, written" in capsys.readouterr().out
    for seed, same in ((0, True), (1, False)):
        bias.biasset(replace(cfg, kind="scufo", seed=seed, out=str(tmp_path / "again")))
        said = json.loads((tmp_path / f"again/bias-ucf101-swapped-split1-seed{seed}/scufo.json").read_text())
        assert (said["hash"] == hashes["SCUFO"]) == same
    evaluate.evaluate(replace(cfg, test_data=str(folder), subset="scuba"))
    result = json.loads((tmp_path / "demo-random/finetune-ucf101-split1-seed0/result-scuba.json").read_text())
    assert result["top1"] == pytest.approx(found["SCUBA"])


def test_published_sets_are_plain_ones(tmp_path, capsys):
    """StillMix's lists have the number of frames between path and label."""
    for name in ("v_Walk_g01__0", "v_Walk_g01__1"):
        (tmp_path / name).mkdir()
        for n in (1, 2, 3):
            Image.fromarray(np.full((16, 16, 3), 60 * n, np.uint8)).save(tmp_path / f"{name}/frame{n:06d}.png")
    (tmp_path / "classes.txt").write_text("Jump Rope\nWalk\n")
    (tmp_path / "scuba.txt").write_text("v_Walk_g01__0 3 1\nv_Walk_g01__1 3 1\nv_Gone_g01__0 3 0\n")
    cfg = config.load("demo-random", ["dataset=kinetics400", "split=1"], "finetune")
    samples = datasets.load_for(cfg, "scuba", str(tmp_path))
    assert samples.paths.tolist() == [b"v_Walk_g01__0", b"v_Walk_g01__1", b"v_Gone_g01__0"]
    assert samples.labels.tolist() == [1, 1, 0] and samples.classes == ["Jump Rope", "Walk"]
    assert decode(samples.path(1), [0, 2], 16)[:, 0, 0, 0].tolist() == [60, 180]
    assert "2 of 3 listed videos" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the model knows other classes"):
        evaluate.load_list(replace(cfg, test_data=str(tmp_path)), "scuba", ["Jump Rope"])


def test_make_analyses_takes_stored_masks(tmp_path):
    for there in (False, True):
        if there:
            (tmp_path / "masks/hmdb51").mkdir(parents=True)
        (words,) = [step.words for step in prepare.collect("analyses", [f"data={tmp_path}"], [1], [0], False)
                    if step.words[0] == "robustness"]
        assert words[-2:] == ("scene=masks", f"masks={tmp_path}/masks/hmdb51") if there else "scene=masks" not in words
