"""Evaluation: the one no-grad pass over a split list. The 10-clip test, features, kNN and linear probe.

An unreadable video keeps its place, counts as wrong and shows in `n_scored / n_expected`. One that is damaged inside is
scored as FFmpeg shows it, and shows in `n_damaged`. The result is the same for any number of processes.
"""

import dataclasses
import json
import time
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file

from be import backbones, datasets, objectives, video, weights
from be.augment import eval_view
from be.config import Config, ConfigError, changes, run_dir
from be.objectives import Classify, Objective, global_pool
from be.runs import RunError, make_accelerator, place, progress, provenance, read_result, write_aside, write_text
from be.weights import load_weights, read_about

# Keys that the result of a test follows from, beside the weights and the videos
TEST_SETTINGS = "test_clips", "frames", "stride", "static", "short_side", "size", "pool", "precision", "seed", "strict"
# Keys in which a test follows the training: what the network is, what of a video it sees, what a result says of both
AS_TRAINED = ("backbone", "width", "pool", "frames", "stride", "static", "short_side", "size", "select", "synthetic")
PROBED = 10_000  # of a longer list, `make_probe` takes so many videos at random
SCORES = "top1", "top5", "mean_class", "knn", "R@1", "R@10", "R@50"  # what a line about a result says of it, in %


def views(samples, sampler, cfg: Config, accelerator, what: str):
    """Yields each of this process's videos, every `world`-th: its place in the list and its clips (K, 3, T, S, S) on
    the device, None where it is unreadable."""
    mine = range(accelerator.process_index, len(samples), accelerator.num_processes)
    videos = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, False, cfg.cache_gb, cfg.strict)
    loader = datasets.loader(videos, [[(0, i)] for i in mine], workers=cfg.workers, device=accelerator.device)
    for batch in progress(loader, len(mine), what) if accelerator.is_main_process else loader:
        clips, size = batch.clips[0].to(accelerator.device), batch.size.to(accelerator.device)
        samples.damaged.update(batch.index[batch.damaged].tolist())
        yield batch.index.item(), eval_view(clips, size.expand(len(clips), 2), cfg.size) if batch.ok else None


@torch.no_grad()
def each_video(compute, samples, sampler, cfg: Config, accelerator, what: str, look=views):
    """Yields `compute(clips (K, 3, T, S, S), i) -> tensor`, moved to the CPU, of each video i in the order of the list.
    None for an unreadable one. Every process gets all, whoever computed them. look: what yields the clips.
    RunError where not one can be read."""
    mine, readable = look(samples, sampler, cfg, accelerator, what), 0
    for first in range(0, len(samples), accelerator.num_processes):
        i, row = next(mine, (0, None))
        if row is not None:
            with accelerator.autocast():
                row = compute(row, i).cpu()
        rows = gather_object([row])[: len(samples) - first]
        readable += sum(row is not None for row in rows)
        yield from rows
    samples.damaged.update(*gather_object([samples.damaged]))
    if not readable:
        raise RunError(f"{what}: not one of {len(samples)} videos in {samples.root} can be read; run.py prepare says "
                       f"why")


def over_videos(*args, **kwargs):
    """What `each_video` yields, stacked: results (N, ...) float32, ok (N,) bool. An unreadable video's row is zero."""
    rows = list(each_video(*args, **kwargs))
    ok = torch.tensor([row is not None for row in rows])
    empty = torch.zeros_like(next(row for row in rows if row is not None))
    return torch.stack([empty if row is None else row for row in rows]).float(), ok


def clips_as_set(cfg: Config, sampler):
    """The sampler of clips of `frames` and `stride`; with `static`, of one random frame of a video in place of all."""
    sampler = partial(sampler, T=cfg.frames, stride=cfg.stride)
    return partial(video.static_clips, like=sampler) if cfg.static else sampler


def spread_clips(cfg: Config, K: int):
    """The sampler of K such clips, spread over a video."""
    return clips_as_set(cfg, partial(video.even_clips, K=K))


def classify(model: Classify, samples, cfg: Config, accelerator):
    """Mean softmax over `test_clips` clips spread over the video (paper 4.1) -> (N, classes), ok (N,)."""
    model.eval()
    return over_videos(lambda x, i: model.logits(x).float().softmax(1).mean(0), samples,
                       spread_clips(cfg, cfg.test_clips), cfg, accelerator, "test")


def features(backbone, samples, cfg: Config, accelerator):
    """Of the clip in the middle of each video, pooled as `cfg.pool` says -> (N, C), ok (N,)."""
    backbone.eval()
    return over_videos(lambda x, i: global_pool(backbone(x), cfg.pool)[0], samples, spread_clips(cfg, 1), cfg,
                       accelerator, "probe")


