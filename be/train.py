"""Training: the loop, pre-training and fine-tuning, and what they cost. One `fit` serves every objective.

Nothing in here depends on how the work is spread: `batch_size` is global, each process takes its rows of every batch,
and all random numbers are functions of (seed, step, sample). So 1 and 8 devices compute the same, and so do a run
that was interrupted and one that was not. The exceptions draw from the local batch: be/erase.py names them.

Throughout, cfg is a Config, samples the training list, run its directory (runs.Run), accelerator one of Accelerate's.
"""

import atexit
import contextlib
import dataclasses
import inspect
import math
import signal
import sys
import time
import weakref
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from accelerate.utils import broadcast
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from be import backbones, datasets, objectives
from be.augment import Draws, apply_view, draw_view
from be.config import Config, ConfigError, choose, experiments
from be.erase import PARTNERED
from be.evaluate import accuracy, classify, holdout, load_backbone, make_probe
from be.runs import Clock, Run, RunError, duration, make_accelerator, place, provenance, read_metrics, run_dir, tracking
from be.video import Reader, VideoError, static_clips
from be.weights import load_weights

AUGMENTATION = tuple(inspect.signature(draw_view).parameters)[2:]  # keys of the config that say how views are drawn
HELD_OUT = 0.1  # of the training list, with select=holdout
ECHO = 3  # seconds; a signal that comes again sooner is the same request, which a launcher passes on to its group
ASK_EVERY = 10  # steps; as often at least, processes tell each other of a signal: a launcher kills them after 30 s


def lr_at(step: int, per_epoch: int, cfg) -> float:
    """The learning rate of a step. `warmup`, `epochs` and `lr_steps` count epochs of `per_epoch` steps.

    `warmup` epochs rise linearly to lr. Then `step` (paper 4.1): times lr_factor for every entry of `lr_steps` that has
    passed; or `cosine`: half a cosine from lr down to 0 at the end (Loshchilov and Hutter 2017, without restarts).
    """
    warmup = cfg.warmup * per_epoch
    if step < warmup:
        return cfg.lr * (step + 1) / (warmup + 1)
    if cfg.schedule == "step":
        return cfg.lr * cfg.lr_factor ** sum(step >= epoch * per_epoch for epoch in cfg.lr_steps)
    return cfg.lr * (1 + math.cos(math.pi * (step - warmup) / (cfg.epochs * per_epoch - warmup))) / 2


