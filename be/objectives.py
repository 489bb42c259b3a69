"""Objectives: pretext tasks, MoCo and others, and where BE enters them. A module whose forward returns the loss:

    loss, stats = objective(views, label, index, draws)

    views   list of float clips (B, 3, T, S, S), one per entry of `objective.views`
    label   (B,) int64, read by supervised objectives only
    index   (B,) int64, which video of the list each row is
    draws   everything random of this step, the same numbers for any number of processes (augment.Draws)
    stats   dict of scalar tensors for the log; reading one waits for the device, the caller decides when

`build` hands a constructor those keys of the config that are its arguments. `sampler(n, rng) -> (K, T)` says which
frames to decode. `views` are (clip, augmentation) pairs, which of the K clips goes under which augmentation: MoCo's
((0, 0), (0, 1), (1, 2)) are the query under a1, the positive under a2, and another clip of the video under its own
draw. An augmentation is a number, or a pair (w, a): window and flip of draw w, angle and colours of draw a. With
`flips_together` all views of a video are mirrored, or none. Teachers and queues move inside forward and live in
buffers, so that checkpoints are complete.

BE enters once per paradigm: as a regulariser in `PretextTask`, on one side of the positive pair in `Contrastive`.

Choices in MoCo + BE that the paper leaves open, or that the released code (FingerRec/BE) makes otherwise:

                           paper                      released                here by default (key)
    distracted side        open: Eq. 6-7 name the     query                   query (erase_side)
                           anchor of a dot product
    lam                    per clip                   per batch               per clip (erase: ...-batch-lam)
    hard negative's view   "with a1"; the crop is     own draw                own draw (hard_negative_view: own | a1)
                           not part of a1
    its distance in time   open                       2 to 4 frames           half a clip's span (hard_negative_gap)
    its encoder            open                       query, with gradient    momentum (hard_negative_encoder)
    keys of own video      excluded (n != i)          stay in the queue       masked
    BatchNorm              open                       no ShuffleBN            groups, shuffled (bn_group, shuffle_bn)
    pooling in phi         max                        average                 max (pool)
    K, tau, m              open                       3569 or 65536, .07, .999  the same
"""

import copy
import inspect
from functools import partial
from itertools import permutations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn import all_gather

from be import video
from be.config import ConfigError, choose
from be.erase import ERASE

INTERVAL = 8  # frames between the clips of a tuple, as in VCOP
HIDDEN = 512  # of VCOP's pairs; other heads over several inputs follow it. One linear layer would compare nothing


