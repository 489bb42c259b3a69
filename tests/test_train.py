"""The loop: what it computes does not depend on how the work is spread or interrupted."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from conftest import TINY, command, latest

from be import backbones, config, datasets, objectives, train
from be.augment import Draws, apply_view, draw_view
from be.config import ConfigError, UserError
from be.objectives import Classify, RotNet
from be.runs import RunError, make_accelerator, read_metrics
from run import main


def words(tiny, out, *more):
    return latest("--cfg", "demo-moco-be", f"data={tiny}", f"out={out}", *TINY, *more)


def load(tiny, out, *more, stage="pretrain"):
    more = [*more, *(["pretrained=random"] if stage == "finetune" else [])]
    return config.load("demo-moco-be", words(tiny, out, *more)[2:], stage)


def record(path):
    """The losses, and all tensors of the newest checkpoint."""
    checkpoint = torch.load(sorted((path / "checkpoint").glob("*.pt"))[-1], weights_only=True)
    return [line["loss"] for line in read_metrics(path)], checkpoint


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Runs as a person types them: pre-training, again, fine-tuning from it. Returns their folder and what was said."""
    out = tmp_path_factory.mktemp("trained")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for verb in ("pretrain", "pretrain", "finetune"):
            assert main([verb, *words(tiny, out)]) == 0
    return out, said.getvalue()


def test_lr_at():
    """0.01, divided by 10 every 10 epochs, by a slow count."""
    cfg = config.load("table1-moco-be")
    for step in range(0, 500, 7):
        slow = 0.01
        for epoch in (10, 20, 30, 40):
            if step >= 10 * epoch:
                slow /= 10
        assert train.lr_at(step, 10, cfg) == pytest.approx(slow)


def test_cosine_and_warm_up_are_torchs():
    """Of a run of 20 epochs of 10 steps, 3 of them warm-up."""
    cfg = config.load("table1-moco-be", ["schedule=cosine", "warmup=3", "epochs=20"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.lr)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 31, 1, total_iters=30)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 170)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [30])
    for step in range(200):
        assert train.lr_at(step, 10, cfg) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), step
        optimizer.step()
        both.step()


@pytest.mark.parametrize("words, says", [
    ([], []), (["epochs=200"], ["170 of 200 epochs run at a thousandth of lr=0.01 or less"]),
    (["epochs=20"], ["lr_steps 20, 30, 40 lie beyond epochs=20"]), (["lr=1e-9"], []),
    (["epochs=200", "schedule=cosine"], []),
    (["recipe=released"], []), (["recipe=strong"], []),
])
def test_an_odd_schedule_is_said(words, says):
    found = train.problems(config.load("table1-moco-be", words))
    assert len(found) == len(says) and all(message in problem for message, problem in zip(says, found, strict=True))


def test_adamw_moves_by_the_rate_in_its_first_step():
    """Each weight by lr against the sign of its gradient, after decay (Loshchilov and Hutter 2019)."""
    cfg = config.load("table1-moco-be", ["optimizer=adamw", "lr=0.1", "weight_decay=0.5"])
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -2.0]]))
    layer.weight.grad = torch.tensor([[5.0, -0.1]])
    train.make_optimizer(layer, cfg).step()
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[2 * 0.95 - 0.1, -2 * 0.95 + 0.1]]))


class Turned(RotNet):
    """A task of somebody's fork whose answer a mirror would change."""

    mirrors = False


