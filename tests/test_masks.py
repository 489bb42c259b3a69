"""Stored masks in every format, made by every source; Actor-HMDB51.

Masks are written by other libraries (Pillow, SciPy, NumPy) and read back; the crops are held against a brute-force
search, stubs stand for what looks at real files, and torchvision's detectors are compared as they are built.
"""

import importlib
import json
import pickle
import shutil
import sys
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from threading import Barrier, Thread, get_ident
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from networks import tuned
from PIL import Image
from scipy.io import savemat
from torchvision.models import detection, get_model, get_model_weights, list_models
from videos import decode

from be import analysis, bias, datasets, prepare, synthetic, weights
from be.analysis import SMALLEST, torchvision_detector
from be.bias import Mask, stored_masks
from be.config import ConfigError
from be.runs import RunError, make_accelerator
from be.video import Reader

sys.path.append(str(ROOT / "benchmarks"))
script = importlib.import_module("masks")
T, H, W = 20, 48, 64


@pytest.fixture(scope="module")
def hmdb(tmp_path_factory):
    data = tmp_path_factory.mktemp("hmdb")
    synthetic.synth(data / "hmdb51", "hmdb51", train=1, test=1, frames=T, height=H, width=W, workers=1)
    return data


# ---- masks


def blobs(seed, frames=T, h=H, w=W):
    """Masks with something in each frame: bool (T, h, w)."""
    return np.random.default_rng(seed).random((frames, h, w)) < 0.2


def boxes_by_loops(boxes, shape):
    """All pixels, one by one: is some of it inside?"""
    mask = np.zeros(shape, bool)
    for frame, left, top, right, bottom in boxes:
        for y, x in np.ndindex(shape[1:]):
            mask[int(frame), y, x] |= left < x + 1 and right > x and top < y + 1 and bottom > y
    return mask


def write_packed(stem, mask):
    found = np.uint8(mask.any((1, 2)))
    np.savez_compressed(stem, mask=np.packbits(mask, axis=2), shape=np.int32(mask.shape), found=found)


def write_plain(stem, mask):
    np.savez(stem, mask=mask)


def write_pictures(stem, mask, kind):
    stem.mkdir()
    for n, one in enumerate(mask, 1):
        picture = Image.fromarray(one.astype(np.uint8) * {"L": 1, "P": 1, "1": 255, "RGB": 255}[kind])
        if kind == "P":  # as DAVIS has them: person 1 is dark red
            picture.putpalette([0, 0, 0, 128, 0, 0])
        (picture if kind in "LP" else picture.convert(kind)).save(stem / f"{n:05d}.png")


def write_puppet(stem, mask):
    stem.mkdir()
    savemat(stem / "puppet_mask.mat", {"part_mask": mask.transpose(1, 2, 0).astype(np.uint8)})


FORMATS = {"packed": write_packed, "plain": write_plain, "puppet": write_puppet,
           **{kind: partial(write_pictures, kind=kind) for kind in ("L", "P", "1", "RGB")}}


@pytest.fixture
def theirs(hmdb, tmp_path):
    """The list of all videos; a folder with masks of the first ones, a format each; {place: what they are}."""
    samples, folder, truth = analysis.all_videos(datasets.DATASETS["hmdb51"], hmdb), tmp_path / "theirs", {}
    assert len(samples) == 32 and len(set(samples.paths.tolist())) == 32
    for i, write in enumerate(FORMATS.values()):
        truth[i] = blobs(i, h=30 + i, w=41 + i)  # masks have a size of their own
        stem = bias.mask_file(folder, samples.paths[i]).with_suffix("")
        stem.parent.mkdir(parents=True, exist_ok=True)
        write(stem, truth[i])
    i, boxes = len(FORMATS), [(0, 3.2, 4, 9.5, 20), (0, 30, 10, 40, 12), (19, -5, 40.5, 70, 99)]
    table = "\n".join(["frame,left,top,right,bottom", *(",".join(map(str, box)) for box in boxes)])
    bias.mask_file(folder, samples.paths[i]).with_suffix(".csv").write_text(table)
    return samples, folder, {**truth, i: boxes_by_loops(boxes, (T, H, W))}


