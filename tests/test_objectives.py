"""The objectives against slow transcriptions of their formulas, and against themselves on two processes."""

import math
import os
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from be import backbones, objectives
from be.augment import Draws
from be.config import Config, ConfigError
from be.erase import ERASE
from be.objectives import OBJECTIVES, be_loss

# The project's own, by name: what a fork adds has tests of its own
CONTRASTIVE = ("moco", "triplet", "simclr", "byol")
PRETEXT = ("rotnet", "puzzles", "clip_order", "pace", "arrow_of_time", "order_verification")
METHODS = ("classify", *PRETEXT, *CONTRASTIVE)
BACKBONES = ("c3d", "i3d", "r3d18", "r3d34", "r3d18tv", "r2plus1d18", "s3d")


class Tiny(nn.Module):
    """A backbone with BatchNorm, so that what leaks through its statistics can be seen."""

    dim = 6

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv3d(3, 6, 3, stride=2, padding=1), nn.BatchNorm3d(6)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


def clips(count, B=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, 3, 4, 8, 8, generator=generator) for _ in range(count)]


def build(method, backbone=None, seed=0, **options):
    """An objective as the config makes it, with weights of that seed."""
    torch.manual_seed(seed)
    small = {"frames": 8, "stride": 1, "bn_group": 3, "dim": 5, "K": 10, "m": 0.9, "temperature": 0.2, "classes": 3}
    return objectives.build(method, backbone or Tiny(), {**small, **options})


def films(objective, B=6, S=16, seed=0):
    """The views an objective wants of B little films, in which place and time can be seen, with some noise each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:S, :S] / S
    clips = []
    for _ in range(B):
        frames = objective.sampler(80, rng)  # (K, T)
        scene = rng.normal(size=(3, 1, 1)) + y * rng.uniform(1, 2) + x * rng.uniform(0, 0.5)  # (3, S, S)
        clips.append(scene[:, None] + 0.05 * frames[:, None, :, None, None])  # (K, 3, T, S, S)
    clips = torch.from_numpy(np.stack(clips)).float()
    noise = torch.Generator().manual_seed(seed)
    return [clips[:, clip] + 0.1 * torch.randn(clips[:, clip].shape, generator=noise) for clip, _ in objective.views]


@pytest.mark.parametrize("side", ["query", "key", "both"])
def test_moco_is_eq_7(side):
    """Two steps against a transcription of Eq. 7, one sample, one negative at a time; `both` is the mean of two."""
    model = build("moco", erase_side=side)
    twin = build("moco")  # same seed, same weights: the oracle's own encoders
    remembered = []  # (video, key), the oracle's queue
    for step, index in enumerate([torch.arange(6), torch.tensor([6, 0, 7, 1, 8, 2])]):
        views = clips(3, seed=step)
        loss, stats = model(views, None, index, Draws(0, step))

        for slow, fast in zip(twin.momentum_encoder.parameters(), twin.encoder.parameters(), strict=True):
            slow.data = 0.9 * slow.data + 0.1 * fast.data
        draws = Draws(0, step)

        def shuffled(x, draws=draws):
            order = draws.randperm(6)
            z = torch.empty(6, 5)
            for group in (order[:3], order[3:]):  # BatchNorm statistics over groups of 3, in shuffled order
                z[group] = F.normalize(twin.momentum_encoder(x[group]).detach(), dim=1)
            return z

        h = shuffled(views[2])
        x_o, x_v = views[:2]
        pairs = [(x_o, twin.erase(x_v, draws))] if side == "key" else [(twin.erase(x_o, draws), x_v)]
        pairs += [(twin.erase(x_v, draws), x_o)] if side == "both" else []
        total, similarities, new = 0.0, [], None
        for x_q, x_k in pairs:
            k = shuffled(x_k)
            new = k if new is None else new
            q = F.normalize(torch.cat([twin.encoder(part) for part in x_q.split(3)]).detach(), dim=1)
            for i in range(6):
                positive = math.exp(float(q[i] @ k[i]) / 0.2)
                negatives = [math.exp(float(q[i] @ key) / 0.2) for video, key in remembered if video != int(index[i])]
                negatives.append(math.exp(float(q[i] @ h[i]) / 0.2))
                total -= math.log(positive / (positive + sum(negatives)))
            similarities += (q * h).sum(1).tolist()
        assert loss.item() == pytest.approx(total / 6 / len(pairs), rel=1e-5)
        remembered += [(int(index[i]), new[i]) for i in range(6)]  # of `both`, the keys of x_v
        remembered = remembered[-10:]
        assert stats["hard_negative"].item() == pytest.approx(np.mean(similarities), abs=1e-6)


@pytest.mark.parametrize("view, augmentation", [("own", 2), ("a1", (2, 0))])
def test_hard_negative_view(view, augmentation):
    """A draw of its own, or the query's angle and colours in a window of its own."""
    model = build("moco", hard_negative_view=view)
    assert model.views == ((0, 0), (0, 1), (1, augmentation))
    assert build("moco", hard_negative=False, hard_negative_view=view).views == ((0, 0), (0, 1))


