"""What to do first with a GPU: the ten commands of docs/GPU.md one after the other, and a JSON to send back.

    python benchmarks/gpu.py                     all of them, under 30 minutes -> gpu.json
    python benchmarks/gpu.py only=[sync,step]    some
    python benchmarks/gpu.py sync                one of those that are functions of this file: see CHECKS
    python benchmarks/gpu.py small=true          a trial on a CPU: everything runs, nothing is reached
"""

import copy
import json
import math
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from step import Step

from be import config, synthetic, train
from be.augment import Draws
from be.config import UserError, arguments
from be.objectives import OBJECTIVES
from be.prepare import prepare
from be.runs import read_metrics

ROOT = Path(__file__).parents[1]
SIZE = "clips=2 frames=8 size=16 width=2 device=cpu"
FILMS = "videos=2 length=24 height=32 words='epochs={} batch_size=8 bn_group=8 frames=8 short_side=24 size=16 width=2'"
# name: (command, what small=true adds, what its output must hold: patterns, whose numbers lie between two limits).
# docs/GPU.md says what each is for
COMMANDS = {
    "device": ("python benchmarks/gpu.py device", "", {r"bf16 in hardware: (\d)": (1, 1)}),
    "tests": ("python -m pytest tests/test_rehearsal.py tests/test_augment.py tests/test_objectives.py "
              "tests/test_datasets.py -k 'gpu or cuda'", "--collect-only", {r"(\d+) passed": (40, 999)}),
    "agree": ("python benchmarks/gpu.py agree", SIZE,
              {r"loss differs by (\S+),": (0, 1e-3), r"gradient by (\S+)": (0, 0.02)}),
    "sync": ("python benchmarks/gpu.py sync", SIZE, {r"waits for the device: (\d+)": (0, 0)}),
    "step": ("python benchmarks/step.py backbones=[c3d,r3d18,i3d] clips=16 rounds=5",
             f"backbones=[c3d] rounds=1 {SIZE}",
             {r"MoCo\+BE over MoCo (\S+);": (0, 1.35), r"released over MoCo\+BE (\S+);": (3, 99),
              r"MoCo\+BE .* (\d+)%": (50, 100)}),
    "compile": ("python benchmarks/step.py backbones=[c3d,r3d18,i3d] clips=16 rounds=5 compile=true",
                f"backbones=[c3d] rounds=1 compile=false {SIZE}", {r"released over MoCo\+BE (\S+);": (3, 99)}),
    "memory": ("python benchmarks/gpu.py memory", SIZE, {r"measured over planned (\S+)": (0.8, 1.25)}),
    "data": ("python benchmarks/gpu.py data", FILMS.format(3), {r"data_wait (\d+)%": (0, 5)}),
    "resume": ("python benchmarks/gpu.py resume", FILMS.format(30),
               {r"stopped by SIGTERM at step (\d+)": (5, 1e9), r"going on from step (\d+)": (5, 1e9)}),
    "spread": ("python benchmarks/gpu.py spread", FILMS.format(1), {r"losses differ by (\S+)": (0, 0.02)}),
}


def device_of(name: str) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def best(there: torch.device) -> str:
    return f"precision={'bf16' if there.type == 'cuda' else 'fp32'}"  # in which a CPU takes its time


def load(words: list[str], clips, frames, size, width, backbone="r3d18", name="table1-moco-be"):
    return config.load(name, [f"batch_size={clips}", f"frames={frames}", f"size={size}", f"short_side={size * 8 // 7}",
                              f"width={width}", f"backbone={backbone}", "bn_group=0", "K=64", *words])


def device():
    """What there is."""
    print(f"torch {torch.__version__}, Python {platform.python_version()}, CUDA {torch.version.cuda}, "
          f"cuDNN {torch.backends.cudnn.version()}, {config.cores()} cores")
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        print(f"GPU {i}: {about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}")
    bf16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    print(f"bf16 in hardware: {int(bf16)}")


