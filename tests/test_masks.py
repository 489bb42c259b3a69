"""Masks in every format that others have, stored and counted; Actor-HMDB51.

Masks are written by other libraries (Pillow, SciPy, NumPy), converted and read back. The crops are held against a
brute-force search, with a stub for torchvision's detector.
"""

import filecmp
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
from torchvision.models import get_model_weights
from videos import decode

from be import analysis, bias, datasets, prepare, synthetic, weights
from be.analysis import DETECTOR, SMALLEST
from be.bias import stored_masks
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


@pytest.fixture
def data(hmdb, tmp_path):
    """A folder with the videos of `hmdb`, to put other things beside them; and their list."""
    (tmp_path / "hmdb51").symlink_to(hmdb / "hmdb51")
    return tmp_path, analysis.all_videos("hmdb51", tmp_path)


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


def pack(file, mask, **about):
    np.savez_compressed(file, mask=np.packbits(mask, axis=2), shape=np.int32(mask.shape), **about)


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


FORMATS = {"packed": pack, "plain": lambda stem, mask: np.savez(stem, mask=mask), "puppet": write_puppet,
           **{kind: partial(write_pictures, kind=kind) for kind in ("L", "P", "1", "RGB")}}


@pytest.fixture
def theirs(data, tmp_path):
    """A folder with masks of the first videos, a format each; {place: what they are}."""
    folder, truth = tmp_path / "theirs", {}
    _, samples = data
    assert len(samples) == 32 and len(set(samples.paths.tolist())) == 32
    stems = [bias.mask_file(folder, path).with_suffix("") for path in samples.paths]
    for i, write in enumerate(FORMATS.values()):
        truth[i] = blobs(i, h=30 + i, w=41 + i)  # masks have a size of their own
        stems[i].parent.mkdir(parents=True, exist_ok=True)
        write(stems[i], truth[i])
    boxes = [(0, 3.2, 4, 9.5, 20), (0, 30, 10, 40, 12), (19, -5, 40.5, 70, 99)]
    table = "\n".join(["frame,left,top,right,bottom", *(",".join(map(str, box)) for box in boxes)])
    stems[len(truth)].with_suffix(".csv").write_text(table)
    return folder, {**truth, len(truth): boxes_by_loops(boxes, (T, H, W))}


def test_what_others_have_is_converted_and_the_verb_does_the_rest(data, theirs, capsys):
    (tmp_path, samples), (folder, truth) = data, theirs
    to, videos = tmp_path / "masks/hmdb51", tmp_path / "hmdb51/hmdb51"
    script.convert(str(folder), str(videos), str(to))
    assert f"masks of {len(truth)} videos" in capsys.readouterr().out
    analysis.masks("hmdb51", str(tmp_path), "none")
    assert json.loads((to / "masks.json").read_text())["sources"] == {"file": len(truth), "none": 32 - len(truth)}
    kept = {file: file.stat().st_mtime_ns for file in to.rglob("*.npz")}
    assert len(kept) == len(truth) and not capsys.readouterr().err
    analysis.masks("hmdb51", str(tmp_path), "rendered")
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    read, specs, state = stored_masks(samples, to), bias.specs(samples.root), blake2b(digest_size=8)
    for i in range(32):
        mask, source = read(i)
        assert source == ("file" if i in truth else "rendered")
        assert np.array_equal(mask, truth[i] if i in truth else synthetic.render(specs[samples.paths[i]])[1])
        state.update(b"%d %d %d " % mask.shape + np.packbits(mask).tobytes())
    summary = json.loads((to / "masks.json").read_text())
    assert summary == {"videos": 32, "sources": {"file": len(truth), "rendered": 32 - len(truth)},
                       "hash": state.hexdigest()}
    assert summary["hash"] in capsys.readouterr().out and not list(to.rglob(".*"))
    assert sum(file.stat().st_size for file in to.rglob("*.npz")) < 32 * T * H * W / 8


