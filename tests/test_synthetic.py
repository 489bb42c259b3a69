"""Drawn videos: the motion is the class, no single frame shows it, and files and lists are as official ones."""

import hashlib
import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats
from videos import decode, probe

from be import datasets, synthetic
from be.config import ConfigError, arguments
from be.datasets import DatasetMissing
from be.synthetic import LOOK, MOTIONS, SCENES, Spec, camera, load, plan, poses, render, scenebias, synth

SMALL = dict(train=3, test=2, frames=6, height=24, width=32, scene_bias=0.9, workers=1)
PLAN = dict(scene_bias=0.9, seed=0, frames=8, height=40, width=48, drift=24)


def spec(motion="orbit", scene="blue blobs", seed=0, **shape):
    seeds = np.random.default_rng(seed).integers(2**53, size=4).tolist()
    return Spec(motion, scene, *seeds, **dict(frames=64, height=40, width=48, drift=24.0) | shape)


def bench(motion="orbit", seed=0, **look):
    return spec(motion, seed=seed, **LOOK | dict(drift=24.0, shake=0.5) | look)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """DATA with small videos in all layouts."""
    data = tmp_path_factory.mktemp("made")
    for layout in synthetic.LAYOUTS:
        synth(data / layout, layout, **SMALL)
    return data


def centroids(mask):
    """(T, H, W) -> (T, 2) of y, x in px."""
    return np.array([ndimage.center_of_mass(frame) for frame in mask])


# ---- the picture


@pytest.mark.parametrize("look, digest", [  # of the demo, and of the benchmark
    (dict(drift=24.0), "923ad80e5cd6f1d3"),
    (LOOK | dict(drift=24.0, shake=0.5, stills=True), "ead703c9fc3e1ea3")])
def test_the_pixels_are_as_ever(look, digest):
    """Recorded results rest on these frames: a change here is a new demo, or a new VERSION of the benchmark."""
    found = hashlib.sha256()
    for v in plan("ucf101", train=2, test=1, **PLAN | dict(scene_bias=0.7, frames=16) | look):
        found.update(render(v.spec)[0])
    assert found.hexdigest()[:16] == digest


def test_render_is_pure_and_its_parts_agree():
    one = spec(seed=3)
    frames, mask, background = render(one)
    assert frames.shape == background.shape == (64, 40, 48, 3) and mask.shape == (64, 40, 48)
    assert frames.dtype == background.dtype == np.uint8 and mask.dtype == bool
    assert all(np.array_equal(a, b) for a, b in zip(render(one), (frames, mask, background), strict=True))
    assert not np.array_equal(render(replace(one, actor_seed=1))[1], mask)

    near = ndimage.maximum_filter(mask, (1, 5, 5))  # the soft edge of the actor ends within two px of the mask
    assert np.array_equal(frames[~near], background[~near])
    assert np.abs(frames[mask].astype(int) - background[mask]).mean() > 30
    assert 0.03 < mask.mean() < 0.2

    solid = synthetic.film_actor(one, 0)[..., 3] == 1  # another scene leaves the actor where it was
    other_frames, other_mask, other_background = render(replace(one, scene="red stripes", scene_seed=7))
    assert np.array_equal(mask, other_mask) and (background != other_background).mean() > 0.9
    assert solid.sum() > 1000 and np.array_equal(frames[solid], other_frames[solid])


def test_stills_and_backgrounds():
    one = bench("orbit", 4)
    frames, mask, background = render(one)
    still, still_mask, _ = render(replace(one, show="static"))
    assert any((still == frames[t]).all() and (still_mask == mask[t]).all() for t in range(64))
    empty, no_mask, _ = render(replace(one, show="background"))
    assert np.array_equal(empty, background) and not no_mask.any() and still_mask.any()


def test_bilinear_samples_are_scipys():
    rng = np.random.default_rng(0)
    image, at = rng.random((5, 7, 3)), rng.uniform(-1, 8, (2, 200))
    want = [ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(3)]
    assert np.allclose(synthetic.sample(image, *at), np.stack(want, -1))


