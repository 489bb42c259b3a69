"""Synthetic videos: what the class says moves, no single frame betrays it, the files are as official ones."""


import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from be import datasets, synthetic, video
from be.config import ConfigError
from be.datasets import DatasetMissing
from be.synthetic import MOTIONS, SCENES, Spec, camera, load, make, plan, poses, render

SMALL = dict(train=3, test=2, frames=6, height=24, width=32, workers=1)
OFFICIAL = Path(__file__).parents[2] / "shared" / "annotations"


def spec(motion="orbit", scene="blue blobs", seed=0, **shape):
    seeds = np.random.default_rng(seed).integers(2**53, size=4).tolist()
    return Spec(motion, scene, *seeds, **dict(frames=64, height=40, width=48, drift=24.0) | shape)


@pytest.fixture(scope="module", params=["ucf101", "hmdb51"])
def dataset(request, tmp_path_factory):
    return request.param, make(tmp_path_factory.mktemp("made") / "data", request.param, **SMALL)


def centroids(mask):
    """(T, H, W) -> (T, 2) of y, x in px."""
    weight = mask.sum((1, 2))
    return np.stack([(mask * axis).sum((1, 2)) / weight for axis in np.indices(mask.shape[1:])], 1)


def ks(a, b):
    """Kolmogorov-Smirnov: p < 0.0005 under equality when above 1."""
    grid = np.concatenate([a, b])
    below_a, below_b = (np.searchsorted(np.sort(x), grid, "right") / len(x) for x in (a, b))
    return np.abs(below_a - below_b).max() / (2 * math.sqrt(1 / len(a) + 1 / len(b)))


# ---- the picture


def test_render_is_pure_and_its_parts_agree():
    one = spec(seed=3)
    frames, mask, background = render(one)
    assert frames.shape == background.shape == (64, 40, 48, 3) and mask.shape == (64, 40, 48)
    assert frames.dtype == background.dtype == np.uint8 and mask.dtype == bool
    assert all(np.array_equal(a, b) for a, b in zip(render(one), (frames, mask, background), strict=True))
    assert not np.array_equal(render(replace(one, actor_seed=1))[1], mask)

    wide = np.pad(mask, ((0, 0), (2, 2), (2, 2)))  # the soft edge of the actor ends within two px of the mask
    near = np.any([wide[:, i : i + 40, j : j + 48] for i in range(5) for j in range(5)], axis=0)
    assert np.array_equal(frames[~near], background[~near])
    assert np.abs(frames[mask].astype(int) - background[mask]).mean() > 30
    assert 0.03 < mask.mean() < 0.2


def test_another_scene_leaves_the_actor_where_it_was():
    one = spec(seed=5)
    frames, mask, background = render(one)
    other_frames, other_mask, other_background = render(replace(one, scene="red stripes", scene_seed=7))
    assert np.array_equal(mask, other_mask) and (background != other_background).mean() > 0.9
    solid = synthetic.film_actor(one)[..., 3] == 1
    assert solid.sum() > 1000 and np.array_equal(frames[solid], other_frames[solid])


def test_bilinear_samples_against_a_slow_transcription():
    rng = np.random.default_rng(0)
    image, y, x = rng.random((5, 7, 3)), rng.uniform(-1, 6, 200), rng.uniform(-1, 8, 200)
    for got, v, u in zip(synthetic.sample(image, y, x), y.clip(0, 4), x.clip(0, 6), strict=True):
        want = sum(
            image[i, j] * max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j)) for i in range(5) for j in range(7)
        )
        assert np.allclose(got, want)


def test_the_camera_pans_over_scene_and_actor_alike(monkeypatch):
    one = spec("pulse", seed=1, frames=25, drift=24.0)
    monkeypatch.setattr(synthetic, "camera", lambda spec: (np.arange(25) * 1.0, np.arange(25)[::-1] * 1.0))
    background = render(one)[2]
    canvas = np.rint(synthetic.canvas(one)).astype(np.uint8)
    assert all(np.array_equal(background[t], canvas[t : t + 40, 24 - t : 72 - t]) for t in range(25))
    y, x, _, _ = poses(one)
    assert np.median(np.diff(y)) == pytest.approx(-1) and np.median(np.diff(x)) == pytest.approx(1)


