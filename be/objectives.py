"""What the network is asked to learn. An objective is a module whose forward returns the loss:

    loss, stats = objective(views, label, index, draws)

    views   list of float clips (B, 3, T, S, S), one per entry of `objective.views`
    label   (B,) int64, read by supervised objectives only
    index   (B,) int64, which video of the list each row is
    draws   everything random of this step, the same numbers for any number of processes (augment.Draws)
    stats   dict of scalar tensors for the log; reading them is the caller's choice of a device sync

The arguments of an objective's constructor are keys of the config under the same names, which is all it takes to make
a new method configurable: `build` hands each class what its signature asks for.

An objective declares what it needs of a video and the trainer serves it blindly: `sampler(n, rng) -> (K, T)` says which
frames to decode, `views` says which of the K clips goes under which augmentation, as (clip, augmentation) pairs: MoCo's
((0, 0), (0, 1), (1, 0)) is the query under a1, the positive under a2, and another clip of the video under a1 again.
Teachers and queues move inside forward, so the trainer knows nothing of them, and live in buffers, so that checkpoints
are complete.
"""

import copy
import inspect
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from be import video
from be.config import ConfigError, choose
from be.erase import ERASE


def global_pool(features, pool: str):
    """Pooling over space and time, (B, C, T', H', W') -> (B, C): `max` (the paper, 4.1) or `avg`."""
    return features.amax((2, 3, 4)) if pool == "max" else features.mean((2, 3, 4))


class Objective(nn.Module):
    """Base: a backbone, run as the paper's 8 GPUs would have run it.

    BatchNorm takes its statistics over the samples of one device. The paper's 64 clips on 8 GPUs are therefore 8
    groups of 8, and a method that relies on it (MoCo's shuffle) or suffers from it must see the same groups on one GPU.
    So the batch passes the backbone in groups of `bn_group` samples (0: the whole batch of the device at once).
    """

    views = ((0, 0),)

    def __init__(self, backbone: nn.Module, *, frames: int, stride: int, bn_group: int = 0):
        super().__init__()
        self.backbone, self.bn_group = backbone, bn_group
        self.sampler = partial(video.random_clips, K=1 + max(clip for clip, _ in self.views), T=frames, stride=stride)

    def features(self, x, backbone=None):
        """Clips (B, 3, T, S, S) -> feature map (B, C, T', H', W')."""
        backbone = backbone or self.backbone
        group = self.bn_group or len(x)
        if len(x) % group and self.training:
            raise ValueError(f"a device's batch of {len(x)} does not divide into BatchNorm groups of {group}: "
                             f"choose bn_group or batch_size so that it does (bn_group=0: one group)")
        if group >= len(x) or not self.training:
            return backbone(x)
        return torch.cat([backbone(part) for part in x.split(group)])