def accuracy(probabilities, label, ok) -> dict:
    """Top-1, top-5 and mean class accuracy in %, over all rows; a row that is not ok is wrong. Classes without a video
    do not enter the mean. probabilities (N, classes), label (N,), ok (N,) bool."""
    N, classes = probabilities.shape
    hit = (probabilities.topk(min(5, classes), dim=1).indices == label[:, None]) & ok[:, None]  # (N, 5)
    per_class = [hit[label == c, 0].float().mean() for c in label.unique()]
    return {"top1": 100 * hit[:, 0].float().mean().item(), "top5": 100 * hit.any(1).float().mean().item(),
            "mean_class": 100 * torch.stack(per_class).mean().item(), "n_scored": int(ok.sum()), "n_expected": N}


def knn(x, label, y, k: int = 20, temperature: float = 0.07):
    """The class with the most votes among the k nearest rows of x (N, C) for each row of y (M, C) -> (M,). A vote
    weighs exp(cosine / temperature) (Wu et al. 2018, Sec. 3.4). k and temperature: DINO's (Caron et al. 2021)."""
    cosine = F.normalize(y) @ F.normalize(x).T  # (M, N)
    near = cosine.topk(min(k, len(x)), dim=1)
    votes = cosine.new_zeros(len(y), int(label.max()) + 1)
    return votes.scatter_add(1, label[near.indices], (near.values / temperature).exp()).argmax(1)


@torch.enable_grad()
def fit(x, label, classes: int, decay: float = 1e-3):
    """Logistic regression on x (N, C) and label (N,) -> weight (classes, C), bias (classes,), for x as it is.

    They have the least mean cross entropy + decay |weight|^2 / 2, by L-BFGS, where each column of x is first shifted
    and scaled to mean 0 and standard deviation 1."""
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    scaled = (x - mean) / scale
    weight, bias = (x.new_zeros(classes, *shape, requires_grad=True) for shape in (x.shape[1:], ()))
    search = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = F.cross_entropy(scaled @ weight.T + bias, label) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    search.step(loss)
    weight = weight.detach() / scale
    return weight, bias.detach() - weight @ mean


def holdout(samples: datasets.Samples, fraction: float, seed: int) -> tuple[datasets.Samples, datasets.Samples]:
    """Splits a training list into (rest, held out), to choose a model without looking at the test list.

    Clips of one source video are near copies of each other, so they stay together. The source videos come in random
    order, and one is held out if that brings the classes nearer to `fraction` of their videos, which is in (0, 1)."""
    missing = fraction * np.bincount(samples.labels, minlength=len(samples.classes))  # videos of each class
    order = np.argsort(samples.groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(samples.groups[order])) + 1)
    out = np.zeros(len(samples), bool)
    for g in np.random.default_rng(seed).permutation(len(members)):
        rest = missing - np.bincount(samples.labels[members[g]], minlength=len(missing))
        if np.abs(rest).sum() < np.abs(missing).sum():
            missing, out[members[g]] = rest, True
    if not out.any():
        raise ConfigError(f"every source video is too long to hold out {fraction} of {len(samples)} videos")
    return samples.take(~out), samples.take(out)


def make_probe(objective: Objective, samples: datasets.Samples, cfg: Config, accelerator: Accelerator):
    """A function of the epoch: what can be read off the features after it. Pre-training is the same without.

    A fifth of the training list is held out, by whole source videos; kNN and a linear layer learn from the rest.
    -> probe_knn, probe_linear, in % of the held-out videos; of drawn videos also ..._scene: the family of the scene.
    A held-out video that cannot be read is wrong.
    """
    some = np.random.default_rng((cfg.seed, len(samples))).permutation(len(samples))[:PROBED]
    lists = holdout(samples.take(np.sort(some)), 0.2, cfg.seed)

    def probe(epoch: int) -> dict[str, float]:
        if epoch % cfg.probe_every:
            return {}
        (x, known), (y, ok) = (features(objective.backbone, part, cfg, accelerator) for part in lists)
        x, y, found = x[known].to(accelerator.device), y.to(accelerator.device), {}
        for ending, column in (("", "labels"), ("_scene", "scene")):
            told = [getattr(part, column) for part in lists]
            if any(one is None or min(one) < 0 for one in told):  # -1: a scene is not known
                continue
            label, answer = (torch.from_numpy(one).to(y.device) for one in told)
            weight, bias = fit(x, label[known], int(label.max()) + 1)
            for name, guess in ("knn", knn(x, label[known], y)), ("linear", (y @ weight.T + bias).argmax(1)):
                found[f"probe_{name}{ending}"] = 100 * ((guess == answer).cpu() & ok).float().mean().item()
        return found

    return probe


def load_backbone(cfg: Config) -> torch.nn.Module:
    """The backbone of `cfg.pretrained`: `self`, another experiment, `random` (of `cfg.seed`), or see `weights.find`."""
    torch.manual_seed(cfg.seed)
    backbone = backbones.build(cfg.backbone, cfg.width, cfg.checkpointing)
    if cfg.pretrained == "random":
        print("backbone from random initialisation")
    elif published := weights.find(cfg.pretrained):
        weights.load(published, backbone)
    else:
        source = cfg.name if cfg.pretrained == "self" else cfg.pretrained
        path = run_dir(cfg, "pretrain", source) / "backbone.safetensors"
        if not path.exists():
            there = sorted(other.parents[1].name for other in path.parents[2].glob(f"*/{path.parent.name}/{path.name}"))
            raise RunError(f"{path} does not exist: pre-training of {source} has not been run, or not to its end. "
                           f"There is that of: {', '.join(there) or 'none'}")
        load_weights(path, backbone)
    return backbone


