"""Retrieval: the blocked search against brute force, the protocols against slow loops, the verb on real files. The
linear classifier on frozen features: against scipy, from clips that are decoded and encoded one by one."""

import json
import shutil
import subprocess
import sys
from functools import partial

import networks
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, latest
from safetensors.torch import load_file
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from videos import decode

from be import backbones, bias, config, datasets, evaluate, report, retrieve
from be.augment import eval_view
from be.config import ConfigError
from be.prepare import prepare
from be.retrieve import PROTOCOLS, Features, block_sizes, consecutive_clips, max_cells, recall, search
from be.runs import RunError, make_accelerator, read_results


def on_disk(folder, name, rows):
    """Rows as `extract` leaves them."""
    rows.astype(np.float32).tofile(folder / f"{name}.f32")
    return Features(folder / f"{name}.f32", "", rows.shape[1], [*range(len(rows))], [])


def brute_force(q, g, k):
    """In float64; equal scores in the order of the gallery."""
    q, g = (z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True) for z in (q, g))
    cosine = q @ g.T
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k]


# GiB: everything in one block; some blocks of both; blocks of a few rows
@pytest.mark.parametrize("memory_gb", [1, 1e-4, 4e-5])
def test_search_is_brute_force(tmp_path, memory_gb):
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 257)) / 16 for n in (61, 143))
    queries, gallery = on_disk(tmp_path, "q", q), on_disk(tmp_path, "g", g)
    row = search(queries, gallery, 20, memory_gb)
    assert np.array_equal(row.numpy(), brute_force(q, g, 20))
    parts = [search(queries, gallery, 20, memory_gb, "cpu", rank, 7) for rank in range(7)]
    assert torch.equal(torch.cat(parts), row)  # as processes share it


def test_block_sizes():
    """The test above cuts blocks of all kinds; a process may have no query; too little memory is an error."""
    sizes = [block_sizes(61, 143, 257, 20, gb) for gb in (1, 1e-4, 4e-5)]
    assert sizes[0] == (61, 143) and sizes[1][0] < 61 and sizes[1][1] < 143 and sizes[2][1] < 11
    assert block_sizes(0, 143, 257, 20, 1) == block_sizes(1, 143, 257, 20, 1)
    with pytest.raises(ConfigError, match="memory_gb=1e-06"):
        block_sizes(10, 10, 100_352, 50, 1e-6)


@pytest.mark.parametrize("memory_gb", [1, 2e-4, 3e-5])
def test_the_first_of_equals_wins(tmp_path, memory_gb):
    """Rows of 16 signs have the length 4 and sum without rounding, so that copies tie to the last bit."""
    rng = np.random.default_rng(1)
    q, g = rng.choice([-1, 1], (17, 16)), rng.choice([-1, 1], (4, 16))[rng.integers(0, 4, 90)]
    row = search(on_disk(tmp_path, "q", q), on_disk(tmp_path, "g", g), 30, memory_gb)
    assert np.array_equal(row.numpy(), brute_force(q, g, 30))


def test_a_gallery_smaller_than_k(tmp_path):
    q, g = np.eye(3), np.eye(3)[:2]
    assert search(on_disk(tmp_path, "q", q), on_disk(tmp_path, "g", g), 50, 1).tolist() == [[0, 1], [1, 0], [0, 1]]


