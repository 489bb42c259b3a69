"""Verb `plan`: what an experiment costs and needs, before anything starts.

Memory and arithmetic of a training step are counted on the real objective with fake tensors (they have shapes, and no
numbers), so a laptop can say whether a batch fits a GPU it does not have. Time is measured here, on random clips.
"""

import dataclasses
import os
import shlex
import shutil
import time
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from be import backbones, datasets, objectives, weights
from be.augment import Draws
from be.config import Config, choose, experiments, load, paper_numbers
from be.retrieve import PROTOCOLS, Protocol
from be.runs import duration, make_accelerator, run_dir, run_state
from be.targets import CLIPS
from be.train import check_batch, describe_schedule, make_optimizer, make_views, place, schedule_problems
from be.video import Reader, VideoError

GIB = 2**30
# Dense 16-bit peak in TFLOP/s, as the makers state it. 3-D networks of small channels reach some part of it: the
# share is an assumption, for a first idea where no such device is at hand; run `plan` on the device to know.
GPUS, SHARE = {"V100": 125, "RTX 4090": 165, "A100": 312, "H100": 989}, 0.15
CPU_WORK = 5e10  # FLOP of a step measured on a CPU: about a second


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one training step on one device."""

    flop: float  # multiply and add count as two
    memory: float  # bytes at the peak: weights, gradients, momentum, activations, views
    state: float  # bytes of a checkpoint


def plan(pretrain: Config, finetune: Config, retrieve: Config):
    """plan: say what an experiment costs and needs: hours, memory, disk, data, steps

    Of its pre-training, or where it takes its backbone from; then of one fine-tuning or, for a row of Table 3, of the
    retrieval. For the devices of this launch; keys count as they would in these verbs. Hours are measured here on a few
    steps of the real objective on random clips, and estimated for some GPUs. Decoding is not in them: watch `data_wait`
    in the log. A GPU measures whole batches; a CPU small clips, and scales by FLOP.
    """
    accelerator = make_accelerator(pretrain)
    cuda = accelerator.device.type == "cuda"
    machine = torch.cuda.get_device_name() if cuda else f"a CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
    accelerator.print(f"{pretrain.name}: {experiments().get(pretrain.name, {}).get('about', 'no entry of its own')}\n"
                      f"here: {accelerator.num_processes} x {machine}")
    lines = lines_of("pretrain", pretrain, accelerator) if pretrain.pretrained == "self" else borrowed(pretrain)
    accelerator.print("\n" + "\n".join(lines))
    retrieves = "R@1" in paper_numbers(pretrain.name)  # as be/targets.py has it
    lines = lines_of_retrieval(retrieve, accelerator) if retrieves else lines_of("finetune", finetune, accelerator)
    accelerator.print("\n" + "\n".join(lines))


def borrowed(cfg: Config) -> list[str]:
    """Where an experiment's backbone comes from that it does not train itself; of another's, what makes it."""
    source = cfg.pretrained
    if source == "random":
        return ["pretrain: not needed, the backbone is random"]
    if ":" in source or weights.find(source):  # nothing is fetched for a plan
        return [f"pretrain: not needed, the backbone is {source}"]
    file = run_dir(cfg, "pretrain", source) / "backbone.safetensors"
    line = f"pretrain: that of {source}, {file}"
    if file.exists():
        return [f"{line}: there"]
    if source not in experiments():
        return [f"{line}: MISSING"]
    words = []
    for key in ("synthetic", "recipe", "data", "out", "seed", "backbone", "width"):  # the first two set others, too
        if getattr(cfg, key) != getattr(load(source, words), key):
            words += [f"{key}={getattr(cfg, key)}"]
    return [f"{line}: MISSING; what makes it (`plan` in place of `pretrain` says what that costs):",
            f"  python run.py pretrain --cfg {shlex.join([source, *words])}"]


def lines_of_retrieval(cfg: Config, accelerator: Accelerator) -> list[str]:
    """The plan of a retrieval as text: nothing is trained, and the features are what needs room."""
    path, protocol, world = run_dir(cfg, "retrieve"), PROTOCOLS[cfg.protocol], accelerator.num_processes
    subsets = cfg.subset.split(",")
    videos, _, data = zip(*(look_for_data(cfg, subset) for subset in ("train", *subsets)), strict=True)
    each = clips_of_a_video(cfg, protocol)
    rows = [round(n * (1 if protocol.mean else each)) for n in videos]
    seconds, flop, numbers = forward(cfg, protocol, accelerator)
    clips, search = sum(videos) * each, 2 * rows[0] * sum(rows[1:]) * numbers
    table = ", ".join(f"{gpu} {duration(flop * clips / (SHARE * peak * 1e12))}" for gpu, peak in GPUS.items())
    done = all((path / f"recall-{cfg.protocol}-{subset}.json").exists() for subset in subsets)
    return [
        f"retrieve: protocol {cfg.protocol} on {cfg.backbone} of width {cfg.width}, {cfg.frames} frames of stride "
        f"{cfg.stride} at {cfg.size} pixels",
        f"  run      {path}: {'done' if done else 'not begun, or not done'}",
        *(f"  {what:8} {line}" for what, line in zip(("gallery", *("queries" for _ in subsets)), data, strict=True)),
        f"  features about {sum(rows)} rows of {numbers} numbers, {each:.3g} clips a video",
        f"  disk     {2 * sum(rows) * numbers / GIB:.2f} GiB in {cfg.out}, {free(Path(cfg.out)) / GIB:.0f} GiB free",
        f"  time     {duration(seconds * clips / world)} here: {seconds:.3g} s a clip, decoding not counted; then a "
        f"search of {search / 1e12:.3g} TFLOP in fp32, in memory_gb={cfg.memory_gb:g} GiB",
        f"  GPU time {seconds * clips / 3600:.4g} device-hours here; of {flop / 1e12:.3g} TFLOP a clip elsewhere, at "
        f"{SHARE:.0%} of the peak: {table}",
    ]


def lines_of(stage: str, cfg: Config, accelerator: Accelerator) -> list[str]:
    """The plan of one stage as text."""
    n, classes, data = look_for_data(cfg)
    world = accelerator.num_processes
    check_batch(cfg, n, world)
    each, steps = cfg.batch_size // world // cfg.accumulate, cfg.epochs * (n // cfg.batch_size)
    cost = count(cfg, classes, each)
    seconds, measured = measure(cfg, classes, each, accelerator, cost)
    seconds, flop = seconds * cfg.accumulate, cost.flop * cfg.accumulate  # of an optimizer step, on each device
    path = run_dir(cfg, stage)
    size = sum(p.numel() * 4 for p in backbones.build(cfg.backbone, cfg.width).state_dict().values())
    disk = (cfg.keep + 1) * cost.state + 2 * size  # one more checkpoint while it is written, and the end's weights
    table = ", ".join(f"{gpu} {duration(world * flop * steps / (SHARE * peak * 1e12))}" for gpu, peak in GPUS.items())
    return [
        f"{stage}: {cfg.method}{f', erase {cfg.erase}' if cfg.erase != 'none' else ''} on {cfg.backbone} of width "
        f"{cfg.width}, {cfg.frames} frames of stride {cfg.stride} at {cfg.size} pixels",
        f"  run      {path}: {run_state(path)[2] if (path / 'config.yaml').exists() else 'not begun'}",
        f"  data     {data}",
        f"  steps    {cfg.epochs} epochs of {n // cfg.batch_size}: {steps}",
        f"  batch    {cfg.batch_size} = {world} device(s) x {cfg.accumulate} part(s) x {each} clips, "
        f"BatchNorm over {cfg.bn_group or each}",
        f"  lr       {cfg.lr:g} for the batch of {cfg.batch_size}, on any number of devices, {describe_schedule(cfg)}",
        *(f"  warning  {problem}" for problem in schedule_problems(cfg)),
        f"  memory   {cost.memory / GIB:.1f} GiB a device, in {cfg.precision}"
        f"{', activations recomputed' if cfg.checkpointing else '; checkpointing=true needs less'}",
        f"  time     {duration(seconds * steps)} here: {seconds:.3g} s a step, decoding not counted ({measured})",
        f"  GPU time {world * seconds * steps / 3600:.4g} device-hours here; of {world * flop / 1e12:.3g} TFLOP a step "
        f"elsewhere, at {SHARE:.0%} of the peak: {table}",
        f"  disk     {disk / GIB:.2f} GiB in {cfg.out}, {free(Path(cfg.out)) / GIB:.0f} GiB free",
    ]


def look_for_data(cfg: Config, subset: str = "train") -> tuple[int, int, str]:
    """(videos of a list, classes, a line about them); the official numbers where the data are not there."""
    source, where = choose(datasets.DATASETS, cfg.dataset, "dataset"), Path(cfg.data) / cfg.dataset
    try:
        samples = datasets.load(cfg.dataset, cfg.data, subset, cfg.split)
    except datasets.DatasetMissing:
        if (subset, cfg.split) not in source.expected:
            raise
        n = source.expected[subset, cfg.split]
        return n, source.classes, f"{cfg.dataset}, split {cfg.split}: MISSING in {where}; officially {n} videos"
    some = range(0, len(samples), -(-len(samples) // 100))
    sizes = [os.path.getsize(samples.path(i)) for i in some if os.path.exists(samples.path(i))]
    total = np.mean(sizes) * len(samples) / GIB if sizes else 0.0
    line = f"{cfg.dataset}, split {cfg.split} in {where}: {len(samples)} videos, about {total:.3g} GiB"
    return len(samples), len(samples.classes), line


def clips_of_a_video(cfg: Config, protocol: Protocol) -> float:
    """The mean of some videos to be found in the gallery; of HMDB51's where they are not there."""
    sampler, counts = partial(protocol.sampler, T=cfg.frames, stride=cfg.stride), []
    try:
        samples = datasets.load(cfg.dataset, cfg.data, "train", cfg.split)
    except datasets.DatasetMissing:
        return len(sampler(100)) if protocol.mean else max(1, 16 * CLIPS / (cfg.frames * cfg.stride))
    for i in range(0, len(samples), -(-len(samples) // 20)):
        with suppress(VideoError), Reader(samples.path(i), samples.index(i)) as video:
            counts.append(len(sampler(video.frames)))
    return float(np.mean(counts)) if counts else 1.0


def forward(cfg: Config, protocol: Protocol, accelerator: Accelerator) -> tuple[float, float, int]:
    """(seconds, FLOP, numbers) of the features of one clip, the better of two times on this device."""
    backbone = backbones.build(cfg.backbone, cfg.width).to(accelerator.device).eval()
    some = 8 if accelerator.device.type == "cuda" else 1
    clips, seconds = torch.randn(some, 3, cfg.frames, cfg.size, cfg.size, device=accelerator.device), []
    with torch.no_grad(), accelerator.autocast():
        with FlopCounterMode(display=False) as flops:
            numbers = protocol.pool(backbone(clips)).shape[1]
        for _ in range(2):
            began = time.perf_counter()
            protocol.pool(backbone(clips)).sum().item()  # waits for the device
            seconds.append((time.perf_counter() - began) / some)
    return min(seconds), flops.get_total_flops() / some, numbers


def free(path: Path) -> int:
    """Bytes free where `path` is, or will be."""
    return shutil.disk_usage(next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())).free


# ---- one step


def prepare(cfg: Config, classes: int, clips: int):
    """The objective in groups that `clips` allow, and its arguments, made when called: a batch on the device."""
    group = cfg.bn_group if cfg.bn_group and clips % cfg.bn_group == 0 else 0
    backbone = backbones.build(cfg.backbone, cfg.width, cfg.checkpointing)
    options = {**dataclasses.asdict(cfg), "classes": classes, "bn_group": group}
    objective = objectives.build(cfg.method, backbone, options).train()
    K, T = objective.sampler(1000, np.random.default_rng(0)).shape

    def arguments(device="cpu", step=0):
        H, W = max(cfg.short_side, cfg.size), max(cfg.short_side, cfg.size) * 4 // 3
        frames = torch.randint(256, (clips, K, T, H, W, 3), dtype=torch.uint8, device=device)
        size = torch.tensor([[H, W]], device=device).repeat(clips, 1)
        index, draws = torch.arange(clips, device=device), Draws(cfg.seed, step, device=device)
        batch = datasets.Batch(frames, size, index % classes, index, None, None)
        return make_views(batch, objective.views, draws, cfg, objective.flips_together), batch.label, batch.index, draws

    return objective, arguments


def count(cfg: Config, classes: int, clips: int) -> Cost:
    """A step of `clips` on one device, counted without computing it."""
    objective, arguments = prepare(cfg, classes, clips)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.precision)
    learned = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    flops, live = FlopCounterMode(display=False), Live()
    for watch in (flops, live):  # one after the other: the counter of FLOP keeps what checkpointing would free
        with (FakeTensorMode(allow_non_fake_inputs=True) as fake, watch,
              torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None)):
            tensors = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
            tensors = {name: fake.from_tensor(tensor) for name, tensor in tensors.items()}
            if watch is live:
                live.hold(*tensors.values())
                state = live.now
            functional_call(objective, tensors, arguments())[0].backward()
    momentum = 4 * learned  # of SGD; gradients have been counted
    return Cost(flops.get_total_flops(), live.peak + momentum, state + momentum)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive: `now`, and at the `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.hold(*(tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)))
        return out

    def hold(self, *tensors):
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, nbytes = storage._cdata, storage.nbytes()
            if key not in self.storages:
                self.storages[key] = weakref.ref(storage, lambda _, key=key, nbytes=nbytes: self.drop(key, nbytes))
                self.now += nbytes
                self.peak = max(self.peak, self.now)

    def drop(self, key: int, nbytes: int):
        del self.storages[key]
        self.now -= nbytes


def measure(cfg: Config, classes: int, clips: int, accelerator: Accelerator, cost: Cost) -> tuple[float, str]:
    """(seconds of a step of `clips` on this device, how that was measured).

    A GPU takes the whole batch, or half of it and so on until it fits. A CPU takes two clips, small enough for about
    a second, and time is taken to grow with FLOP.
    """
    if accelerator.device.type != "cuda":
        side = cfg.size
        while side >= 64 and cost.flop / clips * 2 * (side / cfg.size) ** 2 > CPU_WORK:
            side //= 2
        small = dataclasses.replace(cfg, size=side, short_side=side)
        seconds, flop = timed(small, classes, 2, accelerator)
        return seconds * cost.flop / flop, f"time from 2 clips of {side} pixels, {flop / seconds / 1e9:.0f} GFLOP/s"
    fits = clips
    while fits >= 2:
        try:
            torch.cuda.reset_peak_memory_stats()
            seconds, _ = timed(cfg, classes, fits, accelerator)
        except torch.OutOfMemoryError:
            fits //= 2
            torch.cuda.empty_cache()
            continue
        used = f"measured {torch.cuda.max_memory_allocated() / GIB:.1f} GiB on {fits} clips"
        return seconds * clips / fits, used if fits == clips else f"{used}, {clips} DO NOT FIT: raise accumulate"
    return float("nan"), "not even 2 clips FIT this device: no time could be measured"


def timed(cfg: Config, classes: int, clips: int, accelerator: Accelerator) -> tuple[float, float]:
    """(seconds, FLOP) of a step of `clips`, augmentation to optimizer: the best of those after the first."""
    objective, arguments = prepare(cfg, classes, clips)
    place(objective, cfg, accelerator.device)
    optimizer = make_optimizer(objective, dataclasses.replace(cfg, lr=1e-6))

    def step(i):
        with accelerator.autocast():
            loss, _ = objective(*arguments(accelerator.device, i))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    with FlopCounterMode(display=False) as flops:
        step(0)
    seconds = []
    for i in range(1, 4):
        began = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - began)
    return min(seconds), flops.get_total_flops()