def load_classifier(cfg: Config, run=None) -> tuple[Classify, list[str]]:
    """The fine-tuned model of an experiment, or of the directory `run`, and the names of its classes. RunError where
    `cfg` would have another model, or show it other clips, than the run's config.yaml."""
    path = (run or run_dir(cfg, "finetune")) / "model.safetensors"
    classes = read_about(path)["classes"]
    saved = path.with_name("config.yaml")
    if found := changes(saved, cfg, AS_TRAINED):
        raise RunError(f"{path.parent} was trained with other settings ({found}); give the overrides that fine-tuning "
                       f"had, or --cfg {saved}")
    model = objectives.build("classify", backbones.build(cfg.backbone, cfg.width),
                             {**dataclasses.asdict(cfg), "classes": len(classes)})
    load_weights(path, model)
    return model, classes


def load_list(cfg: Config, subset: str, classes: list[str]) -> datasets.Samples:
    """The videos of `subset`. Raises ConfigError if their classes are not those the model knows."""
    samples = datasets.load_for(cfg, subset, cfg.test_data)
    if classes != samples.classes:
        raise ConfigError(f"the model knows other classes, {classes[:3]} ..., than the list {subset!r} of "
                          f"{cfg.dataset}, {samples.classes[:3]} ...")
    return samples


def evaluate(cfg: Config):
    """Tests the fine-tuned model with 10 clips a video

    The list is `subset`; several are tested one after the other with subset=test,swapped. The result and the
    probabilities of each go beside the model. A result of the same weights, videos and settings is kept.
    """
    path, (model, classes) = run_dir(cfg, "finetune"), load_classifier(cfg)
    accelerator = make_accelerator(cfg)
    place(model, accelerator.device, cfg.precision)
    for subset in cfg.subset.split(","):
        samples, began = load_list(cfg, subset, classes), time.perf_counter()
        inputs = hash_inputs(cfg, samples, (path / "model.safetensors").read_bytes(), TEST_SETTINGS)
        files = path / f"result-{subset}.json", path / f"probabilities-{subset}.safetensors"
        known = read_result(files[0]) if all(file.exists() for file in files) else None
        known = known if known and known.get("inputs") == inputs else None
        if known := broadcast_object_list([known])[0]:  # elsewhere files may have other times
            accelerator.print(f"{format_result(known)}; as before, of the same weights, videos and settings")
            continue
        tested = classify(model, samples, cfg, accelerator)
        if accelerator.is_main_process:
            write_result("result", cfg, samples, accelerator, began, path, subset, tested, select=cfg.select,
                         inputs=inputs)


def write_result(kind, cfg: Config, samples, accelerator, began, path, subset, tested=None, **result):
    """Writes KIND-SUBSET.json into the folder `path`, and says it in a line: `result`, what it is of and comes from.

    began: `time.perf_counter()` when its computation began. tested: what `classify` returns; its `accuracy` is added,
    and probabilities-SUBSET.safetensors written."""
    if tested:
        content = {"probabilities": tested[0], "label": torch.from_numpy(samples.labels), "ok": tested[1]}
        write_aside(path / f"probabilities-{subset}.safetensors", partial(save_file, content))
        result |= accuracy(**content) | {"test_clips": cfg.test_clips}
    result |= {"experiment": cfg.name, "dataset": cfg.dataset, "subset": subset, "split": cfg.split, "seed": cfg.seed,
               "synthetic": cfg.synthetic or bool(samples.scenes), "n_damaged": len(samples.damaged),
               **provenance(samples, accelerator), "seconds": round(time.perf_counter() - began, 1)}
    write_text(path / f"{kind}-{subset}.json", json.dumps(result, indent=1) + "\n")
    print(format_result(result))


def format_result(result: dict) -> str:
    scores = ", ".join(f"{name} {result[name]:.1f}" for name in SCORES if name in result)
    what = f"queries of protocol={result['protocol']}" if "protocol" in result else "videos"
    return ("{experiment} on {dataset} {subset}, split {split}: {scores}; {n_scored} of {n_expected} {what}, "
            "{n_damaged} damaged").format(**result, scores=scores, what=what)


def hash_inputs(cfg: Config, samples, weights: bytes, settings) -> str:
    """Of all that a result follows from: the weights, the keys `settings` of the config, and of each video its path,
    label, size and time, and the contents that a manifest knows; hex."""
    state = blake2b(weights, digest_size=16)
    state.update(json.dumps([samples.manifest_hash, *(getattr(cfg, key) for key in settings)]).encode())
    for i, path in enumerate(samples.paths.tolist()):
        file = Path(samples.path(i))
        known = b" %d %d" % (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else b""
        state.update(b"%b\0%d%b\0" % (path, samples.labels[i], known))
    return state.hexdigest()
