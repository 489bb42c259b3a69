"""Actor-HMDB51: the box by brute force, a stub detector on real files, torchvision's detectors as they are built."""

import json
from threading import Barrier, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torchvision.models import detection as detectors
from torchvision.models import get_model, get_model_weights

from be import actors, datasets, manipulate, synthetic
from be.actors import SMALLEST, make, smallest_box, torchvision_detector
from be.config import ConfigError
from be.runs import RunError
from be.video import Reader, decode


@pytest.mark.parametrize(("width", "height"), [(80, 60), (81, 63), (30, 40)])
def test_the_smallest_box_by_brute_force(width, height):
    """No box of even sides, at least SMALLEST long where the picture is, is smaller and covers all that is painted."""
    rng = np.random.default_rng(width)
    for _ in range(30):
        corner = rng.uniform(-5, [width, height], (rng.integers(1, 4), 2))
        boxes = np.hstack([corner, corner + rng.uniform(1, 40, corner.shape)])
        left, top, right, bottom = smallest_box(boxes, width, height)
        painted = np.zeros((height, width), bool)
        for x, y, r, b in boxes:
            painted[max(0, int(np.floor(y))) : int(np.ceil(b)), max(0, int(np.floor(x))) : int(np.ceil(r))] = True
        for start, stop, size, line in ((left, right, width, painted.any(0)), (top, bottom, height, painted.any(1))):
            least = min(SMALLEST, size // 2 * 2)
            allowed = [(a, z) for a in range(size) for z in range(a + 2, size + 1, 2) if z - a >= least]
            covering = [(z - a) for a, z in allowed if not line[:a].any() and not line[z:].any()]
            if covering:
                assert stop - start == min(covering) and not line[:start].any() and not line[stop:].any()
            else:  # all of an odd picture
                assert stop - start == size // 2 * 2
            assert 0 <= start < stop <= size and (stop - start) % 2 == 0


@pytest.fixture(scope="module")
def hmdb(tmp_path_factory):
    data = tmp_path_factory.mktemp("hmdb")
    synthetic.make(data / "hmdb51", "hmdb51", train=2, test=1, frames=20, height=48, width=64, workers=1)
    return data


def copied(hmdb, tmp_path):
    """The same videos under a folder of the test's own, and their paths."""
    (tmp_path / "hmdb51").symlink_to(hmdb / "hmdb51")
    lists = [datasets.load("hmdb51", tmp_path, subset, 1) for subset in ("train", "test")]
    return tmp_path / "hmdb51", tmp_path / "actor_hmdb51", sorted(p for s in lists for p in s.paths.tolist())


class Stub:
    """Persons at a place that drifts by a pixel a frame; none in videos whose path has `nobody` in it."""

    def __init__(self, nobody=b"pulse"):
        self.nobody, self.calls = nobody, []

    def __call__(self, frames, numbers, path):
        assert frames.dtype == np.uint8 and frames.shape[1:] == (48, 64, 3) and len(frames) == len(numbers) <= 16
        self.calls.append(path)
        boxes = [np.array([[4.5 + n, 3, 10 + n, 20], [20, 6.2, 30, 38.5]], np.float32) for n in numbers]
        return [np.zeros((0, 4), np.float32) for _ in numbers] if self.nobody in path else boxes


def test_a_dataset_made_with_a_stub(hmdb, tmp_path, capsys):
    root, target, paths = copied(hmdb, tmp_path)
    broken = paths[0]
    stub = Stub()
    real, actors_log = Reader, lambda: {line["path"]: line for line in actors.logged(target).values()}

    def reader(path, *more):
        return real("/dev/null" if str(path).endswith(broken.decode()) else path, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors, "Reader", reader)
        make(root, target, paths, stub, {"detector": "stub"}, Accelerator())
    log = actors_log()
    assert log.keys() == {path.decode() for path in paths} and log[broken.decode()]["done"] == "unreadable"
    box = [4, 2, 30, 40]  # 4.5 to 30 and 3 to 38.5, outwards; then x is widened to 32 and y made even
    for path in paths[1:]:
        line, copy = log[path.decode()], actors.place(target, path)
        if b"pulse" in path:
            assert line["done"] == "kept whole" and line["persons"] == 0
            assert copy.read_bytes() == (root / path.decode()).read_bytes()
            continue
        assert line["done"] == "cropped" and (line["frames_with_persons"], line["persons"]) == (20, 40)
        x, y, right, bottom = line["box"]
        assert right - x == 32 and bottom - y == 36 and x <= box[0] and right >= box[2] and y <= 3 and bottom >= 39
        with Reader(copy) as video:
            assert (video.frames, video.info.width, video.info.height, video.info.fps) == (20, 32, 36, 25)
            made = video.decode(np.arange(20)).astype(float)
        source = decode(root / path.decode(), np.arange(20)).astype(float)[:, y:bottom, x:right]
        shifts = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
        off = [np.abs(np.roll(made, shift, (1, 2)) - source).mean() for shift in shifts]
        assert off[0] < 10 and off[0] < 0.8 * min(off[1:])  # levels of 255: lossy, but the same place to the pixel
    summary = json.loads((target / "actors.json").read_text())
    assert (summary["videos"], summary["unreadable"], summary["kept whole"], summary["cropped"]) == (24, 1, 3, 20)
    assert summary["area_kept"] == pytest.approx(100 * 32 * 36 / (64 * 48))
    assert "kept whole" in capsys.readouterr().out

    samples = datasets.load("actor_hmdb51", tmp_path, "train", 1)
    assert [p.split(b"/")[1:] for p in samples.paths.tolist()] == [
        p.split(b"/")[1:] for p in datasets.load("hmdb51", tmp_path, "train", 1).paths.tolist()]
    assert not list(target.rglob("*.part.avi"))


def test_it_goes_on_where_it_was_killed(hmdb, tmp_path):
    root, target, paths = copied(hmdb, tmp_path)

    class Killed(Exception):
        pass

    def mortal(frames, numbers, path):
        if path == paths[5]:
            raise Killed
        return stub(frames, numbers, path)

    stub, how = Stub(), {"detector": "stub"}
    with pytest.raises(Killed):
        make(root, target, paths, mortal, how, Accelerator())
    assert not (target / "actors.json").exists()
    with open(target / "actors-0.jsonl", "a") as log:
        log.write('\n{"path": "hmdb51/cut')  # half a line
    stub.calls.clear()
    make(root, target, paths, stub, how, Accelerator())
    assert set(stub.calls) == set(paths[5:])
    actors.place(target, paths[2]).unlink()
    stub.calls.clear()
    make(root, target, paths, stub, how, Accelerator())
    assert set(stub.calls) == {paths[2]} and len(actors.logged(target)) == len(paths)
    with pytest.raises(RunError, match="was made with"):
        make(root, target, paths, stub, {"detector": "other"}, Accelerator())


def test_a_copy_that_cannot_be_written_is_an_error(hmdb, tmp_path, monkeypatch):
    root, target, paths = copied(hmdb, tmp_path)
    monkeypatch.setattr(actors, "encode", lambda path, frames, fps, **_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(RunError, match="No space.*same command again"):
        make(root, target, paths, Stub(), {}, Accelerator())
    assert not list(target.rglob("*.avi"))


def test_rendered_is_the_truth(hmdb, tmp_path):
    root, _, paths = copied(hmdb, tmp_path)
    detect, specs = actors.rendered(str(root)), manipulate.specs(str(root))
    for path in (paths[1], paths[9]):
        mask = synthetic.render(specs[path])[1]
        for n, boxes in zip((0, 7), detect(None, np.array([0, 7]), path), strict=True):
            painted = np.zeros_like(mask[n])
            for x, y, right, bottom in boxes.astype(int):
                painted[y:bottom, x:right] = True
                assert mask[n, [y, bottom - 1]].any(1).all() and mask[n][:, [x, right - 1]].any(0).all()
            assert not (mask[n] & ~painted).any()
    with pytest.raises(ConfigError, match="rendered is for synthetic"):
        actors.rendered(str(tmp_path))


def test_two_processes_share_the_videos(hmdb, tmp_path):
    root, target, paths = copied(hmdb, tmp_path)
    stubs, barrier = (Stub(), Stub()), Barrier(2, timeout=60)
    ranks = [SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0,
                             wait_for_everyone=barrier.wait) for rank in (0, 1)]
    crew = [Thread(target=make, args=(root, target, paths, stubs[r.process_index], {}, r)) for r in ranks]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    mine = [set(stub.calls) for stub in stubs]
    assert mine[0] | mine[1] == set(paths) and not mine[0] & mine[1] and len(mine[0]) == len(mine[1]) == 12
    assert json.loads((target / "actors.json").read_text())["videos"] == 24


def test_the_verb(hmdb, tmp_path, capsys):
    _, target, _ = copied(hmdb, tmp_path)
    actors.actors(data=str(tmp_path), detector="rendered")
    summary = json.loads((target / "actors.json").read_text())
    assert summary["videos"] == summary["cropped"] == 8 * (3 + 3) and 5 < summary["area_kept"] < 100
    assert len(datasets.load("actor_hmdb51", tmp_path, "swapped", 1)) == 8
    assert f"cropped {summary['cropped']}" in capsys.readouterr().out


# ---- torchvision


SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights that see persons here and bicycles there, and the network."""
    torch.manual_seed(0)
    model = get_model(SMALL, weights=None, weights_backbone=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.backbone(torch.rand(4, 3, 160, 224))  # statistics, or every place would look the same
    score, place = (getattr(model.eval().roi_heads.box_predictor, part) for part in ("cls_score", "bbox_pred"))
    place.weight.data[8:12] = place.weight.data[4:8]  # bicycles where persons are
    person = score.weight.data[1].clone() / 20
    score.weight.data.zero_()
    score.weight.data[1], score.weight.data[2], score.bias.data[1] = person, -person, 8
    file = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save(model.state_dict(), file)
    return file, model


def test_torchvisions_detector_from_a_file(weights):
    """Built offline, it gives what the network itself says of persons, in the pixels of the frames."""
    file, model = weights
    frames = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), np.uint8)
    with torch.no_grad():
        said = model([torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in frames])
    persons = sorted(torch.cat([one["scores"][one["labels"] == 1] for one in said]).tolist())
    score = (persons[-4] + persons[-3]) / 2
    found = torchvision_detector(SMALL, str(file), score, "cpu")(frames, np.arange(3), b"a.avi")
    assert len(found) == 3 and sum(map(len, found)) == 3 < len(persons)
    assert any(((one["labels"] == 2) & (one["scores"] >= score)).any() for one in said)  # bicycles are left out
    for boxes, one in zip(found, said, strict=True):
        keep = [i for i in range(len(one["boxes"])) if one["labels"][i] == 1 and one["scores"][i] >= score]
        np.testing.assert_allclose(boxes, one["boxes"][keep].numpy(), atol=1e-3)
        assert boxes.shape[1] == 4 and (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [80, 60]).all()
    assert all(len(boxes) == 0 for boxes in torchvision_detector(SMALL, str(file), 1.0, "cpu")(frames))


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_it_is_built_as_torchvision_builds_it(name, monkeypatch):
    """With its own weights torchvision freezes BatchNorm and changes its epsilon; ours must compute the same."""
    official = get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    tensors = get_model(name, weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(type(official), "get_state_dict", lambda self, **_: tensors)
    theirs, ours = get_model(name, weights=official).eval(), []
    monkeypatch.setattr(actors, "find", lambda source: source)
    monkeypatch.setattr(actors, "read", lambda file: dict(theirs.state_dict()))  # without num_batches_tracked
    monkeypatch.setattr(actors, "get_model", lambda *a, **k: ours.append(get_model(*a, **k)) or ours[0])
    torchvision_detector(name, "file", 0.5, "cpu")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours[0].backbone(x).values(), theirs.backbone(x).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not ours[0].training and hasattr(detectors, name)


def test_wrong_detectors_are_said(tmp_path, weights):
    with pytest.raises(ConfigError, match="unknown detector 'yolo'.*rendered"):
        torchvision_detector("yolo", None, 0.5, "cpu")
    with pytest.raises(ConfigError, match="does not fit ssdlite320"):
        torchvision_detector("ssdlite320_mobilenet_v3_large", str(weights[0]), 0.5, "cpu")
    with pytest.raises(Exception, match="does not exist"):
        torchvision_detector(SMALL, str(tmp_path / "none.pth"), 0.5, "cpu")