def agree(methods: list[str] = tuple(OBJECTIVES), clips: int = 8, frames: int = 16, size: int = 112, width: int = 16,
          device: str = ""):
    """Loss and gradient of a step of each method in fp32, without TF32, here and on the CPU."""
    there = device_of(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for method in methods:
        torch.manual_seed(0)
        cfg = load([f"method={method}", "precision=fp32"], clips, frames, size, width)
        ours, make = train.random_step(cfg, 8, clips)
        theirs, (views, label, index, _), found = copy.deepcopy(ours).to(there), make(), []
        for model, where in (ours, torch.device("cpu")), (theirs, there):
            draws = Draws(0, 1, device=where)
            loss, _ = model([view.to(where) for view in views], label.to(where), index.to(where), draws)
            loss.backward()
            gradient = torch.cat([p.grad.cpu().flatten() for p in model.parameters() if p.grad is not None])
            found.append((loss.item(), gradient))
        (loss, gradient), (other, g) = found
        print(f"{method:20}loss differs by {abs(other - loss) / abs(loss):.1e}, "
              f"gradient by {((g - gradient).norm() / gradient.norm()).item():.1e}")


def sync(methods: list[str] = tuple(OBJECTIVES), clips: int = 8, frames: int = 16, size: int = 112, width: int = 16,
         device: str = ""):
    """Steps of each method in which waiting for the device is an error: tests/test_rehearsal.py says there is none."""
    there, waits = device_of(device), 0
    for method in methods:
        step = Step(method, load([f"method={method}", best(there)], clips, frames, size, width), there)
        if there.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                step.advance()
        except RuntimeError as error:
            waits += 1
            print(f"{method}: {error}")
        finally:
            if there.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    print(f"methods whose host waits for the device: {waits}")


def memory(backbones: list[str] = ("c3d", "r3d18", "i3d"), clips: int = 16, frames: int = 16, size: int = 112,
           width: int = 64, device: str = ""):
    """The peak that `run.py plan` says of a step, and the one that is measured."""
    there = device_of(device)
    for backbone in backbones:
        cfg = load([best(there)], clips, frames, size, width, backbone)
        _, planned, _ = train.count_step(cfg, 8, clips)
        measured = Step("moco", cfg, there).memory or math.nan
        print(f"{backbone}: planned {planned / 2**30:.2f} GiB, measured over planned {measured / planned:.2f}")


def films(folder, videos, length, height, words, name) -> list[str]:
    """Drawn videos in UCF101's layout and size, made once, and their copies -> what to type to pre-train on them."""
    root = Path(folder).absolute()
    if not (root / "data-128/ucf101/manifest.npz").exists():
        synthetic.synth(str(root / "data/ucf101"), train=videos, test=1, frames=length, height=height,
                        width=height // 3 * 4)
        prepare("ucf101", str(root / "data"), check="packets", transcode=True, accept_missing=9999)
    shutil.rmtree(root / "runs" / name, ignore_errors=True)
    return ["pretrain", "--cfg", "table1-moco-be-c3d-ucf101", f"name={name}", f"data={root}/data-128",
            f"out={root}/runs", f"K={8 * videos}", "log_every=1", "lr_steps=[]", *words.split()]


def typed(words: list[str], processes: int = 1) -> subprocess.Popen:
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
    start = [sys.executable, *(launch if processes > 1 else []), str(ROOT / "run.py")]
    return subprocess.Popen([*start, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def metrics(folder: str, name: str) -> list[dict]:
    return read_metrics(Path(folder).absolute() / "runs" / name / "pretrain-seed0")


def data(folder: str = "data/gpu", videos: int = 16, length: int = 180, height: int = 240,
         words: str = "epochs=30"):
    """Does training wait for the data? With copies of 128 pixels, one worker a core."""
    said, _ = typed([*films(folder, videos, length, height, words, "data"), f"workers={config.cores()}"]).communicate()
    lines = metrics(folder, "data")
    later = lines[len(lines) // 3:]  # the first ones compile, and wait for workers that start
    if not later:
        raise UserError(f"nothing was trained:\n{said}")
    wait, rate = (statistics.median(line[key] for line in later) for key in ("data_wait", "clips_per_s"))
    print(f"{len(lines)} steps, {rate:.1f} clips/s, data_wait {wait:.0%}")


def resume(folder: str = "data/gpu", videos: int = 16, length: int = 180, height: int = 240,
           words: str = "epochs=30"):
    """A run that is told to stop writes a checkpoint, and the same command goes on from there."""
    command = films(folder, videos, length, height, words, "resume")
    first = typed(command)
    while len(metrics(folder, "resume")) < 5 and first.poll() is None:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    first, again = first.communicate()[0], typed(command).communicate()[0]
    print(*re.findall(r"stopped by SIGTERM at step \d+ of \d+|going on from step \d+|backbone written", first + again),
          sep="\n")


def spread(folder: str = "data/gpu", videos: int = 16, length: int = 180, height: int = 240,
           words: str = "epochs=1", processes: int = 0):
    """The first losses on one GPU and on all there are (of one: a second time)."""
    processes, losses = processes or max(1, torch.cuda.device_count()), []
    for name, count in ("alone", 1), ("spread", processes):
        said, _ = typed(films(folder, videos, length, height, words, name), count).communicate()
        losses.append([line["loss"] for line in metrics(folder, name)][:3])
        if not losses[-1]:
            raise UserError(f"nothing was trained:\n{said}")
    off = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    print(f"{processes} GPU(s), first losses {losses}: losses differ by {off:.1e}")


CHECKS = {call.__name__: call for call in (device, agree, sync, memory, data, resume, spread)}


def run_all(only: list[str] = (), to: str = "gpu.json", small: bool = False, limit: int = 600):
    """Runs COMMANDS and writes a JSON of what they said, took and reached. limit: seconds for each."""
    done = []
    for name in only or COMMANDS:
        command, instead, goals = config.choose(COMMANDS, name, "command")
        command = f"{command} {instead}" if small else command
        words, began = [sys.executable, *shlex.split(command)[1:]], time.perf_counter()
        print(f"{name}: {command}", flush=True)
        try:
            end = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 timeout=limit, check=False)
            code, said = end.returncode, end.stdout
        except subprocess.TimeoutExpired as late:
            code, said = -1, f"{(late.stdout or b'').decode(errors='replace')}\nnot done after {limit} s"
        found = {goal: [float(number) for number in re.findall(goal, said)] for goal in goals}
        reached = code == 0 and all(found[goal] and all(least <= number <= most for number in found[goal])
                                    for goal, (least, most) in goals.items())
        done.append({"name": name, "command": command, "seconds": round(time.perf_counter() - began, 1), "code": code,
                     "reached": reached, "found": found, "said": said[-6000:]})
        print(f"  {'as it should be' if reached else 'NOT as it should be'}, {done[-1]['seconds']:.0f} s, {found}",
              flush=True)
        Path(to).write_text(json.dumps(done, indent=1) + "\n")
    print(f"{sum(one['reached'] for one in done)} of {len(done)} as they should be; please send back {to}")


if __name__ == "__main__":
    try:
        words = sys.argv[1:]
        call = CHECKS[words.pop(0)] if words and words[0] in CHECKS else run_all
        call(**arguments(call, words))
    except UserError as problem:
        sys.exit(f"benchmarks/gpu.py: {problem}")
