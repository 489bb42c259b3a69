"""The run directory: all that is written to `runs/` and read from it, and the verb `status`.

    runs/NAME/pretrain-seed0/                    runs/NAME/finetune-ucf101-split1-seed0/
        config.yaml          the resolved config; `--cfg` reads it back
        metrics.jsonl        one line per log step: step, epoch (a fraction), loss (mean since the last line), lr,
                             clips_per_s (all devices), data_wait (share of the time), skipped, damaged (so far),
                             seconds (of this process), the objective's stats; tests have lines of their own
        checkpoint/          step-00000500-1a2b3c4d.pt, the newest `keep`; the name ends in the file's CRC-32
        backbone.safetensors the backbone at the end of the stage
        model.safetensors    finetune and linear: backbone and classifier
        result-SUBSET.json   evaluate (linear-SUBSET.json: linear): metrics, n_scored / n_expected, n_damaged, split,
                             seed, git sha, ...
        probabilities-SUBSET.safetensors   evaluate: mean softmax per video (N, classes), labels, ok
        wandb-id             of the run there, with tracker=wandb
        lock                 held while a process writes here

Every file is written aside and renamed, so a crash leaves the old one or the new one, never half. A checkpoint holds
the objective (teacher and queue are its buffers), the optimizer, the loss scaler, the step, and which list it is of.
"""

import contextlib
import dataclasses
import errno
import fcntl
import fnmatch
import functools
import json
import os
import subprocess
import sys
import time
import uuid
import weakref
import zlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, parse_flag_from_env
from safetensors import SafetensorError
from tqdm import tqdm

from be import config as configs
from be import datasets, weights
from be.config import Config, UserError, run_dir  # noqa: F401 (of a run, so it is found here, too)
from be.video import VideoError

PATIENCE = 600  # seconds without a line, and ten times what a line usually takes, before a run counts as stale
END = {"pretrain": "backbone.safetensors", "finetune": "model.safetensors"}  # what a stage writes last
# A lock is held as long as any process has it open; a loader's workers outlive a killed run for some seconds
_LOCKS = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _LOCKS])


class RunError(UserError, RuntimeError):
    """Something about a run directory that the person must settle; the message says how."""


def make_accelerator(cfg: Config) -> Accelerator:
    """Device and processes as `accelerate launch` set them up, precision from the config."""
    # Buffers are not broadcast in each step: BatchNorm statistics are a device's own, queues are equal on all anyway
    kwargs = DistributedDataParallelKwargs(broadcast_buffers=False)
    precision = "no" if cfg.precision == "fp32" else cfg.precision
    found = torch.accelerator.current_accelerator(check_available=True)
    cpu = found is None or found.type == "mps" or parse_flag_from_env("ACCELERATE_USE_CPU")  # Apple's lacks kernels
    state = PartialState(cpu=cpu)
    if precision != "no" and state.device.type == "cpu":  # docs/BENCHMARKS.md
        state.print(f"precision={precision} is for GPUs (on CPUs Conv3d's gradients are wrong): using fp32")
        precision = "no"
    if state.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        print("WARNING: several processes were asked for, this is one by itself: `accelerate launch --cpu` starts no "
              "more than one; use torchrun --nproc_per_node N run.py ...", file=sys.stderr)
    if cfg.tracker != "none" and cfg.tracker not in map(str, get_available_trackers()):
        raise RunError(f"tracker={cfg.tracker} needs a package that is not installed: pip install {cfg.tracker}")
    once = GradientAccumulationPlugin(num_steps=1)  # whatever the environment says: `accumulate` is ours
    return Accelerator(mixed_precision=precision, kwargs_handlers=[kwargs], project_dir=cfg.out,
                       gradient_accumulation_plugin=once, log_with=None if cfg.tracker == "none" else cfg.tracker)


def place(module: torch.nn.Module, device: torch.device, precision: str) -> torch.nn.Module:
    """Moves a network of 3D convolutions to the device, in the layout that they are fast in there, and returns it."""
    module.to(device)
    if device.type == "cpu" or precision != "fp32":  # docs/BENCHMARKS.md
        module.to(memory_format=torch.channels_last_3d)  # of the weights: the activations follow
    return module