def test_every_format_is_read(theirs, capsys):
    samples, folder, truth = theirs
    read = stored_masks(samples, folder)
    for i, mask in truth.items():
        assert read(i).source == "file" and np.array_equal(read(i).mask, mask), list(FORMATS)[i]
    assert read(len(truth)).source == "none" and not read(len(truth)).mask.size and not capsys.readouterr().err
    with pytest.raises(ConfigError, match="no such folder.*run.py masks"):
        stored_masks(samples, folder / "none")


def test_what_does_not_fit_or_is_broken_is_named(theirs, capsys):
    samples, folder, truth = theirs
    bad = len(truth)
    file = bias.mask_file(folder, samples.paths[bad])
    file.parent.mkdir(exist_ok=True)

    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    for content, said in [(dict(mask=blobs(0)[:19]), "(19, 48, 64) is not.*20 frames"), (dict(shape=3), "mask"),
                          (dict(mask=np.array([Evil()])), "pickle"), (None, "npz")]:
        if content is None:
            file.write_bytes(b"no numpy")
        else:
            np.savez(file, **content)
        assert stored_masks(samples, folder)(bad) == bias.NO_MASK
        error = capsys.readouterr().err
        assert error.startswith(f"no mask of {samples.path(bad)}: ") and all(word in error for word in said.split(".*"))
    file.unlink()
    file.with_suffix(".csv").write_text("frame,left,top,right,bottom\n20,1,2,3,4\n")
    assert stored_masks(samples, folder)(bad) == bias.NO_MASK and "out of bounds" in capsys.readouterr().err


