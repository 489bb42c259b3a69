"""What a training step costs, beside two other ways to do the same: in speed, by parts, in memory, against the machine.

    run.py bench train                                 all backbones at full size: half an hour of a CPU core
    run.py bench train backbones=r3d18 clips=8

MoCo, MoCo + BE and fine-tuning take turns with the same step done differently:

    be          as `train` does it: on a GPU bf16 and channels last, on a CPU fp32
    compiled    the same with compile=true; on a GPU only
    plain       fp32, contiguous, eager; on a CPU that is `be`
    released    as the authors' code does MoCo + BE: fp32, query, key and hard negative each through an encoder that
                keeps all for its gradient, BE by loops over samples and frames

A step is what `train` does in one, decoding of videos that are made here included. Its arithmetic is counted by torch,
and set against the best rate that this machine gives a matrix product or a convolution of that precision.
"""

import itertools
import platform
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from be import backbones, config, datasets, objectives, synthetic
from be.augment import Draws
from be.config import Config, ConfigError, choose
from be.erase import intra_video_frame
from be.objectives import MoCo, gather, info_nce, move_teacher, similarity
from be.plan import GIB, Live
from be.report import markdown
from be.train import make_views, place

METHODS = {"MoCo": {"erase": "none", "hard_negative": False}, "MoCo+BE": {}, "fine-tuning": {"method": "classify"}}
PARTS = ("data", "augmentation", "forward", "backward", "optimizer")


class Released(MoCo):
    """MoCo + BE at the price of the released code: three passes with gradient, BE on the query by `erase_by_loops`."""

    def __init__(self, backbone, **options):
        super().__init__(backbone, **options)
        self.momentum_encoder.requires_grad_(True)  # its gradients are computed, and nobody uses them

    def forward(self, views, label, index, draws):
        move_teacher(self.momentum_encoder, self.encoder, self.m)
        q = self.embed(erase_by_loops(views[0], draws, 0.3))
        k, h = self.embed(views[1], self.momentum_encoder), self.embed(views[2])
        l_queue = similarity(q, self.queue.clone()).masked_fill(index[:, None] == self.queue_index, -torch.inf)
        negatives = [l_queue, (q * h).sum(1, keepdim=True)]
        loss, _ = info_nce((q * k).sum(1, keepdim=True), negatives, self.temperature)
        self._enqueue(gather(k.detach()), gather(index))
        return loss, {}


def erase_by_loops(x, draws, gamma: float):
    """BE, Eq. 1, frame by frame of sample by sample: what `erase.intra_video_frame` computes. (B, 3, T, S, S)"""
    lam, k = (gamma * draws.rand(len(x))).tolist(), draws.randint(x.shape[2], len(x)).tolist()
    out = torch.empty_like(x)
    for i in range(len(x)):
        static = x[i, :, k[i]]
        for j in range(x.shape[2]):
            out[i, :, j] = (1 - lam[i]) * x[i, :, j] + lam[i] * static
    return out


class Clock:
    """Seconds: of CPU time on a CPU, where other programs run, too; else of wall-clock time, the device waited for."""

    def __init__(self, device: torch.device):
        self.device, self.spent = device, defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, part: str):
        begin = self.now()
        yield
        self.spent[part] += self.now() - begin


