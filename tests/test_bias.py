"""Masks and manipulations by slow loops and against what synthetic videos are made of; robustness and Actor-HMDB51.

The numbers of `robustness` are held against a slow transcription, on decoded videos and a network with random weights;
the crops against a brute-force search and a stub detector on real files, torchvision's detectors as they are built.
"""

import dataclasses
import json
import shutil
from functools import partial
from threading import Barrier, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from networks import clips, tuned
from torchvision.models import detection as detectors
from torchvision.models import get_model, get_model_weights
from videos import decode

from be import bias, datasets, synthetic
from be.augment import Draws, denormalise, eval_view, normalise
from be.bias import (
    LAMBDAS,
    MANIPULATIONS,
    QUESTIONS,
    SMALLEST,
    Shot,
    crop_all,
    masks,
    measure,
    median_masks,
    publish,
    robustness,
    scenes,
    shots,
    smallest_box,
    table,
    torchvision_detector,
    true_masks,
)
from be.config import ConfigError
from be.evaluate import accuracy, classify, linear, over_videos, spread_clips, views
from be.runs import RunError, make_accelerator
from be.video import Reader, even_clips

FRAMES = np.array([2 * np.arange(16), 20 + 2 * np.arange(16)])  # (K, T): two clips of the demo's form

# ---- masks and manipulations


@pytest.fixture
def noise():
    torch.manual_seed(0)
    x, *other = torch.randn(3, 3, 5, 6, 6), *torch.randn(2, 3, 1, 6, 6)
    return Shot(x, *median_masks(x), *other, torch.rand(1, 1, 6, 6) < 0.3, (0, 0))


def test_the_scene_is_the_median_and_the_actor_what_differs(noise):
    x, scene = noise.x.numpy(), noise.scene.numpy()
    std = np.array([0.229, 0.224, 0.225])
    for k, c, t, i, j in np.ndindex(x.shape):
        assert scene[k, c, t, i, j] == sorted(x[k, c, :, i, j])[2]
        off = max(abs(x[k, a, t, i, j] - scene[k, a, t, i, j]) * std[a] for a in range(3))
        assert abs(off - 0.15) < 1e-6 or noise.actor[k, 0, t, i, j] == (off > 0.15)


def test_manipulations_by_loops(noise):
    x = noise.x
    y = {name: one.change(noise) for name, one in MANIPULATIONS.items()}
    assert all(clip.shape == x.shape for clip in y.values())
    for k, t in np.ndindex(3, 5):
        assert torch.equal(y["one frame"][k, :, t], x[k, :, 2])
        assert torch.equal(y["scene only"][k, :, t], x[k].sort(1).values[:, 2])
        for i, j in np.ndindex(6, 6):
            source = x[k, :, t] if noise.actor[k, 0, t, i, j] else noise.other_scene[:, 0]
            assert torch.equal(y["actor elsewhere"][k, :, t, i, j], source[:, i, j])
            source = noise.other_frame[:, 0] if noise.other_actor[0, 0, i, j] else x[k, :, t]
            assert torch.equal(y["static body"][k, :, t, i, j], source[:, i, j])
        torch.testing.assert_close(y["foreign frame"][k, :, t], 0.7 * x[k, :, t] + 0.3 * noise.other_frame[:, 0])
        found = [s for s in range(5) if torch.equal(y["shuffled"][k, :, t], x[k, :, s])]
        assert len(found) == 1
    assert torch.equal(y["shuffled"].sort(2).values, x.sort(2).values)  # each frame once
    assert torch.equal(MANIPULATIONS["shuffled"].change(noise), y["shuffled"])  # the same draws
    assert not torch.equal(MANIPULATIONS["shuffled"].change(noise._replace(key=(0, 1))), y["shuffled"])
    k = Draws(0, 0).randint(5, 3)
    for lam in LAMBDAS:  # Eq. 1
        for c, t in np.ndindex(3, 5):
            torch.testing.assert_close(y[f"BE, {lam}"][c, :, t], (1 - lam) * x[c, :, t] + lam * x[c, :, k[c]])