@pytest.mark.parametrize("drift, shake", [(24.0, 0.0), (0.0, 2.0)])
def test_the_camera_pans_and_shakes_over_scene_and_actor_alike(monkeypatch, drift, shake):
    one, steps = spec("pulse", seed=1, frames=25, drift=drift, shake=shake), np.arange(25)
    y, x = (steps, steps[::-1]) if drift else (steps % 3, 0 * steps)
    no, way, zoom = np.zeros((2, 25)), np.stack([y, x]).astype(float), camera(one)[2:]
    monkeypatch.setattr(synthetic, "camera", lambda spec: (*((way, no) if drift else (no, way)), *zoom))
    canvas, background = np.rint(synthetic.canvas(one)).astype(np.uint8), render(one)[2]
    y, x = y + int(2 * shake), x + int(2 * shake)  # it shakes by that much at most, to both sides
    assert all(np.array_equal(background[t], canvas[y[t] : y[t] + 40, x[t] : x[t] + 48]) for t in range(25))
    for at, moved in zip(poses(one)[:2], (y, x), strict=True):
        assert np.median(np.abs(np.diff(at) + np.diff(moved))) < 1e-9  # but for re-entries


def test_a_zoom_is_a_crop_enlarged():
    whole, ways = spec("pulse", seed=3, drift=0.0, frames=6, height=120, width=120), set()
    frame = render(whole)[0][4].astype(float)
    for seed in range(6):
        closer = replace(whole, zoom=1.0, camera_seed=seed)
        _, _, row, column = camera(closer)
        factor = 1 / np.diff(row, axis=1)[:, 0, 0]
        assert factor.min() == pytest.approx(1) and factor.max() <= 2
        assert np.allclose(np.diff(column), 1 / factor[:, None, None])
        ways.add(factor[-1] > factor[0])
        assert np.abs(synthetic.sample(frame, row[4], column[4]) - render(closer)[0][4]).mean() < 2
    assert ways == {True, False}


# ---- the motion: what the class says is what the mask does


@pytest.fixture
def roomy(monkeypatch):
    """Masks of a large actor that the frame never cuts, seen by a camera that stands still."""
    monkeypatch.setattr(synthetic, "MARGIN", 0.4)
    return lambda motion, seed: render(spec(motion, seed=seed, height=96, width=120, drift=0.0))[1]


@pytest.mark.parametrize("seed", range(2))
def test_translations_and_a_pulse(roomy, seed):
    ways = {"translate_down": [1, 0], "translate_left": [0, -1], "translate_right": [0, 1], "translate_up": [-1, 0]}
    for motion in MOTIONS:
        mask = roomy(motion, seed)
        area = mask.sum((1, 2))
        assert area.max() > 2 * area.min() if motion == "pulse" else area.max() < 1.15 * area.min()
        if motion in ways:
            step = np.median(np.diff(centroids(mask), axis=0), axis=0)
            assert np.sign(np.rint(step * 5)).tolist() == ways[motion]


@pytest.mark.parametrize("seed", range(2))
def test_an_orbit_is_a_clockwise_circle(roomy, seed):
    y, x = centroids(roomy("orbit", seed)).T
    a, b, c = np.linalg.lstsq(np.stack([2 * y, 2 * x, np.ones(64)], 1), y**2 + x**2, rcond=None)[0]
    assert np.allclose(np.hypot(y - a, x - b), synthetic.ORBIT * 96, atol=1)
    turned = np.diff(np.unwrap(np.arctan2(y - a, x - b)))  # y points down: positive is clockwise
    assert (turned > 0).all() and 0.7 < turned.sum() / math.tau * 32 / 63 < 1.3


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("motion, sign", [("rotate_left", -1), ("rotate_right", 1), ("orbit", 0)])
def test_rotations(roomy, motion, sign, seed):
    mask = roomy(motion, seed)
    centre = centroids(mask)
    y, x = np.nonzero(mask[10]) - centre[10][:, None]

    def overlap(degrees):  # of frame 10, turned clockwise, with frame 13
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        row, column = np.rint(np.stack([c * y + s * x, c * x - s * y]) + centre[13][:, None]).astype(int)
        return mask[13, row, column].mean()

    best = max(range(-90, 91, 5), key=overlap)
    assert abs(best - sign * 3 * 360 / 32) <= 3 * 0.25 * 360 / 32 + 5


def test_a_single_frame_does_not_show_the_motion():
    n, t = 300, 63  # the last frame: the motion has had all the time to leave a trace
    states = np.array([[[pose[t] for pose in poses(spec(motion, seed=n * label + i))] for i in range(n)]
                       for label, motion in enumerate(MOTIONS)])  # (8, 300, 4)
    states[..., 2] %= math.tau
    for label, motion in enumerate(MOTIONS):
        others = np.delete(states, label, axis=0).reshape(-1, 4)
        for what, own, other in zip(("y", "x", "angle", "size"), states[label].T, others.T, strict=True):
            assert stats.ks_2samp(own, other).pvalue > 0.0005, f"{motion} shows in the {what} of one frame"