def test_jobs_that_share_the_masks_make_what_one_makes(data, capsys):
    tmp_path, _ = data
    whole, parts, made = tmp_path / "whole", tmp_path / "parts", []
    analysis.masks("hmdb51", str(tmp_path), "rendered", to=str(whole))
    for part in "213":
        analysis.masks("hmdb51", str(tmp_path), "rendered", to=str(parts), shard=f"{part}/3")
        made.append(len([*parts.rglob("*.npz")]))
        assert not (parts / "masks.json").exists()
    assert 0 < made[0] < made[1] < made[2] == 32
    analysis.masks("hmdb51", str(tmp_path), "none", to=str(parts))
    files = [{file.relative_to(to): file.read_bytes() for file in to.rglob("*.*")} for to in (whole, parts)]
    assert files[0] == files[1] and len(files[0]) == 33
    with pytest.raises(ConfigError, match="shard=4/3 must be K/N, K from 1 to N"):
        analysis.masks("hmdb51", str(tmp_path), "rendered", to=str(parts), shard="4/3")


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_what_does_not_fit_or_is_broken_is_named(data, capsys):
    """By `convert`, and where it lies among the masks."""
    tmp_path, samples = data
    videos, path = tmp_path / "hmdb51/hmdb51", samples.path(0)
    file = bias.mask_file(tmp_path / "theirs", samples.paths[0])
    file.parent.mkdir(parents=True)
    for content, said in [(dict(mask=blobs(0)[:19]), "(19, 48, 64) is not.*20 frames"), (dict(shape=3), "mask"),
                          (dict(mask=np.array([Evil()])), "pickle"), (None, "npz")]:
        if content is None:
            file.write_bytes(b"no numpy")
        else:
            np.savez(file, **content)
        with pytest.raises(SystemExit, match="has no mask of a video.*both are folders of classes"):
            script.convert(str(tmp_path / "theirs"), str(videos), str(tmp_path / "to"))
        error = capsys.readouterr().err
        assert error.startswith(f"no mask of {path}: ") and all(word in error for word in said.split(".*"))
        if content and "mask" in content and content["mask"].dtype == bool:
            pack(file, **content)
        assert stored_masks(samples, tmp_path / "theirs")(0) == bias.NO_MASK
        error = capsys.readouterr().err
        assert error.startswith(f"no mask of {path}: ") and all(word in error for word in said.split(".*"))
    file.unlink()
    file.with_suffix(".csv").write_text("frame,left,top,right,bottom\n20,1,2,3,4\n")
    with pytest.raises(SystemExit):
        script.convert(str(tmp_path / "theirs"), str(videos), str(tmp_path / "to"))
    assert "out of bounds" in capsys.readouterr().err and not (tmp_path / "to").exists()
    for folder in ("theirs", "none"):
        with pytest.raises(ConfigError, match="has no CLASS/NAME.npz.*run.py masks.*masks.py convert"):
            stored_masks(samples, tmp_path / folder)


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


def test_processes_share_what_is_missing(tmp_path):
    """Each file is made once, even where one process is done before another begins."""
    files, barrier, made = [tmp_path / str(i) for i in range(9)], Barrier(2, timeout=60), []
    files[4].touch()

    def make(i, file):
        assert file == files[i]
        file.touch()
        made.append((i, get_ident()))

    def process(rank):
        me = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0,
                             wait_for_everyone=barrier.wait)
        analysis.make_missing(files, make, me, "files")
        assert all(file.exists() for file in files)

    crew = [Thread(target=process, args=[rank]) for rank in (0, 1)]
    for action in (Thread.start, Thread.join):
        for one in crew:
            action(one)
    places, threads = zip(*made, strict=True)
    assert sorted(places) == [0, 1, 2, 3, 5, 6, 7, 8] and sorted(map(threads.count, {*threads})) == [4, 4]


# ---- torchvision


class Detector(torch.nn.Module):
    """Sees something else everywhere, a person where it is red, and one everywhere of whom it is not so sure."""

    def forward(self, pictures):
        everywhere = [torch.ones_like(picture[:1]) for picture in pictures]
        return [{"labels": torch.tensor([2, 1, 1]), "scores": torch.tensor([0.99, 0.9, 0.4]),
                 "masks": torch.stack([whole, picture[:1], whole])} for whole, picture in
                zip(everywhere, pictures, strict=True)]


def test_persons_of_enough_confidence_are_found(hmdb, tmp_path, monkeypatch, capsys):
    shutil.copytree(hmdb / "hmdb51", tmp_path / "hmdb51")
    samples = analysis.all_videos("hmdb51", tmp_path)
    with open(samples.path(3), "wb") as file:
        file.write(b"no video")
    monkeypatch.setattr(analysis, "get_model", lambda *_, **__: Detector())
    torch.save({}, tmp_path / "none.pth")
    words = {"weights": str(tmp_path / "none.pth"), "score": 0.5}
    assert get_model_weights(DETECTOR).DEFAULT.meta["categories"][1] == "person"
    analysis.masks("hmdb51", str(tmp_path), **words)
    source = f"{DETECTOR}, score 0.5, weights {tmp_path}/none.pth"
    summary = json.loads((tmp_path / "masks/hmdb51/masks.json").read_text())
    assert summary["sources"] == {source: 31, "none": 1}
    assert f"no mask: {samples.path(3)}" in capsys.readouterr().err
    read = stored_masks(samples, tmp_path / "masks/hmdb51")
    for i in (0, 1, 31):
        assert np.array_equal(read(i).mask, decode(samples.path(i), np.arange(T))[..., 0] > 127)
    for score, share in ((0.3, 1), (0.95, 0)):
        locate = analysis.locator(DETECTOR, **words | {"score": score}, device="cpu", samples=samples)
        assert locate(0).shape == (T, H, W) and locate(0).mean() == share


