"""What a training step costs: MoCo, MoCo + BE, and MoCo + BE done the way of the released code, in turns.

    OMP_NUM_THREADS=1 python benchmarks/step.py                       all backbones at full size
    python benchmarks/step.py backbones=[r3d18] clips=8 device=cuda   every argument of `measure` is a key

The released way is fp32; query, key and hard negative each pass an encoder that keeps all for its gradient; BE loops
over samples and frames. Ours is `precision`, by default bf16 on a GPU. Clips are random: decoding is not in the time.
The ceiling is what a convolution of 256 channels reaches in that precision, forward and backward, in the same rounds.
"""

import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from be import backbones, config, datasets, objectives
from be.augment import Draws
from be.config import Config, ConfigError, UserError, arguments
from be.runs import place
from be.train import compile_backbones, make_views

HALF = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PLAIN = {"erase": "none", "hard_negative": False}
RELEASED = {"erase_side": "query", "hard_negative_encoder": "query"}


class Released(objectives.MoCo):
    """MoCo + BE at the price of the released code: three passes with gradient, and BE by loops."""

    def __init__(self, backbone, **options):
        super().__init__(backbone, **options)
        self.momentum_encoder.requires_grad_(True)  # its gradients are computed, and nobody uses them
        self.erase = erase_by_loops

    def _keys(self, x, draws):
        return self.embed(x, self.momentum_encoder)


def erase_by_loops(x, draws, gamma: float = 0.3):
    """BE, Eq. 1, frame by frame of clip by clip: what `erase.intra_video_frame` computes. x (B, 3, T, S, S)"""
    lam, k = (gamma * draws.rand(len(x))).tolist(), draws.randint(x.shape[2], len(x)).tolist()
    out = torch.empty_like(x)
    for i in range(len(x)):
        for j in range(x.shape[2]):
            out[i, :, j] = (1 - lam[i]) * x[i, :, j] + lam[i] * x[i, :, k[i]]
    return out