def test_actors_move_alike_and_strays_mean_nothing(monkeypatch):
    ways = []
    for seed in range(60):
        one = bench("translate_down", seed, drift=0.0, shake=0.0)
        steps = [np.diff(poses(one, k)[0]) for k in (0, 1, -1)]
        down, also, stray = (step[np.abs(step) < 10] for step in steps)
        assert (down > 0).all() and (also > 0).all() and not np.allclose(poses(one, 0)[1], poses(one, 1)[1])
        same = poses(replace(one, motion="translate_up"), -1)  # a stray's motion is the same in any class
        assert np.array_equal(poses(one, -1), same)
        ways.append(np.sign(stray).mean())
    assert abs(np.mean(ways)) < 4 * np.std(ways) / math.sqrt(60)

    filmed, film_actor, casts = [], synthetic.film_actor, set()
    monkeypatch.setattr(synthetic, "film_actor", lambda spec, k: filmed.append(k) or film_actor(spec, k))
    for seed in range(60):
        filmed.clear()
        _, mask, background = render(bench(seed=seed, frames=2))
        casts.add((actors := sum(k >= 0 for k in filmed), strays := len(filmed) - actors))
        alone = render(bench(seed=seed, frames=2, strays=0))
        assert np.array_equal(mask, alone[1])  # strays belong to the background
        assert (strays == 0) == np.array_equal(background, alone[2])
    assert casts == {(actors, strays) for actors in (1, 2) for strays in (0, 1, 2)}


def test_scene_families_can_be_told_from_one_frame_even_without_colour():
    f = np.hypot(np.fft.fftfreq(40)[:, None], np.fft.fftfreq(48))

    def describe(scene, i):
        grey = render(spec(scene=scene, seed=i, frames=1))[0][0].mean(-1)
        power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        power /= power.sum()
        bands = [power[(low <= f) & (f < 1.5 * low)].sum() for low in 0.02 * 1.5 ** np.arange(8)]
        return [*bands, np.sort(power.ravel())[-8:].sum()]  # energy at each scale, and in few waves

    known = np.array([[describe(scene, i) for i in range(20)] for scene in SCENES])  # (family, instance, 9)
    fresh = np.array([[describe(scene, i) for i in range(100, 120)] for scene in SCENES])
    distance = np.abs((fresh[:, :, None, None] - known) / known.std((0, 1))).sum(-1).min(-1)  # (8, 20, 8)
    assert (distance.argmin(-1) == np.arange(len(SCENES))[:, None]).mean() > 0.8  # chance is 1 / 8


