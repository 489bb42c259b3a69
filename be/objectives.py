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
((0, 0), (0, 1), (1, 2)) is the query under a1, the positive under a2, and another clip of the video under a draw of its
own. An augmentation is a number, or a pair (w, a): the window of draw w, angle and colours of draw a. With
`flips_together` all views of a video are mirrored, or none.
Teachers and queues move inside forward, so the trainer knows nothing of them, and live in buffers, so that checkpoints
are complete.

Background Erasing enters twice, once per paradigm of the paper: in `PretextTask` as a regulariser (3.3.1), in
`Contrastive` as one side of the positive pair (3.3.2). `Classify` takes it as an augmentation, as later papers do. No
task and no method below knows more of it than that.

Where the paper leaves a choice in MoCo + BE, or the released code (FingerRec/BE) makes another one:

                            paper                    released                  here by default (key)
    distracted side         Eq. 6-7 name the anchor  query                     query (erase_side: query | key | both)
                            of a dot product only
    lam                     per clip                 per batch                 per clip (erase: ...-batch-lam)
    hard negative's view    "with a1"; the crop is   own draw                  own draw (hard_negative_view: own | a1;
                            not part of A                                      a1: angle and colours, own window)
    its distance in time    another clip             2 to 4 frames, or a       half a clip's span (hard_negative_gap)
                                                     third of the video
    its encoder             open                     query, with gradient      momentum (hard_negative_encoder)
    keys of own video       n != i: no negatives     stay in the queue         masked
    BatchNorm               open                     as the GPU has it,        groups of bn_group, shuffled
                                                     ShuffleBN commented out   (shuffle_bn)
    pooling in phi          max                      average                   max (pool)
    K, temperature, m       open                     3569 or 65536, 0.07,      the same
                                                     0.999
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
from be.tasks import TASKS


class Objective(nn.Module):
    """Base: a backbone, run as the paper's 8 GPUs would have run it.

    BatchNorm takes its statistics over the samples of one device. The paper's 64 clips on 8 GPUs are therefore 8
    groups of 8, and a method that relies on it (MoCo's shuffle) or suffers from it must see the same groups on one GPU.
    So the batch passes the backbone in groups of `bn_group` videos (0: the whole batch of the device at once).
    """

    views, flips_together = ((0, 0),), False

    def __init__(self, backbone: nn.Module, *, frames: int, stride: int, bn_group: int = 0):
        super().__init__()
        self.backbone, self.bn_group = backbone, bn_group
        self.sampler = partial(video.random_clips, K=1 + max(clip for clip, _ in self.views), T=frames, stride=stride)

    def features(self, x, network=None, inputs: int = 1):
        """Clips (B * inputs, 3, T, S, S) -> feature map (B * inputs, C, T', H', W'), or what `network` makes of x.

        `inputs` rows side by side belong to one video, and thus to one group.
        """
        network, B = network or self.backbone, len(x) // inputs
        group = self.bn_group or B
        if B % group and self.training:
            raise ValueError(f"a device's batch of {B} does not divide into BatchNorm groups of {group}: "
                             f"choose bn_group or batch_size so that it does (bn_group=0: one group)")
        if group >= B or not self.training:
            return network(x)
        return torch.cat([network(part) for part in x.split(group * inputs)])


