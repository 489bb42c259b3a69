"""The objectives against slow transcriptions of their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from be import objectives
from be.augment import Draws
from be.config import ConfigError
from be.erase import ERASE
from be.objectives import Classify, MoCo


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


def moco(**options):
    torch.manual_seed(0)
    settings = {"frames": 4, "stride": 1, "dim": 5, "K": 10, "m": 0.9, "temperature": 0.2, "bn_group": 3}
    return MoCo(Tiny(), **settings | options)


def test_moco_is_eq_7():
    """Two steps against a transcription of Eq. 7, one sample, one negative at a time."""
    model = moco()
    twin = moco()  # same seed, same weights: the oracle's own encoders
    remembered = []  # (video, key), the oracle's queue
    for step, index in enumerate([torch.arange(6), torch.tensor([6, 0, 7, 1, 8, 2])]):
        views = clips(3, seed=step)
        loss, stats = model(views, None, index, Draws(0, step))

        for slow, fast in zip(twin.momentum_encoder.parameters(), twin.encoder.parameters(), strict=True):
            slow.data = 0.9 * slow.data + 0.1 * fast.data
        draws = Draws(0, step)
        x_d = twin.erase(views[1], draws)

        def shuffled(x, draws=draws):
            order = draws.randperm(6)
            z = torch.empty(6, 5)
            for group in (order[:3], order[3:]):  # BatchNorm statistics over groups of 3, in shuffled order
                z[group] = F.normalize(twin.momentum_encoder(x[group]).detach(), dim=1)
            return z

        k, h = shuffled(x_d), shuffled(views[2])
        q = F.normalize(torch.cat([twin.encoder(part) for part in views[0].split(3)]).detach(), dim=1)
        total = 0.0
        for i in range(6):
            positive = math.exp(float(q[i] @ k[i]) / 0.2)
            negatives = [math.exp(float(q[i] @ key) / 0.2) for video, key in remembered if video != int(index[i])]
            negatives.append(math.exp(float(q[i] @ h[i]) / 0.2))
            total -= math.log(positive / (positive + sum(negatives)))
        assert loss.item() == pytest.approx(total / 6, rel=1e-5)
        remembered += [(int(index[i]), k[i]) for i in range(6)]
        remembered = remembered[-10:]
        assert stats["hard_negative"].item() == pytest.approx((q * h).sum(1).mean().item(), abs=1e-6)


def test_be_off_is_plain_moco():
    """Without erasing and hard negative only Eq. 6's terms are left, and x_d is x_v itself."""
    model, twin = moco(erase="none", hard_negative=False, bn_group=0), moco(bn_group=0)
    assert model.views == ((0, 0), (0, 1))
    views = clips(2)
    model.queue.copy_(F.normalize(torch.randn(10, 5), dim=1))
    model.queue_index.copy_(torch.arange(100, 110))
    queue = model.queue.clone()
    loss, _ = model(views, None, torch.arange(6), Draws(0, 0))
    q, k = F.normalize(twin.encoder(views[0])), F.normalize(twin.momentum_encoder(views[1]))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)))


@pytest.mark.parametrize("side, erased", [("key", 1), ("query", 0)])
def test_erase_side(side, erased):
    """The clip that reaches an encoder erased is the key's (Eq. 6-7) or the query's (released code)."""
    model = moco(erase_side=side, hard_negative=False)
    seen = []
    model.erase = lambda x, draws: seen.append(x) or x
    views = clips(2)
    model(views, None, torch.arange(6), Draws(0, 0))
    assert len(seen) == 1 and seen[0] is views[erased]


