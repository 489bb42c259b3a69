"""The run directory: what is written can be read, what is damaged is named, and two cannot write at once."""

import contextlib
import json
import multiprocessing
import os
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from be import runs
from be.config import load
from be.runs import Run, RunError, load_weights, read_metrics

CFG = load("demo-moco-be")


def test_checkpoints_keep_the_newest_and_come_back(tmp_path):
    run = Run(tmp_path, CFG)
    for step in (5, 10, 15):
        run.save(step, objective={"w": torch.full((3,), float(step))})
    assert [p.name[:13] for p in run.checkpoints()] == ["step-00000010", "step-00000015"]  # keep: 2
    assert run.latest()["step"] == 15 and run.latest()["objective"]["w"].tolist() == [15, 15, 15]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:300] + b"\xff" + b[301:], lambda b: b""])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys, damage):
    run = Run(tmp_path, CFG)
    run.save(1, objective={"w": torch.ones(50)})
    run.save(2, objective={"w": torch.ones(50)})
    newest = run.checkpoints()[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    assert run.latest()["step"] == 1
    assert newest.name in capsys.readouterr().out


def test_a_damaged_checkpoint_does_not_push_out_a_sound_one(tmp_path):
    run = Run(tmp_path, replace(CFG, keep=1))
    run.save(500, objective={})
    run.checkpoints()[0].rename(tmp_path / "checkpoint/step-00000500-00000000.pt")  # the wrong CRC
    for step in (475, 500):
        run.save(step, objective={})
        assert run.latest()["step"] == step and len(run.checkpoints()) == 1


def test_no_sound_checkpoint_is_left(tmp_path):
    run = Run(tmp_path, CFG)
    assert run.latest() is None
    for step in (1, 2):
        run.save(step, objective={})
    for path in run.checkpoints():
        path.write_bytes(b"")
    with pytest.raises(RunError, match="no checkpoint is intact; remove .*checkpoint to start over"):
        run.latest()
    assert len(run.checkpoints()) == 2


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # no space left on this device


@FULL
def test_a_full_disk_leaves_what_was_there(tmp_path):
    run, net = Run(tmp_path, CFG), nn.Linear(3, 4)
    run.save(1, objective=net.state_dict())
    run.log(step=1, loss=0.5)
    run.save_weights("backbone", net)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / ".backbone.safetensors.aside").mkdir()  # safetensors writes past a link
    for name in ("checkpoint/aside.tmp", ".result-test.json.aside"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match="step 2 could not be written .*the last good one is step-00000001.*make room"):
        run.save(2, objective=net.state_dict())
    with pytest.raises(RunError, match="backbone.safetensors could not be written .*make room"):
        run.save_weights("backbone", net)
    with pytest.raises(RunError, match=r"result-test.json could not be written \(No space left on device\)"):
        run.save_result("result-test", {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="metrics.jsonl could not be written .*No space left"):
        run.log(step=2, loss=0.5)
    run.save(2, objective=net.state_dict())
    assert run.latest()["step"] == 2


def test_another_config_is_refused(tmp_path):
    run = Run(tmp_path, CFG)
    run.save(1, objective={})
    run.close()
    Run(tmp_path, replace(CFG, workers=7, log_every=3)).close()  # does not change what is computed
    with pytest.raises(RunError, match=r"another config \(gamma: 0.3 -> 0.5\).*name="):
        Run(tmp_path, replace(CFG, gamma=0.5))


def test_what_chose_the_epoch_is_not_free(tmp_path):
    """test_clips is of the test alone, unless the best epoch is chosen by it."""
    for select, free in ("last", True), ("holdout", False):
        cfg = replace(CFG, select=select, test_clips=3)
        run = Run(tmp_path / select, cfg)
        run.save(1, objective={})
        run.close()
        with contextlib.nullcontext() if free else pytest.raises(RunError, match="test_clips: 3 -> 10"):
            Run(tmp_path / select, replace(cfg, test_clips=10)).close()


def test_a_finished_run_keeps_its_config(tmp_path):
    """Also when its checkpoints were removed for their space: others read there what the weights are."""
    run = Run(tmp_path, CFG)
    run.save_weights("backbone", nn.Linear(3, 4))
    run.close()
    with pytest.raises(RunError, match=r"another config \(gamma: 0.3 -> 0.5\)"):
        Run(tmp_path, replace(CFG, gamma=0.5))
    assert load(str(tmp_path / "config.yaml")).gamma == 0.3
    Run(tmp_path, CFG).close()


def test_two_processes_cannot_write_at_once(tmp_path):
    first = Run(tmp_path, CFG)
    with pytest.raises(RunError, match="another process is writing"):
        Run(tmp_path, CFG)
    first.close()
    Run(tmp_path, CFG).close()


def test_a_workers_copy_of_the_lock_holds_nothing(tmp_path):
    """The workers of a loader live on for some seconds when the training process is killed."""
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


def test_weights_load_strictly(tmp_path, capsys):
    run = Run(tmp_path, CFG)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    run.save_weights("backbone", net, backbone="x", classes=["a", "b"])
    path = tmp_path / "backbone.safetensors"
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert load_weights(path, other) == {"backbone": "x", "classes": ["a", "b"]} == runs.read_about(path)
    assert "loaded 7 of 7 tensors" in capsys.readouterr().out
    torch.testing.assert_close(other.state_dict(), net.state_dict())
    for layers, said in [([nn.Linear(3, 4)], "5 unexpected: 1.bias"),
                         ([nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)], "2 missing: 2.bias, 2.weight"),
                         ([nn.Linear(2, 4), nn.BatchNorm1d(4)], r"0.weight \(4, 3\) for \(4, 2\)")]:
        with pytest.raises(RunError, match=said):
            load_weights(path, nn.Sequential(*layers))
    with pytest.raises(RunError, match="does not exist"):
        load_weights(tmp_path / "nothing.safetensors", net)
    path.write_bytes(b"no weights")
    with pytest.raises(RunError, match="cannot be read as safetensors"):
        load_weights(path, net)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written .*out="):
        Run(tmp_path / "file" / "run", CFG)


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


def test_results_are_found(tmp_path):
    folder = tmp_path / "a" / "finetune-ucf101-split1-seed0"
    folder.mkdir(parents=True)
    (folder / "result-test.json").write_text(json.dumps({"top1": 50.0}))
    assert runs.read_results(tmp_path) == [{"top1": 50.0, "path": str(folder)}]


def test_progress_in_a_log(capsys):
    assert list(runs.progress(iter("abcdefghijklmnopqrstuvwxyz"), 26, "letters")) == [*"abcdefghijklmnopqrstuvwxyz"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"letters: {n}/26" for n in (3, 6, 9, 12, 15, 18, 21, 24, 26)]
    assert lines[-1].endswith("about 0 s left")
