"""Evaluation: the one no-grad pass over a split list. The 10-clip test, features, kNN and linear probe.

A video is decoded once for all its clips. An unreadable video keeps its place, counts as wrong and shows in
`n_scored / n_expected`. One that is damaged inside is scored as FFmpeg shows it, and shows in `n_damaged`. Each process
takes every `world`-th video; the result is the same for any number of them.
"""

import dataclasses
import json
import os
import time
from functools import partial
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file

from be import backbones, datasets, objectives, video, weights
from be.augment import eval_view
from be.config import Config, ConfigError, load, run_dir
from be.objectives import Classify, Objective, global_pool
from be.runs import RunError, make_accelerator, place, progress, provenance, read_result, write_aside, write_text
from be.weights import load_weights, read_about

# Keys that the result of a test follows from, beside the weights and the videos
TEST_SETTINGS = ("test_clips", "frames", "stride", "static", "short_side", "size", "pool", "precision", "seed",
                 "strict")
# Keys in which a test follows the training: what the network is, what of a video it sees, what a result says of both
AS_TRAINED = ("backbone", "width", "pool", "frames", "stride", "static", "short_side", "size", "select", "synthetic")


def views(samples, sampler, cfg: Config, accelerator, what: str, mine=None):
    """Yields each video's place in the list and its clips (K, 3, T, S, S) on the device, None where it is unreadable.
    mine: the places that this process takes, by default every `world`-th."""
    mine = range(accelerator.process_index, len(samples), accelerator.num_processes) if mine is None else mine
    videos = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, False, cfg.cache_gb, cfg.strict)
    loader = datasets.loader(videos, [[(0, i)] for i in mine], workers=cfg.workers, device=accelerator.device)
    for batch in progress(loader, len(mine), what) if accelerator.is_main_process else loader:
        clips, size = batch.clips[0].to(accelerator.device), batch.size.to(accelerator.device)
        samples.damaged.update(batch.index[batch.damaged].tolist())
        yield batch.index.item(), eval_view(clips, size.expand(len(clips), 2), cfg.size) if batch.ok else None


@torch.no_grad()
def each_video(compute, samples, sampler, cfg: Config, accelerator, what: str, look=views):
    """Yields `compute(clips (K, 3, T, S, S), i) -> tensor`, moved to the CPU, of each video i in the order of the list.
    None for an unreadable one. Every process gets all, whoever computed them. look: what yields the clips."""
    mine = look(samples, sampler, cfg, accelerator, what)
    for first in range(0, len(samples), accelerator.num_processes):
        i, row = next(mine, (0, None))
        if row is not None:
            with accelerator.autocast():
                row = compute(row, i).cpu()
        yield from gather_object([row])[: len(samples) - first]
    samples.damaged.update(*gather_object([samples.damaged]))


def over_videos(compute, samples, sampler, cfg: Config, accelerator, what: str, classes: int = 0, look=views):
    """What `each_video` yields, stacked: results (N, ...) float32, ok (N,) bool. An unreadable video's row is zero.
    Where all are unreadable, results are (N, classes) zeros after a warning; RunError if `classes` is 0."""
    rows = list(each_video(compute, samples, sampler, cfg, accelerator, what, look))
    ok = torch.tensor([row is not None for row in rows])
    if not ok.any():
        none = f"{what}: not one of {len(rows)} videos in {samples.root} can be read; run.py prepare says why"
        if not classes:
            raise RunError(none)
        accelerator.print(f"WARNING: {none}")
    empty = next((torch.zeros_like(row) for row in rows if row is not None), torch.zeros(classes))
    return torch.stack([empty if row is None else row for row in rows]).float(), ok


def spread_clips(cfg: Config, K: int):
    """The sampler of K clips spread over a video; with `static`, of one random frame of it in place of all frames."""
    sampler = partial(video.even_clips, K=K, T=cfg.frames, stride=cfg.stride)
    return partial(video.static_clips, like=sampler) if cfg.static else sampler


def classify(model: Classify, samples, cfg: Config, accelerator):
    """Mean softmax over `test_clips` clips spread over the video (paper 4.1) -> (N, classes), ok (N,)."""
    model.eval()
    return over_videos(lambda x, i: model.logits(x).float().softmax(1).mean(0), samples,
                       spread_clips(cfg, cfg.test_clips), cfg, accelerator, "test", len(samples.classes))


def clip_features(backbone, pool, x):
    """Clips x (K, 3, T, S, S), 8 at a time, -> (K, D) float32. pool: feature map (K, C, T', H', W') -> (K, D)."""
    return torch.cat([pool(backbone(part)).float() for part in x.split(8)])