def test_the_verb_stores_goes_on_and_counts(theirs, hmdb, tmp_path, capsys):
    samples, folder, truth = theirs
    to = tmp_path / "to"
    analysis.masks("hmdb51", str(hmdb), str(folder), to=str(to))
    assert json.loads((to / "masks.json").read_text())["sources"] == {"file": len(truth), "none": 32 - len(truth)}
    kept = {file: file.stat().st_mtime_ns for file in to.rglob("*.npz")}
    assert len(kept) == len(truth)
    analysis.masks("hmdb51", str(hmdb), "median", to=str(to))  # the rest
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    read, state = stored_masks(samples, to), blake2b(digest_size=8)
    for i in range(32):
        mask, source = read(i)
        if i in truth:
            assert source == "file" and np.array_equal(mask, truth[i])
        else:
            x = decode(samples.path(i), np.arange(T)).astype(int)
            still = np.sort(x, 0)[(T - 1) // 2]
            assert source == "median" and np.array_equal(mask, (abs(x - still) > 0.15 * 255).any(3))
        state.update(b"%d %d %d " % mask.shape + np.packbits(mask).tobytes())
    summary = json.loads((to / "masks.json").read_text())
    assert summary == {"videos": 32, "sources": {"file": len(truth), "median": 32 - len(truth)},
                       "hash": state.hexdigest()}
    assert summary["hash"] in capsys.readouterr().out and not list(to.rglob(".*"))
    assert sum(file.stat().st_size for file in to.rglob("*.npz")) < 32 * T * H * W / 8


def test_an_unreadable_video_has_no_mask(hmdb, tmp_path, capsys):
    shutil.copytree(hmdb / "hmdb51", tmp_path / "hmdb51")
    samples = analysis.all_videos(datasets.DATASETS["hmdb51"], tmp_path)
    with open(samples.path(3), "wb") as file:
        file.write(b"no video")
    analysis.masks("hmdb51", str(tmp_path), "median")
    assert json.loads((tmp_path / "masks/hmdb51/masks.json").read_text())["sources"] == {"median": 31, "none": 1}
    assert f"no mask: {samples.path(3)}" in capsys.readouterr().err


def test_stored_truth_is_as_good_as_the_truth(tiny, tmp_path, capsys):
    """And a video that has no file has no mask."""
    _, cfg, _ = tuned(tiny, tmp_path, masks=tmp_path / "masks", scene="masks")
    analysis.masks("ucf101", str(tiny), "rendered", to=str(tmp_path / "masks"))
    samples, accelerator = datasets.load("ucf101", tiny, "swapped", 1), make_accelerator(cfg)
    _, known = bias.lend(samples, replace(cfg, scene="rendered"), accelerator)
    gone = known.argmax()
    bias.mask_file(tmp_path / "masks", samples.paths[gone]).unlink()
    lenders, found = bias.lend(samples, cfg, accelerator)
    assert "1 none at all" in capsys.readouterr().out and (known & ~found).nonzero()[0].tolist() == [gone]
    assert not (lenders == gone).any()


# ---- Actor-HMDB51


@pytest.mark.parametrize(("width", "height"), [(80, 60), (81, 63), (30, 40)])
def test_the_smallest_box_by_brute_force(width, height):
    """No box of even sides, at least SMALLEST long where the picture is, is smaller and covers all that is painted."""
    rng = np.random.default_rng(width)
    for _ in range(30):
        shape = rng.integers(5, 90, 2)  # of the mask, which covers the picture
        mask = rng.random(shape) < rng.choice([1 / shape.prod(), 0.005])
        mask[tuple(rng.integers(0, shape))] = True
        left, top, right, bottom = analysis.smallest_box(mask, (width, height))
        painted = np.zeros((height, width), bool)  # the pixels of the picture that a pixel of the mask touches
        for i, j in np.argwhere(mask):
            edges = [(n * side / count, (n + 1) * side / count)
                     for n, side, count in ((i, height, shape[0]), (j, width, shape[1]))]
            (y, b), (x, r) = ((int(np.floor(low)), int(np.ceil(high))) for low, high in edges)
            painted[y:b, x:r] = True
        for start, stop, size, line in ((left, right, width, painted.any(0)), (top, bottom, height, painted.any(1))):
            least = min(SMALLEST, size // 2 * 2)
            allowed = [(a, z) for a in range(size) for z in range(a + 2, size + 1, 2) if z - a >= least]
            covering = [(z - a) for a, z in allowed if not line[:a].any() and not line[z:].any()]
            if covering:
                assert stop - start == min(covering) and not line[:start].any() and not line[stop:].any()
            else:  # all of an odd picture
                assert stop - start == size // 2 * 2
            assert 0 <= start < stop <= size and (stop - start) % 2 == 0


class Stub:
    """Persons at a place that drifts by a pixel a frame; none in videos whose path has `pulse` in it."""

    def __init__(self, deadly=None):
        self.deadly, self.calls = deadly, []

    def __call__(self, i):
        path = self.samples.paths[i]
        if path == self.deadly:
            raise KeyboardInterrupt
        self.calls.append((path, get_ident()))
        mask = np.zeros((T, H, W), bool)
        for n in range(0 if b"pulse" in path else T):
            mask[n, 3:20, 4 + n : 10 + n] = mask[n, 6:39, 20:30] = True
        return Mask(mask, "stub")


@pytest.fixture
def crop(hmdb, tmp_path, monkeypatch):
    """crop(stub, score): makes Actor-HMDB51 of the videos of `hmdb` in the folder of the test."""
    (tmp_path / "hmdb51").symlink_to(hmdb / "hmdb51")

    def made(stub, score=0.8):
        def locator(*words):
            stub.samples = words[-1]
            return stub

        monkeypatch.setattr(analysis, "locator", locator)
        analysis.actors(data=str(tmp_path), detector="stub", score=score)

    return made


def summary_of(data):
    return json.loads((data / "actor_hmdb51/actors.json").read_text())


def paths_of(data, name="hmdb51"):
    return sorted(path.relative_to(data / name) for path in (data / name).rglob("*.avi"))


def copy_of(data, path):
    """The copy of a video, and its log."""
    copy = data / "actor_hmdb51/actor-hmdb51" / path.parent.name / path.name
    return copy, json.loads(copy.with_suffix(".json").read_text())


def test_a_dataset_made_with_a_stub(crop, tmp_path, capsys):
    paths, real = paths_of(tmp_path), Reader
    broken = paths[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "Reader", lambda path: real("/dev/null" if path.endswith(broken.name) else path))
        crop(Stub())
    summary = summary_of(tmp_path)
    assert copy_of(tmp_path, broken)[1]["done"] == "unreadable" and not copy_of(tmp_path, broken)[0].exists()
    for path in paths[1:]:
        copy, line = copy_of(tmp_path, path)
        if "pulse" in path.name:
            assert line["done"] == "kept whole" and line["frames_with_persons"] == 0
            assert copy.read_bytes() == (tmp_path / "hmdb51" / path).read_bytes()
            continue
        assert line["done"] == "cropped" and line["frames_with_persons"] == 20
        x, y, right, bottom = line["box"]  # 4 to 30 and 3 to 39; x is widened to 32
        assert line["area_kept"] == pytest.approx(100 * 32 * 36 / (64 * 48))
        assert right - x == 32 and bottom - y == 36 and x <= 4 and right >= 30 and y <= 3 and bottom >= 39
        with Reader(copy) as video:
            assert (video.frames, video.info.width, video.info.height, video.info.fps) == (20, 32, 36, 25)
            made = video.decode(np.arange(20)).astype(float)
        source = decode(tmp_path / "hmdb51" / path, np.arange(20)).astype(float)[:, y:bottom, x:right]
        shifts = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
        off = [np.abs(np.roll(made, shift, (1, 2)) - source).mean() for shift in shifts]
        assert off[0] < 10 and off[0] < 0.8 * min(off[1:])  # levels of 255: lossy, but the same place to the pixel
    assert (summary["videos"], summary["unreadable"], summary["kept whole"], summary["cropped"]) == (32, 1, 4, 27)
    assert "kept whole 4" in capsys.readouterr().out and not list((tmp_path / "actor_hmdb51").rglob(".*"))
    ours, theirs = (datasets.load(name, tmp_path, "train", 1).paths.tolist() for name in ("actor_hmdb51", "hmdb51"))
    assert [path.split(b"/")[1:] for path in ours] == [path.split(b"/")[1:] for path in theirs]


def test_it_goes_on_where_it_was_killed(crop, tmp_path):
    paths, stub = [bytes(path) for path in paths_of(tmp_path)], Stub()
    with pytest.raises(KeyboardInterrupt):
        crop(Stub(deadly=paths[5]))
    assert not (tmp_path / "actor_hmdb51/actors.json").exists()
    crop(stub)
    assert summary_of(tmp_path)["videos"] == 32 and [path for path, _ in stub.calls] == paths[5:]
    with pytest.raises(RunError, match="was made with"):
        crop(stub, score=0.5)


def test_a_copy_that_cannot_be_written_is_an_error(crop, tmp_path, monkeypatch):
    def full(path, frames, fps, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space")

    monkeypatch.setattr(analysis, "encode", full)
    with pytest.raises(RunError, match="No space.*same command again"):
        crop(Stub())
    assert not paths_of(tmp_path, "actor_hmdb51")


def test_two_processes_share_the_videos(crop, tmp_path, monkeypatch):
    stub, barrier = Stub(), Barrier(2, timeout=60)
    ranks = [SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0, device="cpu",
                             wait_for_everyone=barrier.wait) for rank in (0, 1)]
    monkeypatch.setattr(analysis, "Accelerator", lambda **_: ranks.pop())
    crew = [Thread(target=crop, args=[stub]) for _ in range(2)]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    paths, threads = zip(*stub.calls, strict=True)
    assert sorted(paths) == [bytes(path) for path in paths_of(tmp_path)]
    assert sorted(threads.count(thread) for thread in {*threads}) == [16, 16]
    assert summary_of(tmp_path)["videos"] == 32


def test_actors_by_the_truth_and_by_stored_masks(hmdb, tmp_path):
    """Both crop alike, to the box around the true actors."""
    analysis.masks("hmdb51", str(hmdb), "rendered", to=str(tmp_path / "masks"))
    boxes = {}
    for name, words in (("true", {"detector": "rendered"}), ("stored", {"masks": str(tmp_path / "masks")})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hmdb51").symlink_to(hmdb / "hmdb51")
        analysis.actors(data=str(tmp_path / name), **words)
        assert summary_of(tmp_path / name)["cropped"] == 32
        boxes[name] = [copy_of(tmp_path / name, path)[1]["box"] for path in paths_of(tmp_path / name)]
    assert boxes["true"] == boxes["stored"]
    specs = bias.specs(str(hmdb / "hmdb51"))
    for path, (left, top, right, bottom) in list(zip(paths_of(hmdb), boxes["true"], strict=True))[::8]:
        where = np.argwhere(synthetic.render(specs[bytes(path)])[1].any(0))
        assert (where.min(0) >= (top, left)).all() and (where.max(0) < (bottom, right)).all()
        assert (np.array([bottom - top, right - left]) <= np.maximum(np.ptp(where, 0) + 2, SMALLEST)).all()
    assert len(datasets.load("actor_hmdb51", tmp_path / "true", "swapped", 1)) == 8
    with pytest.raises(ConfigError, match="of synthetic videos, which those in .*hmdb"):
        analysis.locator("rendered", None, 0, "cpu", SimpleNamespace(root=str(hmdb)))


def test_make_crops_by_stored_masks(tmp_path, capsys):
    for masks in ([], [f"masks={tmp_path}/masks/hmdb51"]):
        prepare.steps("real-figure5", words=f"data={tmp_path} out={tmp_path}", splits=[1])
        actors = [line.split()[2:] for line in capsys.readouterr().out.splitlines() if " actors " in line]
        assert actors == [["actors", f"data={tmp_path}", *masks]]
        (tmp_path / "masks/hmdb51").mkdir(parents=True, exist_ok=True)


# ---- torchvision


class Detector(torch.nn.Module):
    """Sees something else and two persons; how sure it is, the last three pixels of the first line say."""

    outlines = False

    def forward(self, pictures):
        one = {"labels": torch.tensor([2, 1, 1])}
        if self.outlines:
            one["masks"] = torch.zeros(3, 1, 8, 9)
            one["masks"][0], one["masks"][1, 0, 5, 4:6], one["masks"][2, 0, 7, 2] = 1, torch.tensor([0.6, 0.4]), 0.9
        else:
            one["boxes"] = torch.tensor([[0.0, 0, 9, 8], [4.5, 5, 6, 6], [2, 7, 3, 8]])
        return [{**one, "scores": picture[0, 0, -3:]} for picture in pictures]


@pytest.mark.parametrize("outlines", [False, True])
def test_persons_of_enough_confidence_are_found(tmp_path, monkeypatch, outlines):
    known = [get_model_weights(name).DEFAULT.meta["categories"] for name in list_models(module=detection)]
    assert {categories[1] for categories in known} == {"person"}
    monkeypatch.setattr(analysis, "get_model", lambda *_, **__: Detector())
    monkeypatch.setattr(Detector, "outlines", outlines)
    torch.save({}, tmp_path / "none.pth")
    detect = torchvision_detector("maskrcnn_resnet50_fpn", str(tmp_path / "none.pth"), 0.5, "cpu")
    frames = np.full((3, 8, 9, 3), 255, np.uint8)
    frames[1, 0, -2], frames[2, 0, -1] = 127, 0  # of 255: less than 0.5
    first, last = {(5, 4)} if outlines else {(5, 4), (5, 5)}, {(7, 2)}
    assert [set(map(tuple, np.argwhere(mask))) for mask in detect(frames)] == [first | last, last, first]


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_it_is_built_as_torchvision_builds_it(name, monkeypatch):
    """With its own weights torchvision freezes BatchNorm and changes its epsilon; ours must compute the same."""
    official = get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    tensors = get_model(name, weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(type(official), "get_state_dict", lambda self, **_: tensors)
    theirs, ours = get_model(name, weights=official).eval(), []
    monkeypatch.setattr(analysis, "find", lambda source: source)
    monkeypatch.setattr(weights, "read", lambda file: dict(theirs.state_dict()))  # without num_batches_tracked
    monkeypatch.setattr(analysis, "get_model", lambda *a, **k: ours.append(get_model(*a, **k)) or ours[0])
    torchvision_detector(name, "file", 0.5, "cpu")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours[0].backbone(x).values(), theirs.backbone(x).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not ours[0].training


def test_wrong_detectors_are_said(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name, file, error, words in [("yolo", "other", ConfigError, "unknown detector or folder 'yolo'.*rendered"),
                                     ("ssdlite320_mobilenet_v3_large", "other", weights.WeightsError, "not fit SSD"),
                                     ("ssdlite320_mobilenet_v3_large", "none", weights.WeightsError, "not exist")]:
        with pytest.raises(error, match=words):
            torchvision_detector(name, str(tmp_path / f"{file}.pth"), 0.5, "cpu")


# ---- benchmarks/masks.py

def test_the_published_boxes_become_tables(hmdb, tmp_path):
    """Both forms of UCF101-24's boxes, of the same persons; what would run code is refused."""
    names = ["/".join(map(str, path.parts[-2:])).removesuffix(".avi") for path in paths_of(hmdb)[:2]]
    first, second = np.array([[0, 10, 20, 30, 45]]), np.array([[4, 1, 2, 3, 4], [5, 2, 2, 4, 4.0]])
    tubes = {"labels": ["a"], "gttubes": {names[0]: {0: [first + [1, 0, 0, 0, 0]]},
                                          names[1]: {0: [first + [1, 0, 0, 0, 0], second + [1, 0, 0, 0, 0]]}}}
    def tube(boxes):
        start = boxes[0, 0].astype(np.uint8)
        return {"label": 0, "sf": start, "ef": start + len(boxes), "boxes": np.column_stack(
            [boxes[:, 1:3], boxes[:, 3:] - boxes[:, 1:3]]).astype(np.int16)}
    annotations = {names[0]: {"label": 0, "numf": 20, "annotations": [tube(first)]},
                   names[1]: {"label": 0, "numf": 20, "annotations": [tube(first), tube(second)]}}
    truth = [boxes_by_loops(first, (T, H, W)), boxes_by_loops([*first, *second], (T, H, W))]
    samples = analysis.all_videos(datasets.DATASETS["hmdb51"], hmdb)
    for name, held in (("tubes", tubes), ("annotations", annotations)):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(held, protocol=2))
        script.boxes(str(tmp_path / f"{name}.pkl"), str(tmp_path / name))
        read = stored_masks(samples, tmp_path / name)
        for one, mask in zip(names, truth, strict=True):
            (i,) = [i for i, path in enumerate(samples.paths.tolist()) if one in path.decode()]
            assert np.array_equal(read(i).mask, mask)
    for held in (b"cos\nsystem\n(S'true'\ntR.", pickle.dumps([1]), b"", pickle.dumps({"x": 3})):
        (tmp_path / "evil.pkl").write_bytes(held)
        with pytest.raises(ConfigError, match="neither UCF101v2-GT.pkl nor"):
            script.boxes(str(tmp_path / "evil.pkl"), str(tmp_path / "evil"))


@pytest.mark.parametrize("drift", [0, 24])
def test_the_path_of_the_camera_is_the_true_one(drift):
    """Within a pixel, on scenes that do not repeat, with an actor who moves."""
    plan = synthetic.plan("ucf101", train=1, test=1, scene_bias=0.9, seed=3, frames=40, height=72, width=96,
                          drift=drift, natural=True)
    for spec in [video.spec for video in plan if not video.swapped][:4]:
        frames, mask, _ = synthetic.render(spec)
        (pan, *_), found = synthetic.camera(spec), script.camera_path(frames, mask)
        true = (pan.T - pan.T[0])[:: script.STEP]
        assert np.abs(found - true).max() < 1 and (np.ptp(true) > 5 or not drift)


def test_the_median_is_measured(hmdb, tmp_path):
    """Against the loops, on videos whose true masks are stored; the totals are those of the videos."""
    (tmp_path / "hmdb51").symlink_to(hmdb / "hmdb51")
    analysis.masks("hmdb51", str(tmp_path), "rendered")
    script.measure(str(tmp_path), str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    samples, overlaps = analysis.all_videos(datasets.DATASETS["hmdb51"], tmp_path), []
    read = stored_masks(samples, tmp_path / "masks/hmdb51")
    for i in range(32):
        x, true = decode(samples.path(i), np.arange(T)).astype(int), read(i).mask
        by_median = (abs(x - np.sort(x, 0)[(T - 1) // 2]) > 0.15 * 255).any(3)
        seen = true.any((1, 2))
        if 0.05 <= true.mean() <= 0.5:
            overlaps.append((by_median & true)[seen].sum() / (by_median | true)[seen].sum())
    assert found["of_5_to_50_percent"] == found["all"]["n"] == len(overlaps) > 10
    assert found["all"]["iou_mean"] == pytest.approx(np.mean(overlaps), abs=1e-3)
    assert sum(row["n"] for row in found["by_camera"]) == len(overlaps)