def test_be_off_is_plain_moco():
    """Without erasing and hard negative only Eq. 6's terms are left, and both sides are the views themselves."""
    model, twin = build("moco", erase="none", hard_negative=False, bn_group=0), build("moco", bn_group=0)
    views = clips(2)
    model.queue.copy_(F.normalize(torch.randn(10, 5), dim=1))
    model.queue_index.copy_(torch.arange(100, 110))
    queue = model.queue.clone()
    loss, _ = model(views, None, torch.arange(6), Draws(0, 0))
    q, k = F.normalize(twin.encoder(views[0])), F.normalize(twin.momentum_encoder(views[1]))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)))


@pytest.mark.parametrize("side, erased", [("key", [1]), ("query", [0]), ("both", [0, 1])])
@pytest.mark.parametrize("method", CONTRASTIVE)
def test_erase_side(method, side, erased):
    """The clip that reaches an encoder erased is the query's (released code), the key's, or each once."""
    model = build(method, erase_side=side)
    seen = []
    model.erase = lambda x, draws: seen.append(x) or x
    views = films(model)
    model(views, None, torch.arange(6), Draws(0, 0))
    assert len(seen) == len(erased) and all(x is views[place] for x, place in zip(seen, erased, strict=True))


@pytest.mark.parametrize("method", ["triplet", "simclr", "byol"])
def test_both_sides_are_the_mean_of_two_losses(method):
    """Of a method whose weights do not move within a step: the pairs one by one, each a step of its own."""
    options = dict(erase="gaussian-noise", bn_group=0)
    both, one = build(method, erase_side="both", **options), build(method, erase_side="query", **options)
    views, index = films(both), torch.arange(6)
    loss, stats = both(views, None, index, Draws(0, 0))
    x_o, x_v, *rest = views
    draws = Draws(0, 0)  # the draws of the second pair follow those of the first
    found = [one([x_q, x_k, *rest], None, index, draws) for x_q, x_k in ((x_o, x_v), (x_v, x_o))]
    assert loss.item() == pytest.approx(np.mean([loss.item() for loss, _ in found]), rel=1e-5)
    for name in stats:
        assert stats[name].item() == pytest.approx(np.mean([each[name].item() for _, each in found]), rel=1e-4)


@pytest.mark.parametrize("method", ["classify", *PRETEXT])
def test_both_needs_two_sides(method):
    with pytest.raises(ConfigError, match="erase_side=both is for methods with a query and a key: .*moco, triplet"):
        build(method, erase_side="both")


def test_both_sides_cost_as_said():
    """1.8 times the arithmetic of MoCo + BE, in the backbone."""
    flop = {}
    for side in ("query", "both"):
        model = build("moco", backbones.build("c3d", 8), erase_side=side)
        views = [torch.zeros(6, 3, 16, 32, 32) for _ in model.views]
        with FlopCounterMode(display=False) as counter:
            model(views, None, torch.arange(6), Draws(0, 0))[0].backward()
        flop[side] = counter.get_total_flops()
    assert flop["both"] / flop["query"] == pytest.approx(1.8, abs=0.05)


def test_classify_with_be():
    """BE as an augmentation of the training clips, and never of the tested ones."""
    model, plain = build("classify", erase="intra-video-frame"), build("classify")
    (x,), label = clips(1), torch.tensor([0, 1, 2, 0, 1, 2])
    x_d = ERASE["intra-video-frame"](x, Draws(0, 0), 0.3)
    torch.testing.assert_close(model([x], label, None, Draws(0, 0))[0], plain([x_d], label, None, Draws(0, 0))[0])
    assert not torch.equal(x, x_d)
    torch.testing.assert_close(model.eval().logits(x), plain.eval().logits(x))
    loss, stats = plain.train()([x], label, None, Draws(0, 0))
    logits = plain.head(torch.cat([plain.backbone(part) for part in x.split(3)]).amax((2, 3, 4)))
    torch.testing.assert_close(loss, F.cross_entropy(logits, label))
    assert stats["top1"] == (logits.argmax(1) == label).float().mean()