class Step:
    """A training step of one kind. Call it for its seconds; `flop` and `memory` (bytes, on a GPU) are what it takes."""

    def __init__(self, make, cfg: Config, device: torch.device):
        self.cfg, self.device, self.done = cfg, device, 0
        others = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        torch.manual_seed(0)
        backbone = backbones.build(cfg.backbone, cfg.width)
        self.objective = objectives.build(make, backbone, {**asdict(cfg), "classes": cfg.batch_size}).train()
        place(self.objective, device, cfg.precision)
        if cfg.compile:
            compile_backbones(self.objective)
        learned = [p for name, p in self.objective.named_parameters() if "momentum_encoder" not in name]
        self.optimizer = torch.optim.SGD(learned, lr=1e-3, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        B, K, side = cfg.batch_size, 1 + max(clip for clip, _ in self.objective.views), cfg.short_side
        clips = torch.randint(256, (B, K, cfg.frames, side, side * 4 // 3, 3), dtype=torch.uint8)
        size, index = torch.tensor(clips.shape[3:5]).repeat(B, 1), torch.arange(B)
        self.batch = datasets.Batch(*(x.to(device) for x in (clips, size, index, index)), None, None)
        self.cfg = replace(cfg, precision="fp32")  # in 16 bits the first layer has zeros, which are no work
        with FlopCounterMode(display=False) as flops:
            self()
        self.flop, self.cfg = flops.get_total_flops(), cfg
        self()  # to warm up; the optimizer has its state
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self()
        self.memory = torch.cuda.max_memory_allocated() - others if device.type == "cuda" else None

    def __call__(self) -> float:
        """Seconds, see `timed`."""
        return timed(self.advance, self.device)

    def advance(self):
        """Views, forward, backward, optimizer: as in training, without a word from the device."""
        draws, half = Draws(0, self.done, device=self.device), HALF[self.cfg.precision]
        views = make_views(self.batch, self.objective.views, draws, self.cfg, self.objective.flips_together)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            loss, _ = self.objective(views, self.batch.label, self.batch.index, draws)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1


class Convolution:
    """Forward and backward of one large convolution, the ceiling of what a network of them can reach."""

    def __init__(self, device: torch.device, precision: str):
        channels, sides = (256, (16, 8, 28, 28)) if device.type == "cuda" else (64, (2, 8, 14, 14))
        self.device, self.half = device, HALF[precision]
        self.layer = place(torch.nn.Conv3d(channels, channels, 3, padding=1, bias=False), device, precision)
        B, *sides = sides
        self.x = torch.randn(B, channels, *sides, device=device, requires_grad=True)
        self.x.data = self.x.data.to(memory_format=torch.channels_last_3d)
        with FlopCounterMode(display=False) as flops:
            self.advance()
        self.flop = flops.get_total_flops()

    def __call__(self) -> float:
        return timed(self.advance, self.device)

    def advance(self):
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            self.layer(self.x).sum().backward()


def timed(call, device: torch.device) -> float:
    """Seconds of a call: of CPU time on a CPU, where others run, too; else by the clock, until the device ends."""
    def now():
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    began = now()
    call()
    return now() - began


def measure(backbones: list[str] = ("c3d", "r3d18", "r3d34", "r2plus1d18", "i3d", "s3d"), clips: int = 2,
            frames: int = 16, size: int = 112, width: int = 64, rounds: int = 3, device: str = "", precision: str = "",
            compile: bool = False):
    """Prints a table for each of `backbones`.

    clips, frames, size, width: videos of a batch, frames of a clip, px, channels after the first layer.
    rounds: in each, every kind of step takes its turn; the fastest counts.
    device: cpu or cuda, by default what there is. precision, compile: of our steps.
    """
    if min(clips - 1, rounds, frames, size, width) < 1:
        raise ConfigError(f"clips={clips} must be at least 2, and rounds={rounds}, frames={frames}, size={size}, "
                          f"width={width} at least 1")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = device.type == "cuda"
    precision = precision or ("bf16" if cuda else "fp32")
    config.choose(HALF, precision, "precision")
    machine = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    print(f"{clips} clips of {frames} frames at {size} px, width {width}; ours in {precision}"
          f"{', compiled' if compile else ''}; torch {torch.__version__}, {machine}")
    for backbone in backbones:
        words = [f"backbone={backbone}", f"batch_size={clips}", f"frames={frames}", f"size={size}", f"width={width}",
                 f"short_side={size * 8 // 7}", f"precision={precision}", f"compile={str(compile).lower()}",
                 "bn_group=0"]
        cfg = config.load("table1-moco-be", words)
        kinds = {"MoCo": Step(objectives.MoCo, replace(cfg, **PLAIN), device),
                 "MoCo+BE": Step(objectives.MoCo, cfg, device),
                 "released": Step(Released, replace(cfg, precision="fp32", compile=False, **RELEASED), device),
                 "ceiling": Convolution(device, precision)}
        best = dict.fromkeys(kinds, float("inf"))
        for _ in range(rounds):
            best |= {name: min(best[name], step()) for name, step in kinds.items()}
        print(f"\n{backbone:12}{'clips/s':>10}{'GFLOP a clip':>14}{'GFLOP/s':>10}{'of ceiling':>12}{'GiB':>8}")
        ceiling = kinds.pop("ceiling").flop / best["ceiling"]
        for name, step in kinds.items():
            memory = f"{step.memory / 2**30:.2f}" if cuda else "-"
            print(f"{name:12}{clips / best[name]:>10.3g}{step.flop / clips / 1e9:>14.4g}"
                  f"{step.flop / best[name] / 1e9:>10.4g}{step.flop / best[name] / ceiling:>12.0%}{memory:>8}")
        print(f"MoCo+BE over MoCo {best['MoCo+BE'] / best['MoCo']:.2f}; "
              f"released over MoCo+BE {best['released'] / best['MoCo+BE']:.2f}; ceiling {ceiling / 1e9:.4g} GFLOP/s")
        del kinds, step  # before those of the next backbone are made


if __name__ == "__main__":
    try:
        measure(**arguments(measure, sys.argv[1:]))
    except UserError as problem:
        sys.exit(f"benchmarks/step.py: {problem}")