def test_wrong_sources_are_said(hmdb, tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    real = SimpleNamespace(root=str(hmdb))
    for name, file, error, words in [("yolo", "other", ConfigError, "unknown source 'yolo'.*rendered.*masks.py conv"),
                                     (DETECTOR, "other", weights.WeightsError, "not fit MaskRCNN"),
                                     (DETECTOR, "none", weights.WeightsError, "not exist"),
                                     ("rendered", "other", ConfigError, "of synthetic videos, which those in")]:
        with pytest.raises(error, match=words):
            analysis.locator(name, str(tmp_path / f"{file}.pth"), 0.5, "cpu", real)


# ---- Actor-HMDB51


@pytest.mark.parametrize(("width", "height"), [(80, 60), (81, 63), (30, 40)])
def test_the_smallest_box_by_brute_force(width, height):
    """No box of even sides, at least SMALLEST long where the picture is, is smaller and covers all that is painted."""
    rng = np.random.default_rng(width)
    for _ in range(30):
        shape = rng.integers(5, 90, 2)  # of the mask, which covers the picture
        mask = rng.random(shape) < rng.choice([1 / shape.prod(), 0.005])
        mask[tuple(rng.integers(0, shape))] = True
        left, top, right, bottom = analysis.smallest_box(mask, height, width)
        painted = np.zeros((height, width), bool)  # the pixels of the picture that a pixel of the mask touches
        for i, j in np.argwhere(mask):
            y, b = i * height // shape[0], -(-(i + 1) * height // shape[0])
            x, r = j * width // shape[1], -(-(j + 1) * width // shape[1])
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


def copies_of(samples, data):
    return [data / "actor_hmdb51/actor-hmdb51" / "/".join(path.decode().split("/")[-2:])
            for path in samples.paths.tolist()]


def test_a_dataset_is_cropped_to_its_persons(data, monkeypatch, capsys):
    """True masks, but of the first videos: one has no file, one shows nobody, one cannot be read."""
    (tmp_path, samples), real = data, Reader
    with pytest.raises(RunError, match="masks.json does not exist: run.py masks --cfg hmdb51"):
        analysis.actors(str(tmp_path))
    analysis.masks("hmdb51", str(tmp_path), "rendered")
    files = [bias.mask_file(tmp_path / "masks/hmdb51", path) for path in samples.paths]
    files[0].unlink()
    pack(files[1], np.zeros((T, H, W), bool))
    analysis.masks("hmdb51", str(tmp_path), "none")
    monkeypatch.setattr(analysis, "Reader", lambda path: real("/dev/null" if path == samples.path(2) else path))
    analysis.actors(str(tmp_path))
    copies, specs = copies_of(samples, tmp_path), bias.specs(samples.root)
    made = json.loads((tmp_path / "actor_hmdb51/actors.json").read_text())
    assert made.pop("unreadable") == 1 and made == json.loads((tmp_path / "masks/hmdb51/masks.json").read_text())
    told = capsys.readouterr()
    assert "no copy: /dev/null" in told.err and '"unreadable": 1' in told.out
    assert [copy.exists() for copy in copies] == [True, True, False] + [True] * 29
    for i in (0, 1):
        assert filecmp.cmp(copies[i], samples.path(i), shallow=False)
    sizes = set()
    for i in range(3, 32, 4):
        mask = synthetic.render(specs[samples.paths[i]])[1].any(0)
        left, top, right, bottom = analysis.smallest_box(mask, H, W)
        inside = mask[top:bottom, left:right]
        assert inside.sum() == mask.sum() and inside.shape[0] <= max(SMALLEST, np.ptp(np.argwhere(mask)[:, 0]) + 2)
        with Reader(copies[i]) as video:
            assert (video.frames, video.info.fps) == (T, 25)
            found = video.decode(np.arange(T)).astype(float)
        source = decode(samples.path(i), np.arange(T)).astype(float)[:, top:bottom, left:right]
        off = [np.abs(np.roll(found, shift, (1, 2)) - source).mean() for shift in
               ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))]
        assert off[0] < 10 and off[0] < 0.8 * min(off[1:])  # levels of 255: lossy, but the same place to the pixel
        sizes.add(found.shape[1:3])
    assert len(sizes) > 2 and not list((tmp_path / "actor_hmdb51").rglob(".*"))
    ours, theirs = (datasets.load(name, tmp_path, "train", 1).paths.tolist() for name in ("actor_hmdb51", "hmdb51"))
    assert [path.split(b"/")[1:] for path in ours] == [path.split(b"/")[1:] for path in theirs]
    assert len(datasets.load("actor_hmdb51", tmp_path, "swapped", 1)) == 8