def videos(drift):
    """16 videos, two of a motion: the spec, clips of it (K, 3, T, 32, 32), their scene and actor found and true."""
    for video in synthetic.plan("ucf101", train=1, test=1, scene_bias=0.9, seed=3, frames=64, height=40, width=48,
                                drift=drift):
        if not video.swapped:
            frames, _, _ = synthetic.render(video.spec)
            clips = torch.from_numpy(frames[FRAMES])
            x = eval_view(clips, torch.tensor([[40, 48]]).expand(2, 2), 32)
            yield video.spec, x, median_masks(x), true_masks(x, video.spec, FRAMES, 40)


def errors(drift):
    """motion -> (mean |median scene - true scene| in levels of 255, overlap of the actors found and true)."""
    found = {}
    for spec, _, (scene, actor), (true_scene, true_actor) in videos(drift):
        off = (denormalise(scene) - denormalise(true_scene)).abs().mean().item() * 255
        overlap = ((actor & true_actor).sum() / (actor | true_actor).sum()).item()
        found.setdefault(spec.motion, []).append((off, overlap))
    return {motion: np.mean(pairs, 0) for motion, pairs in found.items()}


def test_the_median_scene_is_the_true_one_within_the_stated_error():
    still = errors(drift=0)
    off, overlap = np.mean(list(still.values()), 0)
    assert off < 2.5 and overlap > 0.6, still
    for motion, (off, overlap) in still.items():
        if motion.startswith("translate"):  # he leaves his place, which is what the median needs
            assert off < 1.5 and overlap > 0.75, (motion, off, overlap)
    panned = np.mean(list(errors(drift=24).values()), 0)
    assert 5 < panned[0] < 20 and 0.3 < panned[1] < 0.6, panned  # the docstring's warning


def test_an_actor_elsewhere_is_the_actor_filmed_there():
    """Held against a video rendered anew, of the one's actor before the other's scene; levels of 255, still camera."""
    shots, off = list(videos(drift=0)), {"found": {}, "true": {}, "unchanged": {}}
    for one, other in zip(shots, shots[3:] + shots[:3], strict=True):  # of another motion
        there = {key: getattr(other[0], key) for key in ("scene", "scene_seed", "camera_seed")}
        frames, _, _ = synthetic.render(dataclasses.replace(one[0], **there))
        filmed = denormalise(eval_view(torch.from_numpy(frames[FRAMES]), torch.tensor([[40, 48]]).expand(2, 2), 32))
        pasted = {"unchanged": one[1]}
        for name, apart, lender in zip(("found", "true"), one[2:], other[2:], strict=True):
            lent = (part[0, :, 8:9] for part in (other[1], *lender))
            pasted[name] = MANIPULATIONS["actor elsewhere"].change(Shot(one[1], *apart, *lent, (0, 0)))
        for name, clip in pasted.items():
            off[name][one[0].motion, other[0].motion] = 255 * (denormalise(clip) - filmed).abs().mean().item()
    mean = {name: np.mean(list(values.values())) for name, values in off.items()}
    assert mean["found"] < 6 and mean["true"] < 1 and mean["unchanged"] > 40, mean
    assert max(off["true"].values()) < 1.5  # the actor's edge: it is cut where he covers half of a pixel
    for motions, levels in off["found"].items():
        if all(motion.startswith("translate") for motion in motions):  # they leave their place: see above
            assert levels < 2.5, (motions, levels)


def test_the_truth_is_cut_as_the_clip_is():
    """Before its own true scene the true actor is the video again, but for his edge; a larger file changes nothing."""
    for spec, x, _, (scene, actor) in videos(drift=24):
        rest = torch.where(actor, x, scene)
        edge = (denormalise(rest) - denormalise(x)).abs().amax(1) > 0.5 / 255 + 1e-6
        assert edge.float().mean() < 0.06
        large = dataclasses.replace(spec, height=80, width=96, drift=2 * spec.drift)
        assert (true_masks(x, large, FRAMES, 40)[1] == actor).float().mean() > 0.98
        break


def test_a_still_clip_has_no_actor():
    x = normalise(torch.rand(2, 3, 1, 8, 8)).expand(-1, -1, 7, -1, -1)
    scene, actor = median_masks(x)
    assert torch.equal(scene, x) and not actor.any()