def test_mirrored_clips_are_refused_where_left_and_right_matter(tiny, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="flip=0.5: these drawn videos can tell left from right"):
        train.pretrain(load(tiny, tmp_path, "flip=0.5"))
    monkeypatch.setitem(objectives.OBJECTIVES, "turned", partial(objectives.PretextTask, task=Turned))
    cfg = load(tiny, tmp_path, "method=turned", "flip=0.5")
    samples = replace(datasets.load("ucf101", tiny, "train"), scene=None)
    with pytest.raises(ConfigError, match="flip=0.5: method=turned can tell left from right"):
        train.check_flip(cfg, samples)
    train.check_flip(replace(cfg, method="rotnet"), samples)
    monkeypatch.setitem(datasets.DATASETS, "ucf101", replace(datasets.DATASETS["ucf101"], mirrors=False))
    with pytest.raises(ConfigError, match="flip=0.5: dataset=ucf101 can tell"):
        train.check_flip(replace(cfg, method="rotnet"), samples)
    train.check_flip(replace(cfg, method="turned", flip=0.0), samples)


def test_views_of_a_task_flip_together():
    """And those of a contrastive method on their own. A clip that gets darker to the right shows which way it lies."""
    ramp = torch.arange(32, dtype=torch.uint8).flip(0).expand(64, 2, 4, 24, 32)[..., None].expand(-1, -1, -1, -1, -1, 3)
    batch = datasets.Batch(ramp, torch.tensor([[24, 32]] * 64), None, None, None, None)
    cfg = config.load("demo-moco-be", ["flip=0.5", "rotate=0", "jitter=[0, 0, 0, 0]", "size=16"])
    for together in (True, False):
        views = train.make_views(batch, ((0, 0), (1, 1)), Draws(0, 0), cfg, together)
        mirrored = torch.stack([(x[..., -1] > x[..., 0]).all((1, 2, 3)) for x in views])
        assert 20 < mirrored[0].sum() < 44
        assert (mirrored[0] == mirrored[1]).all() == together
    assert objectives.PretextTask.flips_together and not objectives.MoCo.flips_together


def test_the_hard_negative_under_a1_has_the_querys_colours_and_another_window():
    batch = datasets.Batch(torch.randint(256, (8, 2, 4, 40, 40, 3), dtype=torch.uint8).sort(3).values,
                           torch.tensor([[40, 40]] * 8), None, None, None, None)
    cfg = config.load("demo-moco-be", ["size=16"])
    for view, same in ((2, False), ((2, 0), True)):
        wanted = ((0, 0), (0, 1), (1, view))
        query, _, hard = train.make_views(batch, wanted, Draws(0, 0), cfg)
        draws = Draws(0, 0)
        drawn = [draw_view(draws, 8, rotate=cfg.rotate, jitter=cfg.jitter) for _ in range(3)]
        a = drawn[0] if same else drawn[2]
        own = replace(a, position=drawn[2].position)
        assert torch.equal(hard, apply_view(batch.clips[:, 1], batch.size, own, 16))
        assert torch.equal(query, apply_view(batch.clips[:, 0], batch.size, drawn[0], 16))


def test_batches_that_do_not_fit():
    cfg = config.load("demo-moco-be")
    for change, n, world, message in [({"batch_size": 30}, 500, 4, "batch_size=30 is global and does not divide by 4"),
                                      ({"accumulate": 3}, 500, 1, "accumulate=3"), ({}, 31, 1, "has 31 videos"),
                                      ({"bn_group": 5}, 500, 1, "do not divide by bn_group=5"),
                                      ({"accumulate": 32, "erase": "video-mixup"}, 500, 1, "needs two clips"),
                                      ({"accumulate": 32, "method": "simclr"}, 500, 1, "needs two clips")]:
        with pytest.raises(ConfigError, match=message):
            train.check_batch(replace(cfg, **change), n, world)
    train.check_batch(config.load("table1-moco-be", ["recipe=released"]), 246534, 8)  # on 8 GPUs, as released


