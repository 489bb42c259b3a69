"""The run directory: what is written can be read, what is damaged is named; `status`; trackers."""

import contextlib
import errno
import importlib.util
import json
import multiprocessing
import os
import shutil
import struct
import time
import zlib
from dataclasses import replace
from unittest import mock

import pytest
import torch
from conftest import TINY
from torch import nn

from be import config, runs, train
from be.config import load
from be.runs import Run, RunError, duration, read_metrics, run_state, status, tracking
from be.weights import from_pretrained

CFG = load("demo-moco-be")


def test_checkpoints_keep_the_newest_and_come_back(tmp_path):
    run = Run(tmp_path, CFG)
    assert run.latest() is None
    for step in (5, 10, 15):
        run.save(step, objective={"w": torch.full((3,), float(step))})
    assert [p.name[:13] for p in run.checkpoints()] == ["step-00000010", "step-00000015"]  # keep: 2
    assert run.latest()["step"] == 15 and run.latest()["objective"]["w"].tolist() == [15, 15, 15]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:300] + b"\xff" + b[301:], lambda b: b""])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys, damage):
    run = Run(tmp_path, CFG)
    for step in (1, 2):
        run.save(step, objective={"w": torch.ones(50)})
    before, newest = run.checkpoints()
    newest.write_bytes(damage(newest.read_bytes()))
    assert run.latest()["step"] == 1
    assert newest.name in capsys.readouterr().out
    before.write_bytes(b"")
    with pytest.raises(RunError, match="no checkpoint is intact; remove .*checkpoint to start over"):
        run.latest()
    assert len(run.checkpoints()) == 2