@pytest.mark.parametrize("encoder, gradient", [("momentum", False), ("query", True)])
def test_hard_negative_encoder(encoder, gradient):
    model = build("moco", hard_negative_encoder=encoder)
    views = clips(3)
    views[2].requires_grad_()
    model(views, None, torch.arange(6), Draws(0, 0))[0].backward()
    assert (views[2].grad is not None) == gradient
    assert all(p.grad is None for p in model.momentum_encoder.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_queue_wraps_around():
    """Batches of 4 into a queue of 10: the pointer's trace, and which videos it holds, newest over oldest."""
    model = build("moco")
    pointers = []
    for step in range(6):
        keys = torch.full((4, 5), float(step))
        model._enqueue(keys, torch.arange(4) + 4 * step)
        pointers.append(int(model.queue_pointer))
    assert pointers == [4, 8, 2, 6, 0, 4]
    assert model.queue_index.tolist() == [20, 21, 22, 23, 14, 15, 16, 17, 18, 19]
    assert model.queue[:, 0].tolist() == [5, 5, 5, 5, 3, 3, 4, 4, 4, 4]
    model._enqueue(torch.arange(12.0)[:, None].expand(12, 5), torch.arange(12))  # more than fits: the newest stay
    assert sorted(model.queue_index.tolist()) == list(range(2, 12))


def test_same_video_is_no_negative():
    """A key of the query's own video in the queue changes nothing, a key of another does (Eq. 6: n != i)."""
    def loss(video):
        model = build("moco")
        model.queue[0] = F.normalize(torch.ones(5), dim=0)
        model.queue_index[0] = video
        return model(clips(3), None, torch.zeros(6, dtype=torch.long), Draws(0, 0))[0]

    assert loss(0) == loss(-1)  # own video = empty place
    assert loss(1) > loss(0)


def test_shuffle_keeps_batchnorm_from_leaking():
    """With the groups of the queries, a key group holds the same videos; shuffled, it does not."""
    model, groups, mixed = build("moco"), [], 0
    hook = model.momentum_encoder.backbone.register_forward_pre_hook(
        lambda _, args: groups.append(args[0][:, 0, 0, 0, 0].tolist()))
    x = torch.arange(6.0).view(6, 1, 1, 1, 1) + torch.zeros(6, 3, 4, 8, 8)
    model.shuffle_bn = False
    model._keys(x, Draws(0, 0))
    assert groups == [[0, 1, 2], [3, 4, 5]]
    model.shuffle_bn = True
    for step in range(40):
        groups.clear()
        z = model._keys(x, Draws(0, step))
        assert sorted(groups[0] + groups[1]) == list(range(6))
        mixed += set(groups[0]) not in ({0, 1, 2}, {3, 4, 5})
    assert mixed > 28  # of the 20 ways to draw 3 of 6, 18 mix
    hook.remove()
    for group in groups:  # and each key comes back to its own row
        rows = [int(v) for v in group]
        torch.testing.assert_close(z[rows], F.normalize(model.momentum_encoder(x[rows])))


@pytest.mark.parametrize("method", ["moco", "byol"])
@pytest.mark.parametrize("parts", [1, 4])
def test_teacher_moves_by_m_a_step(method, parts):
    """In one part or in four, between which the student stands still."""
    model = build(method, m=0.75, accumulate=parts)
    student = model.encoder if method == "moco" else model.online[0]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in model.momentum_encoder.parameters()]
    for _ in range(parts):
        model(films(model), None, torch.arange(6), Draws(0, 0))
    for old, new in zip(before, model.momentum_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_first_step_of_plain_moco_has_no_negatives():
    """The queue is empty: nothing to tell the key from, no gradient, and above all no NaN."""
    model = build("moco", erase="none", hard_negative=False)
    loss, stats = model(clips(2), None, torch.arange(6), Draws(0, 0))
    loss.backward()
    assert loss == 0 and stats["masked"] == 1 and stats["queue"] == 0
    assert all((p.grad == 0).all() for p in model.encoder.parameters())


# ---- the other contrastive methods


def embed_slowly(model, x, network):
    """Groups of 3, then each row to length 1 by hand."""
    z = torch.cat([network(part) for part in x.split(3)])
    return torch.stack([row / row.square().sum().sqrt() for row in z])


def erased_pair(views, erase):
    return ERASE[erase](views[0], Draws(0, 0), 0.3), views[1]


@pytest.mark.parametrize("erase", ["none", "intra-video-frame"])
@pytest.mark.parametrize("hard", [True, False])
def test_simclr_is_eq_7_over_the_batch(erase, hard):
    """One query and one negative at a time; videos 0 and 3 are one, so neither is a negative of the other."""
    model = build("simclr", erase=erase, hard_negative=hard)
    twin, views, index = build("simclr"), films(model), torch.tensor([0, 1, 2, 0, 4, 5])
    loss, stats = model(views, None, index, Draws(0, 0))
    z = [embed_slowly(twin, x, twin.encoder).detach() for x in (*erased_pair(views, erase), *views[2:])]
    total, similarities = 0.0, []
    for side in (0, 1):
        for i in range(6):
            def e(other, z=z, side=side, i=i):
                return math.exp(float(z[side][i] @ other) / 0.2)

            others = [z[s][j] for s in (0, 1) for j in range(6) if index[j] != index[i]]
            similarities.append(np.mean([float(z[side][i] @ other) for other in others]))
            negatives = sum(map(e, others)) + (e(z[2][i]) if hard else 0)
            total -= math.log(e(z[1 - side][i]) / (e(z[1 - side][i]) + negatives))
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)
    assert stats["negative"].item() == pytest.approx(np.mean(similarities), rel=1e-4)