class Objective(nn.Module):
    """Base: a backbone, through which the batch passes in groups of `bn_group` videos (0: the device's whole batch).

    The paper's 8 GPUs had 64 clips. BatchNorm saw groups of 8, on which MoCo's shuffle relies. One GPU must form them.
    """

    views, flips_together = ((0, 0),), False

    def __init__(self, backbone, *, frames, stride, bn_group=0):
        super().__init__()
        self.backbone, self.bn_group = backbone, bn_group
        self.sampler = partial(video.random_clips, K=1 + max(clip for clip, _ in self.views), T=frames, stride=stride)

    def features(self, x, network=None, inputs=1):
        """Clips (B * inputs, 3, T, S, S) -> feature map (B * inputs, C, T', H', W'), or what `network` makes of x.

        `inputs` rows side by side belong to one video, and thus to one group. bn_group divides B (train.check_batch).
        """
        group = (self.training and self.bn_group * inputs) or len(x)
        parts = [(network or self.backbone)(part) for part in x.split(group)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class Classify(Objective):
    """Supervised classification; fine-tuning is this objective on a pre-trained backbone (paper 4.1).
    With `erase` BE is an augmentation, as StillMix (Li et al. 2023) and ALBAR (Fioresi et al. 2025) compare with it;
    the paper fine-tunes without. stats: top1, of the batch."""

    def __init__(self, backbone, classes, *, erase="none", gamma=0.3, pool="max", dropout=0.0, **base):
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


class Task(nn.Module):
    """Changes a clip in a way it knows; the network shall say in which: a set of transformations R and a head.

        task = RotNet(dim, frames, stride)         dim: channels of the backbone; frames, stride: of a clip
        task.sampler, task.views                   as of an objective
        task.mirrors                               all views of a video may be mirrored: the answer stays the same
        x, target = task.transform(views, draws)   (B, n, 3, t, s, s): n inputs a video; (B, m) int64: m questions each
        logits = task.logits(z, draws)             from the inputs' pooled features (B, n, dim) to (B, m, classes)

    Where R is small a step asks about all of it (Eq. 3); of 6 or 48 orders it draws one per video, as the sources do.
    """

    views, mirrors, classes, shuffled = ((0, 0),), True, 0, 0

    def __init__(self, dim, frames, stride):
        super().__init__()
        self.sampler = partial(self.clips, K=1 + max(clip for clip, _ in self.views), T=frames, stride=stride)
        if self.shuffled:  # so many pieces
            orders = torch.tensor(list(permutations(range(self.shuffled))))
            self.register_buffer("orders", orders, persistent=False)
        self.head = self.make_head(dim)

    @staticmethod
    def clips(n, rng, K, **shape):
        if K == 1:
            return video.random_clips(n, rng, K=1, **shape)
        return video.ordered_clips(n, rng, K=K, interval=INTERVAL, **shape)

    def make_head(self, dim):
        return nn.Linear(dim, self.classes)

    def logits(self, z, draws):
        return self.head(z)


class RotNet(Task):
    """3D RotNet (Jing et al. 2018): by how many quarter turns is the clip turned? All four of each clip are asked."""

    classes = 4

    def transform(self, views, draws):
        return every([views[0].rot90(k, (3, 4)) for k in range(4)])  # counter-clockwise


class Puzzles(Task):
    """Space-Time Cubic Puzzles (Kim et al. 2019): in which order are the four pieces?

    A clip is cut into 4 x 2 x 2 cells. A spatial puzzle takes the four quadrants of one quarter of the time, a temporal
    one the four quarters of one quadrant. Each video asks one of 2 x 24 classes, its kind and its permutation (Kim et
    al. give both kinds the same 24, and reach 48 by upside-down clips). Against shortcuts a piece takes 3/4 of its
    cell's sides, anywhere inside, and one colour channel stands for all three. Raises ConfigError below 4 frames.
    """

    shuffled = 4

    def __init__(self, dim, frames, stride):
        super().__init__(dim, frames, stride)
        if frames < 4:
            raise ConfigError(f"puzzles cuts a clip into 4 pieces of time, frames={frames} are too few")

    def make_head(self, dim):
        return mlp(4 * dim, HIDDEN, 48)

    def transform(self, views, draws):
        x = views[0]  # (B, 3, T, S, S)
        B, _, T, S, _ = x.shape
        label = draws.randint(48, B)
        order = self.orders[label % 24]  # (B, 4): the cell that piece j comes from
        shared = draws.randint(4, B)[:, None].expand(B, 4)  # the quarter of the other kind, the same for all pieces
        spatial = (label < 24)[:, None]
        quarter, quadrant = torch.where(spatial, shared, order), torch.where(spatial, order, shared)
        cells = torch.stack([quarter, quadrant // 2, quadrant % 2], 2)  # (B, 4, 3) in time, height, width
        sides = [(side, -(-3 * side // 4)) for side in (T // 4, S // 2, S // 2)]  # of a cell, of a piece
        u = draws.rand(B, 4, 3)
        # Numbers, not tensors made of numbers: a GPU's host would wait for each of those
        t, h, w = (cells[..., i, None] * cell + (u[..., i, None] * (cell - n + 1)).long()
                   + torch.arange(n, device=x.device) for i, (cell, n) in enumerate(sides))  # (B, 4, n) each
        row = torch.arange(B, device=x.device).view(B, 1, 1, 1, 1)
        channel = draws.randint(3, B).view(B, 1, 1, 1, 1)
        pieces = x[row, channel, t[:, :, :, None, None], h[:, :, None, :, None], w[:, :, None, None]]  # (B, 4, t, s, s)
        return pieces[:, :, None].expand(-1, -1, 3, -1, -1, -1), label[:, None]

    def logits(self, z, draws):
        return self.head(z.flatten(1))[:, None]  # (B, 1, 48)


class ClipOrder(Task):
    """Video Clip Order Prediction (Xu et al. 2019): three clips, `INTERVAL` frames apart, are shuffled: which 3! order?
    A tuple of 16 frames of stride 1 spans 3 x 16 + 2 x 8 = 64. The head, of pairs and then of all, is theirs."""

    views, shuffled = ((0, 0), (1, 1), (2, 2)), 3

    def make_head(self, dim):
        self.pair = nn.Linear(2 * dim, HIDDEN)
        return nn.Linear(3 * HIDDEN, 6)

    def transform(self, views, draws):
        x = torch.stack(views, 1)  # (B, 3, 3, T, S, S)
        label = draws.randint(6, len(x))
        row = torch.arange(len(x), device=x.device)[:, None]
        return x[row, self.orders[label]], label[:, None]  # place j shows clip orders[label][j]

    def logits(self, z, draws):
        a, b, c = z.unbind(1)  # (B, dim) each
        pairs = torch.stack([torch.cat(two, 1) for two in ((a, b), (a, c), (b, c))], 1)  # (B, 3, 2 dim)
        pairs = self.pair(pairs).relu().flatten(1)  # (B, 3 * HIDDEN)
        if self.training:
            pairs = draws.dropout(pairs, 0.5)
        return self.head(pairs)[:, None]  # (B, 1, 6)


class Pace(Task):
    """Pace prediction (Wang et al. 2020): is it played at 1, 2, 3 or 4 times `stride` (theirs: 1)? All are asked."""

    views, classes = ((0, 0), (1, 0), (2, 0), (3, 0)), 4

    @staticmethod
    def clips(n, rng, K, T, stride):
        return np.concatenate([video.random_clips(n, rng, K=1, T=T, stride=p * stride) for p in (1, 2, 3, 4)])  # (4, T)

    def transform(self, views, draws):
        return every(views)


class ArrowOfTime(Task):
    """The arrow of time (Wei et al. 2018): does the clip run forwards (0) or backwards (1)? Both are asked."""

    classes = 2

    def transform(self, views, draws):
        return every([views[0], views[0].flip(2)])


class OrderVerification(Task):
    """Shuffle & Learn (Misra et al. 2016) with clips in place of frames: is the middle one from between the others?
    Of clips a, b, c, d in temporal order, (b, c, d) is in order (1) and (b, a, d) is not (0). Both are asked."""

    views = ((0, 0), (1, 1), (2, 2), (3, 3))

    def make_head(self, dim):
        return mlp(3 * dim, HIDDEN, 2)

    def transform(self, views, draws):
        x = torch.stack(views, 1)  # (B, 4, 3, T, S, S)
        return x, torch.arange(1, -1, -1, device=x.device).expand(len(x), 2)

    def logits(self, z, draws):
        a, b, c, d = z.unbind(1)
        return self.head(torch.stack([torch.cat([b, c, d], 1), torch.cat([b, a, d], 1)], 1))  # (B, 2, 2)


def every(inputs):
    """All of R, to be told apart one by one: a list of n inputs (B, 3, T, S, S) -> x (B, n, ...), target (B, n)."""
    x = torch.stack(inputs, 1)
    return x, torch.arange(len(inputs), device=x.device).expand(x.shape[:2])


TASKS = {
    "rotnet": RotNet, "puzzles": Puzzles, "clip_order": ClipOrder,
    "pace": Pace, "arrow_of_time": ArrowOfTime, "order_verification": OrderVerification,
}  # fmt: skip


class PretextTask(Objective):
    """A task with BE plugged in as a regulariser: Eq. 3-5.

    L = L_p + beta L_be,  L_p = mean over r in R of CE(F(r(x_o)), r),  L_be = |psi(f(x_o)) - psi(f(x_d))|^2

    x_o and x_v are two views of one clip, x_d = BE(x_v), f the feature map of the whole clip, psi the maximum over
    space. The task sees x_o only (of several clips, x_o is the first). BE costs two more passes of the backbone.

    be_norm says what |.|^2 is: `mean` averages over the C x T' numbers of psi, which keeps beta comparable between
    backbones and is what the released README says; `sum` adds them up, Eq. 4 to the letter. stats: pretext = L_p,
    be = L_be without beta, top1 of the task.
    """

    flips_together = True  # the clips of a task are compared with each other

    def __init__(self, backbone, task, *, erase="intra-video-frame", gamma=0.3, beta=1.0, be_norm="mean", pool="max",
                 frames, stride, **base):
        task = task(backbone.dim, frames, stride)
        self.be = erase != "none"
        self.views = task.views + ((0, 1 + max(aug for _, aug in task.views)),) * self.be
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
        return loss, {name: value.detach() for name, value in stats.items()}


def be_loss(f_o, f_d, norm):
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

    Eq. 6-7 write z_xo . z_xd, a symmetric product, which does not say what encoder a side passes. The key gets no
    gradient: it is the target, and a target should vary less than the query (Wang et al. 2022, "On the Importance of
    Asymmetry for Siamese Representation Learning").

    With `hard_negative` there is a third view: another clip of the same video (N2 of Eq. 7), which starts at least
    `hard_negative_gap` clip spans away where the video has room, else as far as it can. `hard_negative_view` `own` is a
    draw of its own, `a1` the query's angle and colours in a window of its own.

    A method implements `contrast`. stats of all: positive, hard_negative: mean similarity, in -1..1; feature_std: of
    the embeddings, near 1 / sqrt(D) when they spread, 0 when all are one; contrast_top1: the positive is nearest.
    """

    def __init__(self, backbone, *, erase="intra-video-frame", gamma=0.3, erase_side="query", hard_negative=True,
                 hard_negative_view="own", hard_negative_gap=0.5, frames, stride, **base):
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
        one = self.erase(x_o, draws), x_v
        return [one] if self.erase_side == "query" else [one, (self.erase(x_v, draws), x_o)]

    def forward(self, views, label, index, draws):
        h = self.negative(views[2], draws) if len(views) == 3 else None
        found = [self.contrast(x_q, x_k, h, index, draws) for x_q, x_k in self.pairs(views, draws)]
        losses, stats = zip(*found, strict=True)
        return sum(losses) / len(losses), {name: sum(s[name] for s in stats).detach() / len(stats) for name in stats[0]}

    def contrast(self, x_q, x_k, h, index, draws):  # a method's own
        """Loss and stats of queries and keys (B, 3, T, S, S); h: hard negatives (B, D), or None without."""

    def negative(self, x_h, draws):  # embeddings (B, D), made once for all pairs
        return self.embed(x_h)

    def embed(self, x, network=None):
        """Clips (B, 3, T, S, S) -> z (B, D) of length 1. The last that learns is kept for the log: `embedding`."""
        z = F.normalize(self.features(x, network or self.encoder).float(), dim=1)
        if z.requires_grad:
            self.embedding = z.detach()
        return z

    def info_nce(self, q, k, others, left_out, h):
        """Eq. 6 and 7: -log of the softmax of q.k / tau among the similarities to others (M, D), of which some are left
        out (N, M) bool, and to h, if there is one. q, k, h: (N, D). -> loss, stats, mean similarity to the others."""
        l_pos = (q * k).sum(1, keepdim=True)  # (N, 1)
        with torch.autocast(q.device.type, enabled=False):  # in full precision, since tau magnifies errors
            l_others = q @ others.T  # (N, M)
        l_hard = [] if h is None else [(q * h).sum(1, keepdim=True)]
        logits = torch.cat([l_pos, l_others.masked_fill(left_out, -torch.inf), *l_hard], 1) / self.temperature
        positive = torch.zeros(len(q), dtype=torch.long, device=q.device)  # is class 0
        loss, top1 = F.cross_entropy(logits, positive), (logits.argmax(1) == positive).float().mean()
        stats = {"positive": l_pos.mean(), "feature_std": feature_std(q), "contrast_top1": top1}
        stats |= {"hard_negative": l_hard[0].mean()} if l_hard else {}
        # of each row, then over rows: the mean over processes is the mean over all
        mean = l_others.masked_fill(left_out, 0).sum(1) / (~left_out).sum(1).clamp(min=1)
        return loss, stats, mean.mean()


class Embed(nn.Module):
    """A backbone and phi: clips -> (B, D); pooling, then `head` (paper 3.3.2: one linear layer)."""

    def __init__(self, backbone, pool, head):
        super().__init__()
        self.backbone, self.pool, self.head = backbone, pool, head

    def forward(self, x):
        return self.head(global_pool(self.backbone(x), self.pool))


class MoCo(Contrastive):
    """MoCo (He et al. 2020) with BE plugged in: Eq. 6, and Eq. 7 with `hard_negative`.

    L = -log  exp(q.k / tau) / (exp(q.k / tau) + sum over n of exp(q.n / tau))

    q = z(x_q), k = z'(x_k), z' the momentum encoder. The negatives n: N1, the queue; keys of the query's own video and
    empty places are masked. N2, the hard negative. With erase="none", hard_negative=False it is the plain MoCo.

    BatchNorm must not tell a query which key is its own: with `shuffle_bn` keys pass z' in groups of `bn_group` in an
    order shuffled over all devices, which may be one. Without it they keep the groups of the queries, as in the
    released code. With erase_side="both" only x_v's keys are queued.

    stats, too: queue: mean similarity to the keys not masked; masked: share of the queue that is, all of it at first.
    """

    def __init__(self, backbone, *, hard_negative_encoder="momentum", dim=128, K=3569, m=0.999, temperature=0.07,
                 pool="max", shuffle_bn=True, accumulate=1, **base):
        super().__init__(backbone, **base)
        self.hard_negative_encoder, self.K, self.temperature = hard_negative_encoder, K, temperature
        self.m = m ** (1 / accumulate)  # forward runs `accumulate` times a step; together they move the teacher by m
        self.shuffle_bn = shuffle_bn
        self.encoder = Embed(backbone, pool, nn.Linear(backbone.dim, dim))
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
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
        masked = (index[:, None] == self.queue_index) | (self.queue_index < 0)  # (B, K)
        # a clone, since backward needs the queue as it is before _enqueue
        loss, stats, queue = self.info_nce(q, k, self.queue.clone(), masked, h)
        return loss, {**stats, "queue": queue, "masked": masked.float().mean()}

    @torch.no_grad()
    def _keys(self, x, draws):
        """z'(x) with BatchNorm groups drawn over the global batch: shuffle, encode, undo. (B, 3, T, S, S) -> (B, D)."""
        if not self.shuffle_bn or (not self.bn_group and draws.world == 1):  # one group has nothing to shuffle
            return self.embed(x, self.momentum_encoder)
        order = draws.randperm(len(x)).to(x.device)  # (world * B,), the same on every device
        mine = slice(draws.rank * len(x), (draws.rank + 1) * len(x))
        z = gather(self.embed(gather(x)[order[mine]], self.momentum_encoder))  # (world * B, D), shuffled
        return z[order.argsort()[mine]]

    @torch.no_grad()
    def _enqueue(self, keys, index):
        """Writes all devices' keys at the pointer and around the end: K need not be a multiple of the batch."""
        keys, index = keys[-self.K:], index[-self.K:]
        places = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % self.K
        self.queue[places] = keys.to(self.queue.dtype)
        self.queue_index[places] = index
        self.queue_pointer.add_(len(keys)).remainder_(self.K)


class Triplet(Contrastive):
    """The released code's variant: MoCo's three clips, but no queue and no teacher.

    L = max(0, |q - k| - |q - h| + 0.5) + max(0, |q - k| - |q - g| + 0.5), each a mean over the batch. The same video's
    other clip h, and the one g of another video, shall lie farther from the query than the positive k. g is h with the
    global batch reversed; in an odd batch the middle clip meets its own h. All through one encoder.
    """

    def __init__(self, backbone, *, dim=128, pool="max", **base):
        super().__init__(backbone, **{**base, "hard_negative": True})
        self.encoder = Embed(backbone, pool, nn.Linear(backbone.dim, dim))

    def contrast(self, x_q, x_k, h, index, draws):
        q, k = self.embed(x_q), self.embed(x_k)  # (B, D)
        g = gather(h).flip(0)[draws.rank * len(h) : (draws.rank + 1) * len(h)]
        positive, negative = (q * k).sum(1), (q * h).sum(1)  # (B,)
        stats = {"positive": positive.mean(), "hard_negative": negative.mean(), "feature_std": feature_std(q),
                 "contrast_top1": (positive > negative).float().mean()}
        return sum(F.triplet_margin_loss(q, k, other, margin=0.5) for other in (h, g)), stats


class SimCLR(Contrastive):
    """SimCLR (Chen et al. 2020) with BE plugged in: Eq. 7 with the batch in place of the queue.

    Each side is the query once, so `erase_side` query and key are one method. Negatives are all clips of other videos
    in the global batch (NT-Xent) and the hard negative. stats, too: negative: mean similarity to other videos.
    """

    def __init__(self, backbone, *, dim=128, temperature=0.07, pool="max", **base):
        super().__init__(backbone, **base)
        self.temperature = temperature
        self.encoder = Embed(backbone, pool, mlp(backbone.dim, backbone.dim, dim))

    def contrast(self, x_q, x_k, h, index, draws):
        q, k = self.embed(x_q), self.embed(x_k)  # (B, D)
        queries, keys, index = torch.cat([q, k]), torch.cat([k, q]), index.repeat(2)  # (2B, D), (2B, D), (2B,)
        same, h = index[:, None] == gather(index), None if h is None else h.repeat(2, 1)  # (2B, world * 2B)
        loss, stats, negative = self.info_nce(queries, keys, gather(queries), same, h)
        return loss, {**stats, "negative": negative, "feature_std": feature_std(q)}


class BYOL(Contrastive):
    """BYOL (Grill et al. 2020) with BE plugged in: positive pairs alone; there are no negatives, hard ones included.

    L = |p(x_q) - z'(x_k)|^2 + |p(x_k) - z'(x_q)|^2 of vectors of length 1: z' is the momentum encoder, p the encoder
    and a predictor on top. So `erase_side` query and key are one method. Their heads, two layers with BatchNorm, have
    4096 hidden units where these have 512; their m rises from 0.996 to 1, this one stays.
    """

    def __init__(self, backbone, *, dim=128, m=0.999, pool="max", accumulate=1, **base):
        super().__init__(backbone, **{**base, "hard_negative": False})
        self.m = m ** (1 / accumulate)  # as in MoCo
        encoder = Embed(backbone, pool, mlp(backbone.dim, 512, dim, norm=True))
        self.online = nn.Sequential(encoder, mlp(dim, 512, dim, norm=True))
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)

    def forward(self, views, label, index, draws):
        move_teacher(self.momentum_encoder, self.online[0], self.m)
        return super().forward(views, label, index, draws)

    def contrast(self, x_q, x_k, h, index, draws):
        p_q, p_k = (self.embed(x, self.online) for x in (x_q, x_k))  # (B, D)
        with torch.no_grad():
            z_q, z_k = (self.embed(x, self.momentum_encoder) for x in (x_q, x_k))  # (B, D)
        loss = (p_q - z_k).square().sum(1) + (p_k - z_q).square().sum(1)  # (B,)
        return loss.mean(), {"positive": (p_q * z_k).sum(1).mean(), "feature_std": feature_std(z_k)}


# ---- what they share


def eraser(erase, gamma):
    """`ERASE[erase]` of fixed gamma in 0..1, (x, draws) -> x_hat. Raises ConfigError for an unknown name."""
    return partial(choose(ERASE, erase, "erase"), gamma=gamma)


def global_pool(features, pool):
    """Pooling over space and time, (B, C, T', H', W') -> (B, C): `max` (the paper, 4.1) or `avg`."""
    return features.amax((2, 3, 4)) if pool == "max" else features.mean((2, 3, 4))


def mlp(dim, hidden, out, norm=False):
    """Two linear layers, with BatchNorm and ReLU between them."""
    between = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(dim, hidden), *between, nn.ReLU(), nn.Linear(hidden, out))


def feature_std(z):
    return z.std(0, correction=0).mean()


def rankme(z) -> float:
    """How many dimensions the features z (B, D) fill, 1 to min(B, D): the exponential of the entropy of their singular
    values (Garrido et al. 2023, Eq. 1). Waits for the device."""
    values = torch.linalg.svdvals(z.float().cpu())  # a GPU loads a library for that, and is slower at this size
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum()).item()


@torch.no_grad()
def move_teacher(teacher, student, m):
    """theta' <- m theta' + (1 - m) theta. BatchNorm's statistics are the teacher's own."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - m)


def gather(x):
    """Rows of all processes in rank order, (B, ...) -> (world * B, ...). A row hears from the losses of all processes,
    of which DDP then takes the mean."""
    return torch.cat(all_gather(x)) if dist.is_initialized() else x


OBJECTIVES = {
    "classify": Classify,
    **{name: partial(PretextTask, task=task) for name, task in TASKS.items()},
    "moco": MoCo, "triplet": Triplet, "simclr": SimCLR, "byol": BYOL,
}  # fmt: skip


def build(method, backbone, options) -> Objective:
    """The objective of that name, or class, with those of `options` that it takes. Raises what `taken` does."""
    make = choose(OBJECTIVES, method, "method") if isinstance(method, str) else method  # a class, or a partial of one
    return make(backbone, **taken(make, options))


def taken(make, options) -> dict:
    """Those of `options` that the signature of an objective and its bases name. Raises ConfigError for an erase_side of
    `both` with a method that has no two sides."""
    kind = getattr(make, "func", make)
    if options.get("erase_side") == "both" and not issubclass(kind, Contrastive):
        raise ConfigError("erase_side=both is for methods with a query and a key: moco, triplet, simclr, byol")
    bases = [c for c in kind.__mro__ if issubclass(c, Objective)]
    known = {name for c in bases for name in inspect.signature(c.__init__).parameters} - {"backbone", "task"}
    return {name: options[name] for name in known & options.keys()}