class Classify(Objective):
    """Supervised classification; fine-tuning is this objective on a pre-trained backbone (paper 4.1).

    With `erase` BE is an augmentation of the training clips: how StillMix (Li et al. 2023) and ALBAR (Fioresi et al.
    2025) compare with it. The paper fine-tunes without, `erase="none"`.

    stats: top1, of the batch.
    """

    def __init__(self, backbone, classes: int, *, erase: str = "none", gamma: float = 0.3, pool: str = "max",
                 dropout: float = 0.0, **base):
        super().__init__(backbone, **base)
        self.erase, self.pool, self.dropout = eraser(erase, gamma), pool, dropout
        self.head = nn.Linear(backbone.dim, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def logits(self, x, draws=None):
        z = global_pool(self.features(x), self.pool)  # (B, C)
        if self.training:
            z = draws.dropout(z, self.dropout)
        return self.head(z)  # (B, classes)

    def forward(self, views, label, index, draws):
        logits = self.logits(self.erase(views[0], draws), draws)
        top1 = (logits.argmax(1) == label).float().mean()
        return F.cross_entropy(logits, label), {"top1": top1}


# ---- pretext tasks (paper 3.3.1)


class PretextTask(Objective):
    """A task of be/tasks.py with BE plugged in as a regulariser: Eq. 3-5.

    L = L_p + beta L_be,  L_p = mean over r in R of CE(F(r(x_o)), r),  L_be = |psi(f(x_o)) - psi(f(x_d))|^2

    x_o and x_v are two views of one clip, x_d = BE(x_v), f the feature map, psi the maximum over space, which keeps
    channel and time. The task sees x_o only (of tasks with several clips a video, x_o is the first one). f(x_o) is
    taken of the whole, unchanged clip, as it is in fine-tuning; BE thus costs two more passes of the backbone.

    be_norm says what |.|^2 is: `mean` averages over the C x T' numbers of psi, which keeps beta comparable between
    backbones, `sum` adds them up (Eq. 4 to the letter; 1024 times as much for C3D). `erase="none"` is the plain task.

    stats: pretext = L_p, be = L_be without beta, top1 of the task.
    """

    flips_together = True  # the clips of a task are compared with each other

    def __init__(self, backbone, task, *, erase: str = "intra-video-frame", gamma: float = 0.3, beta: float = 1.0,
                 be_norm: str = "mean", pool: str = "max", frames: int, stride: int, **base):
        task = task(backbone.dim, frames, stride)
        self.be = erase != "none"
        self.views = task.views + (((0, 1 + max(aug for _, aug in task.views)),) if self.be else ())
        super().__init__(backbone, frames=frames, stride=stride, **base)
        self.task, self.sampler = task, task.sampler
        self.erase = eraser(erase, gamma)
        self.beta, self.be_norm, self.pool = beta, be_norm, pool

    def forward(self, views, label, index, draws):
        x, target = self.task.transform(views[: len(self.task.views)], draws)  # (B, n, 3, t, s, s), (B, m)
        B, n = x.shape[:2]
        z = global_pool(self.features(x.flatten(0, 1), inputs=n), self.pool).unflatten(0, (B, n))  # (B, n, C)
        logits = self.task.logits(z, draws)  # (B, m, classes)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        stats = {"pretext": loss, "top1": (logits.argmax(2) == target).float().mean()}

        if self.be:
            x_o, x_d = views[0], self.erase(views[-1], draws)
            stats["be"] = be_loss(self.features(x_o), self.features(x_d), self.be_norm)
            loss = loss + self.beta * stats["be"]
        return loss, detached(stats)


def be_loss(f_o, f_d, norm: str):
    """L_be of two feature maps (B, C, T', H', W'), Eq. 4: squared L2 norm of psi's difference, mean over the batch."""
    psi_o, psi_d = f_o.amax((3, 4)).float(), f_d.amax((3, 4)).float()  # (B, C, T')
    square = (psi_o - psi_d).square().flatten(1)
    return (square.sum(1) if norm == "sum" else square.mean(1)).mean()


# ---- contrastive learning (paper 3.3.2)


class Contrastive(Objective):
    """Base of the methods that pull a positive pair together: BE distracts one side of the pair.

    x_o and x_v are two views of one clip under a1 and a2, x_q and x_k the query and the key made of them:

        erase_side      x_q        x_k
        query           BE(x_o)    x_v         the released code, and the default
        key             x_o        BE(x_v)
        both            BE(x_o)    x_v         and BE(x_v), x_o: each is once the distracted query of the other.
                                               Mean of two losses; MoCo + BE then costs 1.8 times as much.

    Eq. 6-7 write z_xo . z_xd. That names the anchor of a dot product, which is symmetric, and not the encoder that
    each side passes. The key's encoder has no gradient, and a target should vary less than what is pulled to it (Wang
    et al. 2022, "On the Importance of Asymmetry for Siamese Representation Learning"), hence the query.
    `erase="none"` leaves both sides alone.

    With `hard_negative` there is a third view: another clip of the same video (N2 of Eq. 7), which starts at least
    `hard_negative_gap` clip spans away where the video has room, else as far as it can. `hard_negative_view` says
    what it is seen under: `own` is a draw of its own, `a1` the query's angle and colours in a window of its own.

    A method implements `contrast`. stats of all: positive, hard_negative: mean similarity to each, in -1..1;
    feature_std: of the batch's embeddings, mean over D, near 1 / sqrt(D) when they spread and 0 when all are one;
    contrast_top1: the positive is the nearest.
    """

    def __init__(self, backbone, *, erase: str = "intra-video-frame", gamma: float = 0.3, erase_side: str = "query",
                 hard_negative: bool = True, hard_negative_view: str = "own", hard_negative_gap: float = 0.5,
                 frames: int, stride: int, **base):
        self.views = ((0, 0), (0, 1))
        if hard_negative:
            self.views += ((1, 2 if hard_negative_view == "own" else (2, 0)),)
        super().__init__(backbone, frames=frames, stride=stride, **base)
        if hard_negative:
            self.sampler = partial(video.distant_clips, T=frames, stride=stride, gap=hard_negative_gap)
        self.erase, self.erase_side = eraser(erase, gamma), erase_side

    def pairs(self, views, draws):
        """-> [(x_q, x_k), ...], clips (B, 3, T, S, S) each: one pair, or two with `both`"""
        x_o, x_v = views[:2]
        if self.erase_side == "key":
            return [(x_o, self.erase(x_v, draws))]
        pairs = [(self.erase(x_o, draws), x_v)]
        if self.erase_side == "both":
            pairs.append((self.erase(x_v, draws), x_o))
        return pairs

    def forward(self, views, label, index, draws):
        h = self.negative(views[2], draws) if len(views) == 3 else None
        found = [self.contrast(x_q, x_k, h, index, draws) for x_q, x_k in self.pairs(views, draws)]
        losses, stats = zip(*found, strict=True)
        return sum(losses) / len(losses), {name: sum(s[name] for s in stats).detach() / len(stats) for name in stats[0]}

    def contrast(self, x_q, x_k, h, index, draws):
        """Loss and stats of queries and keys (B, 3, T, S, S); h: hard negatives (B, D), or None without."""
        raise NotImplementedError

    def negative(self, x_h, draws):
        """The hard negatives' embeddings (B, D), made once for all pairs."""
        return self.embed(x_h)

    def embed(self, x, network=None):
        """Clips (B, 3, T, S, S) -> z (B, D) of length 1."""
        return F.normalize(self.features(x, network or self.encoder).float(), dim=1)


class Embed(nn.Module):
    """A backbone and phi: clips -> (B, D); pooling over space and time, then `head` (paper 3.3.2: one linear layer)."""

    def __init__(self, backbone: nn.Module, pool: str, head: nn.Module):
        super().__init__()
        self.backbone, self.pool, self.head = backbone, pool, head

    def forward(self, x):
        return self.head(global_pool(self.backbone(x), self.pool))


class MoCo(Contrastive):
    """MoCo (He et al. 2020) with BE plugged in: Eq. 6, and Eq. 7 with `hard_negative`.

    L = -log  exp(q.k / tau) / (exp(q.k / tau) + sum over n of exp(q.n / tau))

    q = z(x_q), k = z'(x_k), z' the momentum encoder, x_q = BE(x_o) by default. The negatives n: N1, the queue of keys
    of other videos; keys of the query's own video are masked out, and so are places not yet filled. N2, one other clip
    of the same video, once a step. `erase="none", hard_negative=False` is the plain MoCo of the paper's baseline.

    BatchNorm must not tell a query which key is its own: with `shuffle_bn` keys pass the momentum encoder in an order
    shuffled over all devices (ShuffleBN), in groups of `bn_group`, so the shuffle also works on one device. Without,
    they pass in the groups of the queries, which leaks, as in the released code.

    With erase_side="both" the queue takes the keys of x_v only, so that it holds as many videos as otherwise.

    stats, too: queue: mean similarity to the keys not masked; masked: share of the queue that is, all of it at first,
    about 1 / videos once it is full.
    """

    def __init__(self, backbone, *, hard_negative_encoder: str = "momentum", dim: int = 128, K: int = 3569,
                 m: float = 0.999, temperature: float = 0.07, pool: str = "max", shuffle_bn: bool = True,
                 accumulate: int = 1, **base):
        super().__init__(backbone, **base)
        self.hard_negative_encoder, self.K, self.temperature = hard_negative_encoder, K, temperature
        self.m = m ** (1 / accumulate)  # forward runs `accumulate` times a step; together they move the teacher by m
        self.shuffle_bn = shuffle_bn

        self.encoder = Embed(backbone, pool, nn.Linear(backbone.dim, dim))
        self.momentum_encoder = teacher_of(self.encoder)
        self.register_buffer("queue", torch.zeros(K, dim))
        self.register_buffer("queue_index", torch.full((K,), -1))  # the video each key came from; -1: empty
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.long))

    def forward(self, views, label, index, draws):
        move_teacher(self.momentum_encoder, self.encoder, self.m)
        self.fresh = []  # the keys of each pair
        loss, stats = super().forward(views, label, index, draws)
        self._enqueue(gather(self.fresh[0]), gather(index))
        return loss, stats

    def negative(self, x_h, draws):
        return self.embed(x_h) if self.hard_negative_encoder == "query" else self._keys(x_h, draws)

    def contrast(self, x_q, x_k, h, index, draws):
        q, k = self.embed(x_q), self._keys(x_k, draws)  # (B, D)
        self.fresh.append(k)
        l_pos = (q * k).sum(1, keepdim=True)  # (B, 1)
        l_queue = similarity(q, self.queue.clone())  # (B, K); backward needs the queue as it is before _enqueue
        masked = (index[:, None] == self.queue_index) | (self.queue_index < 0)  # (B, K)
        negatives = [l_queue.masked_fill(masked, -torch.inf)]
        stats = {"positive": l_pos.mean(), "queue": masked_mean(l_queue, ~masked), "masked": masked.float().mean(),
                 "feature_std": spread(q)}
        if h is not None:
            negatives.append((q * h).sum(1, keepdim=True))  # (B, 1)
            stats["hard_negative"] = negatives[-1].mean()
        loss, stats["contrast_top1"] = info_nce(l_pos, negatives, self.temperature)
        return loss, stats

    @torch.no_grad()
    def _keys(self, x, draws):
        """z'(x) with BatchNorm groups drawn over the global batch: shuffle, encode, undo. (B, 3, T, S, S) -> (B, D)."""
        if not self.shuffle_bn or (not self.bn_group and world() == 1):  # in one group there is nothing to shuffle
            return self.embed(x, self.momentum_encoder)
        order = draws.randperm(len(x)).to(x.device)  # (world * B,), the same on every device
        mine = slice(rank() * len(x), (rank() + 1) * len(x))
        z = gather(self.embed(gather(x)[order[mine]], self.momentum_encoder))  # (world * B, D), shuffled
        return z[order.argsort()[mine]]

    @torch.no_grad()
    def _enqueue(self, keys, index):
        """Writes all devices' keys at the pointer and around the end, so K need not be a multiple of the batch."""
        keys, index = keys[-self.K:], index[-self.K:]
        places = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue[places] = keys.to(self.queue.dtype)
        self.queue_index[places] = index
        self.queue_pointer.add_(len(keys)).remainder_(self.K)