@pytest.mark.parametrize("erase", ["none", "intra-video-frame"])
def test_byol_is_2_minus_2_cos_both_ways(erase):
    model, twin = build("byol", erase=erase), build("byol")
    views = films(model)
    loss, stats = model(views, None, None, Draws(0, 0))
    x = erased_pair(views, erase)
    p = [embed_slowly(twin, view, twin.online).detach() for view in x]
    z = [embed_slowly(twin, view, twin.momentum_encoder) for view in x]  # still equal to the student: m moves nothing
    cos = [[float(p[side][i] @ z[1 - side][i]) for i in range(6)] for side in (0, 1)]
    assert loss.item() == pytest.approx(np.mean([4 - 2 * a - 2 * b for a, b in zip(*cos, strict=True)]), rel=1e-5)
    assert stats["positive"].item() == pytest.approx(np.mean(cos[0]), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in model.momentum_encoder.parameters())
    assert all(p.grad is not None for p in model.online.parameters())


@pytest.mark.parametrize("erase", ["none", "intra-video-frame"])
def test_triplet_by_distances(erase):
    model, twin = build("triplet", erase=erase, hard_negative=False), build("triplet")
    views = films(model)
    assert len(views) == 3  # the negative is not optional
    q, k, h = (embed_slowly(twin, x, twin.encoder).detach() for x in (*erased_pair(views, erase), views[2]))
    distance = [float((q[i] - k[i]).norm() - (q[i] - h[i]).norm()) for i in range(6)]
    others = [float((q[i] - k[i]).norm() - (q[i] - h[5 - i]).norm()) for i in range(6)]  # of another video
    loss, stats = model(views, None, None, Draws(0, 0))
    slow = np.mean([max(0, d + 0.5) for d in distance]) + np.mean([max(0, d + 0.5) for d in others])
    assert loss.item() == pytest.approx(slow, abs=1e-5)
    assert stats["contrast_top1"].item() == pytest.approx(np.mean([d < 0 for d in distance]))


# ---- pretext tasks