def test_masks_say_what_they_do_not_know(tiny, tmp_path):
    _, cfg, _ = tuned(tiny, tmp_path)
    samples = datasets.load("ucf101", tiny, "test", 1)
    assert len(bias.specs(samples.root)) == 8 * (4 + 2 + 6) and bias.specs(str(tiny)) == {}
    elsewhere = dataclasses.replace(samples, root=str(tiny))
    with pytest.raises(ConfigError, match="scene=rendered is for synthetic videos"):
        masks(elsewhere, None, cfg, "rendered")
    with pytest.raises(ConfigError, match="unknown scene 'depth'.*median"):
        masks(samples, None, cfg, "depth")
    assert scenes(elsewhere) is None


# ---- robustness


@pytest.mark.parametrize("scene", ["median", "rendered"])
def test_measure_by_hand(tiny, tmp_path, scene):
    _, cfg, model = tuned(tiny, tmp_path, scene=scene)
    samples = datasets.load("ucf101", tiny, "swapped", 1)
    specs, N, accelerator = bias.specs(samples.root), len(samples), make_accelerator(cfg)
    found = measure(model, samples, cfg, accelerator)

    def apart(i, K):  # clip, scene, where the actor is
        x, frames = clips(samples, i, K)
        if scene == "rendered":
            return x, *true_masks(x, specs[samples.paths[i]], frames, 24)
        rest = x.sort(2).values[:, :, 3:4].expand_as(x)  # of 8 frames the 4th
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
        return x, rest, ((x - rest) * std).abs().amax(1, keepdim=True) > 0.15

    _, partner = shots(samples, None, cfg, accelerator)
    assert all(samples.labels[i] != samples.labels[partner[i]] for i in range(N)) and len(set(partner)) > N / 4
    hits, fooled = {}, []
    for i in range(N):
        x, rest, actor = apart(i, 3)
        still = Draws(cfg.seed, i).randint(8, 3)
        order = Draws(cfg.seed, i).rand(3, 8).argsort(1)
        frame, scene_there, actor_there = (part[0, :, 4:5] for part in apart(partner[i], 1))
        inputs = {"original": x, "one frame": x[:, :, 4:5].repeat(1, 1, 8, 1, 1), "scene only": rest,
                  "shuffled": torch.stack([x[k][:, order[k]] for k in range(3)]),
                  "actor elsewhere": torch.where(actor, x, scene_there[None]),
                  "static body": torch.where(actor_there, frame, x), "foreign frame": 0.7 * x + 0.3 * frame}
        for lam in LAMBDAS:
            inputs[f"BE, {lam}"] = torch.stack([(1 - lam) * x[k] + lam * x[k][:, still[k]][:, None] for k in range(3)])
        with torch.no_grad():
            answers = {name: model.logits(y).softmax(1).mean(0).argmax().item() for name, y in inputs.items()}
        for name, answer in answers.items():
            hits.setdefault(name, []).append(answer == samples.labels[i])
        fooled.append(answers["actor elsewhere"] == samples.labels[partner[i]])
    for name, right in hits.items():
        assert found[name] == pytest.approx(100 * np.mean(right)), name
    assert found["fooled"] == pytest.approx(100 * np.mean(fooled))
    assert found["original"] > 80 and len({found[name] for name in hits}) > 4  # else little would have been compared


def test_scene_against_motion(tiny, tmp_path):
    """Of a network that mostly says the scene. The probe is a linear classifier of what the backbone says."""
    _, cfg, model = tuned(tiny, tmp_path, knows=lambda s: torch.cat([scenes(s)[:9], torch.arange(7)]))
    samples, train = (datasets.load("ucf101", tiny, subset, 1) for subset in ("swapped", "train"))
    found, specs = measure(model, samples, cfg, make_accelerator(cfg)), bias.specs(samples.root)
    family = [list(synthetic.SCENES).index(specs[path].scene) for path in samples.paths]
    conflict, features = [], []
    for i, (label, scene) in enumerate(zip(samples.labels, family, strict=True)):
        answer = model.logits(clips(samples, i)[0]).softmax(1).mean(0).argmax().item()
        conflict += [(answer == label, answer == scene)] if scene != label else []
    assert 4 < len(conflict) < 16
    assert [found["conflict: motion"], found["conflict: scene"]] == pytest.approx(100 * np.mean(conflict, 0))
    with torch.no_grad():
        for s in (train, samples):
            features.append(torch.stack([model.backbone(clips(s, i, 1)[0]).mean((0, 2, 3, 4)) for i in range(len(s))]))
    for what, of in (("motion", lambda s: torch.from_numpy(s.labels)), ("scene", scenes)):
        right = linear(features[0], of(train), features[1]) == of(samples)
        assert found[f"probe: {what}"] == pytest.approx(100 * right.float().mean().item(), abs=100 / 16 + 0.1)
    assert scenes(samples).tolist() == family