class Triplet(Contrastive):
    """The released code's variant: MoCo's three clips, but no queue and no teacher.

    L = max(0, |q - k| - |q - h| + 0.5) + max(0, |q - k| - |q - g| + 0.5), each a mean over the batch: the same video's
    other clip h, and the one g of another video of the batch, shall lie farther from the query than the positive k, by
    the released margin. g is h in the reverse order of the global batch; the middle row of an odd one meets its own.
    All through one encoder.
    """

    def __init__(self, backbone, *, dim: int = 128, pool: str = "max", **base):
        super().__init__(backbone, **{**base, "hard_negative": True})
        self.encoder = Embed(backbone, pool, nn.Linear(backbone.dim, dim))

    def contrast(self, x_q, x_k, h, index, draws):
        q, k = self.embed(x_q), self.embed(x_k)  # (B, D)
        g = Gather.apply(h).flip(0)[rank() * len(h) : (rank() + 1) * len(h)]
        positive, negative = (q * k).sum(1), (q * h).sum(1)  # (B,)
        stats = {"positive": positive.mean(), "hard_negative": negative.mean(), "feature_std": spread(q),
                 "contrast_top1": (positive > negative).float().mean()}
        return sum(F.triplet_margin_loss(q, k, other, margin=0.5) for other in (h, g)), stats