@pytest.mark.parametrize("be_norm", ["mean", "sum"])
@pytest.mark.parametrize("name", PRETEXT)
def test_pretext_is_eq_3_to_5(name, be_norm):
    """One video, one question, one channel and one time at a time."""
    options = dict(beta=0.5, be_norm=be_norm, pool="avg", erase="video-mixup")
    model, twin = build(name, **options), build(name, **options)
    assert model.views == model.task.views + ((0, 1 + max(aug for _, aug in model.task.views)),)
    assert model.sampler is model.task.sampler
    views, draws = films(model), Draws(0, 0)
    loss, stats = model(views, None, None, Draws(0, 0))

    x, target = twin.task.transform(views[:-1], draws)
    z = torch.cat([twin.backbone(part.flatten(0, 1)).mean((2, 3, 4)) for part in x.split(3)])
    logits = twin.task.logits(z.view(6, x.shape[1], 6), draws).detach()
    questions = [(logits[b, i], int(target[b, i])) for b in range(6) for i in range(target.shape[1])]
    L_p = np.mean([math.log(sum(math.exp(v) for v in row)) - float(row[r]) for row, r in questions])

    x_d = ERASE["video-mixup"](views[-1], draws, 0.3)
    f_o, f_d = (torch.cat([twin.backbone(part) for part in view.split(3)]).detach() for view in (views[0], x_d))
    L_be = 0.0
    _, C, time, _, _ = f_o.shape
    for b in range(6):
        for c in range(C):
            for t in range(time):
                L_be += (float(f_o[b, c, t].max()) - float(f_d[b, c, t].max())) ** 2 / 6
    if be_norm == "mean":
        L_be /= C * time
    assert stats["pretext"].item() == pytest.approx(L_p, rel=1e-5)
    assert stats["be"].item() == pytest.approx(L_be, rel=1e-4)
    assert loss.item() == pytest.approx(L_p + 0.5 * L_be, rel=1e-4)
    right = [int(row.argmax()) == r for row, r in questions]
    assert stats["top1"].item() == pytest.approx(np.mean(right))


def test_be_loss_minds_time_and_channel_but_not_place():
    f_o, f_d = torch.zeros(2, 3, 4, 5, 5), torch.zeros(2, 3, 4, 5, 5)
    f_o[..., 0, 0], f_d[..., 3, 2] = 3.0, 1.0  # maxima 2 apart, at different places
    assert be_loss(f_o, f_d, "mean") == 4 and be_loss(f_o, f_d, "sum") == 4 * 3 * 4
    f_o[:, 0, 1] = 7.0
    assert be_loss(f_o, f_o.roll(2, 4), "sum") == 0
    assert be_loss(f_o, f_o.roll(1, 2), "sum") == 2 * 4**2  # another time
    assert be_loss(f_o, f_o.roll(1, 1), "sum") == 2 * 4**2  # another channel


def test_inputs_of_a_video_share_a_group():
    """3 inputs each of 4 videos in groups of 2 videos: rows 0-5, then 6-11."""
    model, seen = build("classify", bn_group=2), []
    x = torch.arange(12.0)
    assert torch.equal(model.features(x, lambda part: seen.append(part.tolist()) or part, inputs=3), x)
    assert seen == [list(range(6)), list(range(6, 12))]


# ---- all of them


@pytest.mark.parametrize("name", METHODS)
def test_constructor_arguments_are_keys_of_the_config(name):
    cls = getattr(OBJECTIVES[name], "func", OBJECTIVES[name])
    asked = {k for c in cls.__mro__[:-1] if c is not nn.Module for k in c.__init__.__kwdefaults__ or {}}
    assert asked <= {field.name for field in fields(Config)} | {"classes"}