def test_an_unreadable_video_is_wrong_everywhere(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "data")
    _, cfg, model = tuned(tmp_path / "data", tmp_path, cache_gb=0)  # a file changes below
    samples = datasets.load("ucf101", tmp_path / "data", "test", 1)
    sampler = partial(even_clips, K=3, T=8, stride=2)
    answer, _ = over_videos(lambda x, i: model.logits(x).softmax(1).mean(0), samples, sampler, cfg,
                            make_accelerator(cfg), "test")
    hit = answer.argmax(1).numpy() == samples.labels
    lost = int(np.flatnonzero(hit)[0])  # one that was right
    with open(samples.path(lost), "wb") as file:
        file.write(b"no video")
    found = measure(model, samples, cfg, make_accelerator(cfg))
    assert (found["n_scored"], found["n_expected"]) == (15, 16)
    assert found["original"] == pytest.approx(100 * (hit.sum() - 1) / 16)


@pytest.mark.parametrize("scene", ["median", "rendered"])
def test_a_network_without_motion_is_shown_what_evaluate_shows_it(tiny, tmp_path, scene):
    """One frame drawn from each video: the same as in the test, and in the truth of synthetic videos."""
    _, cfg, model = tuned(tiny, tmp_path, static="true", scene=scene)
    samples, accelerator = datasets.load("ucf101", tiny, "swapped", 1), make_accelerator(cfg)
    probabilities, ok = classify(model, samples, cfg, accelerator)
    found = measure(model, samples, cfg, accelerator)
    top1 = accuracy(probabilities, torch.from_numpy(samples.labels), ok)["top1"]
    assert found["original"] == found["one frame"] == pytest.approx(top1)

    drawn, spread = [], spread_clips(cfg, 3)
    def sampler(n, rng):
        drawn.append(spread(n, rng))
        return drawn[-1]
    masks_of = masks(samples, sampler, cfg, "rendered")
    for i, x in views(samples, sampler, cfg, accelerator, "clips"):
        masks_of(x, i)
    assert len(drawn) == 2 * 16 and all(map(np.array_equal, drawn[::2], drawn[1::2]))
    assert len({clips[0, 0] for clips in drawn}) > 4


def test_donors_are_a_part_of_the_list(tiny, tmp_path, monkeypatch):
    _, cfg, _ = tuned(tiny, tmp_path)
    samples, accelerator = datasets.load("ucf101", tiny, "test", 1), make_accelerator(cfg)
    monkeypatch.setattr(bias, "DONORS", 5)
    shot, partner = shots(samples, None, cfg, accelerator)
    assert 1 < len(set(partner)) <= 5
    for i in range(16):
        x, _ = clips(samples, partner[i], 1)
        assert torch.equal(shot(x, i).other_frame, x[0, :, 4:5]) and samples.labels[i] != samples.labels[partner[i]]
    with pytest.raises(RunError, match="of one class"):
        shots(samples.take(samples.labels == samples.labels[0]), None, cfg, accelerator)


def test_the_verb_averages_runs_of_an_experiment(tiny, tmp_path, capsys):
    runs = [tuned(tiny, tmp_path, seed)[:2] for seed in (0, 1)] + [tuned(tiny, tmp_path, name="other")[:2]]
    robustness(*runs)
    rows = json.loads((tmp_path / "robustness-ucf101-test.json").read_text())["rows"]
    assert [row["experiment"] for row in rows] == ["demo-random", "demo-random", "other"]
    a, b = (row["one frame"] for row in rows[:2])
    assert f"{(a + b) / 2:.1f} ± {abs(a - b) / 2**0.5:.1f}" in capsys.readouterr().out
    assert (tmp_path / "robustness-ucf101-test.png").stat().st_size > 10_000
    assert "48 of 48 videos scored" in (tmp_path / "robustness-ucf101-test.md").read_text()
    robustness(runs[0], tuned(tiny, tmp_path / "elsewhere")[:2])  # of the same name: no second seed
    rows = json.loads((tmp_path / "robustness-ucf101-test.json").read_text())["rows"]
    assert [row["experiment"] for row in rows] == ["demo-random", "elsewhere/demo-random"]