def test_a_damaged_checkpoint_does_not_push_out_a_sound_one(tmp_path):
    run = Run(tmp_path, CFG)
    for step in (400, 500):
        run.save(step, objective={})
    run.checkpoints()[1].rename(tmp_path / "checkpoint/step-00000500-00000000.pt")  # the wrong CRC
    for kept in ([400, 475], [475, 500]):
        run.save(kept[1], objective={})
        assert [int(path.name[5:13]) for path in run.checkpoints()] == kept and run.latest()["step"] == kept[1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # no space left on this device
def test_a_full_disk_leaves_what_was_there(tmp_path):
    run, net = Run(tmp_path, CFG), nn.Linear(3, 4)
    run.save(1, objective=net.state_dict())
    run.log(step=1, loss=0.5)
    run.save_weights("backbone", net)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / ".backbone.safetensors.aside").mkdir()  # safetensors writes past a link
    for name in ("checkpoint/aside.tmp", ".result-test.json.aside"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match="checkpoint/step-00000002 could not be written .*make room"):
        run.save(2, objective=net.state_dict())
    with pytest.raises(RunError, match="backbone.safetensors could not be written .*make room"):
        run.save_weights("backbone", net)
    with pytest.raises(RunError, match=r"result-test.json could not be written \(No space left on device\)"):
        runs.write_text(tmp_path / "result-test.json", "{}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="metrics.jsonl could not be written .*No space left"):
        run.log(step=2, loss=0.5)
    run.save(2, objective=net.state_dict())
    assert run.latest()["step"] == 2


def test_another_config_is_refused(tmp_path):
    """By a begun run, and by a finished one without checkpoints: others read in its config what the weights are."""
    for name, leave in ("begun", lambda run: run.save(1, objective={})), (
            "finished", lambda run: run.save_weights("backbone", nn.Linear(3, 4))):
        leave(run := Run(tmp_path / name, CFG))
        run.close()
        Run(run.path, replace(CFG, workers=7, log_every=3)).close()  # does not change what is computed
        with pytest.raises(RunError, match=r"another config \(gamma: 0.3 -> 0.5\).*name="):
            Run(run.path, replace(CFG, gamma=0.5))
        assert load(str(run.path / "config.yaml")).gamma == 0.3


def test_what_chose_the_epoch_is_not_free(tmp_path):
    """test_clips is of the test alone, unless the best epoch is chosen by it."""
    for select, free in ("last", True), ("holdout", False):
        cfg = replace(CFG, select=select, test_clips=3)
        run = Run(tmp_path / select, cfg)
        run.save(1, objective={})
        run.close()
        with contextlib.nullcontext() if free else pytest.raises(RunError, match="test_clips: 3 -> 10"):
            Run(tmp_path / select, replace(cfg, test_clips=10)).close()


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_written_to_after_one_warning(tmp_path, capsys, monkeypatch, number):
    """Lustre and NFS of many clusters; any other error still ends the run."""
    def flock(file, how):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    runs._warn_of_no_locks.cache_clear()
    run = Run(tmp_path / "demo/pretrain-seed0", CFG)
    run.save(1, objective={"w": torch.ones(2)})
    assert Run(tmp_path / "other", CFG).write and run_state(run.path)[2] == "stopped"
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1 and os.strerror(getattr(errno, number)) in said
    number = "EIO"
    with pytest.raises(RunError, match="Input/output error"):
        Run(tmp_path / "third", CFG)


def test_the_environment_divides_no_gradient(monkeypatch):
    """A variable that a job script of another project exported."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones(2, requires_grad=True)
    accelerator = runs.make_accelerator(replace(CFG, precision="fp32"))
    assert accelerator.gradient_accumulation_steps == 1
    accelerator.backward((3 * weight).sum())
    assert weight.grad.tolist() == [3, 3]


def test_a_process_that_was_to_have_company_says_so(monkeypatch, capsys):
    """`accelerate launch --cpu --num_processes 2` starts one, and tells it where the other would be."""
    for name in ("WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value, warns in (("X", "1", False), ("MASTER_ADDR", "127.0.0.1", True), ("WORLD_SIZE", "1", False)):
        monkeypatch.setenv(name, value)
        runs.make_accelerator(replace(CFG, precision="fp32"))
        assert ("torchrun" in capsys.readouterr().err) == warns


def test_two_processes_cannot_write_at_once(tmp_path):
    """But the workers of a loader, which live on for some seconds when the training process is killed, hold nothing."""
    run, fork = Run(tmp_path, CFG), multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    worker = fork.Process(target=lambda: (there.send("alive"), time.sleep(60)))
    worker.start()
    here.recv()
    with pytest.raises(RunError, match="another process is writing"):
        Run(tmp_path, CFG)
    run.close()
    Run(tmp_path, CFG).close()
    worker.kill()


def test_metrics_lines(tmp_path):
    run = Run(tmp_path, CFG)
    for step in (1, 2, 3):
        run.log(step=step, loss=torch.tensor(1.0 / step))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # cut short by a crash
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    run.forget_metrics_after(2)
    run.log(step=3, loss=0.5)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 0.5)]


@pytest.mark.skipif(os.name != "posix", reason="no users")
def test_a_folder_that_others_may_only_read(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o555)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)  # nobody: root may write anywhere
    try:
        with pytest.raises(RunError, match="cannot be written .*Permission denied.* out="):
            Run(tmp_path / "runs" / "a", CFG)
    finally:
        os.seteuid(me)


def test_progress_in_a_log(capsys, monkeypatch):
    """Ten letters a minute; the time left is that of the letters left."""
    monkeypatch.setattr(runs, "time", mock.Mock(monotonic=mock.Mock(side_effect=range(0, 1000, 6))))
    assert list(runs.progress(iter("abcdefghijklmnopqrstuvwxyz"), 26, "letters")) == [*"abcdefghijklmnopqrstuvwxyz"]
    assert capsys.readouterr().err.splitlines() == [
        f"letters: {n}/26, {6 * n} s, about {6 * (26 - n)} s left" for n in (10, 20, 26)]


# ---- a run directory of b80e8fa, written by hand

CONFIG = """
{name: demo-moco-be, out: OUT, seed: 0, recipe: paper, synthetic: false, data: data/demo, dataset: ucf101, split: 1,
  subset: test, workers: 1, cache_gb: 1.0, short_side: 40, size: 32, frames: 16, stride: 2, static: false, rotate: 10.0,
  jitter: [0.12, 0.12, 0.12, 0.05], jitter_ops: all, backbone: c3d, width: 1, pool: avg, dropout: 0.0, pretrained: null,
  method: moco, erase: intra-video-frame, gamma: 0.3, beta: 1.0, be_norm: mean, erase_side: key, hard_negative: true,
  hard_negative_encoder: momentum, dim: 128, K: 256, m: 0.97, temperature: 0.15, epochs: 10, batch_size: 32,
  accumulate: 1, bn_group: 8, lr: 0.01, lr_steps: [8.0], lr_factor: 0.1, momentum: 0.9, weight_decay: 0.0005,
  precision: fp32, checkpointing: false, compile: false, test_clips: 10, select: last, scene: median, protocol: paper,
  memory_gb: 2.0, log_every: 20, save_every: 500, keep: 2, tracker: none, probe_every: 0}
"""
METRICS = """\
{"step": 20, "epoch": 2.5, "loss": 4.5, "lr": 0.01, "clips_per_s": 64.0, "data_wait": 0.1, "skipped": 0, "seconds": 9.0}
{"step": 20, "epoch": 2.5, "probe_knn": 12.5}
{"step": 40, "epoch": 5.0, "loss": 4.25, "lr": 0.01, "clips_per_s": 64.0, "data_wait": 0.1, "skipped": 0, "seconds": 18}
{"step": 60, "epo"""


def by_hand(path):
    """c3d of width 1 as safetensors, byte by byte: the length of the header, the header, the numbers."""
    tensors, c_in = {}, 3
    for name, c in {"1": 1, "2": 2, "3a": 4, "3b": 4, "4a": 8, "4b": 8, "5a": 8, "5b": 8}.items():
        tensors[f"conv{name}.weight"] = torch.randn(c, c_in, 3, 3, 3)
        tensors |= {f"bn{name}.{key}": torch.rand(c) for key in ("weight", "bias", "running_mean", "running_var")}
        tensors[f"bn{name}.num_batches_tracked"] = torch.tensor(60)
        c_in = c
    about = {"backbone": "c3d", "width": 1, "experiment": "demo-moco-be", "manifest_hash": None, "git_sha": "b80e8fa"}
    header, data = {"__metadata__": {"about": json.dumps(about)}}, b""
    for name, x in tensors.items():
        header[name] = {"dtype": "F32" if x.is_floating_point() else "I64", "shape": list(x.shape),
                        "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.numpy().tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return tensors


def test_a_run_directory_of_before_stays_readable(tmp_path, capsys):
    path = tmp_path / "demo-moco-be/pretrain-seed0"
    (path / "checkpoint").mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG)
    (path / "metrics.jsonl").write_text(METRICS)
    torch.save({"step": 40, "objective": {"w": torch.ones(2)}, "skipped": 0, "recent": []}, path / "x")
    crc = zlib.crc32((path / "x").read_bytes())
    (path / "x").rename(path / f"checkpoint/step-00000040-{crc:08x}.pt")
    (path / "result-test.json").write_text('{"top1": 50.0, "n_scored": 2}')

    assert run_state(path)[:5] == ("demo-moco-be", "pretrain-seed0", "stopped", "40/80", "4.2500")
    cfg = load(str(path / "config.yaml"))
    assert (cfg.erase, cfg.erase_side, cfg.width, *cfg.lr_steps) == ("intra-video-frame", "key", 1, 8.0)
    run = Run(path, cfg)  # the same command goes on
    assert run.latest()["objective"]["w"].tolist() == [1, 1]
    assert [line["step"] for line in read_metrics(path)] == [20, 20, 40]
    run.close()
    with pytest.raises(RunError, match=r"another config \(gamma: 0.3 -> 0.5\)"):
        Run(path, replace(cfg, gamma=0.5))
    assert runs.read_results(tmp_path) == [{"top1": 50.0, "n_scored": 2, "path": str(path)}]

    tensors = by_hand(path / "backbone.safetensors")
    backbone = from_pretrained(path)
    assert "loaded 40 of 40 tensors" in capsys.readouterr().out and backbone.config["git_sha"] == "b80e8fa"
    assert all(torch.equal(tensors[name], x) for name, x in backbone.state_dict().items()) and len(tensors) == 48
    assert run_state(path)[2] == "done"


# ---- which runs are alive

BEGUN = load("demo-moco-be", ["epochs=10", "batch_size=32"])
EVERY = 120.0  # seconds between the lines written below


def begun(folder, steps=(20, 40), per_epoch=25):
    run = Run(folder / "demo-moco-be/pretrain-seed0", BEGUN)
    for step in steps:
        run.log(step=step, epoch=step / per_epoch, loss=1 / step, lr=0.1, clips_per_s=4.0, seconds=EVERY * step / 20)
    return run


def test_a_running_one(tmp_path):
    run = begun(tmp_path)
    run.save(40, objective={})
    run.log(step=50, epoch=2.0, probe_knn=12.5)
    now = time.time() + 60
    os.utime(run.path / "metrics.jsonl", (now, now))
    os.utime(run.checkpoints()[-1], (now - 300, now - 300))
    # 250 steps in all; the 210 left are 210 * 32 clips at 4 a second
    assert run_state(run.path, now) == ("demo-moco-be", "pretrain-seed0", "running", "40/250", "0.0250", "28 min",
                                   "step 40, 5 min ago")
    run.close()
    assert run_state(begun(tmp_path / "b", (7,), 3913).path)[3] == "7/39130"  # from an epoch that the log rounds


@pytest.mark.parametrize("steps, patience", [((), 600), ((20, 40), 10 * EVERY)])
def test_stale_is_a_lock_and_no_line_for_long(tmp_path, steps, patience):
    run = begun(tmp_path, steps)
    last = max(path.stat().st_mtime for path in (run.path / "lock", run.path / "metrics.jsonl") if path.exists())
    states = [run_state(run.path, last + later)[2] for later in (0, patience - 5, patience + 5)]
    assert states == ["running", "running", "stale"] and (run_state(run.path)[3] == "-") is not bool(steps)
    run.close()
    assert run_state(run.path, last + 9999)[2] == "stopped"
    Run(run.path, BEGUN).close()  # to ask did not stop it from starting
    (run.path / "backbone.safetensors").write_bytes(b"")
    assert run_state(run.path)[2] == "done"


def test_the_list(tmp_path, capsys):
    for out, why in (tmp_path, ""), (tmp_path / "typo", ", which is no folder"):
        with pytest.raises(RunError, match=f"there is no run named . in {out}{why}$"):
            status(out=str(out))
    begun(tmp_path).close()
    Run(tmp_path / "another-with-a-longer-name/finetune-ucf101-split1-seed0", BEGUN).close()
    status(out=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len({line.find(" stopped ") for line in lines[1:]}) == 1  # aligned
    assert lines[0].index("state") == lines[1].index("stopped")
    status(out=str(tmp_path), names="demo-*")
    assert "another" not in capsys.readouterr().out


@pytest.mark.parametrize("seconds, said", [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (5400, "1.5 h"),
                                           (100_000, "27.8 h"), (200_000, "2.3 days")])
def test_duration(seconds, said):
    assert duration(seconds) == said


# ---- trackers: what metrics.jsonl holds goes to them, too, number by number

WORDS = [*TINY, "epochs=1", "log_every=2", "probe_every=1"]


def demo(tiny, out, *words):
    return config.load("demo-moco-be", [*WORDS, f"data={tiny}", f"out={out}", *words])


class Notes:
    """Takes part in Accelerate as its trackers do."""

    name, requires_logging_directory = "notes", False

    def __init__(self):
        self.said, self.finished = [], False

    def log(self, values, step):
        self.said.append({"step": step, **values})

    def finish(self):
        self.finished = True


def test_a_tracker_is_told_what_the_log_is(tiny, tmp_path, monkeypatch):
    notes, make = Notes(), runs.make_accelerator
    def accelerator(cfg):
        made = make(cfg)
        made.trackers = [notes]
        return made
    monkeypatch.setattr(train, "make_accelerator", accelerator)
    train.pretrain(demo(tiny, tmp_path))
    lines = read_metrics(tmp_path / "demo-moco-be/pretrain-seed0")
    assert len(lines) == 3 and notes.finished  # at steps 2 and 4, and the probe's
    assert [{k: round(v, 6) for k, v in said.items()} for said in notes.said] == lines


def test_a_run_of_wandb_is_one_directory_and_one_beginning(tmp_path):
    """Its id comes back when a run goes on; a run of the same name elsewhere, or begun anew, has another."""
    told, accelerator = [], mock.Mock(trackers=[])
    accelerator.init_trackers = lambda project, config, how: told.append(how["wandb"])

    def begin(path):
        run = Run(path / "demo/pretrain-seed0", replace(CFG, tracker="wandb"))
        with tracking(accelerator, run):
            run.save(1, objective={})
        run.close()
        return told[-1]["id"]

    first = begin(tmp_path / "a")
    assert begin(tmp_path / "a") == first != begin(tmp_path / "b")
    shutil.rmtree(tmp_path / "a/demo/pretrain-seed0/checkpoint")
    assert begin(tmp_path / "a") != first
    assert {(one["name"], one["resume"]) for one in told} == {("demo-pretrain-seed0", "allow")}


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_package_that_is_missing(tiny, tmp_path, tracker, monkeypatch):
    monkeypatch.setattr(runs, "get_available_trackers", lambda: [])
    with pytest.raises(RunError, match=f"tracker={tracker} needs .*pip install {tracker}"):
        train.pretrain(demo(tiny, tmp_path, f"tracker={tracker}"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.pretrain(demo(tiny, tmp_path, "tracker=tensorboard"))
    path = tmp_path / "demo-moco-be/pretrain-seed0"
    (events,) = path.glob("be/events*")
    found = EventAccumulator(str(events)).Reload()
    for key in ("loss", "positive", "lr"):
        ours = [(line["step"], line[key]) for line in read_metrics(path) if key in line]
        theirs = [(point.step, point.value) for point in found.Scalars(key)]
        assert theirs == [(step, pytest.approx(value, abs=1e-5)) for step, value in ours]