@pytest.mark.parametrize("encoder, gradient", [("momentum", False), ("query", True)])
def test_hard_negative_encoder(encoder, gradient):
    model = moco(hard_negative_encoder=encoder)
    views = clips(3)
    views[2].requires_grad_()
    model(views, None, torch.arange(6), Draws(0, 0))[0].backward()
    assert (views[2].grad is not None) == gradient
    assert all(p.grad is None for p in model.momentum_encoder.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_queue_wraps_around():
    """Batches of 4 into a queue of 10: the pointer's trace, and which videos it holds, newest over oldest."""
    model = moco()
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
        model = moco()
        model.queue[0] = F.normalize(torch.ones(5), dim=0)
        model.queue_index[0] = video
        return model(clips(3), None, torch.zeros(6, dtype=torch.long), Draws(0, 0))[0]

    assert loss(0) == loss(-1)  # own video = empty place
    assert loss(1) > loss(0)


def test_shuffle_keeps_batchnorm_from_leaking():
    """With the groups of the queries, a key group holds the same videos; shuffled, it does not."""
    model = moco(bn_group=3)
    groups = []
    hook = model.momentum_encoder.backbone.register_forward_pre_hook(
        lambda _, args: groups.append(args[0][:, 0, 0, 0, 0].tolist()))
    x = torch.arange(6.0).view(6, 1, 1, 1, 1) + torch.zeros(6, 3, 4, 8, 8)
    mixed = 0
    for step in range(40):
        groups.clear()
        z = model._shuffled_keys(x, Draws(0, step))
        assert sorted(groups[0] + groups[1]) == list(range(6))
        mixed += set(groups[0]) not in ({0, 1, 2}, {3, 4, 5})
    assert mixed > 28  # of the 20 ways to draw 3 of 6, 18 mix
    hook.remove()
    for group in groups:  # and each key comes back to its own row
        rows = [int(v) for v in group]
        torch.testing.assert_close(z[rows], F.normalize(model.momentum_encoder(x[rows])))


def test_momentum_encoder_moves_by_m():
    model = moco(m=0.75)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in model.momentum_encoder.parameters()]
    model(clips(3), None, torch.arange(6), Draws(0, 0))
    for old, new in zip(before, model.momentum_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


@pytest.mark.parametrize("erase", sorted(ERASE))
def test_moco_learns(erase):
    """40 steps on one batch lower the loss, under every variant of Table 4."""
    model = moco(erase=erase, m=0.5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9)
    x_o, _, x_h = clips(3)
    views, losses = [x_o, 0.5 * x_o, x_h], []  # a positive pair that has something in common
    for step in range(40):
        loss, _ = model(views, None, torch.arange(6), Draws(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[2:7])  # the queue of 10 is full from the second step on


def test_classify():
    torch.manual_seed(0)
    model = Classify(Tiny(), 4, pool="avg", frames=4, stride=1)
    x, label = clips(1), torch.tensor([0, 1, 2, 3, 0, 1])
    loss, stats = model(x, label, None, Draws(0, 0))
    logits = model.head(model.backbone(x[0]).mean((2, 3, 4)))
    torch.testing.assert_close(loss, F.cross_entropy(logits, label))
    assert stats["top1"] == (logits.argmax(1) == label).float().mean()


def test_build_takes_what_the_signature_names():
    options = {"frames": 4, "stride": 1, "bn_group": 2, "K": 7, "classes": 5, "lr": 0.1, "backbone": "c3d"}
    assert objectives.build("moco", Tiny(), options).queue.shape == (7, 128)
    assert objectives.build("classify", Tiny(), options).head.out_features == 5
    with pytest.raises(ConfigError, match="'mocco'; nearest: moco"):
        objectives.build("mocco", Tiny(), options)
    with pytest.raises(ConfigError, match="'intra'"):
        objectives.build("moco", Tiny(), {**options, "erase": "intra"})
    with pytest.raises(ConfigError, match="gamma=1.5"):
        objectives.build("moco", Tiny(), {**options, "gamma": 1.5})
    with pytest.raises(ValueError, match="batch of 5 does not divide into BatchNorm groups of 3"):
        moco()(clips(3, B=5), None, torch.arange(5), Draws(0, 0))