def test_a_number_that_is_missing_is_not_averaged(tmp_path):
    rows = [{"experiment": "a", "original": 50.0 + s, "conflict: scene": v} for s, v in ((0, 1.0), (1, float("nan")))]
    lines = {row[""].strip(): row["a"] for row in table(rows)}
    assert list(lines) == [f"{what} {better}".strip() for what, (_, better) in QUESTIONS.items()]
    assert lines["original ↑"] == "50.5 ± 0.7" and {*lines.values()} == {"50.5 ± 0.7", None}
    publish(tmp_path / "new/a", "head", {"about": 1}, rows, table(rows))
    assert json.loads((tmp_path / "new/a.json").read_text())["rows"][1]["conflict: scene"] is None
    assert "| original ↑" in (tmp_path / "new/a.md").read_text()


# ---- Actor-HMDB51


@pytest.mark.parametrize(("width", "height"), [(80, 60), (81, 63), (30, 40)])
def test_the_smallest_box_by_brute_force(width, height):
    """No box of even sides, at least SMALLEST long where the picture is, is smaller and covers all that is painted."""
    rng = np.random.default_rng(width)
    for _ in range(30):
        corner = rng.uniform(-5, [width, height], (rng.integers(1, 4), 2))
        boxes = np.hstack([corner, corner + rng.uniform(1, 40, corner.shape)])
        left, top, right, bottom = smallest_box(boxes, (width, height))
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
    synthetic.synth(data / "hmdb51", "hmdb51", train=2, test=1, frames=20, height=48, width=64, workers=1)
    return data


def copied(hmdb, tmp_path):
    """The same videos under a folder of the test's own, and their paths."""
    (tmp_path / "hmdb51").symlink_to(hmdb / "hmdb51")
    lists = [datasets.load("hmdb51", tmp_path, subset, 1) for subset in ("train", "test")]
    return tmp_path / "hmdb51", tmp_path / "actor_hmdb51", sorted(p for s in lists for p in s.paths.tolist())


def copy_of(target, path):
    return target.joinpath("actor-hmdb51", *path.decode().split("/")[-2:])


def said(target, path):
    return json.loads(copy_of(target, path).with_suffix(".json").read_text())


class Stub:
    """Persons at a place that drifts by a pixel a frame; none in videos whose path has `nobody` in it."""

    def __init__(self, nobody=b"pulse"):
        self.nobody, self.calls = nobody, []

    def __call__(self, path, numbers, frames):
        assert frames.dtype == np.uint8 and frames.shape[1:] == (48, 64, 3) and len(frames) == len(numbers) <= 16
        self.calls.append(path)
        boxes = [np.array([[4.5 + n, 3, 10 + n, 20], [20, 6.2, 30, 38.5]], np.float32) for n in numbers]
        return [np.zeros((0, 4), np.float32) for _ in numbers] if self.nobody in path else boxes


def test_a_dataset_made_with_a_stub(hmdb, tmp_path, capsys):
    root, target, paths = copied(hmdb, tmp_path)
    broken, real = paths[0], Reader

    def reader(path, *more):
        return real("/dev/null" if str(path).endswith(broken.decode()) else path, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bias, "Reader", reader)
        crop_all(root, target, paths, Stub(), {"detector": "stub"}, Accelerator())
    assert said(target, broken)["done"] == "unreadable" and not copy_of(target, broken).exists()
    box = [4, 2, 30, 40]  # 4.5 to 30 and 3 to 38.5, outwards; then x is widened to 32 and y made even
    for path in paths[1:]:
        line, copy = said(target, path), copy_of(target, path)
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
    assert not list(target.rglob(".*"))