def test_all_stages_and_the_report(tiny, trained, capsys):
    """pretrain -> finetune -> evaluate on two lists -> report, and what each leaves behind."""
    out, said = trained
    assert said.count("backbone written") == 1 and "done already" in said and re.search("loaded .* tensors from", said)
    assert main(["evaluate", *words(tiny, out), "subset=test,swapped"]) == 0
    assert capsys.readouterr().out.count("16 of 16 videos") == 2
    assert main(["report", f"out={out}", "names=demo-*"]) == 0
    text = (out / "report.md").read_text()
    assert "16/16" in text and "background gap" in text and (out / "report/pretrain-loss.png").exists()
    result = json.loads((out / "demo-moco-be/finetune-ucf101-split1-seed0/result-test.json").read_text())
    assert result.keys() >= {"top1", "top5", "mean_class", "n_scored", "n_expected", "split", "seed", "git_sha"}


@pytest.mark.parametrize("stage, losses", [("pretrain-seed0", [0.727608, 1.997495, 2.329415, 3.771317]), (
    "finetune-ucf101-split1-seed0", [2.098293, 2.054191, 2.027511, 1.967912])])
def test_recorded_steps(trained, stage, losses):
    """Losses of the code before its rooms were merged: to the last bit then, to 1 % on any processor."""
    found = [line["loss"] for line in read_metrics(trained[0] / "demo-moco-be" / stage)]
    assert found[:4] == pytest.approx(losses, rel=0.01)


def test_same_seed_same_losses_and_another_seed_others(tiny, tmp_path, trained):
    train.pretrain(load(tiny, tmp_path, "workers=2"))
    train.pretrain(load(tiny, tmp_path, "seed=1"))
    a, b = (record(out / "demo-moco-be/pretrain-seed0") for out in (trained[0], tmp_path))
    other, _ = record(tmp_path / "demo-moco-be/pretrain-seed1")
    assert len(a[0]) == 8 and a[0] == b[0] and a[0] != other
    torch.testing.assert_close(a[1]["objective"], b[1]["objective"], rtol=0, atol=0)


def test_accumulation_equals_the_whole_batch(tiny, tmp_path):
    """Fine-tuning in two parts of 4 gives the losses of one batch of 8, up to rounding, where nothing is drawn."""
    fixed = ["size=24", "rotate=0", "jitter=[0, 0, 0, 0]"]  # size = short_side: one crop
    for parts in (1, 2):
        train.finetune(load(tiny, tmp_path / str(parts), *fixed, f"accumulate={parts}", stage="finetune"))
    one, two = (record(tmp_path / p / "demo-moco-be/finetune-ucf101-split1-seed0")[0] for p in ("1", "2"))
    assert one[:5] == pytest.approx(two[:5], abs=1e-4)  # rounding grows from step to step


@pytest.mark.parametrize("log_every, save_every", [(100, 1), (1, 100), (3, 4)])
def test_a_loss_that_is_not_finite_is_noticed_before_it_is_saved(tiny, tmp_path, log_every, save_every, monkeypatch):
    """At step 3 of 8."""
    def forward(self, views, label, index, draws, forward=Classify.forward):
        loss, stats = forward(self, views, label, index, draws)
        self.steps = getattr(self, "steps", 0) + 1
        return loss * (float("nan") if self.steps >= 3 else 1), stats

    monkeypatch.setattr(Classify, "forward", forward)
    cfg = load(tiny, tmp_path, f"log_every={log_every}", f"save_every={save_every}", stage="finetune")
    with pytest.raises(RunError, match="the loss is nan at step 3; nothing was saved since the last checkpoint"):
        train.finetune(cfg)
    path = tmp_path / "demo-moco-be/finetune-ucf101-split1-seed0"
    saved = [torch.load(p, weights_only=True) for p in sorted((path / "checkpoint").glob("*"))]
    assert [one["step"] for one in saved] == ([1, 2] if save_every == 1 else [])
    assert all(t.isfinite().all() for one in saved for t in one["objective"].values())
    assert all(line["step"] < 3 for line in read_metrics(path))


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch):
    """Every loss is finite, but the gradient of the second is not: the square root's at 0."""
    def forward(self, views, label, index, draws, forward=Classify.forward):
        loss, stats = forward(self, views, label, index, draws)
        self.steps = getattr(self, "steps", 0) + 1
        return loss + ((0 * self.head.bias.sum()).sqrt() if self.steps == 2 else 0), stats

    monkeypatch.setattr(Classify, "forward", forward)
    with pytest.raises(RunError, match="a weight is not finite at step 2; nothing was saved"):
        train.finetune(load(tiny, tmp_path, "save_every=2", stage="finetune"))
    assert not list((tmp_path / "demo-moco-be/finetune-ucf101-split1-seed0/checkpoint").glob("step*"))