@contextlib.contextmanager
def tracking(accelerator: Accelerator, run: "Run"):
    """Yields log(step=, **metrics), which writes a line of metrics.jsonl and tells the tracker, if there is one."""
    if run.cfg.tracker != "none":
        accelerator.project_configuration.logging_dir = str(run.path)  # TensorBoard writes to RUN/be
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in dataclasses.asdict(run.cfg).items()}
        wandb = {"name": f"{run.path.parent.name}-{run.path.name}", "resume": "allow", "dir": str(run.path)}
        if run.write:  # the one process that talks to the tracker; a run begun anew, or elsewhere, has another id
            if not ((file := run.path / "wandb-id").exists() and run.checkpoints()):
                write_text(file, uuid.uuid4().hex)
            wandb["id"] = file.read_text()
        accelerator.init_trackers("be", plain, {"wandb": wandb})

    def log(step: int, **metrics):
        run.log(step=step, **metrics)
        accelerator.log({k: float(v) for k, v in metrics.items()}, step=step)

    try:
        yield log
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def lock(file, how: int):
    """`fcntl.flock` without waiting: BlockingIOError if it is held elsewhere. Where there are no locks, as on Lustre or
    NFS mounted without them, all may write, after a warning."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise
        _warn_of_no_locks(error.strerror)


@functools.cache
def _warn_of_no_locks(why: str):
    print(f"WARNING: this file system has no locks ({why}): nothing keeps two processes from writing into one run, and "
          f"`status` calls a running one stopped", file=sys.stderr)


class Run:
    """One stage's directory, open for writing by one process (the main one; the others hold `write=False`).
    Raises RunError when another process writes here, or when the directory holds a run of another config."""

    def __init__(self, path: Path, cfg: Config, write: bool = True):
        self.path, self.cfg, self.write = Path(path), cfg, write
        if not write:
            return
        try:
            (self.path / "checkpoint").mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "w")  # noqa: SIM115 (held for the life of the process)
            lock(self._lock, fcntl.LOCK_EX)
            _LOCKS.add(self._lock)
        except BlockingIOError:
            raise RunError(f"{self.path}: another process is writing into this run; wait for it, or give this one "
                           f"a name of its own (name=...)") from None
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror}); choose another out=...") from None
        kept = (self.path / "config.yaml").exists() and (self.checkpoints() or any(self.path.glob("*.safetensors")))
        if kept and (changes := configs.changes(self.path / "config.yaml", cfg)):
            raise RunError(f"{self.path} holds a run of another config ({changes}); give this one a name of its own "
                           f"(name=...), or remove the folder to start over")
        write_text(self.path / "config.yaml", configs.as_text(cfg))

    def close(self):
        """Lets another process write here; the end of this process does so too."""
        if self.write:
            self._lock.close()

    def log(self, **metrics):
        """Appends one line to metrics.jsonl; scalars of any kind, tensors included (reading them syncs the device)."""
        if self.write:
            line = {k: round(float(v), 6) if not isinstance(v, int | str) else v for k, v in metrics.items()}
            with writing(self.path / "metrics.jsonl"), open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    def forget_metrics_after(self, step: int):
        """Drops lines newer than the checkpoint that a run goes on from, so the record has each step once."""
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.path) if line["step"] <= step]
        if self.write and (self.path / "metrics.jsonl").exists():
            write_text(self.path / "metrics.jsonl", "".join(kept))

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoint").glob("step-*.pt"))

    def save(self, step: int, **state):
        """Writes a checkpoint of everything in `state` (dicts of tensors and numbers) and drops the oldest."""
        if not self.write:
            return
        aside = self.path / "checkpoint" / "aside.tmp"
        with writing(self.path / f"checkpoint/step-{step:08d}", aside):
            torch.save({"step": step, **state}, aside)
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
            new = aside.with_name(f"step-{step:08d}-{zlib.crc32(aside.read_bytes()):08x}.pt")
            os.replace(aside, new)
        sound = [path for path in self.checkpoints() if path.name < f"step-{step:08d}"] + [new]
        for path in {*self.checkpoints()} - {*sound[-self.cfg.keep :]}:  # later ones are damaged: `latest` passed them
            path.unlink()

    def latest(self, map_location="cpu") -> dict | None:
        """The newest intact checkpoint, None where there is none; a damaged one is passed over. RunError if all are."""
        for path in reversed(self.checkpoints()):
            if path.stem.endswith(f"-{zlib.crc32(path.read_bytes()):08x}"):
                return torch.load(path, map_location=map_location, weights_only=True)
            print(f"{path} is damaged (its CRC-32 is not the one in its name); going back to the one before it")
        if self.checkpoints():
            raise RunError(f"{self.path}: no checkpoint is intact; remove {self.path / 'checkpoint'} to start over")
        return None

    def save_weights(self, name: str, module: torch.nn.Module, **about):
        """`NAME.safetensors`, with `about` (plain values) as JSON in its header."""
        if self.write:
            write_aside(self.path / f"{name}.safetensors", lambda aside: weights.write(aside, module, about))


# ---- reading runs

def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl; a last line cut short by a crash is left out."""
    lines, file = [], Path(path) / "metrics.jsonl"
    for text in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def read_results(out: Path, kind: str = "result") -> list[dict]:
    """Every KIND-*.json below `out` (result: of a test, recall: of a retrieval); `path` is its directory."""
    found = {path: read_result(path) for path in sorted(Path(out).glob(f"*/*/{kind}-*.json"))}
    return [{**result, "path": str(path.parent)} for path, result in found.items() if result]


