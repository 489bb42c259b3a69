"""What `status` says of runs that are done, running, hanging, killed or not begun."""

import os
import re
import subprocess
import time

import pytest
from conftest import TINY, command

from be.config import load
from be.runs import Run, read_metrics
from be.status import duration, look, status

CFG = load("demo-moco-be", ["epochs=10", "batch_size=32"])
EVERY = 120.0  # seconds between the lines written below


def begun(folder, steps=(20, 40), per_epoch=25):
    run = Run(folder / "demo-moco-be/pretrain-seed0", CFG)
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
    assert look(run.path, now) == ("demo-moco-be", "pretrain-seed0", "running", "40/250", "0.0250", "28 min",
                                   "step 40, 5 min ago")
    run.close()


def test_a_total_that_is_rounded_in_the_log(tmp_path):
    run = begun(tmp_path, steps=(7,), per_epoch=3913)
    assert look(run.path)[3] == "7/39130"
    run.close()


def test_stale_is_a_lock_and_no_line_for_long(tmp_path):
    run = begun(tmp_path)
    last = (run.path / "metrics.jsonl").stat().st_mtime
    states = {later: look(run.path, last + later)[2] for later in (0, 601, 10 * EVERY - 5, 10 * EVERY + 5)}
    assert list(states.values()) == ["running", "running", "running", "stale"]
    run.close()
    assert look(run.path, last + 9999)[2] == "stopped"


def test_before_the_first_line(tmp_path):
    run = begun(tmp_path, steps=())
    assert look(run.path)[2:] == ("running", "-", "-", "-", "-")
    assert look(run.path, time.time() + 700)[2] == "stale"
    run.close()
    assert look(run.path)[2] == "stopped"


def test_done(tmp_path):
    run = begun(tmp_path)
    run.close()
    (run.path / "backbone.safetensors").write_bytes(b"")
    assert look(run.path)[2] == "done"


def test_asking_does_not_stop_a_run_from_starting(tmp_path):
    run = begun(tmp_path)
    run.close()
    look(run.path)
    Run(run.path, CFG).close()


def test_the_list(tmp_path, capsys):
    status(out=str(tmp_path))
    assert f"no runs in {tmp_path}" in capsys.readouterr().out
    begun(tmp_path).close()
    Run(tmp_path / "another-with-a-longer-name/finetune-ucf101-split1-seed0", CFG).close()
    status(out=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len({line.find(" stopped ") for line in lines[1:]}) == 1  # aligned
    assert lines[0].index("state") == lines[1].index("stopped")
    status(out=str(tmp_path), names="demo-*")
    assert "another" not in capsys.readouterr().out


def test_a_live_process_and_its_end(tiny, tmp_path, capsys):
    words = ["pretrain", "--cfg", "demo-moco-be", f"data={tiny}", f"out={tmp_path}", *TINY, "epochs=500"]
    process = subprocess.Popen(**command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "demo-moco-be/pretrain-seed0"
    for _ in range(1200):
        if len(read_metrics(path)) > 5 or process.poll() is not None:
            break
        time.sleep(0.05)
    status(out=str(tmp_path))
    said = capsys.readouterr().out
    assert re.search(r"demo-moco-be +pretrain-seed0 +running +\d+/2000 +\d\.\d{4} +[\d.]+ (s|min|h)", said)
    process.kill()
    process.wait()
    status(out=str(tmp_path))
    assert re.search(r"pretrain-seed0 +stopped +\d+/2000 +\d\.\d{4} +- +step \d+, \d+ s ago", capsys.readouterr().out)


@pytest.mark.parametrize("seconds, said", [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (5400, "1.5 h"),
                                           (100_000, "27.8 h"), (200_000, "2.3 days")])
def test_duration(seconds, said):
    assert duration(seconds) == said
