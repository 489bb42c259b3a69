"""Testing: the one no-grad pass over a list of videos. Nothing is dropped, replaced or counted twice.

A video is decoded once for all its clips. An unreadable video keeps its place, counts as wrong and shows in
`n_scored / n_expected`. Each process scores every `world`-th video; the result is the same for any number of them.
"""

import dataclasses
import json
import os
import time
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file

from be import backbones, datasets, objectives, video, weights
from be.augment import eval_view
from be.config import Config, ConfigError, load
from be.objectives import Classify, global_pool
from be.runs import RunError, make_accelerator, progress, provenance, run_dir, write_aside, write_text
from be.weights import load_weights, read_about

# Keys in which a test follows the training: what the network is, what of a video it sees, what a result says of both
AS_TRAINED = ("backbone", "width", "pool", "frames", "stride", "static", "short_side", "size", "select", "synthetic")


def views(samples: datasets.Samples, sampler, cfg: Config, accelerator: Accelerator, what: str, mine=None):
    """One video after the other: yields its place in the list and its clips (K, 3, T, S, S) on the device.

    Clips are None where a video is unreadable. `mine`: the places this process takes, by default every `world`-th.
    """
    mine = range(accelerator.process_index, len(samples), accelerator.num_processes) if mine is None else mine
    clips = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, False, cfg.cache_gb)
    loader = datasets.loader(clips, [[(0, i)] for i in mine], workers=cfg.workers, device=accelerator.device)
    for batch in progress(loader, len(mine), what) if accelerator.is_main_process else loader:
        x = None
        if batch.ok.item():
            stored = batch.clips[0].to(accelerator.device)  # (K, T, H, W, 3)
            x = eval_view(stored, batch.size.expand(len(stored), 2).to(accelerator.device), cfg.size)
        yield batch.index.item(), x


@torch.no_grad()
def over_videos(compute, samples: datasets.Samples, sampler, cfg: Config, accelerator: Accelerator, what: str):
    """Runs `compute(clips (K, 3, T, S, S), i) -> tensor (...)` on each video i and stacks the results, as listed.

    Returns (results (N, ...) float32 on the CPU, ok (N,) bool). The row of an unreadable video is zero and not ok.
    """
    rows = {}
    for i, x in views(samples, sampler, cfg, accelerator, what):
        if x is not None:
            with accelerator.autocast():
                rows[i] = compute(x, i).float().cpu()
    rows = {i: row for part in gather_object([rows]) for i, row in part.items()}
    n = len(samples)
    ok = torch.tensor([i in rows for i in range(n)], dtype=torch.bool)
    empty = torch.zeros_like(next(iter(rows.values()))) if rows else torch.zeros(())
    return torch.stack([rows.get(i, empty) for i in range(n)]), ok


def spread_clips(cfg: Config, K: int):
    """The sampler of K clips spread over a video; with `static` of one random frame of it in place of them all."""
    sampler = partial(video.even_clips, K=K, T=cfg.frames, stride=cfg.stride)
    return partial(video.static_clips, like=sampler) if cfg.static else sampler


def classify(model: Classify, samples, cfg: Config, accelerator):
    """Mean softmax over `test_clips` clips spread over the video (paper 4.1) -> (N, classes), ok (N,)."""
    model.eval()
    return over_videos(lambda x, i: model.logits(x).float().softmax(1).mean(0), samples,
                       spread_clips(cfg, cfg.test_clips), cfg, accelerator, "test")


def features(backbone, pool: str, samples, cfg: Config, accelerator: Accelerator, what: str = "features"):
    """Of the central clip of each video, under global pooling (`pool`: max | avg) -> (N, C), ok (N,)."""
    backbone.eval()
    return over_videos(lambda x, i: global_pool(backbone(x), pool)[0], samples, spread_clips(cfg, 1), cfg, accelerator,
                       what)


def accuracy(probabilities, label, ok) -> dict:
    """Top-1, top-5 and mean class accuracy in %, over all rows; a row that is not ok is wrong.

    probabilities (N, classes), label (N,), ok (N,) bool. Classes without a video do not enter the mean.
    """
    N, classes = probabilities.shape
    ranked = probabilities.topk(min(5, classes), dim=1).indices  # (N, 5)
    hit = (ranked == label[:, None]) & ok[:, None]  # (N, 5)
    per_class = torch.zeros(classes).index_add_(0, label, hit[:, 0].float())
    count = torch.bincount(label, minlength=classes)
    return {
        "top1": 100 * hit[:, 0].float().mean().item(),
        "top5": 100 * hit.any(1).float().mean().item(),
        "mean_class": 100 * (per_class[count > 0] / count[count > 0]).mean().item(),
        "n_scored": int(ok.sum()), "n_expected": N,
    }


def load_backbone(cfg: Config) -> torch.nn.Module:
    """The backbone of `cfg.pretrained`: self, the experiment's own pre-training; another experiment's name; random
    weights of `cfg.seed`; or published weights, a file, folder, torchvision:NAME or hf:USER/REPO."""
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
            there = sorted(p.parents[1].name for p in Path(cfg.out).glob(f"*/{path.parent.name}/{path.name}"))
            raise RunError(f"{path} does not exist: pre-training of {source} has not been run "
                           f"to its end. Backbones of this seed in {cfg.out}: {', '.join(there) or 'none'}")
        load_weights(path, backbone)
    return backbone