def read_result(path: Path) -> dict | None:
    """None, after a warning, for a file that is empty or broken, as a full disk or an rsync cut short leaves it."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(result, dict) and "n_scored" in result:
            return result
        why = "it is no result"
    except (OSError, ValueError) as error:
        why = error
    print(f"WARNING: {path} is passed over ({why}); evaluate or retrieve writes it anew", file=sys.stderr)
    return None


def status(out: str = "runs", names: str = "*"):
    """status: list the runs with their state, step, loss, time left and last checkpoint

    out     the folder of runs
    names   a pattern such as table1-* (default: all)

    running: a process holds the run and writes; stale: one holds it and has written nothing for long (it hangs, waits
    for its data, or its machine is gone); stopped: none holds it, the same command goes on; done: nothing left to do.
    """
    found = sorted(path.parent for stage in END for path in Path(out).glob(f"*/{stage}-*/config.yaml"))
    rows = [run_state(path) for path in found if fnmatch.fnmatch(path.parent.name, names)]
    if not rows:
        raise RunError(f"there is no run named {names} in {out}{'' if Path(out).is_dir() else ', which is no folder'}")
    rows.insert(0, ("experiment", "stage", "state", "step", "loss", "left", "last checkpoint"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def run_state(path: Path, now: float | None = None) -> tuple[str, ...]:
    """A row of `status`; `now` in seconds since 1970."""
    now = now or time.time()
    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    lines = [line for line in read_metrics(path) if "loss" in line]  # others are of a probe
    state, step, loss, left, checkpoint = "stopped", "-", "-", "-", "-"
    if (path / END[path.name.split("-")[0]]).exists():
        state = "done"
    elif locked(path):
        written = max(file.stat().st_mtime for file in (path / "lock", path / "metrics.jsonl") if file.exists())
        usual = lines[-1]["seconds"] - lines[-2]["seconds"] if len(lines) > 1 else 0.0  # < 0: resumed in between
        state = "stale" if now - written > max(PATIENCE, 10 * usual) else "running"
    if lines:
        last = lines[-1]
        total = config["epochs"] * round(last["step"] / last["epoch"])
        step, loss = f"{last['step']}/{total}", f"{last['loss']:.4f}"
        if state == "running":
            left = duration((total - last["step"]) * config["batch_size"] / last["clips_per_s"])
    if kept := sorted((path / "checkpoint").glob("step-*.pt")):
        checkpoint = f"step {int(kept[-1].name.split('-')[1])}, {duration(now - kept[-1].stat().st_mtime)} ago"
    return path.parent.name, path.name, state, step, loss, left, checkpoint


def locked(path: Path) -> bool:
    """Whether a process holds the run."""
    try:
        with contextlib.suppress(FileNotFoundError), open(path / "lock") as file:
            lock(file, fcntl.LOCK_SH)  # for some microseconds
    except BlockingIOError:
        return True
    return False


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h` or `2.1 days`"""
    for size, unit, form in ((86400, "days", ".1f"), (3600, "h", ".1f"), (60, "min", ".0f")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:{form}} {unit}"
    return f"{seconds:.0f} s"


def git_sha() -> str:
    """The commit of the code, with `+` when the tree has changes; `unknown` outside a repository."""
    command = ["git", "-C", Path(__file__).resolve().parent, "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(samples, accelerator: Accelerator) -> dict:
    """What a result comes from: videos (a `datasets.Samples`; null if nobody ran `prepare`), code and machine."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"manifest_hash": samples.manifest_hash, "git_sha": git_sha(), "torch": torch.__version__,
            "av": version("av"), "copied_at": datasets.copied_at(samples.root),
            "device": f"{accelerator.num_processes} x {name}"}


def write_text(path: Path, text: str):
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_aside(path: Path, write):
    """Calls `write(aside)` and renames the file it wrote to `path`. RunError where that cannot be written."""
    aside = Path(path).with_name(f".{Path(path).name}.aside")
    with writing(path, aside):
        write(aside)
        os.replace(aside, path)


@contextlib.contextmanager
def writing(path: Path, aside: Path | None = None):
    """A failure in here to write `path` becomes a RunError; `aside`, half of a file by then, is removed."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, VideoError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            if aside:
                aside.unlink()
        raise RunError(f"{path} could not be written ({getattr(error, 'strerror', None) or error}); what was there "
                       f"before is untouched; make room and run the same command again") from None


def progress(work, total: int, what: str):
    """What `work` yields, behind a progress bar; where stderr is a log, with a line a minute."""
    log, start = not sys.stderr.isatty(), time.monotonic()
    last = start
    for done, result in enumerate(tqdm(work, what, total, disable=log), 1):
        now = time.monotonic()
        if log and (done == total or now - last >= 60):
            last, left = now, (now - start) / done * (total - done)
            print(f"{what}: {done}/{total}, {now - start:.0f} s, about {left:.0f} s left", file=sys.stderr)
        yield result


class Clock:
    """Shares of wall time: `with clock("data"): ...`; how many were done in it: `clock.count += 8`.
    What is done in `with clock():` takes no time."""

    def __init__(self):
        self.since, self.count, self.spent = time.perf_counter(), 0, Counter()

    @contextlib.contextmanager
    def __call__(self, name: str = ""):
        begin = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - begin

    def lap(self) -> tuple[float, dict[str, float]]:
        """(count per second, share of each name in the time), both since the last lap."""
        seconds = time.perf_counter() - self.since - self.spent.pop("", 0)
        rate, shares = self.count / seconds, {name: spent / seconds for name, spent in self.spent.items()}
        self.__init__()
        return rate, shares