class Step:
    """A training step of one method, done in one way, and the `flop` and the bytes of `memory` that it takes."""

    def __init__(self, cfg: Config, way: str, samples, workers: int, device: torch.device):
        self.device, self.done = device, 0
        self.half = torch.bfloat16 if way in ("be", "compiled") and device.type == "cuda" else None
        self.cfg = replace(cfg, precision="bf16" if self.half else "fp32", compile=way == "compiled")
        make = Released if way == "released" else choose(objectives.OBJECTIVES, cfg.method, "method")
        backbone = backbones.build(cfg.backbone, cfg.width)
        self.objective = objectives.construct(make, backbone, {**asdict(cfg), "classes": 101}).train()
        place(self.objective, self.cfg, device)
        learned = [p for name, p in self.objective.named_parameters() if "momentum_encoder" not in name]
        self.optimizer = torch.optim.SGD(learned, lr=1e-3, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        clips = datasets.Clips(samples, self.objective.sampler, cfg.short_side, 0, train=True)
        batches = ([(n, (n * cfg.batch_size + i) % len(samples)) for i in range(cfg.batch_size)]
                   for n in itertools.count())
        self.stream = iter(datasets.loader(clips, batches, workers, device))

        self()  # to warm up, and to make all that stays
        with FlopCounterMode(display=False) as flops, Live() as live:
            live.hold(*self.objective.parameters(), *self.objective.buffers(),
                      *(state["momentum_buffer"] for state in self.optimizer.state.values()))
            self()
        self.flop, self.memory = flops.get_total_flops(), live.peak
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self()
            self.memory = torch.cuda.max_memory_allocated()

    def __call__(self) -> dict[str, float]:
        """Seconds of each part."""
        clock = Clock(self.device)
        with clock("data"):
            batch = next(self.stream)
        with clock("augmentation"):
            draws = Draws(0, self.done, device=self.device)
            views = make_views(batch, self.objective.views, draws, self.cfg)
        with clock("forward"), torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            loss, _ = self.objective(views, batch.label.to(self.device), batch.index.to(self.device), draws)
        with clock("backward"):
            loss.backward()
        with clock("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.done += 1
        return dict(clock.spent)


# ---- the machine, and BE alone


def ceilings(device: torch.device, half: bool) -> dict:
    """{name: (call, its FLOP)}: a matrix product and a convolution of a size that suits the machine."""
    dtype, n = torch.bfloat16 if half else torch.float32, 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(2 if device.type == "cpu" else 64, 64, 8, 56, 56, device=device, dtype=dtype)
    layer = torch.nn.Conv3d(64, 64, 3, padding=1, bias=False, device=device, dtype=dtype).requires_grad_(False)
    if half:
        x, layer = (one.to(memory_format=torch.channels_last_3d) for one in (x, layer))
    return {"matrix product": (lambda: a @ b, 2 * n**3), "convolution": (lambda: layer(x), 2 * 27 * 64 * x.numel())}


def seconds(call, device) -> float:
    clock = Clock(device)
    with clock("all"):
        call()
    return clock.spent["all"]


def fastest(calls: dict, device, rounds: int) -> dict[str, float]:
    """Seconds of each call, the least of so many rounds in which they take turns, after one to warm up."""
    times = [{name: seconds(call, device) for name, call in calls.items()} for _ in range(1 + rounds)]
    return {name: min(turn[name] for turn in times[1:]) for name in calls}


def erasing(clips, frames, size, device) -> dict[str, float]:
    """Seconds of BE on a batch, and of the same by loops; half of them under autocast, as they stand in `forward`."""
    x = torch.randn(clips, 3, frames, size, size, device=device)
    return fastest({"be": lambda: intra_video_frame(x, Draws(0, 0, device=device), 0.3),
                    "loops": lambda: erase_by_loops(x, Draws(0, 0, device=device), 0.3)}, device, 20)


# ---- the verb


def bench(backbones: str = "c3d,r3d18,r3d34,r2plus1d18,i3d,s3d", clips: int = 2, frames: int = 16, size: int = 112,
          width: int = 64, workers: int = 0, rounds: int = 3, device: str = ""):
    """bench: time a training step, by its parts, beside plain fp32 and the released code's way

    backbones                    some of them
    clips, frames, size, width   videos of a batch, frames of a clip, px, channels after the first layer
    workers                      processes that decode; 0: this one, and decoding is timed with the rest
    rounds                       in each, every way takes a step; the fastest counts
    device                       cpu or cuda; by default what there is

    On a CPU all times are CPU time, as other programs that run meanwhile change it little; so set OMP_NUM_THREADS=1,
    for threads that wait for each other count, too.
    """
    if min(clips - 1, rounds, frames, size, width) < 1:
        raise ConfigError(f"clips={clips} must be at least 2, and rounds={rounds}, frames={frames}, size={size}, "
                          f"width={width} at least 1")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = device.type == "cuda"
    machine = torch.cuda.get_device_name() if cuda else f"{processor()}, {torch.get_num_threads()} thread(s)"
    print(f"{clips} clips of {frames} frames at {size} px, width {width}, {workers} worker(s); torch "
          f"{torch.__version__}, {machine}")
    ways = ("be", "compiled", "plain") if cuda else ("be",)
    be = erasing(clips, frames, size, device)
    short_side = size * 8 // 7
    with tempfile.TemporaryDirectory() as folder:
        height, long_side = (2 * (side // 2) for side in (max(16, short_side), max(16, short_side * 4 // 3)))
        synthetic.make(Path(folder) / "ucf101", train=1, test=1, frames=80, height=height, width=long_side, workers=1)
        samples = datasets.load("ucf101", folder, "train")
        for backbone in backbones.split(","):
            cfg = config.load("table1-moco-be", [f"backbone={backbone}", f"batch_size={clips}", f"frames={frames}",
                                                 f"size={size}", f"short_side={short_side}", f"width={width}",
                                                 "bn_group=0"])
            steps = {(method, way): Step(replace(cfg, **change), way, samples, workers, device)
                     for method, change in METHODS.items() for way in (*ways, "released")
                     if way != "released" or method == "MoCo+BE"}
            tell(backbone, *measure(steps, device, rounds, cuda), clips, be)
            steps.clear()  # before those of the next backbone are made


def measure(steps: dict, device, rounds: int, half: bool):
    """(step -> seconds of its parts in the fastest of the rounds, name -> FLOP per second of the ceilings)"""
    limits, best = ceilings(device, half), {}
    rates = {name: 0.0 for name in limits}
    for _ in range(rounds):
        for name, (call, flop) in limits.items():
            call()
            rates[name] = max(rates[name], flop / seconds(call, device))
        for key, step in steps.items():
            best[key] = min(best.get(key, {"": float("inf")}), step(), key=lambda parts: sum(parts.values()))
    return {key: (step, best[key]) for key, step in steps.items()}, rates


def tell(backbone: str, measured: dict, rates: dict, clips: int, be: dict):
    """Prints the table of a backbone and what is to be compared."""
    total = {key: sum(parts.values()) for key, (_, parts) in measured.items()}
    top, rows = max(rates.values()), []
    for key, (step, parts) in measured.items():
        rate = step.flop / total[key]
        rows.append([*key, f"{clips / total[key]:.3g}", *(f"{parts[part] / total[key]:.1%}" for part in PARTS),
                     f"{step.memory / GIB:.2f}", f"{step.flop / clips / 1e9:.0f}", f"{rate / 1e9:.0f}",
                     f"{rate / top:.0%}"])
    said = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    print(f"\n{backbone}; ceilings: {said}\n")
    print("\n".join(markdown(["method", "way", "clips/s", *PARTS, "GiB", "GFLOP a clip", "GFLOP/s", "of the ceiling"],
                             rows)))
    moco, ours = total["MoCo", "be"], total["MoCo+BE", "be"]
    print(f"\nMoCo+BE over MoCo {ours / moco:.2f}; released over be {total['MoCo+BE', 'released'] / ours:.2f}; BE "
          f"{be['be'] / ours:.2%} of the step, by loops {be['loops'] / be['be']:.1f} times as long")
    for method in METHODS:
        others = [(way, total[method, way]) for way in ("compiled", "plain") if (method, way) in total]
        if others:
            print(f"{method}: " + ", ".join(f"{way} over be {time / total[method, 'be']:.2f}" for way, time in others))


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor() or platform.machine()