def test_it_goes_on_where_it_was_killed(data, monkeypatch):
    (tmp_path, samples), calls, encode = data, [], analysis.encode
    analysis.masks("hmdb51", str(tmp_path), "rendered")

    def film(path, *words, **more):
        calls.append(path.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        if len(calls) == 10:
            path.write_bytes(b"half")
            raise OSError(28, "No space")
        encode(path, *words, **more)

    monkeypatch.setattr(analysis, "encode", film)
    with pytest.raises(KeyboardInterrupt):
        analysis.actors(str(tmp_path))
    with pytest.raises(RunError, match="No space.*same command again"):
        analysis.actors(str(tmp_path))
    copies = copies_of(samples, tmp_path)
    assert [copy.exists() for copy in copies] == [True] * 8 + [False] * 24
    assert not (tmp_path / "actor_hmdb51/actors.json").exists() and not list(copies[8].parent.glob(".*"))
    analysis.actors(str(tmp_path))
    assert calls == [f".{copies[i].name}" for i in (*range(6), *range(5, 9), *range(8, 32))]
    bias.mask_file(tmp_path / "masks/hmdb51", samples.paths[0]).unlink()
    analysis.masks("hmdb51", str(tmp_path), "none")
    with pytest.raises(RunError, match="was made of other masks"):
        analysis.actors(str(tmp_path))


def test_make_finds_the_persons_first(tmp_path, capsys):
    def commands(**more):
        prepare.steps("real-figure5", words=f"data={tmp_path} out={tmp_path}", splits=[1], **more)
        lines = [line.split()[2:] for line in capsys.readouterr().out.splitlines()]
        return [words for words in lines if words[0] in ("masks", "actors")]

    masks, actors = ["masks", "--cfg", "hmdb51", f"data={tmp_path}"], ["actors", f"data={tmp_path}"]
    assert commands() == [masks, actors] and commands(synth=True) == [[*masks, "source=rendered"], actors]
    for done, left in (("masks/hmdb51/masks.json", [actors]), ("actor_hmdb51/actors.json", [])):
        (tmp_path / done).parent.mkdir(parents=True)
        (tmp_path / done).touch()
        assert commands() == left
    (tmp_path / "masks/hmdb51/masks.json").unlink()
    assert commands() == []


# ---- benchmarks/masks.py


def test_the_published_boxes_become_masks(data):
    """Both forms of UCF101-24's boxes, of the same persons; what would run code is refused."""
    tmp_path, samples = data
    names = ["/".join(path.decode().split("/")[-2:]).removesuffix(".avi") for path in samples.paths.tolist()[:2]]
    first, second = np.array([[0, 10, 20, 30, 45]]), np.array([[4, 1, 2, 3, 4], [5, 2, 2, 4, 4.0]])
    later = [1, 0, 0, 0, 0]
    tubes = {"labels": ["a"], "gttubes": {names[0]: {0: [first + later]},
                                          names[1]: {0: [first + later, second + later]}}}

    def tube(boxes):
        start = boxes[0, 0].astype(np.uint8)
        return {"label": 0, "sf": start, "ef": start + len(boxes), "boxes": np.column_stack(
            [boxes[:, 1:3], boxes[:, 3:] - boxes[:, 1:3]]).astype(np.int16)}

    annotations = {names[0]: {"label": 0, "numf": 20, "annotations": [tube(first)]},
                   names[1]: {"label": 0, "numf": 20, "annotations": [tube(first), tube(second)]}}
    truth = [boxes_by_loops(first, (T, H, W)), boxes_by_loops([*first, *second], (T, H, W))]
    for name, held in (("tubes", tubes), ("annotations", annotations)):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(held, protocol=2))
        script.boxes(str(tmp_path / f"{name}.pkl"), str(tmp_path / name))
        script.convert(str(tmp_path / name), str(tmp_path / "hmdb51/hmdb51"), str(tmp_path / f"{name}-masks"))
        read = stored_masks(samples, tmp_path / f"{name}-masks")
        assert all(np.array_equal(read(i).mask, truth[i]) for i in (0, 1))
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


def test_the_median_is_measured(data):
    """Against the loops, on videos whose true masks are stored; the totals are those of the videos."""
    tmp_path, samples = data
    analysis.masks("hmdb51", str(tmp_path), "rendered")
    script.measure(str(tmp_path), str(tmp_path / "found.json"))
    found, overlaps = json.loads((tmp_path / "found.json").read_text()), []
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