class SimCLR(Contrastive):
    """SimCLR (Chen et al. 2020) with BE plugged in: Eq. 7 with the batch in place of the queue.

    Both sides of each pair are queries, the other side is the key, all clips of other videos in the global batch are
    negatives (NT-Xent), and so is, with `hard_negative`, the other clip of the same video. So `erase_side` query and
    key are one method. The head is theirs: two layers. Gradients reach the rows of other processes: any number of
    processes computes the same.

    stats, too: negative: mean similarity to other videos.
    """

    def __init__(self, backbone, *, dim: int = 128, temperature: float = 0.07, pool: str = "max", **base):
        super().__init__(backbone, **base)
        self.temperature = temperature
        self.encoder = Embed(backbone, pool, mlp(backbone.dim, backbone.dim, dim))

    def contrast(self, x_q, x_k, h, index, draws):
        q, k = self.embed(x_q), self.embed(x_k)  # (B, D)
        queries, index = torch.cat([q, k]), index.repeat(2)  # (2B, D), (2B,)
        l_pos = (q * k).sum(1, keepdim=True).repeat(2, 1)  # (2B, 1)
        l_batch = similarity(queries, Gather.apply(queries))  # (2B, world * 2B)
        same = index[:, None] == gather(index)
        negatives = [l_batch.masked_fill(same, -torch.inf)]
        stats = {"positive": l_pos.mean(), "negative": masked_mean(l_batch, ~same), "feature_std": spread(q)}
        if h is not None:
            negatives.append((queries * h.repeat(2, 1)).sum(1, keepdim=True))  # (2B, 1)
            stats["hard_negative"] = negatives[-1].mean()
        loss, stats["contrast_top1"] = info_nce(l_pos, negatives, self.temperature)
        return loss, stats