def test_nothing_to_train_on(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "data")
    cfg = load(tmp_path / "data", tmp_path)
    for video in (tmp_path / "data").rglob("*.avi"):
        video.write_bytes(b"no video")
    with pytest.raises(UserError, match="none of the 32 videos in .* can be decoded"):
        train.pretrain(cfg)
    (tmp_path / "data/ucf101/ucfTrainTestlist/trainlist01.txt").write_text("\n")
    with pytest.raises(ConfigError, match="'train' list of split 1 in .* names no video"):
        train.pretrain(cfg)


def test_a_queue_longer_than_the_data(tiny, tmp_path):
    with pytest.raises(ConfigError, match="queue of K=33 is longer than the training list of 32 videos.* at most 32"):
        train.pretrain(load(tiny, tmp_path, "K=33", "epochs=1"))
    train.pretrain(load(tiny, tmp_path, "K=32", "epochs=1"))  # in the same place: nothing stands in its way


def test_another_list_is_not_gone_on_with(tiny, tmp_path):
    """Kinetics loses videos: where a run is in its epochs, its schedule and its queue would be of other videos."""
    shutil.copytree(tiny, tmp_path / "data")
    cfg, lists = load(tmp_path / "data", tmp_path, "epochs=4"), tmp_path / "data/ucf101/ucfTrainTestlist"
    stopped(cfg)
    text = (lists / "trainlist01.txt").read_text()
    shorter = "".join(text.splitlines(keepends=True)[1:])
    for other, message in [(shorter, r"begun on 32 videos .*, the list now has 31 "),
                           (shorter + text.splitlines()[0], "begun on 32 videos .*, the list now has 32 ")]:
        (lists / "trainlist01.txt").write_text(other)
        with pytest.raises(RunError, match=message):
            train.pretrain(cfg)
    (lists / "trainlist01.txt").write_text(text)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    train.pretrain(replace(cfg, data=str(tmp_path / "elsewhere")))


@pytest.mark.parametrize("name, then", [("demo-random", "go on with finetune"),
                                        ("table3-moco-be-c3d", "run pretrain --cfg table1-moco-be-c3d-ucf101")])
def test_a_row_that_stands_on_another_backbone_trains_none(tiny, tmp_path, name, then):
    with pytest.raises(config.ConfigError, match=f"{name} pre-trains nothing, .*{then}"):
        train.pretrain(config.load(name, words(tiny, tmp_path)[2:]))
    assert not list(tmp_path.iterdir())