def test_memory_stays_within_the_budget(tmp_path):
    """160 MB of features, searched with 40; measured by the kernel in a process of its own."""
    code = f"""if True:
        import resource, numpy as np, torch
        from pathlib import Path
        from be.retrieve import Features, search
        torch.set_num_threads(1)
        D, kinds = 50_000, []
        for name, rows in (("q.f32", 300), ("g.f32", 500)):
            with open(r"{tmp_path}/" + name, "wb") as file:
                for _ in range(rows):
                    file.write(np.random.default_rng(rows).random(D, np.float32).tobytes())
            kinds.append(Features(Path(r"{tmp_path}", name), "", D, range(rows), []))
        tiny = [Features(f.file, "", D, range(4), []) for f in kinds]
        search(*tiny, 2, 1)  # what the first product allocates for good
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        before = peak()
        search(*kinds, 50, 40 / 2**10)
        print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.25 * 40, done.stdout  # MiB, with some slack for threads


def test_consecutive_clips():
    for n in range(1, 40):
        for T, stride in ((3, 1), (4, 2), (16, 1)):
            slow, start = [], 0
            while start + T * stride <= n:
                slow.append([start + stride * t for t in range(T)])
                start += T * stride
            slow = slow or [[stride * t % n for t in range(T)]]
            assert consecutive_clips(n, T=T, stride=stride).tolist() == slow


def test_sizes_of_the_protocols():
    """Section 4.3's numbers for I3D, VCOP's for C3D, and a map that is too small is not blown up."""
    maps = {"paper": (1024, 2, 7, 7), "vcop": (512, 2, 7, 7), "gap": (1024, 2, 7, 7)}
    sizes = {name: PROTOCOLS[name](None).pool(torch.empty(1, *shape, device="meta")).shape[1]
             for name, shape in maps.items()}
    assert sizes == {"paper": 100_352, "vcop": 512 * 2 * 3 * 3, "gap": 1024}
    x = torch.randn(2, 5, 1, 3, 4)
    assert torch.equal(max_cells(x, (2, 7, 7)), x.flatten(1))
    assert torch.equal(max_cells(x, (2, 1, 2)), torch.stack([x[..., :2].amax((2, 3, 4)), x[..., 2:].amax((2, 3, 4))],
                                                            2).flatten(1))  # fmt: skip


def test_recall():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(40)[:30] for _ in range(25)])
    label_q, label_g = rng.integers(0, 12, 25), rng.integers(0, 12, 40)
    got = recall(torch.from_numpy(rows), torch.from_numpy(label_q), torch.from_numpy(label_g), missed=3)
    for k in (1, 5, 10, 20, 50):
        hits = sum(any(label_g[row] == label for row in near[:k]) for near, label in zip(rows, label_q, strict=True))
        assert got[f"R@{k}"] == pytest.approx(100 * hits / 28)


def words(data, out, *more):
    return latest(f"data={data}", f"out={out}", *TINY, "backbone=r3d18", *more)


def verb(*args):
    retrieve.retrieve(config.load("demo-random", words(*args), "retrieve"))


@pytest.mark.parametrize("protocol", ["paper", "vcop", "gap"])
def test_the_verb_end_to_end(tiny, tmp_path, protocol, capsys):
    """Its features are what the backbone says of the decoded clips; its recall is brute force on them."""
    verb(tiny, tmp_path, f"protocol={protocol}", "subset=test,swapped")
    assert capsys.readouterr().out.count(f"queries of protocol={protocol}, 0 damaged") == 2
    path = tmp_path / "demo-random/retrieve-ucf101-split1-seed0"
    result = json.loads((path / f"recall-{protocol}-test.json").read_text())
    rows = {"train": 32, "test": 16, "swapped": 16}
    per_video = 1 if PROTOCOLS[protocol](None).mean else 24 // (8 * 2)  # videos of 24 frames, clips of 8 with stride 2
    z = {}
    for subset, videos in rows.items():
        z[subset] = np.fromfile(path / f"{protocol}-{subset}.f32", np.float32).reshape(videos * per_video, -1)
    assert (result["n_scored"], result["gallery"], result["numbers"]) == (16 * per_video, len(z["train"]),
                                                                          z["train"].shape[1])
    train, test = (datasets.load("ucf101", tiny, subset, 1) for subset in ("train", "test"))
    torch.manual_seed(0)
    backbone = backbones.build("r3d18", 4).eval()
    frames = PROTOCOLS[protocol](None).sampler(24, None, T=8, stride=2)
    for i in (0, 9):
        clips = torch.from_numpy(decode(test.path(i), frames, 24))
        with torch.no_grad():
            x = backbone(eval_view(clips, torch.tensor(clips.shape[2:4]).expand(len(clips), 2), 16))
        expected = PROTOCOLS[protocol](None).pool(x)
        expected = expected.mean(0, keepdim=True) if per_video == 1 else expected
        np.testing.assert_allclose(z["test"][i * per_video], expected[0].numpy(), atol=1e-4)

    label_q, label_g = (np.repeat(s.labels, per_video) for s in (test, train))
    order = brute_force(z["test"], z["train"], 50)
    for k in (1, 5, 10, 20, 50):
        hit = (label_g[order[:, :k]] == label_q[:, None]).any(1)
        assert result[f"R@{k}"] == pytest.approx(100 * hit.mean())


def test_features_are_used_again_unless_what_made_them_is_another(tiny, tmp_path, capsys):
    """Other weights, other videos in equal number, or a file that has been cut short."""
    shutil.copytree(tiny, data := tmp_path / "data")
    path = tmp_path / "demo-random/retrieve-ucf101-split1-seed0"

    def reused(*more):
        verb(data, tmp_path, "protocol=gap", "cache_gb=0", *more)
        return capsys.readouterr().out.count("taken from")

    assert reused("memory_gb=1") == 0 and reused("memory_gb=0.01") == 2 and reused("width=8") == 0 == reused()
    first = (path / "gap-test.f32").read_bytes()
    lists = data / "ucf101/ucfTrainTestlist/testlist01.txt"
    lists.write_text("".join(reversed(lists.read_text().splitlines(keepends=True))))
    assert reused() == 1 and reused() == 2
    rows = np.frombuffer(first, np.float32).reshape(16, -1)
    assert np.array_equal(np.fromfile(path / "gap-test.f32", np.float32).reshape(16, -1), rows[::-1])
    other, video = (datasets.load("ucf101", data, "test", 1).path(i) for i in (3, 11))
    shutil.copyfile(other, video)
    assert reused() == 1 and reused() == 2
    for file in ("gap-train.f32", "gap-train.json"):
        whole = (path / file).read_bytes()
        (path / file).write_bytes(whole[:-2])
        assert reused() == 1 and len((path / file).read_bytes()) == len(whole)


def test_a_full_disk_is_said_in_a_line(tiny, tmp_path, monkeypatch):
    """Of every write to /dev/full the kernel says that there is no room."""
    folder = tmp_path / "demo-random/retrieve-ucf101-split1-seed0"
    folder.mkdir(parents=True)
    (folder / "gap-train.f32").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"gap-train\.f32 could not be written \(No space left on device\)"):
        verb(tiny, tmp_path, "protocol=gap")
    (folder / "gap-train.f32").unlink()
    (folder / ".gap-train.json.aside").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"gap-train\.json could not be written \(No space left on device\)"):
        verb(tiny, tmp_path, "protocol=gap")


def test_an_unreadable_video_is_a_query_missed(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "data")
    for subset, i in (("test", 3), ("train", 5)):
        with open(datasets.load("ucf101", tmp_path / "data", subset, 1).path(i), "wb") as file:
            file.write(b"no video")
    prepare("ucf101", str(tmp_path / "data"), check="packets", accept_missing=2, workers=1)
    verb(tmp_path / "data", tmp_path / "out", "protocol=gap")
    path = tmp_path / "out/demo-random/retrieve-ucf101-split1-seed0/recall-gap-test.json"
    result = json.loads(path.read_text())
    assert (result["n_scored"], result["n_expected"], result["gallery"]) == (15, 16, 31)
    mark = datasets.load("ucf101", tmp_path / "data", "test").manifest_hash
    assert result["manifest_hash"] == mark is not None
    assert result["R@50"] == pytest.approx(100 * 15 / 16)  # all 31 are near, one query was not asked


def test_features_that_are_not_finite_stop_it(tiny, tmp_path, monkeypatch):
    cfg = config.load("demo-random", words(tiny, tmp_path, "protocol=gap"), "retrieve")
    broken = partial(torch.full, (1, 4, 1, 1, 1), torch.nan)
    backbone = type("Broken", (torch.nn.Module,), {"forward": lambda self, x: broken()})()
    with pytest.raises(RunError, match="not finite"):
        retrieve.extract("train", backbone, cfg, make_accelerator(cfg))


# ---- the linear classifier


def probed(data, out, *more):
    """The verb; its config, its directory and its result on the test list."""
    cfg = config.load("demo-random", latest(f"data={data}", f"out={out}", *TINY, "cache_gb=0", *more), "finetune")
    retrieve.linear(cfg)
    path = out / "demo-random/linear-ucf101-split1-seed0"
    return cfg, path, json.loads((path / "linear-test.json").read_text())


def slow_features(samples, backbone, K=3):
    """Of K clips a video, decoded and encoded one by one: float64 (N, K, C)."""
    with torch.no_grad():
        return np.array([[backbone(clip[None]).mean((2, 3, 4))[0].double().numpy()
                          for clip in networks.clips(samples, i, K)[0]] for i in range(len(samples))])


def slow_fit(x, label, decay, classes=8):
    """Logistic regression of x (R, C), its columns scaled, by scipy -> y (..., C) -> probabilities."""
    mean, scale = x.mean(0), x.std(0, ddof=1).clip(1e-6)
    X, onehot = (x - mean) / scale, np.eye(classes)[label]

    def loss(flat):
        W, b = flat[:-classes].reshape(classes, -1), flat[-classes:]
        log_p = log_softmax(X @ W.T + b, axis=1)
        error = (np.exp(log_p) - onehot) / len(X)
        return (-(onehot * log_p).sum() / len(X) + decay / 2 * (W**2).sum(),
                np.concatenate([(error.T @ X + decay * W).ravel(), error.sum(0)]))

    best = minimize(loss, np.zeros(classes * (x.shape[1] + 1)), jac=True, method="L-BFGS-B",
                    options={"maxiter": 2000, "gtol": 1e-7, "ftol": 1e-12}).x
    W, b = best[:-classes].reshape(classes, -1), best[-classes:]
    return lambda y: softmax((y - mean) / scale @ W.T + b, axis=-1)


def test_linear_by_scipy(tiny, tmp_path, monkeypatch, capsys):
    """All that the verb does, the slow way; what it leaves is a model that `evaluate` tests to the same answers."""
    monkeypatch.setattr(retrieve, "DECAYS", (1e-3, 1e-1))  # where scipy ends in the same place
    cfg, path, result = probed(tiny, tmp_path)
    torch.manual_seed(0)
    backbone = backbones.build("c3d", 4).eval()
    train, test = (datasets.load("ucf101", tiny, subset, 1) for subset in ("train", "test"))
    x, y = slow_features(train, backbone), slow_features(test, backbone)  # (32, 3, C), (16, 3, C)
    rest, held = evaluate.holdout(train, 0.2, 0)
    held = np.array([name in held.paths.tolist() for name in train.paths.tolist()])
    assert 0 < held.sum() < 16 and len(rest) == (~held).sum()
    top1 = {}
    for decay in (1e-3, 1e-1):
        p = slow_fit(x[~held].reshape(-1, x.shape[2]), train.labels[~held].repeat(3), decay)(x[held]).mean(1)
        top1[decay] = 100 * np.mean(p.argmax(1) == train.labels[held])
    decay = max(top1, key=lambda decay: (top1[decay], decay))
    assert result["decay"] == decay
    p = slow_fit(x.reshape(-1, x.shape[2]), train.labels.repeat(3), decay)(y).mean(1)
    kept = load_file(path / "probabilities-test.safetensors")
    np.testing.assert_allclose(kept["probabilities"], p, atol=2e-3)
    assert result["top1"] == pytest.approx(100 * np.mean(p.argmax(1) == test.labels))
    assert (result["n_scored"], result["n_expected"], result["test_clips"]) == (16, 16, 3)

    near = 0
    for z, label in zip(y.mean(1), test.labels, strict=True):
        cosine = [z @ other / np.linalg.norm(z) / np.linalg.norm(other) for other in x.mean(1)]
        votes = np.zeros(8)
        for i in np.argsort(cosine)[-20:]:
            votes[train.labels[i]] += np.exp(cosine[i] / 0.07)
        near += votes.argmax() == label
    assert result["knn"] == pytest.approx(100 * near / 16)

    rows = report.table(["demo-random"], report.index(read_results(tmp_path, "linear")))
    assert [(row["tested on"], row["metric"], row["ours"], row["scored"]) for row in rows] == [
        ("ucf101 test, frozen", metric, [result[metric]], "16/16") for metric in ("top1", "knn")]
    assert rows[0]["note"].startswith("synthetic videos; finetune ") and "width=4" in rows[0]["note"]
    assert not read_results(tmp_path)

    model, classes = evaluate.load_classifier(config.load(path / "config.yaml", [], "finetune"), path)
    ((_, _, rows),) = bias.compare("seen", [(path, cfg)], lambda *_: {"n_scored": 16, "n_expected": 16})
    assert [row["experiment"] for row in rows] == ["demo-random, frozen"]
    tested, ok = evaluate.classify(model, test, cfg, make_accelerator(cfg))
    torch.testing.assert_close(tested, kept["probabilities"], atol=1e-4, rtol=0)
    assert ok.all() and classes == test.classes
    torch.testing.assert_close(model.backbone.state_dict(), backbone.state_dict(), rtol=0, atol=0)

    capsys.readouterr()
    assert probed(tiny, tmp_path)[2].keys() == result.keys()
    verb(tiny, tmp_path, "protocol=clips", "backbone=c3d")
    assert capsys.readouterr().out.count("taken from") == 4  # twice by each


def test_linear_says_what_it_cannot_read(tiny, tmp_path, monkeypatch):
    """A train video is left out, a test video is wrong: as if the one were not listed, and the other not known."""
    monkeypatch.setattr(retrieve, "DECAYS", (1e-2,))  # the choice looks at another part of another list
    whole = probed(tiny, tmp_path / "whole")[1]
    shutil.copytree(tiny, data := tmp_path / "data")
    for subset, i in (("test", 3), ("train", 5)):
        with open(datasets.load("ucf101", data, subset, 1).path(i), "wb") as file:
            file.write(b"no video")
    _, path, result = probed(data, tmp_path / "out")
    assert (result["n_scored"], result["n_expected"]) == (15, 16)
    kept = load_file(path / "probabilities-test.safetensors")
    assert kept["ok"].tolist() == [i != 3 for i in range(16)] and not kept["probabilities"][3].any()
    right = (kept["probabilities"].argmax(1) == kept["label"]) & kept["ok"]
    assert result["top1"] == pytest.approx(100 * right.float().mean().item())
    shutil.copytree(tiny, data := tmp_path / "shorter")
    lists = data / "ucf101/ucfTrainTestlist/trainlist01.txt"
    lines = lists.read_text().splitlines(keepends=True)
    lists.write_text("".join(lines[:5] + lines[6:]))
    shorter = probed(data, tmp_path / "out2")[1]
    p, q = (load_file(where / "probabilities-test.safetensors")["probabilities"] for where in (shorter, whole))
    same = [i for i in range(16) if i != 3]
    torch.testing.assert_close(kept["probabilities"][same], p[same], atol=1e-5, rtol=0)
    assert (p - q).abs().max() > 1e-4  # that video counts


def test_a_test_list_of_other_classes_is_refused(tiny, tmp_path):
    """Or its labels would be taken for other classes of the train list."""
    shutil.copytree(tiny, tmp_path / "other")
    with open(tmp_path / "other/ucf101/ucfTrainTestlist/classInd.txt", "a") as file:
        file.write("9 Another\n")
    for call in (probed, verb):
        with pytest.raises(ConfigError, match="other classes"):
            call(tiny, tmp_path / "out", f"test_data={tmp_path / 'other'}")