class BYOL(Contrastive):
    """BYOL (Grill et al. 2020) with BE plugged in: positive pairs alone; there are no negatives, hard ones included.

    L = |p(x_q) - z'(x_k)|^2 + |p(x_k) - z'(x_q)|^2 of vectors of length 1: z' is the momentum encoder, p the encoder
    and a predictor on top, which keeps the two from agreeing on a constant. So `erase_side` query and key are one
    method. Their heads, two layers with BatchNorm, have 4096 hidden units where these have 512; their m rises from
    0.996 to 1, this one stays.
    """

    def __init__(self, backbone, *, dim: int = 128, m: float = 0.999, pool: str = "max", accumulate: int = 1, **base):
        super().__init__(backbone, **{**base, "hard_negative": False})
        self.m = m ** (1 / accumulate)  # as in MoCo
        encoder = Embed(backbone, pool, mlp(backbone.dim, 512, dim, norm=True))
        self.online, self.momentum_encoder = nn.Sequential(encoder, mlp(dim, 512, dim, norm=True)), teacher_of(encoder)

    def forward(self, views, label, index, draws):
        move_teacher(self.momentum_encoder, self.online[0], self.m)
        return super().forward(views, label, index, draws)

    def contrast(self, x_q, x_k, h, index, draws):
        p_q, p_k = (self.embed(x, self.online) for x in (x_q, x_k))  # (B, D)
        with torch.no_grad():
            z_q, z_k = (self.embed(x, self.momentum_encoder) for x in (x_q, x_k))  # (B, D)
        loss = (p_q - z_k).square().sum(1) + (p_k - z_q).square().sum(1)  # (B,)
        return loss.mean(), {"positive": (p_q * z_k).sum(1).mean(), "feature_std": spread(z_k)}