@pytest.mark.parametrize("name", METHODS)
def test_learns(name):
    """60 steps on six films lower the loss."""
    model = build(name, m=0.5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.005, momentum=0.9)
    views, label, losses = films(model), torch.tensor([0, 1, 2, 0, 1, 2]), []
    for _ in range(60):
        loss, stats = model(views, label, torch.arange(6), Draws(0, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[2:7]), losses  # MoCo's queue of 10 is full from the second step on
    assert all(value.ndim == 0 and not value.requires_grad for value in stats.values())


STEPS = [*((name, "c3d") for name in PRETEXT), *(("moco", backbone) for backbone in BACKBONES)]


@pytest.mark.parametrize("name, backbone", STEPS)
def test_a_step_on_every_backbone_at_112(name, backbone):
    """With BE, then without: of a pretext task BE must change nothing but L_be, to the last bit."""
    results = {}
    for erase in ("intra-video-frame", "none"):
        torch.manual_seed(0)
        network = backbones.build(backbone, 2)
        model = build(name, network, bn_group=0, frames=8, erase=erase, hard_negative=erase != "none")
        views = films(model, B=2, S=112)
        loss, stats = model(views, torch.tensor([0, 1]), torch.arange(2), Draws(0, 0))
        assert loss.isfinite()
        results[erase] = stats.get("pretext", loss.detach())
        if erase == "none":
            continue
        weights = [p for p in model.parameters() if p.requires_grad]
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in weights)
        assert any((p.grad != 0).any() for p in network.parameters())
        torch.optim.SGD(weights, 0.01).step()
    if name in PRETEXT:
        assert torch.equal(results["none"], results["intra-video-frame"]) and torch.equal(results["none"], loss)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_for_the_backbone_only(name):
    """Under autocast the loss is float32, and close to the loss in full precision."""
    views, label = films(build(name)), torch.tensor([0, 1, 2, 0, 1, 2])
    full, _ = build(name)(views, label, torch.arange(6), Draws(0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        half, stats = build(name)(views, label, torch.arange(6), Draws(0, 0))
    assert {value.dtype for value in (half, *stats.values())} == {torch.float32}
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", METHODS)
def test_the_gpu_computes_what_the_cpu_does(name):
    views, label = films(build(name)), torch.tensor([0, 1, 2, 0, 1, 2])
    on_cpu, _ = build(name)(views, label, torch.arange(6), Draws(0, 0))
    views, label, index = [view.cuda() for view in views], label.cuda(), torch.arange(6).cuda()
    on_gpu, _ = build(name).cuda()(views, label, index, Draws(0, 0, device="cuda"))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0.01, atol=0.001)  # TF32 convolutions


def two_steps(name, rank=0, world=1):
    """Losses, stats and what was learnt, of two steps on six videos shared by `world` processes."""
    model = build(name, seed=1)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    mine, record = slice(6 // world * rank, 6 // world * (rank + 1)), []
    for step in range(2):
        views, label, index = films(model, seed=step), torch.tensor([0, 1, 2, 2, 1, 0]), torch.arange(6) + 3 * step
        loss, stats = wrapped([view[mine] for view in views], label[mine], index[mine], Draws(0, step, rank, world))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        stats.pop("feature_std", None)  # each process its own batch's
        stats.pop("contrast_top1", None)  # a decision: some of these embeddings are alike to the last digit
        record.append(torch.stack([loss.detach(), *stats.values()]))
    record = torch.stack(record)
    if world > 1:
        dist.all_reduce(record)
    queue = {key: value for key, value in model.named_buffers() if "queue" in key}
    return record / world, dict(model.named_parameters()), queue


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {name: two_steps(name, rank, 2) for name in METHODS}
    if rank == 1:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # an interpreter that winds up beside gloo's threads is aborted now and then


def test_two_processes_compute_what_one_does(tmp_path):
    """Loss, stats, weights after two steps, queue; BatchNorm groups of 3 in both. The processes start once for all."""
    mp.start_processes(process, (str(tmp_path),), nprocs=2, start_method="forkserver")
    two = torch.load(tmp_path / "results.pt")
    for name in METHODS:
        for got, wanted in zip(two[name], two_steps(name), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_build_takes_what_the_signature_names():
    options = {"frames": 4, "stride": 1, "bn_group": 2, "K": 7, "classes": 5, "lr": 0.1, "backbone": "c3d"}
    assert objectives.build("moco", Tiny(), options).queue.shape == (7, 128)
    assert objectives.build("classify", Tiny(), options).head.out_features == 5
    with pytest.raises(ConfigError, match="'mocco'; nearest: moco"):
        objectives.build("mocco", Tiny(), options)
    with pytest.raises(ConfigError, match="'intra'"):
        objectives.build("moco", Tiny(), {**options, "erase": "intra"})


# ---- what the log says of the embeddings


def test_rankme_by_numpy():
    """As Garrido et al. 2023 write it, of features of a known spread; rows of one direction fill one dimension."""
    rng = np.random.default_rng(0)
    for scale in (np.ones(6), np.array([5, 1, 0.5, 0.1, 0, 0])):
        z = rng.standard_normal((20, 6)) * scale
        sigma = np.linalg.svd(z, compute_uv=False)
        p = [value / sum(sigma) + 1e-7 for value in sigma]
        assert objectives.rankme(torch.tensor(z)) == pytest.approx(np.exp(-sum(x * np.log(x) for x in p)), rel=1e-4)
    assert objectives.rankme(torch.eye(32)[:, :8]) == pytest.approx(8, rel=1e-3)
    for one in (torch.ones(9, 4), torch.outer(torch.arange(9.0), torch.tensor([1.0, -2, 3])), torch.zeros(9, 4)):
        assert objectives.rankme(one) == pytest.approx(1, abs=1e-3)