def test_it_goes_on_where_it_was_killed(hmdb, tmp_path):
    root, target, paths = copied(hmdb, tmp_path)

    class Killed(Exception):
        pass

    def mortal(path, numbers, frames):
        if path == paths[5]:
            raise Killed
        return stub(path, numbers, frames)

    stub, how = Stub(), {"detector": "stub"}
    with pytest.raises(Killed):
        crop_all(root, target, paths, mortal, how, Accelerator())
    assert not (target / "actors.json").exists()
    stub.calls.clear()
    crop_all(root, target, paths, stub, how, Accelerator())
    assert set(stub.calls) == set(paths[5:]) and json.loads((target / "actors.json").read_text())["videos"] == 24
    with pytest.raises(RunError, match="was made with"):
        crop_all(root, target, paths, stub, {"detector": "other"}, Accelerator())


def test_a_copy_that_cannot_be_written_is_an_error(hmdb, tmp_path, monkeypatch):
    root, target, paths = copied(hmdb, tmp_path)
    monkeypatch.setattr(bias, "encode", lambda path, frames, fps, **_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(RunError, match="No space.*same command again"):
        crop_all(root, target, paths, Stub(), {}, Accelerator())
    assert not list(target.rglob("*.avi"))


def test_rendered_is_the_truth(hmdb, tmp_path):
    root, _, paths = copied(hmdb, tmp_path)
    detect, specs = bias.rendered_boxes(str(root)), bias.specs(str(root))
    for path in (paths[1], paths[9]):
        mask = synthetic.render(specs[path])[1]
        for n, boxes in zip((0, 7), detect(path, np.array([0, 7]), None), strict=True):
            painted = np.zeros_like(mask[n])
            for x, y, right, bottom in boxes.astype(int):
                painted[y:bottom, x:right] = True
                assert mask[n, [y, bottom - 1]].any(1).all() and mask[n][:, [x, right - 1]].any(0).all()
            assert not (mask[n] & ~painted).any()
    with pytest.raises(ConfigError, match="detector=rendered is for synthetic"):
        bias.rendered_boxes(str(tmp_path))


def test_two_processes_share_the_videos(hmdb, tmp_path):
    root, target, paths = copied(hmdb, tmp_path)
    stubs, barrier = (Stub(), Stub()), Barrier(2, timeout=60)
    ranks = [SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0,
                             wait_for_everyone=barrier.wait) for rank in (0, 1)]
    crew = [Thread(target=crop_all, args=(root, target, paths, stubs[r.process_index], {}, r)) for r in ranks]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    mine = [set(stub.calls) for stub in stubs]
    assert mine[0] | mine[1] == set(paths) and not mine[0] & mine[1] and len(mine[0]) == len(mine[1]) == 12
    assert json.loads((target / "actors.json").read_text())["videos"] == 24


def test_the_verb(hmdb, tmp_path, capsys):
    _, target, _ = copied(hmdb, tmp_path)
    bias.actors(data=str(tmp_path), detector="rendered")
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
    found = torchvision_detector(SMALL, str(file), score, "cpu")(b"a.avi", np.arange(3), frames)
    assert len(found) == 3 and sum(map(len, found)) == 3 < len(persons)
    assert any(((one["labels"] == 2) & (one["scores"] >= score)).any() for one in said)  # bicycles are left out
    for boxes, one in zip(found, said, strict=True):
        keep = [i for i in range(len(one["boxes"])) if one["labels"][i] == 1 and one["scores"][i] >= score]
        np.testing.assert_allclose(boxes, one["boxes"][keep].numpy(), atol=1e-3)
        assert boxes.shape[1] == 4 and (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [80, 60]).all()
    none = torchvision_detector(SMALL, str(file), 1.0, "cpu")(b"a.avi", np.arange(3), frames)
    assert [len(boxes) for boxes in none] == [0, 0, 0]


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_it_is_built_as_torchvision_builds_it(name, monkeypatch):
    """With its own weights torchvision freezes BatchNorm and changes its epsilon; ours must compute the same."""
    official = get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    tensors = get_model(name, weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(type(official), "get_state_dict", lambda self, **_: tensors)
    theirs, ours = get_model(name, weights=official).eval(), []
    monkeypatch.setattr(bias, "find", lambda source: source)
    monkeypatch.setattr(bias, "read", lambda file: dict(theirs.state_dict()))  # without num_batches_tracked
    monkeypatch.setattr(bias, "get_model", lambda *a, **k: ours.append(get_model(*a, **k)) or ours[0])
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