def features(backbone, pool: str, samples, cfg: Config, accelerator, what: str = "features", K: int = 1):
    """The mean over K clips spread over each video, under global pooling (`pool`: max | avg) -> (N, C), ok (N,)."""
    backbone.eval()
    return over_videos(lambda x, i: clip_features(backbone, partial(global_pool, pool=pool), x).mean(0), samples,
                       spread_clips(cfg, K), cfg, accelerator, what)


def accuracy(probabilities, label, ok) -> dict:
    """Top-1, top-5 and mean class accuracy in %, over all rows; a row that is not ok is wrong. Classes without a video
    do not enter the mean. probabilities (N, classes), label (N,), ok (N,) bool."""
    N, classes = probabilities.shape
    hit = (probabilities.topk(min(5, classes), dim=1).indices == label[:, None]) & ok[:, None]  # (N, 5)
    per_class = torch.zeros(classes).index_add_(0, label, hit[:, 0].float())
    count = torch.bincount(label, minlength=classes)
    return {
        "top1": 100 * hit[:, 0].float().mean().item(),
        "top5": 100 * hit.any(1).float().mean().item(),
        "mean_class": 100 * (per_class / count).nanmean().item(),
        "n_scored": int(ok.sum()), "n_expected": N,
    }


def read_off(x, label, y, answer, ok) -> dict[str, float]:
    """How many rows of y (M, C) get their answer (M,) from classifiers of x (N, C) and label (N,), in %.
    A row that is not ok, (M,) bool, is wrong. x and y may be on any device, the others are on the CPU."""
    return {name: 100 * ((guess(x, label.to(x.device), y).cpu() == answer) & ok).float().mean().item()
            for name, guess in (("knn", knn), ("linear", linear))}


def knn(x, label, y, k: int = 20, temperature: float = 0.07):
    """The class with the most votes among the k nearest rows of x (N, C) for each row of y (M, C) -> (M,).

    A vote weighs exp(cosine / temperature) (Wu et al. 2018, Sec. 3.4). k and temperature: DINO's (Caron et al. 2021).
    """
    cosine = F.normalize(y) @ F.normalize(x).T  # (M, N)
    near = cosine.topk(min(k, len(x)), dim=1)
    votes = cosine.new_zeros(len(y), int(label.max()) + 1)
    return votes.scatter_add(1, label[near.indices], (near.values / temperature).exp()).argmax(1)


def linear(x, label, y, decay: float = 1e-3):
    """The class of each row of y (M, C) under logistic regression on x (N, C) -> (M,). See `fit`."""
    weight, bias = fit(x, label, decay)
    return (y @ weight.T + bias).argmax(1)


def fit(x, label, decay: float, classes: int = 0):
    """`regress` on x (N, C), of which every column is first shifted and scaled to mean 0 and standard deviation 1.
    -> weight (classes, C), bias (classes,), for x as it is."""
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias = regress((x - mean) / scale, label, decay, classes)
    weight = weight / scale
    return weight, bias - weight @ mean


@torch.enable_grad()
def regress(x, label, decay: float, classes: int = 0):
    """Weight (classes, C) and bias (classes,) with the least mean cross entropy + decay |weight|^2 / 2, by L-BFGS.
    classes: by default as many as the largest label says."""
    weight = x.new_zeros(classes or int(label.max()) + 1, x.shape[1], requires_grad=True)
    bias = x.new_zeros(len(weight), requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, label) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    search.step(loss)
    return weight.detach(), bias.detach()


def holdout(samples: datasets.Samples, fraction: float, seed: int) -> tuple[datasets.Samples, datasets.Samples]:
    """Splits a training list into (rest, held out), to choose a model without looking at the test list.

    Clips of one source video are near copies of each other, so they stay together. The source videos come in random
    order, and one is held out if that brings the classes nearer to `fraction` of their videos, which is in (0, 1)."""
    target = fraction * np.bincount(samples.labels, minlength=len(samples.classes))
    order = np.argsort(samples.groups, kind="stable")
    members = np.split(order, np.unique(samples.groups[order], return_index=True)[1][1:])
    held, out = np.zeros(len(target)), np.zeros(len(samples), bool)
    for g in np.random.default_rng(seed).permutation(len(members)):
        more = np.bincount(samples.labels[members[g]], minlength=len(target))
        if np.abs(held + more - target).sum() < np.abs(held - target).sum():
            held += more
            out[members[g]] = True
    if not out.any():
        raise ConfigError(f"every source video is too long to hold out {fraction} of {len(samples)} videos")
    return samples.take(~out), samples.take(out)