def make_optimizer(objective, cfg) -> torch.optim.Optimizer:
    """SGD with momentum (paper 4.1), or AdamW, over all that is learned."""
    learned = [p for p in objective.parameters() if p.requires_grad]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(learned, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return torch.optim.SGD(learned, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)


def fit(objective, samples, cfg, run, accelerator, at_epoch=None):
    """Trains `objective` on `samples` for `cfg.epochs`, from the newest checkpoint of `run` if there is one.

    at_epoch: called by all processes as at_epoch(epoch) after each epoch, 1 to `cfg.epochs`; what it returns is logged
        on a line of its own. It may leave the objective in eval mode, and must not touch global random states.

    Raises ConfigError when the batch does not fit the data or the processes; RunError if the checkpoint is of another
    list of videos, or if a loss or a weight is not finite. Nothing of such a step is saved.
    """
    check_batch(cfg, len(samples), accelerator.num_processes)
    state = State(objective, samples, cfg, run, accelerator)
    total, per_epoch = cfg.epochs * state.per_epoch, state.per_epoch
    batches = clip_stream(objective, samples, cfg, accelerator, state.step)
    objective.train()
    bar = tqdm(total=total, initial=state.step, desc=run.path.name, unit="step",
               disable=not (run.write and sys.stderr.isatty()))
    with Interrupt() as interrupt, tracking(accelerator, run) as log, bar:
        while state.step < total:
            stats = state.advance(batches)  # one optimizer step
            bar.update()
            done = state.step
            # All device syncs are from here on; a quiet step has none
            logs, saves = (done % every == 0 or done == total for every in (cfg.log_every, cfg.save_every))
            asks = accelerator.num_processes == 1 or logs or saves or done % ASK_EVERY == 0
            stop = interrupt.agreed(accelerator) if asks else None
            tests = at_epoch is not None and done % per_epoch == 0
            if logs or saves or stop or tests:
                state.read_losses()
            if logs:
                line = state.log_line(stats)
                log(step=done, epoch=done / per_epoch, **line)
                show_line(accelerator, bar, done, total, line, state)
            if tests:  # before saving, so that every checkpoint has its line in the log
                with state.clock():
                    share_statistics(objective)
                    if found := at_epoch(done // per_epoch):
                        log(step=done, epoch=done / per_epoch, **found)
                objective.train()
                stop = stop or interrupt.agreed(accelerator)  # a test may be long
            if saves or stop:
                state.save()
            if stop and done < total:
                bar.close()
                accelerator.print(f"{run.path}: stopped by {stop.name} at step {done} of {total}, checkpoint written; "
                                  f"the same command goes on from here")
                raise SystemExit(128 + stop)


class State:
    """What a training keeps from step to step: model, optimizer, the step, and losses that nobody has read yet."""

    def __init__(self, objective, samples, cfg, run, accelerator):
        self.objective, self.samples, self.cfg, self.run, self.accelerator = objective, samples, cfg, run, accelerator
        self.per_epoch = len(samples) // cfg.batch_size  # steps; the incomplete last batch is dropped
        self.step, self.skipped, self.damaged = 0, 0, 0
        self.losses, self.missed = [], np.zeros(2, int)  # since the last sync: on the device; videos skipped, damaged
        self.recent = []  # losses since the last line of the log, a number per part of a batch
        place(objective, accelerator.device, cfg.precision)
        if cfg.compile:
            compile_backbones(objective)
        optimizer, checkpoint = make_optimizer(objective, cfg), run.latest()
        check_same(accelerator, run, samples, checkpoint or {})
        if checkpoint:
            objective.load_state_dict(checkpoint["objective"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            self.step, self.skipped, self.recent = (checkpoint[key] for key in ("step", "skipped", "recent"))
            self.damaged = checkpoint.get("damaged", 0)
            if checkpoint["scaler"] and accelerator.scaler:  # empty on a CPU
                accelerator.scaler.load_state_dict(checkpoint["scaler"])
            accelerator.print(f"{run.path}: going on from step {self.step} of {cfg.epochs * self.per_epoch}")
        self.begun_at = self.step
        run.forget_metrics_after(self.step)
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.clock, self.began = Clock(), time.perf_counter()

    def advance(self, batches):
        """One optimizer step on the next `accumulate` batches, without a sync of the device. Returns the last stats."""
        cfg, accelerator, device = self.cfg, self.accelerator, self.accelerator.device
        self.lr = lr_at(self.step, self.per_epoch, cfg)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        for part in reversed(range(cfg.accumulate)):  # how many are still to come
            with self.clock("data_wait"):
                batch = next(batches)
            draws = Draws(cfg.seed, (self.step + 1) * cfg.accumulate - 1 - part, accelerator.process_index,
                          accelerator.num_processes, device)
            with accelerator.no_sync(self.model) if part else contextlib.nullcontext():
                views = make_views(batch, self.objective.views, draws, cfg, self.objective.flips_together)
                label, index = (x.to(device, non_blocking=True) for x in (batch.label, batch.index))
                loss, stats = self.model(views, label, index, draws)
                accelerator.backward(loss / cfg.accumulate)
            self.losses.append(loss.detach())
            self.missed += [int(batch.skipped.sum()), int(batch.damaged.sum())]
        self.clock.count += cfg.batch_size
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return stats

    def read_losses(self):
        """Brings the losses of all processes to the host. Raises RunError where one is not finite."""
        self.recent += self.accelerator.reduce(torch.stack(self.losses), "mean").tolist()
        missed = torch.tensor(self.missed, device=self.accelerator.device)
        skipped, damaged = self.accelerator.reduce(missed, "sum").tolist()
        self.skipped, self.damaged = self.skipped + skipped, self.damaged + damaged
        self.losses, self.missed = [], np.zeros(2, int)
        for back, loss in enumerate(reversed(self.recent)):
            if not math.isfinite(loss):
                raise not_finite(self.run, f"the loss is {loss}", self.step - back // self.cfg.accumulate)

    def log_line(self, stats):
        """What metrics.jsonl says of the steps since the last line, {name: number}."""
        rate, shares = self.clock.lap()
        loss, self.recent = sum(self.recent) / len(self.recent), []
        line = {"loss": loss, "lr": self.lr, "clips_per_s": rate, "data_wait": shares.get("data_wait", 0.0),
                "skipped": self.skipped, "damaged": self.damaged, "seconds": time.perf_counter() - self.began,
                **{k: self.accelerator.reduce(v.float(), "mean").item() for k, v in stats.items()}}
        if (embedding := getattr(self.objective, "embedding", None)) is not None:
            line["rankme"] = objectives.rankme(self.accelerator.gather(embedding))
        return line

    def save(self):
        """Writes a checkpoint. Raises RunError where a weight is not finite."""
        numbers, accelerator = self.objective.state_dict(), self.accelerator
        finite = torch.stack([tensor.isfinite().all() for tensor in numbers.values()]).all()
        if accelerator.reduce(finite.float(), "sum") < accelerator.num_processes:
            raise not_finite(self.run, "a weight is not finite", self.step)
        self.run.save(self.step, objective=numbers, optimizer=self.optimizer.optimizer.state_dict(),
                      scaler=accelerator.scaler.state_dict() if accelerator.scaler else {}, skipped=self.skipped,
                      damaged=self.damaged, recent=self.recent, videos=len(self.samples), list_crc=self.samples.crc)


def epoch_batches(n, batch_size, seed, epoch, rank=0, world=1):
    """Yields the keys [(epoch, i), ...] of this rank's part of every training batch of an epoch.
    A permutation of the n videos is cut into batches of `batch_size`; rank r has the r-th of `world` equal parts of
    each. An incomplete last one is dropped. `check_batch` sees to it that the numbers fit."""
    # Items draw from (seed, epoch, i) with i < n. (seed, epoch) is that of item 0: numpy pads seeds with zeros.
    order = np.random.default_rng((seed, epoch, n)).permutation(n)
    part = batch_size // world
    for first in range(rank * part, n // batch_size * batch_size, batch_size):
        yield [(epoch, i) for i in order[first : first + part].tolist()]


def clip_stream(objective, samples, cfg, accelerator, start):
    """This process's batches from step `start` to the last, in one stream, so that no epoch starts with cold workers.
    Each batch is cut into `accumulate` parts; an incomplete one is dropped with all its parts."""
    part, parts = cfg.batch_size // cfg.accumulate, len(samples) // cfg.batch_size * cfg.accumulate  # of an epoch
    first, offset = divmod(start * cfg.accumulate, parts)
    epochs = (epoch_batches(len(samples), part, cfg.seed, epoch, accelerator.process_index,
                            accelerator.num_processes) for epoch in range(first, cfg.epochs))
    keys = islice(chain.from_iterable(islice(epoch, parts) for epoch in epochs), offset, None)
    sampler = partial(static_clips, like=objective.sampler) if cfg.static else objective.sampler
    clips = datasets.Clips(samples, sampler, cfg.short_side, cfg.seed, True, cfg.cache_gb, cfg.strict)
    atexit.unregister(datasets.end_workers)  # to be called before what DataLoader registers, which waits
    stream = iter(datasets.loader(clips, keys, workers=cfg.workers, device=accelerator.device))
    atexit.register(datasets.end_workers)
    return stream


def check_same(accelerator, run, samples, checkpoint):
    """Raises RunError unless all processes go on from the same step, and the list is the one the run was begun on."""
    videos, crc = checkpoint.get("videos", len(samples)), checkpoint.get("list_crc", samples.crc)
    if (videos, crc) != (len(samples), samples.crc):
        raise RunError(f"{run.path} was begun on {videos} videos (CRC-32 of paths and labels {crc:08x}), the list now "
                       f"has {len(samples)} ({samples.crc:08x}); bring the list back, or give this run another name=")
    mine = torch.tensor([[checkpoint.get("step", 0), crc]], device=accelerator.device)
    if len(accelerator.gather(mine).unique(dim=0)) > 1:
        raise RunError(f"{run.path}: the machines do not see the same checkpoints, or not the same list of videos; "
                       f"out=... must be a folder they share, data=... must hold the same on each")


def share_statistics(objective):
    """Gives all processes the first one's running statistics of BatchNorm, in place, for an evaluation.
    Each has its own, and the first one's are saved. Training never reads them, so a resumed run sees the same."""
    for name, buffer in objective.named_buffers():
        if "running_" in name:
            broadcast(buffer)


def not_finite(run, what: str, step: int) -> RunError:
    return RunError(f"{run.path}: {what} at step {step}; nothing was saved since the last checkpoint, which is sound; "
                    f"lower lr, or use precision=fp32, and run again under another name")


def compile_backbones(objective):
    for module in objective.modules():
        if type(module) is type(objective.backbone):  # teachers, too
            module.compile()


def make_views(batch: datasets.Batch, wanted, draws: Draws, cfg, flips_together=False) -> list[torch.Tensor]:
    """Clips (B, K, T, H, W, 3) uint8 -> a float view (B, 3, T, S, S) per (clip, augmentation) pair of `wanted`.
    An augmentation is a number, or (w, a): draw a in the window of draw w. See be/objectives.py."""
    clips, size = (x.to(draws.device, non_blocking=True) for x in (batch.clips, batch.size))
    pairs = [(clip, *(aug if isinstance(aug, tuple) else (aug, aug))) for clip, aug in wanted]
    options = {name: getattr(cfg, name) for name in AUGMENTATION}
    drawn = [draw_view(draws, len(clips), **options) for _ in range(1 + max(max(w, a) for _, w, a in pairs))]
    if flips_together:
        drawn = [dataclasses.replace(view, flip=drawn[0].flip) for view in drawn]
    return [apply_view(clips[:, clip], size, drawn[a].framed_as(drawn[w]), cfg.size) for clip, w, a in pairs]


def check_flip(cfg, samples=None):
    """Raises ConfigError where mirrored clips would have another label, or another answer to the pretext task."""
    task = getattr(objectives.OBJECTIVES.get(cfg.method), "keywords", {}).get("task")
    for name, mirrors in ((f"method={cfg.method}", getattr(task, "mirrors", True)),
                          (f"dataset={cfg.dataset}", datasets.DATASETS[cfg.dataset].mirrors),
                          ("these drawn videos", samples is None or samples.scene is None)):
        if cfg.flip and not mirrors:
            raise ConfigError(f"flip={cfg.flip:g}: {name} can tell left from right; give flip=0")


def check_batch(cfg, n, world):
    """Raises ConfigError unless the global batch divides evenly and the data fill it, and MoCo's queue, once."""
    clips, rest = divmod(cfg.batch_size, world * cfg.accumulate)
    found = {
        "batch_size={batch_size} is global and does not divide by {world} processes x accumulate={accumulate}": rest,
        "the training list has {n} videos, less than one batch_size={batch_size}": n < cfg.batch_size,
        "the queue of K={K} is longer than the training list of {n} videos; give a K of at most {n}":
            cfg.method == "moco" and n < cfg.K,
        "method={method}, erase={erase} needs two clips on each device, a part of batch_size={batch_size} has one":
            clips == 1 and (cfg.erase in PARTNERED or cfg.method in ("simclr", "byol")),
        "{clips} clips per device and part of batch_size={batch_size} do not divide by bn_group={bn_group}":
            clips % (cfg.bn_group or 1),
    }
    for problem, holds in found.items():
        if holds:
            raise ConfigError(problem.format(**vars(cfg), n=n, world=world, clips=clips))


def show_line(accelerator, bar, done: int, total: int, line: dict, state: State):
    """One log line: on the bar when there is a terminal, else plain text with the time left."""
    text = f"loss {line['loss']:.4f}, lr {line['lr']:.2g}, data_wait {line['data_wait']:.0%}"
    bar.set_postfix_str(text)
    if bar.disable:
        left = line["seconds"] / (done - state.begun_at) * (total - done) / 60
        accelerator.print(f"step {done}/{total}: {text}, {line['clips_per_s']:.1f} clips/s, {left:.1f} min left",
                          flush=True)


class Interrupt:
    """Turns SIGTERM and SIGINT (Ctrl-C) into a request that the loop honours after the running step."""

    def __enter__(self):
        self.signal, self.since = None, 0.0
        self.before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            if self.signal is None:
                signal.signal(number, handler)
            else:  # echoes may still come, and must not kill what is about to end with a code of its own
                atexit.register(signal.signal, number, signal.SIG_IGN)

    def _remember(self, number, _):
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self.since > ECHO:  # asked again: do not wait for the step
            raise SystemExit(128 + number)

    def agreed(self, accelerator) -> signal.Signals | None:
        """The signal that any process got: all must stop at the same step, or the others wait for ever."""
        if accelerator.num_processes == 1:
            return self.signal
        number = int(accelerator.gather(torch.tensor([self.signal or 0], device=accelerator.device)).max())
        return signal.Signals(number) if number else None


# ---- recipes

ABOUT = """{stage} {name}: {method}, erase {erase}, {backbone} of width {width}
  clips    {frames} frames of stride {stride} at {size} pixels
  data     {dataset}, split {split} {place} {n} videos
  steps    {epochs} epochs of {epoch}: {steps}
  lr       {lr:g} for the batch of {batch_size}, on any number of devices, {falls}
  batch    {batch_size} = {world} device(s) x {accumulate} part(s) x {each}, BatchNorm over {group}
  device   {device}, mixed precision {precision}"""


def describe(stage, cfg, n, accelerator, samples=None) -> str:
    """What is about to run on n videos, in a few lines, before anything long starts. samples: the videos, if there."""
    world = accelerator.num_processes
    each, epoch = cfg.batch_size // world // cfg.accumulate, n // cfg.batch_size
    falls = f"times {cfg.lr_factor:g} after epochs {', '.join(f'{step:g}' for step in cfg.lr_steps) or 'none'}"
    falls = falls if cfg.schedule == "step" else f"along a {cfg.schedule}"
    said = vars(cfg) | dict(
        stage=stage, place=f"in {cfg.data}:" if samples else f"is MISSING in {cfg.data}, officially", n=n, epoch=epoch,
        steps=cfg.epochs * epoch, world=world, each=each, group=cfg.bn_group or each,
        falls=falls + f", warm-up over {cfg.warmup:g} epochs" * (cfg.warmup > 0), device=accelerator.device,
        precision=accelerator.mixed_precision)
    alone = world == 1 and (cfg.bn_group or each) == each
    return "\n  warning  ".join([ABOUT.format(**said), *problems(cfg, samples, alone)])


def problems(cfg, samples=None, alone=False) -> list[str]:
    """What is odd about a run, a sentence each. samples: its videos; alone: BatchNorm sees one group a step."""
    late = [f"{epoch:g}" for epoch in cfg.lr_steps if epoch >= cfg.epochs and cfg.schedule == "step"]
    tiny = sum(lr_at(epoch, 1, cfg) < 1.001e-3 * cfg.lr for epoch in range(cfg.epochs))
    short = shorter_than_a_clip(cfg, samples) if samples else ""
    found = {
        "lr_steps {late} lie beyond epochs={epochs}: the rate does not fall there": late,
        "{tiny} of {epochs} epochs run at a thousandth of lr={lr:g} or less; give lr_steps that go with epochs, or "
        "schedule=cosine": tiny > cfg.epochs / 2,
        "one BatchNorm group: MoCo has nothing to shuffle; give a smaller bn_group":
            alone and cfg.method == "moco" and cfg.shuffle_bn,
        "size={size} enlarges frames of short_side={short_side}": cfg.size > cfg.short_side,
        "{short} are shorter than a clip of frames={frames}, stride={stride}: at their end it goes on at their start; "
        "give a smaller stride": short,
    }
    said = vars(cfg) | dict(late=", ".join(late), tiny=tiny, short=short)
    return [problem.format(**said) for problem, holds in found.items() if holds]


def shorter_than_a_clip(cfg, samples) -> str:
    """`4 of 5 videos` if so many, most of five spread over the list, have not the frames of a clip; else nothing."""
    lengths = []
    for i in np.linspace(0, len(samples) - 1, 5).astype(int):
        with contextlib.suppress(VideoError), Reader(samples.path(i)) as video:
            lengths.append(video.frames)
    short = sum(n <= (cfg.frames - 1) * cfg.stride for n in lengths)
    return f"{short} of {len(lengths)} videos" if 2 * short > len(lengths) and not cfg.static else ""


def pretrain(cfg: Config):
    """Verb `pretrain`: trains the objective `cfg.method` on a list, ends in backbone.safetensors

    Labels are read by method=classify only.
    """
    if cfg.pretrained != "self":
        there = f"run pretrain --cfg {cfg.pretrained}" if cfg.pretrained in experiments() else "go on with finetune"
        raise ConfigError(f"{cfg.name} pre-trains nothing, its backbone is pretrained={cfg.pretrained}; {there}")
    samples = datasets.load_for(cfg, "train")  # what is missing is said before the processes find each other
    check_flip(cfg, samples)
    accelerator = make_accelerator(cfg)
    torch.manual_seed(cfg.seed)  # of the initial weights; all later draws have seeds of their own
    objective = build(cfg, len(samples.classes), backbones.build(cfg.backbone, cfg.width, cfg.checkpointing))
    run = Run(run_dir(cfg, "pretrain"), cfg, write=accelerator.is_main_process)
    if (run.path / "backbone.safetensors").exists():
        accelerator.print(f"{run.path}: done already; remove the folder to run it again")
        return
    accelerator.print(describe("pretrain", cfg, len(samples), accelerator, samples))
    probe = make_probe(objective, samples, cfg, accelerator) if cfg.probe_every else None
    fit(objective, samples, cfg, run, accelerator, probe)
    run.save_weights("backbone", objective.backbone, backbone=cfg.backbone, width=cfg.width, experiment=cfg.name,
                     **provenance(samples, accelerator))
    accelerator.print(f"backbone written to {run.path / 'backbone.safetensors'}")


def build(cfg, classes: int, backbone):
    return objectives.build(cfg.method, backbone, {**dataclasses.asdict(cfg), "classes": classes})


def finetune(cfg: Config):
    """Verb `finetune`: trains a pre-trained backbone under a new linear layer, all layers (paper 4.1)

    The backbone is that of `cfg.pretrained`: self, this experiment's own; random; another's; or published weights.

    The last epoch is tested. With select=holdout a tenth of the training list (whole source videos) is held out, and
    the epoch that is best on it is kept. The test list plays no part here.
    """
    samples = datasets.load_for(cfg, "train")
    check_flip(cfg, samples)
    accelerator = make_accelerator(cfg)
    run = Run(run_dir(cfg, "finetune"), cfg, write=accelerator.is_main_process)
    if (run.path / "model.safetensors").exists():
        accelerator.print(f"{run.path}: done already; remove the folder to run it again")
        return
    backbone = load_backbone(cfg)  # seeds the initial weights, the head's too; all later draws have seeds of their own
    objective = build(cfg, len(samples.classes), backbone)
    about = {"experiment": cfg.name, "backbone": cfg.backbone, "width": cfg.width, "classes": samples.classes,
             **provenance(samples, accelerator)}
    samples, held = holdout(samples, HELD_OUT, cfg.seed) if cfg.select == "holdout" else (samples, None)

    def keep_best(epoch):
        """Tests on the list `held`; best.safetensors holds the best epoch's weights."""
        probabilities, ok = classify(objective, held, cfg, accelerator)
        top1 = accuracy(probabilities, torch.from_numpy(held.labels), ok)["top1"]
        before = [line["holdout_top1"] for line in read_metrics(run.path) if "holdout_top1" in line]
        if round(top1, 6) > max(before, default=-1):  # as rounded in the log; of equals, the first
            run.save_weights("best", objective, **about, epoch=epoch, holdout_top1=top1)
        return {"holdout_top1": top1}

    accelerator.print(describe("finetune", cfg, len(samples), accelerator, samples))
    fit(objective, samples, cfg, run, accelerator, keep_best if held else None)
    if held and run.write:
        about |= load_weights(run.path / "best.safetensors", objective)
        accelerator.print(f"epoch {about['epoch']} is the best: {about['holdout_top1']:.1f} % of {len(held)} held out")
    run.save_weights("backbone", objective.backbone, **about)
    run.save_weights("model", objective, **about)
    if run.write:
        (run.path / "best.safetensors").unlink(missing_ok=True)
    accelerator.print(f"model written to {run.path / 'model.safetensors'}")


# ---- what a run costs

GIB = 2**30
# Dense 16-bit peak in TFLOP/s, as the makers state it
GPUS = {"V100": 125, "RTX 4090": 165, "A100": 312, "H100": 989}
# The share of it that a step is taken to reach: at 112 px an H100 had 0.13 with C3D, 0.03 with R3D-18, 0.02 with I3D
SHARE, OTHERS = {"c3d": 0.13}, 0.03  # docs/GPU.md
COST = """
  memory   {memory:.1f} GiB a device, checkpointing={checkpointing}
  time     of one device at {share:.0%} of its peak: {hours}; {step:.3g} TFLOP a step
  disk     {state:.2f} GiB a checkpoint, of which {keep} are kept"""


def plan(pretrain: Config, finetune: Config):
    """plan: say what an experiment costs: steps, hours, memory, disk

    Of its pre-training, or where it takes its backbone from, and of one fine-tuning, for the devices of this launch;
    keys count as they would in these verbs. Memory and arithmetic are counted on the real objective with tensors that
    have shapes and no numbers. Time is estimated from that, without decoding: a run's log says what it really takes.
    """
    accelerator, source = make_accelerator(pretrain), pretrain.pretrained
    accelerator.print(f"{pretrain.name}: {experiments().get(pretrain.name, {}).get('about', 'without a text')}\n")
    if source == "self":
        accelerator.print(plan_stage("pretrain", pretrain, accelerator))
    else:
        cost = f"; `run.py plan --cfg {source}` says what it costs" if source in experiments() else ""
        accelerator.print(f"pretrain: not needed, the backbone is {source}{cost}")
    accelerator.print("\n" + plan_stage("finetune", finetune, accelerator))


def plan_stage(stage, cfg, accelerator) -> str:
    """The plan of one stage as text."""
    n, classes, samples = count_videos(cfg)
    check_batch(cfg, n, accelerator.num_processes)
    parts = accelerator.num_processes * cfg.accumulate
    flop, memory, state = count_step(cfg, classes, cfg.batch_size // parts)
    step = parts * flop / 1e12
    share = SHARE.get(cfg.backbone, OTHERS)
    seconds = step * cfg.epochs * (n // cfg.batch_size) / share
    hours = ", ".join(f"{gpu} {duration(seconds / peak)}" for gpu, peak in GPUS.items())
    said = vars(cfg) | dict(memory=memory / GIB, state=state / GIB, share=share, hours=hours, step=step)
    return describe(stage, cfg, n, accelerator, samples) + COST.format(**said)


def count_videos(cfg):
    """(videos of the training list, classes, the list); the official numbers, and None, where it is not there."""
    source, official = choose(datasets.DATASETS, cfg.dataset, "dataset"), ("train", cfg.split)
    check_flip(cfg)
    try:
        samples = datasets.load_for(cfg, "train")
    except datasets.DatasetMissing:
        if cfg.classes or official not in source.expected:
            raise
        return source.expected[official], source.classes, None
    check_flip(cfg, samples)
    return len(samples), len(samples.classes), samples


def random_step(cfg, classes: int, clips: int):
    """The objective, and a function that makes its arguments of random clips."""
    objective = build(cfg, classes, backbones.build(cfg.backbone, cfg.width, cfg.checkpointing)).train()
    K, T = objective.sampler(1000, np.random.default_rng(0)).shape

    def arguments():
        H, W = max(cfg.short_side, cfg.size), max(cfg.short_side, cfg.size) * 4 // 3
        frames = torch.randint(256, (clips, K, T, H, W, 3), dtype=torch.uint8)
        index, draws = torch.arange(clips), Draws(cfg.seed, 0)
        batch = datasets.Batch(frames, torch.tensor([[H, W]] * clips), index % classes, index, None, None)
        return make_views(batch, objective.views, draws, cfg, objective.flips_together), batch.label, index, draws

    return objective, arguments


def count_step(cfg, classes: int, clips: int) -> tuple[float, float, float]:
    """(FLOP, bytes at the peak, bytes of a checkpoint) of a step of `clips` on one device, without computing it.
    A multiply and an add are two. The peak holds weights, gradients, momentum, activations and views."""
    objective, arguments = random_step(cfg, classes, clips)
    momentum = 4 * sum(p.numel() for p in objective.parameters() if p.requires_grad)  # gradients are counted
    with (FakeTensorMode(allow_non_fake_inputs=True) as fake, Live() as live,
          torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision != "fp32")):
        tensors = {name: fake.from_tensor(tensor) for name, tensor in
                   (*objective.named_parameters(), *objective.named_buffers())}
        live.hold(tensors)
        state = live.now
        functional_call(objective, tensors, arguments())[0].backward()
    return live.flop, live.peak + momentum, state + momentum


class Live(TorchDispatchMode):
    """Counts FLOP, and the bytes of tensors that are alive: `now`, and at the `peak`."""

    def __init__(self):
        super().__init__()
        self.flop = self.now = self.peak = 0
        self.storages = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        self.hold(out)
        return out

    def hold(self, tree):
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.storages:
                self.storages.add(key)
                weakref.finalize(tensor.untyped_storage(), self.drop, key, tensor.untyped_storage().nbytes())
                self.now += tensor.untyped_storage().nbytes()
                self.peak = max(self.peak, self.now)

    def drop(self, key, nbytes):
        self.storages.discard(key)
        self.now -= nbytes
