"""Pretext tasks: change a clip in a way you know, let the network say which way it was.

A task is a set of transformations R and a head (paper 3.3.1). It is a small module of three parts:

    task = RotNet(dim, frames, stride)         dim: channels of the backbone; frames, stride: of a clip
    task.sampler(n, rng) -> (K, T)             which frames of a video of n frames make its K clips
    task.views                                 (clip, augmentation) of each view the task wants, see be/objectives.py
    task.mirrors = True                        all views of a video may be mirrored together: the answer stays the same
    x, target = task.transform(views, draws)   (B, n, 3, t, s, s): n inputs a video; (B, m) int64: m questions a video
    logits = task.logits(z, draws)             from the inputs' pooled features (B, n, dim) to (B, m, classes)

The inputs of a video lie side by side, so that BatchNorm groups and processes cut between videos, never through one.
Where R is small, as in RotNet, a step asks about all of it and Eq. 3 is the mean as it stands; of 6 or 48 permutations
it draws one per video, as the sources do. All random numbers come from `draws`.

Nothing in this file knows of Background Erasing.
"""

from functools import partial
from itertools import permutations

import numpy as np
import torch
from torch import nn

from be import video
from be.config import ConfigError

INTERVAL = 8  # frames between the clips of a tuple, as in VCOP
HIDDEN = 512  # of VCOP's pairs; the other heads over several inputs follow it


class RotNet(nn.Module):
    """3D RotNet (Jing et al. 2018): by how many quarter turns is the clip turned? All four of each clip are asked."""

    views = ((0, 0),)

    def __init__(self, dim: int, frames: int, stride: int):
        super().__init__()
        self.sampler = partial(video.random_clips, K=1, T=frames, stride=stride)
        self.head = nn.Linear(dim, 4)

    def transform(self, views, draws):
        turned = [views[0].rot90(k, (3, 4)) for k in range(4)]  # counter-clockwise
        return every(turned)

    def logits(self, z, draws):
        return self.head(z)  # (B, 4, 4)