def stopped(cfg):
    """Pre-trains for two steps or three, with a checkpoint at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Interrupt, "agreed", lambda self, accelerator: signal.SIGTERM)
        with pytest.raises(SystemExit):
            train.pretrain(cfg)


def test_a_signal_during_a_test_stops_at_its_end(tiny, tmp_path, monkeypatch):
    """And not a step, or ASK_EVERY of them, later; nothing of the log is lost."""
    def probe(epoch):
        signal.raise_signal(signal.SIGTERM)
        return {"probe": 1.0 * epoch}

    monkeypatch.setattr(train, "make_probe", lambda *_: probe)
    monkeypatch.setattr(train.atexit, "register", lambda *call: None)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    cfg = load(tiny, tmp_path, "probe_every=1", "log_every=100")
    try:
        with pytest.raises(SystemExit) as end:
            train.pretrain(cfg)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    path = tmp_path / "demo-moco-be/pretrain-seed0"
    assert end.value.code == 143 and any((path / "checkpoint").glob("step-00000004*"))
    assert not any((path / "checkpoint").glob("step-00000005*"))
    assert [line["probe"] for line in read_metrics(path)] == [1.0]


def test_the_loss_scaler_is_resumed(tiny, tmp_path, monkeypatch):
    """As with fp16 on a GPU: a scale that grows every 3rd step. Stopped in between, it ends where it would have."""
    def scaled(cfg):
        accelerator = make_accelerator(cfg)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256, growth_interval=3)
        return accelerator

    def stop(self, accelerator, at=[5]):  # noqa: B006 (counts down)
        at[0] -= 1
        return signal.SIGTERM if at[0] == 0 else None

    monkeypatch.setattr(train, "make_accelerator", scaled)
    train.finetune(load(tiny, tmp_path / "whole", stage="finetune"))
    monkeypatch.setattr(train.Interrupt, "agreed", stop)
    with pytest.raises(SystemExit):
        train.finetune(load(tiny, tmp_path / "cut", stage="finetune"))
    train.finetune(load(tiny, tmp_path / "cut", stage="finetune"))
    whole, cut = (record(tmp_path / out / "demo-moco-be/finetune-ucf101-split1-seed0") for out in ("whole", "cut"))
    assert whole[0] == cut[0] and whole[1]["scaler"]["scale"] == 1024
    torch.testing.assert_close(whole[1], cut[1], rtol=0, atol=0)


def test_the_layout_and_the_compiler_are_for_the_convolutions(tiny, monkeypatch):
    """Weights lie channels last on a CPU, on a GPU in half precision; compile=true: the backbone and the teacher's."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    cfg = replace(load(tiny, "out"), precision="bf16", compile=True)
    moco = objectives.build("moco", backbones.build("c3d", 4), asdict(cfg))
    train.compile_backbones(moco)
    assert compiled == [moco.backbone, moco.momentum_encoder.backbone]
    monkeypatch.setattr(moco, "to", lambda *args, to=moco.to, **kw: to(**kw) if kw else moco)  # there is no GPU
    for device, precision, last in [("cuda", "fp32", False), ("cuda", "bf16", True), ("cpu", "fp32", True)]:
        train.place(moco.to(memory_format=torch.contiguous_format), torch.device(device), precision)
        for p in moco.parameters():
            assert p.dim() != 5 or p.is_contiguous(memory_format=torch.channels_last_3d) is last or 1 in p.shape


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tiny, tmp_path):
    """tests/test_cluster.py has what a cluster sends."""
    begin = command("pretrain", *words(tiny, tmp_path, "epochs=500", "save_every=100000", "workers=2"))
    process = subprocess.Popen(**begin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    path = tmp_path / "demo-moco-be/pretrain-seed0"
    for _ in range(1200):
        if read_metrics(path):
            break
        time.sleep(0.05)
    for _ in range(40):  # as a terminal does: to the loader's workers, too; a launcher passes it on, late
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "the same command goes on from here" in said
    assert len(list((path / "checkpoint").glob("*.pt"))) == 1


def test_clips_that_are_longer_than_the_videos_are_named(tiny, tmp_path):
    """Of 24 frames each: 8 of stride 3 fit, of stride 4 they go on at the start."""
    def said(*more):
        cfg = load(tiny, tmp_path, *more)
        return train.shorter_than_a_clip(cfg, datasets.load_for(cfg, "train"))

    assert said("stride=3") == said("stride=4", "static=true") == "" and said("stride=4") == "5 of 5 videos"
    cfg = load(tiny, tmp_path, "size=25", "stride=1000")
    said = train.describe("pretrain", cfg, 32, make_accelerator(cfg), datasets.load_for(cfg, "train"))
    assert "size=25 enlarges" in said and "5 of 5 videos are shorter than a clip of frames=8, stride=1000" in said
