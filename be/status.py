"""Verb `status`: which runs there are, how far they are, and whether somebody is still working on them.

All of it is read from the run directories (`be/runs.py`), so it works from any machine that sees the folder.
"""

import fcntl
import fnmatch
import time
from pathlib import Path

import yaml

from be.runs import read_metrics

PATIENCE = 600  # seconds without a line, and ten times what a line usually takes, before a run counts as stale
END = {"pretrain": "backbone.safetensors", "finetune": "model.safetensors"}


def status(out: str = "runs", names: str = "*"):
    """status: list the runs with their state, step, loss, time left and last checkpoint

    out     the folder of runs
    names   a pattern such as table1-* (default: all)

    running: a process holds the run and writes; stale: one holds it and has written nothing for long (it hangs, waits
    for its data, or its machine is gone); stopped: none holds it, the same command goes on; done: nothing left to do.
    """
    found = sorted(path.parent for stage in END for path in Path(out).glob(f"*/{stage}-*/config.yaml"))
    rows = [look(path) for path in found if fnmatch.fnmatch(path.parent.name, names)]
    head = ("experiment", "stage", "state", "step", "loss", "left", "last checkpoint")
    if not rows:
        print(f"no runs in {out}" + (f" named {names}" if names != "*" else ""))
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def look(path: Path, now: float | None = None) -> tuple[str, ...]:
    """A row of the list; `now` in seconds since 1970."""
    now = now or time.time()
    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    lines = [line for line in read_metrics(path) if "loss" in line]  # others are of a probe
    state = state_of(path, lines, now)
    step = loss = left = checkpoint = "-"
    if lines:
        last = lines[-1]
        total = config["epochs"] * round(last["step"] / last["epoch"])
        step, loss = f"{last['step']}/{total}", f"{last['loss']:.4f}"
        if state == "running":
            left = duration((total - last["step"]) * config["batch_size"] / last["clips_per_s"])
    if kept := sorted((path / "checkpoint").glob("step-*.pt")):
        checkpoint = f"step {int(kept[-1].name.split('-')[1])}, {duration(now - kept[-1].stat().st_mtime)} ago"
    return path.parent.name, path.name, state, step, loss, left, checkpoint


def state_of(path: Path, lines: list[dict], now: float) -> str:
    """`done`, `stopped`, `running` or `stale`; `lines` are those of metrics.jsonl."""
    if any(path.glob(END[path.name.split("-")[0]])):
        return "done"
    if not held(path / "lock"):
        return "stopped"
    written = max((path / name).stat().st_mtime for name in ("lock", "metrics.jsonl") if (path / name).exists())
    usual = max(0.0, lines[-1]["seconds"] - lines[-2]["seconds"]) if len(lines) > 1 else 0.0  # < 0: resumed in between
    return "stale" if now - written > max(PATIENCE, 10 * usual) else "running"


def held(lock: Path) -> bool:
    """Whether a process holds the lock of a run. Asking takes a shared one, for some microseconds."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h` or `2.1 days`"""
    for size, unit, form in ((86400, "days", ".1f"), (3600, "h", ".1f"), (60, "min", ".0f")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:{form}} {unit}"
    return f"{seconds:.0f} s"