class Puzzles(nn.Module):
    """Space-Time Cubic Puzzles (Kim et al. 2019): in which order are the four pieces?

    A clip is cut into 4 x 2 x 2 cells. A spatial puzzle takes the four quadrants of one quarter of the time, a temporal
    one the four quarters of one quadrant, so that pieces of both kinds have one size. Each video asks one of 2 x 24
    classes: its kind and its permutation. (Kim et al. give both kinds the same 24, and reach 48 by upside-down clips.)

    Against shortcuts a piece is cut anywhere inside its cell, of whose sides it takes 3/4, so that borders do not
    continue; and one colour channel stands for all three, so that lenses, which disperse colours towards their edge,
    do not tell the quadrant. At 48 frames of 112 pixels a piece has 9 frames of 42, at 16 of 32 it has 3 of 12.
    """

    views = ((0, 0),)

    def __init__(self, dim: int, frames: int, stride: int):
        super().__init__()
        if frames < 4:
            raise ConfigError(f"puzzles cuts a clip into 4 pieces of time, frames={frames} are too few")
        self.sampler = partial(video.random_clips, K=1, T=frames, stride=stride)
        self.register_buffer("orders", torch.tensor(list(permutations(range(4)))), persistent=False)  # (24, 4)
        self.head = compare(4 * dim, 48)

    def transform(self, views, draws):
        x = views[0]  # (B, 3, T, S, S)
        B, T, S = len(x), x.shape[2], x.shape[3]
        label = draws.randint(48, B)
        order = self.orders[label % 24]  # (B, 4): the cell that piece j comes from
        shared = draws.randint(4, B)[:, None].expand(B, 4)  # the quarter of the other kind, the same for all pieces
        spatial = (label < 24)[:, None]
        quarter, quadrant = torch.where(spatial, shared, order), torch.where(spatial, order, shared)

        cells = torch.stack([quarter, quadrant // 2, quadrant % 2], 2)  # (B, 4, 3), in time, height, width
        cell = torch.tensor([T // 4, S // 2, S // 2], device=x.device)
        t, s = (-(-3 * side // 4) for side in (T // 4, S // 2))
        room = cell - torch.tensor([t, s, s], device=x.device)
        start = cells * cell + (draws.rand(B, 4, 3) * (room + 1)).long()  # (B, 4, 3)

        t, h, w = (start[..., axis, None] + torch.arange(n, device=x.device) for axis, n in enumerate((t, s, s)))
        row = torch.arange(B, device=x.device).view(B, 1, 1, 1, 1)
        channel = draws.randint(3, B).view(B, 1, 1, 1, 1)
        pieces = x[row, channel, t[:, :, :, None, None], h[:, :, None, :, None], w[:, :, None, None]]  # (B, 4, t, s, s)
        return pieces[:, :, None].expand(-1, -1, 3, -1, -1, -1), label[:, None]

    def logits(self, z, draws):
        return self.head(z.flatten(1))[:, None]  # (B, 1, 48)


class ClipOrder(nn.Module):
    """Video Clip Order Prediction (Xu et al. 2019): three clips, `INTERVAL` frames apart, are shuffled: which 3! order?

    A tuple of 16 frames of stride 1 spans 3 x 16 + 2 x 8 = 64; in a shorter video it wraps around. Each clip has a view
    of its own, so that what moved across a gap cannot be read off the borders. The head is theirs: pairs of clips
    (concatenated, 2 dim -> 512, ReLU), the three pairs concatenated, dropout 0.5, one linear layer.
    """

    views = ((0, 0), (1, 1), (2, 2))

    def __init__(self, dim: int, frames: int, stride: int):
        super().__init__()
        self.sampler = partial(video.ordered_clips, K=3, T=frames, stride=stride, interval=INTERVAL)
        self.register_buffer("orders", torch.tensor(list(permutations(range(3)))), persistent=False)  # (6, 3)
        self.pair, self.head = nn.Linear(2 * dim, HIDDEN), nn.Linear(3 * HIDDEN, 6)

    def transform(self, views, draws):
        x = torch.stack(views, 1)  # (B, 3, 3, T, S, S)
        label = draws.randint(6, len(x))
        row = torch.arange(len(x), device=x.device)[:, None]
        return x[row, self.orders[label]], label[:, None]  # place j shows clip orders[label][j]

    def logits(self, z, draws):
        pairs = z[:, [[0, 1], [0, 2], [1, 2]]].flatten(2)  # (B, 3, 2 dim)
        pairs = self.pair(pairs).relu().flatten(1)  # (B, 3 * HIDDEN)
        if self.training:
            pairs = draws.dropout(pairs, 0.5)
        return self.head(pairs)[:, None]  # (B, 1, 6)


class Pace(nn.Module):
    """Pace prediction (Wang et al. 2020): is the clip played at 1, 2, 3 or 4 times the speed? All four are asked.

    A clip of pace p has a stride of p * `stride`, and a start of its own. Wang et al. have stride 1.
    """

    views = ((0, 0), (1, 0), (2, 0), (3, 0))

    def __init__(self, dim: int, frames: int, stride: int):
        super().__init__()
        self.sampler = partial(self.clips, T=frames, stride=stride)
        self.head = nn.Linear(dim, 4)

    @staticmethod
    def clips(n, rng, *, T, stride):
        paced = [video.random_clips(n, rng, K=1, T=T, stride=p * stride) for p in (1, 2, 3, 4)]
        return np.concatenate(paced)  # (4, T)

    def transform(self, views, draws):
        return every(views)

    def logits(self, z, draws):
        return self.head(z)  # (B, 4, 4)


class ArrowOfTime(nn.Module):
    """The arrow of time (Wei et al. 2018): does the clip run forwards (0) or backwards (1)? Both are asked."""

    views = ((0, 0),)

    def __init__(self, dim: int, frames: int, stride: int):
        super().__init__()
        self.sampler = partial(video.random_clips, K=1, T=frames, stride=stride)
        self.head = nn.Linear(dim, 2)

    def transform(self, views, draws):
        return every([views[0], views[0].flip(2)])

    def logits(self, z, draws):
        return self.head(z)  # (B, 2, 2)


class OrderVerification(nn.Module):
    """Shuffle & Learn (Misra et al. 2016) with clips in place of frames: is the middle one from between the others?

    Of clips a, b, c, d in temporal order, (b, c, d) is in order (1) and (b, a, d) is not (0). Both are asked.
    """

    views = ((0, 0), (1, 1), (2, 2), (3, 3))

    def __init__(self, dim: int, frames: int, stride: int):
        super().__init__()
        self.sampler = partial(video.ordered_clips, K=4, T=frames, stride=stride, interval=INTERVAL)
        self.head = compare(3 * dim, 2)

    def transform(self, views, draws):
        x = torch.stack(views, 1)  # (B, 4, 3, T, S, S)
        return x, torch.tensor([1, 0], device=x.device).expand(len(x), 2)

    def logits(self, z, draws):
        return self.head(z[:, [[1, 2, 3], [1, 0, 3]]].flatten(2))  # (B, 2, 2)


def every(inputs):
    """All of R, to be told apart one by one: a list of n inputs (B, 3, T, S, S) -> x (B, n, ...), target (B, n)."""
    x = torch.stack(inputs, 1)
    return x, torch.arange(len(inputs), device=x.device).expand(x.shape[:2])


def compare(dim: int, classes: int):
    """A head over concatenated features. One linear layer would add up what each input says, and compare nothing."""
    return nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


TASKS = {
    "rotnet": RotNet,
    "puzzles": Puzzles,
    "clip_order": ClipOrder,
    "pace": Pace,
    "arrow_of_time": ArrowOfTime,
    "order_verification": OrderVerification,
}