def test_the_camera_stays_within_its_drift_and_uses_it():
    pans = [camera(spec(seed=i, drift=24.0)) for i in range(300)]
    lengths = np.array([np.hypot(np.ptp(y), np.ptp(x)) for y, x in pans])
    assert lengths.max() <= 24 and lengths.max() > 22 and min(pan.min() for pan in sum(pans, ())) == 0
    assert abs(lengths.mean() - 12) < 4 * 24 / math.sqrt(12 * 300)
    assert not np.any(camera(spec(drift=0.0)))


# ---- the motion: what the class says is what the mask does


@pytest.fixture
def roomy(monkeypatch):
    """Masks of a large actor that the frame never cuts, seen by a camera that stands still."""
    monkeypatch.setattr(synthetic, "MARGIN", 0.4)
    return lambda motion, seed: render(spec(motion, seed=seed, height=96, width=120, drift=0.0))[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "motion, way",
    [("down", (1, 0)), ("left", (0, -1)), ("right", (0, 1)), ("up", (-1, 0))],
)
def test_translations(roomy, motion, way, seed):
    step = np.median(np.diff(centroids(roomy(f"translate_{motion}", seed)), axis=0), axis=0)
    assert np.sign(np.rint(step * 5)).tolist() == list(way)


@pytest.mark.parametrize("seed", range(3))
def test_a_pulse_changes_the_size_and_nothing_else_does(roomy, seed):
    for motion in MOTIONS:
        area = roomy(motion, seed).sum((1, 2))
        assert (area.max() > 2 * area.min()) == (motion == "pulse")
        assert motion == "pulse" or area.max() < 1.15 * area.min()


@pytest.mark.parametrize("seed", range(3))
def test_an_orbit_is_a_clockwise_circle(roomy, seed):
    y, x = centroids(roomy("orbit", seed)).T
    a, b, c = np.linalg.lstsq(np.stack([2 * y, 2 * x, np.ones(64)], 1), y**2 + x**2, rcond=None)[0]
    radius = np.hypot(y - a, x - b)
    assert np.allclose(radius, synthetic.ORBIT * 96, atol=1)
    turned = np.diff(np.unwrap(np.arctan2(y - a, x - b)))  # y points down: positive is clockwise
    assert (turned > 0).all() and 0.7 < turned.sum() / (2 * math.pi) * 32 / 63 < 1.3


@pytest.mark.parametrize("seed", range(3))
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


def test_a_single_frame_does_not_betray_the_motion():
    n, t = 300, 63  # the last frame: the motion has had all the time to leave a trace
    look = {}
    for label, motion in enumerate(MOTIONS):
        seeds = range(n * label, n * (label + 1))
        look[motion] = np.array([[pose[t] for pose in poses(spec(motion, seed=seed))] for seed in seeds])
    for motion, states in look.items():
        others = np.concatenate([other for name, other in look.items() if name != motion])
        states[:, 2] %= 2 * math.pi
        others[:, 2] %= 2 * math.pi
        for i, what in enumerate(("y", "x", "angle", "radius")):
            assert ks(states[:, i], others[:, i]) < 1, f"{motion} shows in the {what} of one frame"


def test_scene_families_can_be_told_from_one_frame_even_without_colour():
    def describe(scene, i):
        grey = render(spec(scene=scene, seed=i, frames=1))[0][0].mean(-1)
        power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        f = np.hypot(np.fft.fftfreq(40)[:, None], np.fft.fftfreq(48))
        power /= power.sum()
        bands = [power[(low <= f) & (f < 1.5 * low)].sum() for low in 0.02 * 1.5 ** np.arange(8)]
        return [*bands, np.sort(power.ravel())[-8:].sum()]  # energy at each scale, and in few waves

    known = np.array([[describe(scene, i) for i in range(20)] for scene in SCENES])  # (family, instance, 9)
    fresh = np.array([[describe(scene, i) for i in range(100, 120)] for scene in SCENES])
    spread = known.std((0, 1))
    distance = np.abs((fresh[:, :, None, None] - known) / spread).sum(-1).min(-1)  # (8, 20, 8)
    right = (distance.argmin(-1) == np.arange(len(SCENES))[:, None]).mean()
    assert right > 0.8  # chance is 1 / 8


# ---- the plan


