"""A run that is killed, at any moment and as often as one likes, ends where an undisturbed one does, bit for bit."""

import multiprocessing
import os
import random
import signal
import sys
from dataclasses import replace

import torch
from conftest import FORKS, TINY
from safetensors.torch import load_file

from be import config, runs, train
from be.runs import read_metrics

TIMES = ("clips_per_s", "data_wait", "seconds")  # the only numbers that may differ


def live(cfg, die_at, while_saving, counted):
    """A process: trains until its `die_at`-th call of a function, in Python or in C; then kill -9.

    `while_saving`: only calls inside `Run.save` count. Without `die_at` it trains to the end; `counted`, a pipe, is
    then told how many calls there were.
    """
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a program of its own
    train.HELD_OUT = 0.2  # of 4 videos of a class, a tenth is none
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    calls, save, inside = 0, runs.Run.save, not while_saving

    def count(frame, event, argument):
        nonlocal calls
        if event in ("call", "c_call") and inside:
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched(*args, **kwargs):
        nonlocal inside
        inside = True
        save(*args, **kwargs)
        inside = not while_saving

    runs.Run.save = watched
    os.register_at_fork(after_in_child=lambda: sys.setprofile(None))  # the loader's workers do not count
    sys.setprofile(count)
    (train.finetune if cfg.method == "classify" else train.pretrain)(cfg)
    sys.setprofile(None)
    counted.send(calls)


def begin(cfg, die_at=0, while_saving=False):
    """Lets a process live; returns how it ended (0, or minus the signal) and how many calls it counted."""
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=live, args=(cfg, die_at, while_saving, there))
    process.start()
    process.join()
    return process.exitcode, here.recv() if here.poll() else None


def record(path):
    """The log without its times, the newest checkpoint, the weights at the end."""
    log = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(path)]
    return log, runs.Run(path, None, write=False).latest(), load_file(path / "backbone.safetensors")


def assert_equal(one, two):
    assert one[0] == two[0]
    torch.testing.assert_close(one[1:], two[1:], rtol=0, atol=0)


def load(tiny, out, *words, stage="pretrain", name="demo-moco-be"):
    """20 steps; nothing falls together: parts of a step, lines of the log, checkpoints, epochs, probes."""
    return config.load(name, [*TINY, f"data={tiny}", f"out={out}", "epochs=5", "accumulate=2", "log_every=3",
                              "save_every=2", "probe_every=3", *words], stage)


def killed(cfg, calls: int, saving: list[bool], seed: int):
    """A life per entry of `saving`: dies in one of the next checkpoints, or anywhere in the next third of the run."""
    path, half_written = runs.run_dir(cfg, "finetune" if cfg.method == "classify" else "pretrain"), 0
    rng = random.Random(seed)
    for n, while_saving in enumerate(saving):
        die_at = rng.randrange(1, calls // (30 if while_saving else 3))
        code, _ = begin(replace(cfg, workers=2 * (n % 4 == 1)), die_at, while_saving)
        assert code == -signal.SIGKILL and not (path / "backbone.safetensors").exists()
        half_written += (path / "checkpoint/aside.tmp").exists()
    assert half_written > sum(saving) / 2 - 1
    assert begin(cfg)[0] == 0
    return record(path)


def test_killed_at_ten_random_moments(tiny, tmp_path):
    """Four times of ten while it writes a checkpoint; at times with workers in the middle of their work."""
    code, calls = begin(load(tiny, tmp_path / "whole"))
    assert code == 0
    whole = record(tmp_path / "whole/demo-moco-be/pretrain-seed0")
    assert [line["step"] for line in whole[0]] == [3, 6, 9, 12, 12, 15, 18, 20]  # 12: and the probe
    assert_equal(whole, killed(load(tiny, tmp_path / "cut"), calls, [False, False, False, True, True] * 2, seed=0))


def test_fine_tuning_with_its_choice_of_an_epoch(tiny, tmp_path):
    words = ["select=holdout", "test_clips=2", "lr=0.1", "epochs=4"]
    cfg = [load(tiny, tmp_path / out, *words, stage="finetune", name="demo-random") for out in ("whole", "cut")]
    code, calls = begin(cfg[0])
    assert code == 0
    whole = record(runs.run_dir(cfg[0], "finetune"))
    assert sum("holdout_top1" in line for line in whole[0]) == 4
    assert_equal(whole, killed(cfg[1], calls, [False, True, False], seed=1))