class Classify(Objective):
    """Supervised classification; fine-tuning is this objective on a pre-trained backbone (paper 4.1)."""

    def __init__(self, backbone, classes: int, *, pool: str = "max", dropout: float = 0.0, **base):
        super().__init__(backbone, **base)
        self.pool, self.dropout = pool, dropout
        self.head = nn.Linear(backbone.dim, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def logits(self, x, draws=None):
        z = global_pool(self.features(x), self.pool)  # (B, C)
        if self.training:
            z = draws.dropout(z, self.dropout)
        return self.head(z)  # (B, classes)

    def forward(self, views, label, index, draws):
        logits = self.logits(views[0], draws)
        top1 = (logits.argmax(1) == label).float().mean()
        return F.cross_entropy(logits, label), {"top1": top1.detach()}


class Embed(nn.Module):
    """phi and its backbone: clips -> unit vectors z of `dim` (the paper's D) numbers; global pooling + one linear layer (paper 3.3.2)."""

    def __init__(self, backbone: nn.Module, dim: int, pool: str):
        super().__init__()
        self.backbone, self.pool = backbone, pool
        self.linear = nn.Linear(backbone.dim, dim)

    def forward(self, x):
        return F.normalize(self.linear(global_pool(self.backbone(x), self.pool)).float(), dim=1)  # (B, D)


class MoCo(Objective):
    """MoCo (He et al. 2020) with BE plugged in: Eq. 6, and Eq. 7 with `hard_negative`.

    L = -log  exp(q.k / tau) / (exp(q.k / tau) + sum over n of exp(q.n / tau))

    q = z(x_o), k = z'(x_d) with x_d = BE(x_v), z' the momentum encoder. The negatives n: N1, the queue of keys of other
    videos; keys of the query's own video are masked out, and so are places not yet filled. N2, one other clip of the
    same video, augmented like the query. `erase="none", hard_negative=False` is the plain MoCo of the paper's baseline.

    BatchNorm must not tell a query which key is its own: keys pass the momentum encoder in an order shuffled over all
    devices (ShuffleBN), in groups of `bn_group`, so the shuffle also works on one device.
    """

    def __init__(self, backbone, *, erase: str = "intra-video-frame", gamma: float = 0.3, erase_side: str = "key",
                 hard_negative: bool = True, hard_negative_encoder: str = "momentum", dim: int = 128, K: int = 3569,
                 m: float = 0.999, temperature: float = 0.07, pool: str = "max", **base):
        self.views = ((0, 0), (0, 1), (1, 0)) if hard_negative else ((0, 0), (0, 1))
        super().__init__(backbone, **base)
        self.erase = partial(choose(ERASE, erase, "erase"), gamma=gamma)
        if not 0 <= gamma <= 1:
            raise ConfigError(f"gamma={gamma} must lie in 0..1")
        self.erase_side, self.hard_negative_encoder = erase_side, hard_negative_encoder
        self.K, self.m, self.temperature = K, m, temperature

        self.encoder = Embed(backbone, dim, pool)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(K, dim))
        self.register_buffer("queue_index", torch.full((K,), -1))  # the video each key came from; -1: empty
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.long))

    def forward(self, views, label, index, draws):
        x_o, x_v = views[:2]  # (B, 3, T, S, S) each
        x_q, x_k = (x_o, self.erase(x_v, draws)) if self.erase_side == "key" else (self.erase(x_o, draws), x_v)

        q = self.features(x_q, self.encoder)  # (B, D)
        with torch.no_grad():
            self._move_momentum_encoder()
            k = self._shuffled_keys(x_k, draws)  # (B, D)
        l_pos = (q * k).sum(1, keepdim=True)  # (B, 1)
        with torch.autocast(q.device.type, enabled=False):  # half precision would blur similarities divided by tau
            l_queue = q @ self.queue.clone().T  # (B, K); backward needs the queue as it was before this step's keys
        masked = (index[:, None] == self.queue_index) | (self.queue_index < 0)  # (B, K)
        logits = [l_pos, l_queue.masked_fill(masked, -torch.inf)]

        stats = {"positive": l_pos.mean(), "queue": _masked_mean(l_queue, ~masked), "masked": masked.float().mean(),
                 "feature_std": q.std(0, correction=0).mean()}
        if len(views) == 3:
            if self.hard_negative_encoder == "query":
                h = self.features(views[2], self.encoder)
            else:
                with torch.no_grad():
                    h = self._shuffled_keys(views[2], draws)  # (B, D)
            logits.append((q * h).sum(1, keepdim=True))  # (B, 1)
            stats["hard_negative"] = logits[-1].mean()

        logits = torch.cat(logits, 1) / self.temperature  # (B, 1 + K + 1): the positive is class 0
        target = torch.zeros(len(q), dtype=torch.long, device=q.device)
        stats["contrast_top1"] = (logits.argmax(1) == 0).float().mean()
        loss = F.cross_entropy(logits, target)
        self._enqueue(_gather(k), _gather(index))
        return loss, {name: value.detach() for name, value in stats.items()}

    @torch.no_grad()
    def _move_momentum_encoder(self):
        """theta_k <- m theta_k + (1 - m) theta_q. BatchNorm's statistics are the momentum encoder's own."""
        keys, queries = list(self.momentum_encoder.parameters()), list(self.encoder.parameters())
        torch._foreach_lerp_(keys, queries, 1 - self.m)

    @torch.no_grad()
    def _shuffled_keys(self, x, draws):
        """z'(x) with BatchNorm groups drawn over the global batch: shuffle, encode, undo. (B, 3, T, S, S) -> (B, D)."""
        if not self.bn_group and _world() == 1:
            return self.features(x, self.momentum_encoder)  # one group: nothing to shuffle
        order = draws.randperm(len(x)).to(x.device)  # (world * B,), the same on every device
        mine = slice(_rank() * len(x), (_rank() + 1) * len(x))
        z = _gather(self.features(_gather(x)[order[mine]], self.momentum_encoder))  # (world * B, D), shuffled
        return z[order.argsort()[mine]]

    @torch.no_grad()
    def _enqueue(self, keys, index):
        """Writes all devices' keys at the pointer and around the end, so K need not be a multiple of the batch."""
        keys, index = keys[-self.K:], index[-self.K:]
        places = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue[places] = keys.to(self.queue.dtype)
        self.queue_index[places] = index
        self.queue_pointer.add_(len(keys)).remainder_(self.K)


def _masked_mean(values, keep):
    return (values * keep).sum() / keep.sum().clamp(min=1)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@torch.no_grad()
def _gather(x):
    """Rows of all processes in rank order, (B, ...) -> (world * B, ...); no gradient."""
    if _world() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(_world())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


OBJECTIVES = {"classify": Classify, "moco": MoCo}


def build(method: str, backbone: nn.Module, options: dict) -> Objective:
    """The objective of that name; of `options` it gets those that the signatures of its class and bases name."""
    cls = choose(OBJECTIVES, method, "method")
    known = {name for c in cls.__mro__ if issubclass(c, Objective) for name in inspect.signature(c.__init__).parameters}
    return cls(backbone, **{name: options[name] for name in (known - {"backbone"}) & options.keys()})
