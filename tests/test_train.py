"""The loop: what it computes does not depend on how the work is spread or interrupted."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from conftest import TINY, command, run

from be import config, train
from be.config import ConfigError
from be.runs import read_metrics


def words(tiny, out, *more):
    return ["--cfg", "demo-moco-be", f"data={tiny}", f"out={out}", *TINY, *more]


def record(path):
    """The losses, and all tensors of the newest checkpoint."""
    checkpoint = torch.load(sorted((path / "checkpoint").glob("*.pt"))[-1], weights_only=True)
    return [line["loss"] for line in read_metrics(path)], checkpoint


def test_lr_at():
    """0.01, divided by 10 every 10 epochs, by a slow count."""
    for step in range(0, 500, 7):
        slow = 0.01
        for epoch in (10, 20, 30, 40):
            if step >= 10 * epoch:
                slow /= 10
        assert train.lr_at(step, 10, 0.01, [10, 20, 30, 40], 0.1) == pytest.approx(slow)


def test_batches_that_do_not_fit():
    cfg = config.load("demo-moco-be")
    for change, n, world, message in [({"batch_size": 30}, 500, 4, "batch_size=30 is global and does not divide by 4"),
                                      ({"accumulate": 3}, 500, 1, "accumulate=3"), ({}, 31, 1, "has 31 videos"),
                                      ({"bn_group": 5}, 500, 1, "do not divide by bn_group=5")]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            train.check_batch(replace(cfg, **change), n, world)


def test_same_seed_same_losses_and_another_seed_others(tiny, tmp_path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("pretrain", *words(tiny, tmp_path / out, f"seed={seed}", f"workers={2 if out == 'b' else 0}"))
    a, b = (record(tmp_path / out / "demo-moco-be/pretrain-seed0") for out in "ab")
    c = record(tmp_path / "c/demo-moco-be/pretrain-seed1")
    assert len(a[0]) == 8 and a[0] == b[0] and a[0] != c[0]
    torch.testing.assert_close(a[1]["objective"], b[1]["objective"], rtol=0, atol=0)


def test_two_processes_equal_one(tiny, tmp_path):
    """gloo, 2 x 4 rows against 1 x 8: losses, queue and weights, BatchNorm groups of 4 in both."""
    run("pretrain", *words(tiny, tmp_path / "one"))
    run("pretrain", *words(tiny, tmp_path / "two"), launch=2)
    one, two = (record(tmp_path / out / "demo-moco-be/pretrain-seed0") for out in ("one", "two"))
    assert one[0] == pytest.approx(two[0], abs=2e-5)
    for name in ("queue", "queue_index", "queue_pointer", "encoder.head.weight", "backbone.conv1.weight"):
        torch.testing.assert_close(one[1]["objective"][name], two[1]["objective"][name], rtol=1e-3, atol=1e-4)


def test_accumulation_equals_the_whole_batch(tiny, tmp_path):
    """Fine-tuning in two parts of 4 gives the losses of one batch of 8, up to rounding, where nothing is drawn."""
    fixed = ["pretrained=none", "size=24", "rotate=0", "jitter=[0, 0, 0, 0]"]  # size = short_side: one crop
    for parts in (1, 2):
        run("finetune", *words(tiny, tmp_path / str(parts), *fixed, f"accumulate={parts}"))
    one, two = (record(tmp_path / p / "demo-moco-be/finetune-ucf101-split1-seed0")[0] for p in ("1", "2"))
    assert one[:5] == pytest.approx(two[:5], abs=1e-4)  # rounding grows from step to step


def test_resume_is_exact(tiny, tmp_path):
    """Killed in mid-epoch and run again: the same losses and the same weights, bit for bit."""
    run("pretrain", *words(tiny, tmp_path / "whole"))
    begin = ["pretrain", *words(tiny, tmp_path / "cut", "save_every=1")]
    path = tmp_path / "cut/demo-moco-be/pretrain-seed0"
    process = subprocess.Popen(**command(*begin), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if len(read_metrics(path)) >= 2 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert 2 <= len(read_metrics(path)) < 8  # 8 steps in all
    run(*begin)
    whole, cut = record(tmp_path / "whole/demo-moco-be/pretrain-seed0"), record(path)
    assert whole[0] == cut[0]
    torch.testing.assert_close(whole[1]["objective"], cut[1]["objective"], rtol=0, atol=0)
    torch.testing.assert_close(whole[1]["optimizer"], cut[1]["optimizer"], rtol=0, atol=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(tiny, tmp_path, number):
    begin = command("pretrain", *words(tiny, tmp_path, "epochs=500", "save_every=100000", "workers=2"))
    process = subprocess.Popen(**begin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    path = tmp_path / "demo-moco-be/pretrain-seed0"
    for _ in range(1200):
        if read_metrics(path):
            break
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal and a cluster do: to the loader's workers, too
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "the same command goes on from here" in said
    assert len(list((path / "checkpoint").glob("*.pt"))) == 1


def test_all_stages_and_the_report(tiny, tmp_path):
    """pretrain -> finetune -> evaluate on two lists -> report, and what each leaves behind."""
    base = words(tiny, tmp_path)
    assert "backbone written" in run("pretrain", *base).stdout
    assert "done already" in run("pretrain", *base).stdout
    said = run("finetune", *base).stdout
    assert "loaded" in said and "tensors from" in said
    assert run("evaluate", *base, "subset=test,swapped").stdout.count("scored 16/16") == 2
    run("report", f"out={tmp_path}", "names=demo-*")
    text = (tmp_path / "report.md").read_text()
    assert "16/16" in text and "reliance" in text and (tmp_path / "pretrain.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "demo-moco-be/finetune-ucf101-split1-seed0/result-test.json").read_text())
    assert result.keys() >= {"top1", "top5", "mean_class", "n_scored", "n_expected", "split", "seed", "git_sha"}