def test_scene_bias_holds_in_train_and_test_and_not_in_swapped():
    shape = dict(frames=8, height=40, width=48, drift=24)
    videos = plan("ucf101", train=300, test=100, scene_bias=0.7, seed=1, **shape)
    own = np.array([list(SCENES).index(v.spec.scene) == v.label for v in videos])
    swapped = np.array([v.swapped for v in videos])
    for split in synthetic.SPLITS:
        subset = np.array([synthetic.subset_of(v, split, train=300, test=100) for v in videos])
        biased = 0.7 + 0.3 / 8
        for name, n, share in ("train", 300, biased), ("test", 100, biased), ("swapped", 100, 1 / 8):
            got = own[subset == name]
            assert len(got) == 8 * n
            assert abs(got.mean() - share) < 4 * math.sqrt(share * (1 - share) / len(got))
    table = np.zeros((8, 8))  # class x family
    for v in np.array(videos, object)[swapped]:
        table[v[1], list(SCENES).index(v[4].scene)] += 1
    expected = table.sum() / 64
    assert ((table - expected) ** 2 / expected).sum() < 63 + 4 * math.sqrt(2 * 63)  # chi-square: all alike
    for bias, share in ((1.0, 1.0), (0.0, 1 / 8)):
        videos = plan("ucf101", train=90, test=10, scene_bias=bias, seed=1, **shape)
        got = np.mean([list(SCENES)[v.label] == v.spec.scene for v in videos if not v.swapped])
        assert abs(got - share) < 4 * math.sqrt(share * (1 - share) / 800) + 1e-9


def test_train_and_test_share_no_actor_and_no_scene_instance():
    videos = plan("hmdb51", train=5, test=3, scene_bias=0.9, seed=0, frames=8, height=40, width=48, drift=24)
    assert len({v.path for v in videos}) == len(videos) == 8 * (8 + 8)
    assert len({v.spec.scene_seed for v in videos}) == len(videos)
    assert len({v.spec.actor_seed for v in videos}) == 8 * 8
    for split in synthetic.SPLITS:
        parts = {"train": [], "test": [], "swapped": [], None: []}
        for v in videos:
            parts[synthetic.subset_of(v, split, train=5, test=3)].append(v)
        twins = [replace(v.spec, scene="", scene_seed=0) for v in parts["test"]]
        assert twins == [replace(v.spec, scene="", scene_seed=0) for v in parts["swapped"]]
        assert not {v.spec.actor_seed for v in parts["train"]} & {t.actor_seed for t in twins}


def test_a_new_motion_leaves_the_videos_of_the_others(monkeypatch):
    args = dict(train=2, test=1, scene_bias=0.0, seed=0, frames=8, height=40, width=48, drift=24)
    actors = {v.spec.actor_seed for v in plan("ucf101", **args)}
    monkeypatch.setitem(MOTIONS, "nod", lambda c: {"y": 0.1 * np.sin(c)})
    monkeypatch.setitem(SCENES, "grey noise", SCENES["pink clouds"])
    videos = plan("ucf101", **args)
    assert actors < {v.spec.actor_seed for v in videos}
    nod = next(v.spec for v in videos if v.spec.motion == "nod")
    assert np.ptp(centroids(render(replace(nod, frames=64, drift=0))[1])[:, 0]) > 1


# ---- the files


def test_the_parsers_of_the_real_datasets_read_it(dataset):
    layout, root = dataset
    videos = {v.path: v for v in load(root)}
    assert len(videos) == 8 * (5 + 5)
    assert json.loads((root / "synthetic.json").read_text())["layout"] == layout
    for split in synthetic.SPLITS:
        seen = set()
        for subset, count in ("train", 3), ("test", 2), ("swapped", 2):
            samples = datasets.DATASETS[layout](root, subset, split)
            assert len(samples) == 8 * count and len(samples.classes) == 8
            paths = [Path(samples.path(i)).relative_to(root).as_posix() for i in range(len(samples))]
            assert [videos[p].label for p in paths] == samples.labels.tolist()
            assert all(videos[p].swapped == (subset == "swapped") for p in paths)
            seen |= set(paths)
        assert len(seen) == 8 * 7
    first = next(iter(videos.values()))
    names = [name.lower().replace("_", "") for name in samples.classes]
    assert names == [motion.replace("_", "") for motion in MOTIONS]
    info = video.probe(root / first.path)
    assert (info.frames, info.width, info.height, info.codec, info.fps) == (6, 32, 24, "mpeg4", 25)