def load_classifier(cfg: Config, run=None) -> tuple[Classify, list[str]]:
    """The fine-tuned model of an experiment, or of the directory `run`, and the names of its classes.

    Raises RunError where `cfg` would have another model, or show it other clips, than the run's config.yaml.
    """
    path = (run or run_dir(cfg, "finetune")) / "model.safetensors"
    classes = read_about(path)["classes"]
    trained = load(path.with_name("config.yaml"), stage="finetune")
    differ = [key for key in AS_TRAINED if getattr(trained, key) != getattr(cfg, key)]
    if differ:
        changes = ", ".join(f"{key}: {getattr(trained, key)} -> {getattr(cfg, key)}" for key in differ)
        raise RunError(f"{path.parent} was trained otherwise than it is to be tested ({changes}); give the words that "
                       f"fine-tuning had, or --cfg {path.with_name('config.yaml')}")
    backbone = backbones.build(cfg.backbone, cfg.width)
    model = objectives.build("classify", backbone, {**dataclasses.asdict(cfg), "classes": len(classes)})
    load_weights(path, model)
    return model, classes


def load_list(cfg: Config, subset: str, classes: list[str]) -> datasets.Samples:
    """The videos of `subset`. Raises ConfigError if their classes are not those the model knows."""
    samples = datasets.load(cfg.dataset, cfg.data, subset, cfg.split)
    if classes != samples.classes:
        ours, theirs = (f"({len(names)}: {', '.join(names[:3])}, ...)" for names in (classes, samples.classes))
        raise ConfigError(f"the model knows other classes {ours} than the list {subset!r} of {cfg.dataset} {theirs}")
    return samples


def evaluate(cfg: Config):
    """Tests the fine-tuned model with 10 clips a video

    The list is `subset`; several are tested one after the other with subset=test,swapped. The result and the
    probabilities of each go beside the model. What was found for the same weights, videos and settings stands.
    """
    accelerator = make_accelerator(cfg)
    model, classes = load_classifier(cfg)
    model.to(accelerator.device)
    for subset in cfg.subset.split(","):
        samples = load_list(cfg, subset, classes)
        began, inputs = time.perf_counter(), hash_inputs(cfg, samples) if accelerator.is_main_process else None
        known = broadcast_object_list([accelerator.is_main_process and known_result(cfg, subset, inputs)])[0]
        if known:
            accelerator.print(f"{tell(known)}; as before, of the same weights, videos and settings")
            continue
        probabilities, ok = classify(model, samples, cfg, accelerator)
        if accelerator.is_main_process:
            save(cfg, subset, probabilities, torch.from_numpy(samples.labels), ok, **provenance(samples, accelerator),
                 inputs=inputs, seconds=round(time.perf_counter() - began, 1))


def hash_inputs(cfg: Config, samples: datasets.Samples) -> str:
    """Of all that a result follows from: the model's file, the videos, the settings; hex."""
    settings = ("test_clips", "frames", "stride", "static", "short_side", "size", "pool", "precision", "seed")
    state = blake2b((run_dir(cfg, "finetune") / "model.safetensors").read_bytes(), digest_size=16)
    state.update(json.dumps([hash_videos(samples), *(getattr(cfg, key) for key in settings)]).encode())
    return state.hexdigest()


def hash_videos(samples: datasets.Samples) -> str:
    """Of a list and the files as they lie there now; hex.

    A video is known by its path in the list, label, size and time of change, and the whole list by the contents of
    its files where `prepare` has left a manifest of them.
    """
    state = blake2b(f"{samples.manifest_hash}".encode(), digest_size=16)
    for i, (path, label) in enumerate(zip(samples.paths.tolist(), samples.labels.tolist(), strict=True)):
        try:
            stat = os.stat(samples.path(i))
            state.update(b"%b\0%d %d %d\0" % (path, label, stat.st_size, stat.st_mtime_ns))
        except OSError:
            state.update(b"%b\0%d\0" % (path, label))
    return state.hexdigest()


def known_result(cfg: Config, subset: str, inputs: str) -> dict | None:
    """The content of result-SUBSET.json, if it is of these inputs and nothing of it is missing."""
    path = run_dir(cfg, "finetune")
    if not ((path / f"result-{subset}.json").exists() and (path / f"probabilities-{subset}.safetensors").exists()):
        return None
    result = json.loads((path / f"result-{subset}.json").read_text(encoding="utf-8"))
    return result if result.get("inputs") == inputs else None


def save(cfg: Config, subset: str, probabilities, label, ok, **origin):
    """result-SUBSET.json and probabilities-SUBSET.safetensors in the run's directory, and one line for the person."""
    path, result = run_dir(cfg, "finetune"), accuracy(probabilities, label, ok)
    about = {"experiment": cfg.name, "dataset": cfg.dataset, "subset": subset, "split": cfg.split, "seed": cfg.seed,
             "test_clips": cfg.test_clips, "select": cfg.select, "synthetic": cfg.synthetic, **origin}
    write_aside(path / f"probabilities-{subset}.safetensors",
                lambda aside: save_file({"probabilities": probabilities, "label": label, "ok": ok}, aside))
    write_text(path / f"result-{subset}.json", json.dumps({**result, **about}, indent=1) + "\n")
    print(tell({**result, **about}))


def tell(result: dict) -> str:
    return (f"{result['experiment']} on {result['dataset']} {result['subset']}, split {result['split']}: "
            f"top-1 {result['top1']:.1f}, top-5 {result['top5']:.1f}, mean class {result['mean_class']:.1f}, "
            f"scored {result['n_scored']}/{result['n_expected']}")