class Probe:
    """What can be read off the features after an epoch of pre-training, which is the same without.

    A fifth of the training list is held out, by whole source videos; kNN and a linear layer learn from the rest.
    -> probe_knn, probe_linear, in % of the held-out videos; of drawn videos also ..._scene: the family of the scene.
    """

    VIDEOS, HELD_OUT = 10_000, 0.2  # of a longer list, so many drawn at random are used

    def __init__(self, objective: Objective, samples: datasets.Samples, cfg: Config, accelerator: Accelerator):
        self.backbone, self.cfg, self.accelerator = objective.backbone, cfg, accelerator
        some = np.random.default_rng((cfg.seed, len(samples))).permutation(len(samples))[:self.VIDEOS]
        self.lists = holdout(samples.take(np.sort(some)), self.HELD_OUT, cfg.seed)

    def __call__(self, epoch: int) -> dict[str, float]:
        if epoch % self.cfg.probe_every:
            return {}
        (x, known), (y, ok) = (features(self.backbone, self.cfg.pool, part, self.cfg, self.accelerator, "probe")
                               for part in self.lists)  # (N, C), (N,); (M, C), (M,)
        x, y, found = x[known].to(self.accelerator.device), y.to(self.accelerator.device), {}
        for ending, columns in (("", [part.labels for part in self.lists]), ("_scene", [p.scene for p in self.lists])):
            if all(column is not None and min(column) >= 0 for column in columns):  # -1: a scene is not known
                label, answer = map(torch.from_numpy, columns)
                right = read_off(x, label[known], y, answer, ok)
                found |= {f"probe_{name}{ending}": percent for name, percent in right.items()}
        return found


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
    trained = load(path.with_name("config.yaml"), stage="finetune")
    changes = [f"{key}: {getattr(trained, key)} -> {getattr(cfg, key)}" for key in AS_TRAINED
               if getattr(trained, key) != getattr(cfg, key)]
    if changes:
        raise RunError(f"{path.parent} was trained with other settings ({', '.join(changes)}); give the overrides that "
                       f"fine-tuning had, or --cfg {path.with_name('config.yaml')}")
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
        if known := broadcast_object_list([known_result(path, subset, inputs)])[0]:
            accelerator.print(f"{format_result(known)}; as before, of the same weights, videos and settings")
            continue
        probabilities, ok = classify(model, samples, cfg, accelerator)
        if accelerator.is_main_process:
            about = about_result(cfg, subset, samples, accelerator, began)
            print(format_result(write_result(path, "result", probabilities, ok, samples, test_clips=cfg.test_clips,
                                             select=cfg.select, **about, inputs=inputs)))


def write_result(path, kind: str, probabilities, ok, samples, **about) -> dict:
    """Leaves KIND-SUBSET.json, with what `accuracy` says and `about`, and probabilities-SUBSET.safetensors."""
    content = {"probabilities": probabilities, "label": torch.from_numpy(samples.labels), "ok": ok}
    result = {**accuracy(**content), **about}
    write_aside(path / f"probabilities-{about['subset']}.safetensors", partial(save_file, content))
    write_text(path / f"{kind}-{about['subset']}.json", json.dumps(result, indent=1) + "\n")
    return result


def about_result(cfg: Config, subset: str, samples, accelerator, began: float) -> dict:
    """What any result is of and where it comes from. began: `time.perf_counter()` when its computation began."""
    return {"experiment": cfg.name, "dataset": cfg.dataset, "subset": subset, "split": cfg.split, "seed": cfg.seed,
            "synthetic": cfg.synthetic, "n_damaged": len(samples.damaged), **provenance(samples, accelerator),
            "seconds": round(time.perf_counter() - began, 1)}


def hash_inputs(cfg: Config, samples, weights: bytes, settings) -> str:
    """Of all that a result follows from: the weights, the keys `settings` of the config, and of each video its path,
    label, size and time, and the contents that a manifest knows; hex."""
    state = blake2b(weights, digest_size=16)
    state.update(json.dumps([samples.manifest_hash, *(getattr(cfg, key) for key in settings)]).encode())
    for i, path in enumerate(samples.paths.tolist()):
        stat = os.stat(samples.path(i)) if os.path.exists(samples.path(i)) else None
        known = b" %d %d" % (stat.st_size, stat.st_mtime_ns) if stat else b""
        state.update(b"%b\0%d%b\0" % (path, samples.labels[i], known))
    return state.hexdigest()


def known_result(path, subset: str, inputs: str) -> dict | None:
    """The content of result-SUBSET.json, if it is of these inputs and nothing of it is missing."""
    there = [file.exists() for file in (path / f"result-{subset}.json", path / f"probabilities-{subset}.safetensors")]
    result = read_result(path / f"result-{subset}.json") if all(there) else None
    return result if result and result.get("inputs") == inputs else None


def format_result(result: dict) -> str:
    return ("{experiment} on {dataset} {subset}, split {split}: top-1 {top1:.1f}, top-5 {top5:.1f}, mean class "
            "{mean_class:.1f}, {n_scored} of {n_expected} videos, {n_damaged} damaged").format(**result)