@pytest.mark.parametrize("layout, tested", [("kinetics400", "val"), ("diving48", "test")])
def test_layouts_of_one_split(tmp_path, layout, tested):
    root = make(tmp_path / layout, layout, **SMALL | dict(train=2, test=1, frames=4))
    videos, seen = {v.path: v for v in load(root)}, []
    for subset, count in ("train", 2), (tested, 1), ("swapped", 1):
        samples = datasets.load(layout, tmp_path, subset)
        paths = [Path(samples.path(i)).relative_to(root).as_posix() for i in range(len(samples))]
        assert len(paths) == 8 * count and samples.classes == sorted(MOTIONS)
        assert [videos[p].label for p in paths] == samples.labels.tolist()
        assert all((root / p).exists() and videos[p].swapped == (subset == "swapped") for p in paths)
        seen.append({(videos[p].label, videos[p].group) for p in paths})
    assert not seen[0] & seen[1] and seen[1] == seen[2]  # the swapped list holds the twins of the tested


FORMS = {
    "ucfTrainTestlist/classInd.txt": rb"(\d+ \w+\r\n)+",
    "ucfTrainTestlist/trainlist01.txt": rb"(\w+/v_\w+_g\d\d_c\d\d\.avi \d+\r\n)+",
    "ucfTrainTestlist/testlist01.txt": rb"(\w+/v_\w+_g\d\d_c\d\d\.avi\r\n)+",
    "testTrainMulti_7030_splits/{}_test_split1.txt": rb"([^\n/]+\.avi [012] \n)+",
}


@pytest.mark.parametrize("where", ["made", "official"])
def test_lists_are_to_the_byte_as_official_ones(tmp_path, where):
    if where == "official" and not OFFICIAL.exists():
        pytest.skip("the official lists are not here")
    for form, pattern in FORMS.items():
        root = OFFICIAL if where == "official" else tmp_path / form.split("/")[0]
        if where == "made":
            make(root, "hmdb51" if "{}" in form else "ucf101", **SMALL | dict(frames=1))
        file = root / form.format("wave" if where == "official" else "translate_left")
        assert re.fullmatch(pattern, file.read_bytes()), file


def test_the_encoder_spares_the_actor(tmp_path):
    for i, (motion, scene) in enumerate(zip(MOTIONS, SCENES, strict=True)):
        frames, mask, _ = render(spec(motion, scene, seed=i))
        synthetic.write(synthetic.Video("a.avi", 0, i, False, spec(motion, scene, seed=i)), tmp_path, 25)
        decoded = video.decode(tmp_path / "a.avi", np.arange(64))
        error = decoded.astype(float) - frames
        luma = error @ [0.299, 0.587, 0.114]  # colour has half the resolution in any 4:2:0 video
        for name, part, bound in ("all", error, 27), ("luma", luma, 36), ("actor's luma", luma[mask], 33):
            psnr = 10 * math.log10(255**2 / np.mean(part**2))
            assert psnr > bound, f"{motion} before {scene}: PSNR of {name} is {psnr:.1f} dB"