# ---- what they share


def eraser(erase: str, gamma: float):
    """`ERASE[erase]` of fixed gamma, (x, draws) -> x_hat. Raises ConfigError for an unknown name or gamma off 0..1."""
    if not 0 <= gamma <= 1:
        raise ConfigError(f"gamma={gamma} must lie in 0..1")
    return partial(choose(ERASE, erase, "erase"), gamma=gamma)


def global_pool(features, pool: str):
    """Pooling over space and time, (B, C, T', H', W') -> (B, C): `max` (the paper, 4.1) or `avg`."""
    return features.amax((2, 3, 4)) if pool == "max" else features.mean((2, 3, 4))


def mlp(dim: int, hidden: int, out: int, norm: bool = False):
    """Two linear layers, with BatchNorm and ReLU between them."""
    between = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(dim, hidden), *between, nn.ReLU(), nn.Linear(hidden, out))


def similarity(a, b):
    """All dot products of rows (N, D) and (M, D) -> (N, M), in full precision: half would blur what tau divides."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def spread(z):
    return z.std(0, correction=0).mean()


def detached(stats):
    return {name: value.detach() for name, value in stats.items()}


def masked_mean(values, keep):
    """Of what is kept of each row (N, M), then over rows, so that the mean over processes is the mean over all."""
    return ((values * keep).sum(1) / keep.sum(1).clamp(min=1)).mean()


def info_nce(l_pos, negatives, temperature: float):
    """InfoNCE of similarities (N, 1) and a list of (N, any); -inf leaves a negative out -> loss, top-1 accuracy."""
    logits = torch.cat([l_pos, *negatives], 1) / temperature  # the positive is class 0
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    return loss, (logits.argmax(1) == 0).float().mean()


def teacher_of(student: nn.Module):
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def move_teacher(teacher, student, m: float):
    """theta' <- m theta' + (1 - m) theta. BatchNorm's statistics are the teacher's own."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - m)


# ---- many processes


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@torch.no_grad()
def gather(x):
    """Rows of all processes in rank order, (B, ...) -> (world * B, ...); no gradient."""
    if world() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class Gather(torch.autograd.Function):
    """`gather` with gradient: a row hears from the losses of all processes, of which DDP then takes the mean."""

    @staticmethod
    def forward(ctx, x):
        return gather(x)

    @staticmethod
    def backward(ctx, gradient):
        if world() > 1:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient)
        B = len(gradient) // world()
        return gradient[rank() * B : (rank() + 1) * B]


OBJECTIVES = {
    "classify": Classify,
    **{name: partial(PretextTask, task=task) for name, task in TASKS.items()},
    "moco": MoCo,
    "triplet": Triplet,
    "simclr": SimCLR,
    "byol": BYOL,
}


def build(method: str, backbone: nn.Module, options: dict) -> Objective:
    """The objective of that name; of `options` it gets those that the signatures of its class and bases name.

    Raises ConfigError for an unknown name, and for an erase_side of `both` with a method that has no two sides.
    """
    return construct(choose(OBJECTIVES, method, "method"), backbone, options)


def construct(make, backbone: nn.Module, options: dict) -> Objective:
    """`make`, a class or a partial of one, called as `build` does."""
    bases = [c for c in getattr(make, "func", make).__mro__ if issubclass(c, Objective)]
    known = {name for c in bases for name in inspect.signature(c.__init__).parameters} - {"backbone", "task"}
    if options.get("erase_side") == "both" and "erase_side" not in known:
        two = [name for name, made in OBJECTIVES.items() if issubclass(getattr(made, "func", made), Contrastive)]
        raise ConfigError(f"erase_side=both is for methods with a query and a key: {', '.join(two)}")
    return make(backbone, **{name: options[name] for name in known & options.keys()})