def test_natural_scenes_have_the_spectra_of_photographs():
    f, window = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)), np.outer(np.hanning(128), np.hanning(128))
    bands = [(f >= low) & (f < 1.4 * low) for low in 0.03 * 1.4 ** np.arange(7)]
    for scene, (texture, *_) in SCENES.items():
        slopes, along = [], np.zeros(2)
        for seed in range(8):
            one = spec(scene=scene, seed=seed, frames=1, height=128, width=128, drift=0.0, natural=True)
            grey = synthetic.canvas(one)[:128, :128].mean(-1)
            amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * window))
            where, size = [f[band].mean() for band in bands], [amplitude[band].mean() for band in bands]
            slopes.append(-np.polyfit(np.log(where), np.log(size), 1)[0])
            along += [np.square(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]  # down, and to the right
        slope = synthetic.NATURAL[texture][0]
        assert 0.7 <= slope <= 1.3 and np.mean(slopes) == pytest.approx(slope, abs=0.2), scene
        assert (along[0] > 1.5 * along[1]) == (texture == "stripes"), scene  # longer than high
        assert along[1] < 1.5 * along[0], scene


# ---- the plan


def test_scene_bias_holds_in_train_and_test_and_not_in_swapped():
    families = list(SCENES)
    for bias in (0.0, 0.7, 1.0):
        videos = plan("ucf101", train=240, test=80, **PLAN | dict(scene_bias=bias, seed=1))
        own = np.array([families.index(v.spec.scene) == v.label for v in videos])
        for split in (1, 2, 3):
            subset = np.array([synthetic.subset_of(v, split, train=240, test=80) for v in videos])
            biased = bias + (1 - bias) / 8
            for name, n, share in ("train", 240, biased), ("test", 80, biased), ("swapped", 80, 1 / 8):
                got = own[subset == name]
                assert len(got) == 8 * n
                assert abs(got.mean() - share) <= 4 * math.sqrt(share * (1 - share) / len(got))
    table = np.zeros((8, 8))  # class x family, all alike
    for v in videos:
        table[v.label, families.index(v.spec.scene)] += v.swapped
    assert stats.chisquare(table.ravel()).pvalue > 0.0001


def test_train_and_test_share_no_actor_and_no_scene_instance():
    videos = plan("hmdb51", train=5, test=3, **PLAN)
    assert len({v.path for v in videos}) == len({v.spec.scene_seed for v in videos}) == len(videos) == 8 * (8 + 8)
    assert len({v.spec.actor_seed for v in videos}) == 8 * 8
    for split in (1, 2, 3):
        parts = {"train": [], "test": [], "swapped": [], None: []}
        for v in videos:
            parts[synthetic.subset_of(v, split, train=5, test=3)].append(replace(v.spec, scene="", scene_seed=0))
        assert parts["test"] == parts["swapped"]  # but for the scene
        assert not {s.actor_seed for s in parts["train"]} & {s.actor_seed for s in parts["test"]}


def test_a_new_motion_leaves_the_videos_of_the_others(monkeypatch):
    actors = {v.spec.actor_seed for v in plan("ucf101", train=2, test=1, **PLAN)}
    monkeypatch.setitem(MOTIONS, "slide", {"y": 1, "x": 1})
    monkeypatch.setitem(SCENES, "grey noise", SCENES["pink clouds"])
    specs = [v.spec for v in plan("ucf101", train=2, test=1, **PLAN)]
    slide = next(replace(s, drift=0) for s in specs if s.motion == "slide")
    assert actors < {s.actor_seed for s in specs}
    assert (np.median(np.diff(poses(slide)[:2], axis=1), axis=1) > 0.5).all()


# ---- the files


@pytest.mark.parametrize("layout", synthetic.LAYOUTS)
def test_the_parsers_of_the_real_datasets_read_it(made, layout):
    root, tested = made / layout, "val" if layout == "kinetics400" else "test"
    videos = {v.path: v for v in load(root)}
    assert len(videos) == 8 * (5 + 5) and json.loads((root / "synthetic.json").read_text())["layout"] == layout
    for split in synthetic.LAYOUTS[layout].splits:
        groups, seen = {}, set()
        for subset, count in ("train", 3), (tested, 2), ("swapped", 2):
            samples = datasets.load(layout, made, subset, split)
            paths = [Path(samples.path(i)).relative_to(root).as_posix() for i in range(len(samples))]
            assert len(paths) == 8 * count and all((root / path).exists() for path in paths)
            assert [name.lower().replace("_", "") for name in samples.classes] == [m.replace("_", "") for m in MOTIONS]
            assert [videos[p].label for p in paths] == samples.labels.tolist()
            assert all(videos[p].swapped == (subset == "swapped") for p in paths)
            groups[subset] = {(videos[p].label, videos[p].group) for p in paths}
            seen |= set(paths)
        assert len(seen) == 8 * 7 and groups[tested] == groups["swapped"] and not groups["train"] & groups[tested]
    info = probe(root / paths[0])
    assert (info.frames, info.width, info.height, info.codec, info.fps) == (6, 32, 24, "mpeg4", 25)


FORMS = {
    "ucfTrainTestlist/classInd.txt": rb"(\d+ \w+\r\n)+",
    "ucfTrainTestlist/trainlist01.txt": rb"(\w+/v_\w+_g\d\d_c\d\d\.avi \d+\r\n)+",
    "ucfTrainTestlist/testlist01.txt": rb"(\w+/v_\w+_g\d\d_c\d\d\.avi\r\n)+",
    "testTrainMulti_7030_splits/{}_test_split1.txt": rb"([^\n/]+\.avi [012] \n)+",
}


def test_lists_are_to_the_byte_as_official_ones(made):
    for form, pattern in FORMS.items():
        path = made / ("ucf101" if form.startswith("ucf") else "hmdb51") / form.format("translate_left")
        assert re.fullmatch(pattern, path.read_bytes()), form


def test_the_encoder_spares_the_actor(tmp_path):
    for i, (motion, scene) in enumerate(zip(MOTIONS, SCENES, strict=True)):
        one = spec(motion, scene, seed=i)
        synthetic.write(tmp_path / "a.avi", one)
        frames, mask, _ = render(one)
        error = decode(tmp_path / "a.avi", np.arange(64)).astype(float) - frames
        luma = error @ [0.299, 0.587, 0.114]  # colour has half the resolution in any 4:2:0 video
        for name, part, bound in ("all", error, 27), ("luma", luma, 36), ("actor's luma", luma[mask], 33):
            psnr = 10 * math.log10(255**2 / np.mean(part**2))
            assert psnr > bound, f"{motion} before {scene}: PSNR of {name} is {psnr:.1f} dB"


def test_same_seed_same_frames_whatever_the_workers(made, tmp_path):
    root = made / "ucf101"
    synth(again := tmp_path / "again", **SMALL | dict(workers=2))
    paths = [v.path for v in load(root)]
    assert all((again / name).read_bytes() == (root / name).read_bytes() for name in [*paths, "synthetic.jsonl"])
    seeds = [{v.spec.scene_seed for v in plan("ucf101", train=3, test=2, **PLAN | dict(seed=seed))} for seed in (0, 1)]
    assert not seeds[0] & seeds[1]


def test_a_killed_run_goes_on_where_it_was(made, tmp_path, monkeypatch):
    whole, cut = made / "ucf101", tmp_path / "cut"
    calls, encode = iter(range(99)), synthetic.encode

    def dies(path, *args, **options):
        if next(calls) == 9:
            Path(path).write_bytes(b"half a fi")
            raise KeyboardInterrupt
        encode(path, *args, **options)

    monkeypatch.setattr(synthetic, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        synth(cut, **SMALL)
    done = {path: path.stat().st_mtime_ns for path in cut.rglob("*/v_*.avi")}
    assert len(done) == 9 and not (cut / "ucfTrainTestlist").exists()
    synth(cut, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    files = [path.relative_to(whole) for path in whole.rglob("*.*")]
    assert len(files) == 80 + 10 + 2 and {path.relative_to(cut) for path in cut.rglob("*.*")} == set(files)
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in files)


def test_a_folder_of_something_else_is_left_alone(made, tmp_path):
    with pytest.raises(ConfigError, match=r"'scene_bias': 0\.9, 'drift': 24.*, not .*0\.5, 'drift': 8.*delete"):
        synth(made / "ucf101", **SMALL | dict(scene_bias=0.5, drift=8))
    (tmp_path / "UCF-101").mkdir()
    with pytest.raises(ConfigError, match="not empty"):
        synth(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["UCF-101"]


@pytest.mark.parametrize("wrong, told", [
    ("layout=ucf", "unknown layout 'ucf'.*ucf101"), ("height=41", "even.*not 41 and 48"), ("train=0", "at least 1"),
    ("width=8", "at least 16, not 40 and 8"), ("stills=true layout=hmdb51", "ucf101, not hmdb51")])  # fmt: skip
def test_values_out_of_range(tmp_path, wrong, told):
    with pytest.raises(ConfigError, match=told):
        synth(**arguments(synth, [f"root={tmp_path}/none", *wrong.split()]))
    assert not (tmp_path / "none").exists()


def test_scenebias_is_what_its_name_says(tmp_path, monkeypatch):
    monkeypatch.setitem(synthetic.SIZES, "tiny", (3, 4, 1, 2, 24, 24))
    monkeypatch.setattr(synthetic, "synth", partial(synth, workers=1))
    scenebias(str(tmp_path))
    folder, tested = tmp_path / "scenebias-v1-tiny", None
    assert {path.name for path in folder.iterdir()} == {"pretrain", "bias0.9", "bias0.5", "bias0"}
    videos = {v.path: v for v in load(folder / "pretrain" / "ucf101")}
    for subset, count in ("train", 3), ("test", 1), ("swapped", 1), ("static", 1), ("background", 1):
        samples = datasets.load("ucf101", folder / "pretrain", subset)
        specs = [videos[p.decode()].spec for p in samples.paths]
        assert len(samples) == 8 * count and all(Path(samples.path(i)).exists() for i in range(len(samples)))
        assert {s.show for s in specs} == {subset if subset in ("static", "background") else "all"}
        assert [videos[p.decode()].label for p in samples.paths] == samples.labels.tolist()
        if subset in ("static", "background"):
            with pytest.raises(DatasetMissing):
                datasets.load("ucf101", folder / "pretrain", subset, 2)
        if subset != "train":  # all test lists show the same events
            tested = tested or specs
            assert [s.path_seed for s in specs] == [s.path_seed for s in tested]
            assert (subset == "swapped") != ([s.scene_seed for s in specs] == [s.scene_seed for s in tested])
    biased, free = ([replace(v.spec, scene="", scene_seed=0) for v in load(folder / name / "ucf101")]
                    for name in ("bias0.9", "bias0"))
    assert biased == free  # but for the scenes
    assert not {s.path_seed for s in biased} & {v.spec.path_seed for v in videos.values()}
    with pytest.raises(ConfigError, match="unknown size"):
        scenebias(str(tmp_path), size="tinny")