def test_same_seed_same_frames_whatever_the_workers(dataset, tmp_path):
    layout, root = dataset
    again = make(tmp_path / "again", layout, **SMALL | dict(workers=2))
    other = make(tmp_path / "other", layout, **SMALL | dict(seed=1))
    for name in [v.path for v in load(root)] + ["synthetic.jsonl"]:
        assert (again / name).read_bytes() == (root / name).read_bytes()
    path = load(root)[0].path
    assert not np.array_equal(video.decode(root / path, [3]), video.decode(other / path, [3]))


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = make(tmp_path / "whole", **SMALL)
    calls, encode = iter(range(99)), synthetic.encode

    def dies(path, *args, **options):
        if next(calls) == 9:
            Path(path).write_bytes(b"half a fi")
            raise KeyboardInterrupt
        encode(path, *args, **options)

    monkeypatch.setattr(synthetic, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", **SMALL)
    cut = tmp_path / "cut"
    done = {path: path.stat().st_mtime_ns for path in cut.rglob("*/v_*.avi")}
    assert len(done) == 9 and not (cut / "ucfTrainTestlist").exists()
    make(cut, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    files = [path.relative_to(whole) for path in whole.rglob("*.*")]
    assert len(files) == 80 + 10 + 2 and {path.relative_to(cut) for path in cut.rglob("*.*")} == set(files)
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in files)


def test_a_folder_of_something_else_is_left_alone(dataset, tmp_path):
    layout, root = dataset
    with pytest.raises(ValueError, match=r"scene_bias 0\.9 \(asked: 0\.5\), drift 24 \(asked: 8\).*delete"):
        make(root, layout, **SMALL | dict(scene_bias=0.5, drift=8))
    (tmp_path / "UCF-101").mkdir()
    with pytest.raises(ValueError, match="not empty"):
        make(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["UCF-101"]


@pytest.mark.parametrize(
    "wrong, told",
    [
        (dict(layout="ucf"), "'ucf' is not one of ucf101, hmdb51"),
        (dict(height=41), "even, not 41, 32"),
        (dict(width=8), "at least 16, not 24, 8"),
        (dict(scene_bias=1.1), r"in \[0, 1\], not 1\.1"),
        (dict(train=0), "not 0, 6, 2"),
        (dict(test=-1), "not 3, 6, -1"),
        (dict(stills=True, layout="hmdb51"), "stills are for layout ucf101"),
        (dict(drift=-1), "drift >= 0"),
    ],
)
def test_values_out_of_range(tmp_path, wrong, told):
    with pytest.raises(ValueError, match=told):
        make(tmp_path / "none", **SMALL | wrong)
    assert not (tmp_path / "none").exists()


# ---- the benchmark


def bench(motion="orbit", seed=0, **look):
    return spec(motion, seed=seed, **dict(synthetic.LOOK, drift=24.0, shake=0.5) | look)


def test_the_demo_is_drawn_as_ever():
    """Frames of the demo are part of what it measured; a change here is a change there."""
    digest = hashlib.sha256()
    for v in plan("ucf101", train=2, test=1, scene_bias=0.7, seed=0, frames=16, height=40, width=48, drift=24.0):
        digest.update(render(v.spec)[0])
    assert digest.hexdigest()[:16] == "923ad80e5cd6f1d3"


def test_scenes_have_the_spectra_of_photographs():
    assert all(0.7 <= slope <= 1.3 for slope, _ in synthetic.NATURAL.values())
    f = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    for scene, family in SCENES.items():
        slopes, along = [], np.zeros(2)
        for seed in range(8):
            one = replace(spec(scene=scene, seed=seed, frames=1, height=128, width=128, drift=0.0), natural=True)
            grey = synthetic.canvas(one)[:128, :128].mean(-1)
            window = np.outer(np.hanning(128), np.hanning(128))
            amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * window))
            bands = [(f >= low) & (f < 1.4 * low) for low in 0.03 * 1.4 ** np.arange(7)]
            where, size = [f[band].mean() for band in bands], [amplitude[band].mean() for band in bands]
            slopes.append(-np.polyfit(np.log(where), np.log(size), 1)[0])
            along += [np.square(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]  # down, and to the right
        assert np.mean(slopes) == pytest.approx(synthetic.NATURAL[family.texture][0], abs=0.2), scene
        assert (along[0] > 1.5 * along[1]) == (family.texture is synthetic.stripes), scene  # longer than high
        assert along[1] < 1.5 * along[0], scene


def test_speed_varies_within_a_video_and_the_way_does_not():
    paces = []
    for seed in range(20):
        x = poses(bench("translate_right", seed, drift=0.0, shake=0.0))[1]
        steps = np.diff(x)
        steps = steps[np.abs(steps) < 10]  # but for re-entries
        assert (steps > 0).all()
        paces.append(steps.max() / steps.min())
    assert min(paces) > 2 and max(paces) < 1.8 / 0.2 + 0.1


def test_the_camera_shakes_and_zooms_over_scene_and_actor_alike(monkeypatch):
    one = bench("pulse", 3, drift=0.0, shake=2.0, zoom=0.0, strays=0, actors=1)
    shake_y, shake_x = synthetic.tremble(one)
    assert np.abs([shake_y, shake_x]).max() <= 4 and 1.3 < np.std([shake_y, shake_x]) < 2.2
    y, x = poses(one)[:2]
    assert np.allclose(y + shake_y, y[0] + shake_y[0]) and np.allclose(x + shake_x, x[0] + shake_x[0])
    monkeypatch.setattr(synthetic, "tremble", lambda spec: (np.arange(64) % 3.0, np.zeros(64)))
    background, canvas = render(one)[2], np.rint(synthetic.canvas(one)).astype(np.uint8)
    assert all(np.array_equal(background[t], canvas[4 + t % 3 : 44 + t % 3, 4:52]) for t in range(64))
    monkeypatch.setattr(synthetic, "tremble", lambda spec: np.zeros((2, spec.frames)))
    ways = set()
    for seed in range(12):
        closer = replace(one, zoom=1.0, frames=6, height=120, width=120, camera_seed=seed)
        row, column = synthetic.magnify(closer)
        factor = 1 / np.diff(row, axis=1)[:, 0, 0]
        assert factor.min() == pytest.approx(1) and factor.max() <= 2
        assert np.allclose(np.diff(column), 1 / factor[:, None, None])
        ways.add(factor[-1] > factor[0])
        for t in (0, 4):  # a zoom is a crop, enlarged
            seen, whole = render(closer)[0][t], render(replace(closer, zoom=0.0))[0][t].astype(float)
            crop = synthetic.sample(whole, row[t] + 0 * column[t], column[t] + 0 * row[t])
            assert np.abs(crop - seen).mean() < 2
    assert ways == {True, False}


def test_actors_move_alike_and_strays_mean_nothing():
    casts = [tuple(map(len, synthetic.cast(bench(seed=seed)))) for seed in range(200)]
    assert {n for n, _ in casts} == {1, 2} and {n for _, n in casts} == {0, 1, 2}
    ways = []
    for seed in range(60):
        one = bench("translate_down", seed, drift=0.0, shake=0.0)
        down = [np.diff(poses(one, k)[0]) for k in (0, 1)]
        assert all((steps[np.abs(steps) < 10] > 0).all() for steps in down)
        assert not np.allclose(*(poses(one, k)[1] for k in (0, 1)))
        stray = bench("translate_up", seed, drift=0.0, shake=0.0)
        assert all(np.array_equal(a, b) for a, b in zip(poses(one, -1), poses(stray, -1), strict=True))  # of any class
        steps = np.diff(poses(one, -1)[0])
        ways.append(np.sign(steps[np.abs(steps) < 10]).mean())
    assert abs(np.mean(ways)) < 4 * np.std(ways) / math.sqrt(60)
    crowd = next(one for one in map(lambda seed: bench("orbit", seed), range(99)) if len(synthetic.cast(one)[1]) == 2)
    assert not np.array_equal(render(crowd)[2], render(replace(crowd, strays=0))[2])  # strays belong to the background
    assert np.array_equal(render(crowd)[1], render(replace(crowd, strays=0))[1])


def test_stills_and_backgrounds():
    one = bench("orbit", 4)
    frames, mask, background = render(one)
    still, still_mask, _ = render(replace(one, show="static"))
    assert (still == still[0]).all() and any(np.array_equal(still[0], frame) for frame in frames)
    assert (still_mask == still_mask[0]).all() and still_mask.any()
    empty, no_mask, _ = render(replace(one, show="background"))
    assert np.array_equal(empty, background) and not no_mask.any()


def test_scenebias_is_what_its_name_says(tmp_path, monkeypatch):
    monkeypatch.setitem(synthetic.SIZES, "tiny", dict(pretrain=3, train=4, test=2, frames=2, height=24, width=24))
    monkeypatch.setattr(synthetic.os, "cpu_count", lambda: 1)
    roots, tested = synthetic.scenebias(str(tmp_path), biases=[0.9, 0.0]), None
    assert set(roots) == {"pretrain", "bias0.9", "bias0"}
    videos = {v.path: v for v in load(Path(roots["pretrain"]) / "ucf101")}
    for subset, count in ("train", 3), ("test", 2), ("swapped", 2), ("static", 2), ("background", 2):
        samples = datasets.load("ucf101", roots["pretrain"], subset)
        specs = [videos[p.decode()].spec for p in samples.paths]
        assert len(samples) == 8 * count and all(Path(samples.path(i)).exists() for i in range(len(samples)))
        assert {s.show for s in specs} == {subset if subset in ("static", "background") else "all"}
        assert [videos[p.decode()].label for p in samples.paths] == samples.labels.tolist()
        if subset in ("static", "background"):
            with pytest.raises(DatasetMissing):
                datasets.DATASETS["ucf101"](Path(roots["pretrain"]) / "ucf101", subset, 2)
        if subset != "train":  # all test lists show the same events
            tested = tested or specs
            assert [s.path_seed for s in specs] == [s.path_seed for s in tested]
            assert (subset == "swapped") != ([s.scene_seed for s in specs] == [s.scene_seed for s in tested])
    biased, free = ([v.spec for v in load(Path(roots[name]) / "ucf101")] for name in ("bias0.9", "bias0"))
    biased, free = ([replace(s, scene="", scene_seed=0) for s in specs] for specs in (biased, free))
    assert biased == free  # but for the scenes
    assert not {s.path_seed for s in biased} & {v.spec.path_seed for v in videos.values()}
    other = synthetic.scenebias(str(tmp_path), biases=[0.0], drift=0.0)
    assert set(other.values()).isdisjoint(roots.values())
    with pytest.raises(ConfigError, match="unknown size"):
        synthetic.scenebias(str(tmp_path), size="tinny")
