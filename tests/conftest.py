"""Shared by all tests: one thread per process (tests compare runs bit by bit), and one tiny set of real video files."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # of run.py
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of other processes: read when torch is loaded
FORKS = multiprocessing.get_context("forkserver")  # processes that have imported everything when they begin
FORKS.set_forkserver_preload(["be.train", "torch._dynamo"])

# The demo's settings, smaller: every verb in seconds
TINY = ["short_side=24", "size=16", "frames=8", "stride=2", "width=4", "workers=0", "batch_size=8", "bn_group=4",
        "K=24", "epochs=2", "log_every=1", "save_every=3", "lr_steps=[1]", "test_clips=3"]  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """DATA with DATA/ucf101: synthetic videos in its layout, 8 classes x 4 to train on, x 2 to test on."""
    from be import synthetic

    data = tmp_path_factory.mktemp("data")
    synthetic.synth(data / "ucf101", "ucf101", 4, 2, frames=24, height=24, width=24, scene_bias=0.9, workers=1)
    return data


def latest(*words):
    """The words, each key once: the last of those that are given twice, such as one of TINY."""
    last = {str(word).split("=")[0]: word for word in words}
    return [word for word in words if last[str(word).split("=")[0]] is word]


def command(*words, launch: int = 0):
    """Arguments of subprocess for run.py as a person types it, on `launch` CPU processes if that is not 0.

    One thread each: sums of floats must come out in the same order in runs that are compared bit by bit.
    """
    start = [sys.executable, "-u"]
    if launch:
        # `accelerate launch --cpu --num_processes 2` starts one process; it leaves several to torchrun, as is done here
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(launch)]
    return dict(args=[*start, str(ROOT / "run.py"), *map(str, words)], cwd=ROOT, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})  # fmt: skip


def run(*words, launch: int = 0, code: int = 0):
    """Runs it to the end and returns what it said; fails on any other exit code than `code`."""
    done = subprocess.run(**command(*words, launch=launch), capture_output=True, check=False)
    assert done.returncode == code, f"{words}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
