"""Views of clips: crop, rotation and colour, drawn once per clip and shared by its frames.

The loader hands over uint8 frames; everything here happens on the device, a batch at a time, out of
place, in float32. Drawing and applying are two steps, because the paper augments the hard negative
with the query's own augmentation a1:

    a1 = draw_view(draws, B, rotate=10.0, jitter=(0.5, 0.5, 0.25, 0.5))
    x_o = apply_view(clips[:, 0], size, a1, S)          # (B, 3, T, S, S)
    x_n = apply_view(clips[:, 1], size, a1, S)          # another clip, same window, angle, colour
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, as in PIL and torchvision; sums to 1


class Draws:
    """The random numbers of one training step, a pure function of (seed, step): no state to save.

    Every draw is made for the *global* batch of world * n rows, and the rows of this rank are
    returned, rank * n to (rank + 1) * n: two processes of n rows draw exactly what one process of
    2n rows draws. All ranks must make the same calls in the same order. Successive calls differ.

    Numbers come from numpy on the CPU, so that a run draws the same ones on every device. A step
    draws some hundreds of them, which costs microseconds.
    """

    def __init__(self, seed, step, rank=0, world=1, device="cpu"):
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..{world - 1} for a world of {world}, got {rank}")
        # The last two words keep this stream apart from the loader's (seed, epoch, index): numpy pads
        # short seeds with zeros. (A torch.Generator on the CPU would use only 32 bits of the hash.)
        self.rng = np.random.default_rng((seed, step, 0, 1))
        self.rank, self.world, self.device = rank, world, torch.device(device)

    def rand(self, n, *shape):
        """Uniform in [0, 1). -> float32 (n, *shape)"""
        return self._rows(self.rng.random((self.world * n, *shape), dtype=np.float32), n)

    def randn(self, n, *shape):
        """Standard normal. -> float32 (n, *shape)"""
        return self._rows(self.rng.standard_normal((self.world * n, *shape), dtype=np.float32), n)

    def randint(self, high, n, *shape):
        """Uniform in 0..high-1. -> int64 (n, *shape)"""
        return self._rows(self.rng.integers(high, size=(self.world * n, *shape)), n)

    def randperm(self, n):
        """A permutation of the rows of the global batch, the same on every rank. -> int64 (world * n,)"""
        return self._send(self.rng.permutation(self.world * n))

    def dropout(self, x, p):
        """F.dropout in training mode, with a mask that does not depend on the number of processes."""
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must lie in [0, 1), got {p}")
        return x * ((self.rand(*x.shape) >= p) / (1 - p)).to(x.dtype)

    def _rows(self, values, n):
        return self._send(values[self.rank * n : (self.rank + 1) * n])

    def _send(self, values):
        values = torch.from_numpy(values)
        if self.device.type == "cuda":  # pinned, so that the copy does not wait for the kernels before it
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)


@dataclass(frozen=True)
class ViewParams:
    """One augmentation per clip, independent of the size of its frames."""

    position: torch.Tensor  # (B, 2) in [0, 1): window in its free room, from top and left
    scale: torch.Tensor  # (B,) side of the window, in units of the output's side S
    angle: torch.Tensor  # (B,) degrees, counter-clockwise
    colour: torch.Tensor  # (B, 4) brightness, contrast, saturation factors; hue in turns


def draw_view(draws, n, *, scale=(1.0, 1.0), rotate=0.0, jitter=(0.0, 0.0, 0.0, 0.0), jitter_ops="all"):
    """Draw n augmentations; the defaults are a plain random crop. -> ViewParams

    scale: range of the side of the square crop window, in units of the output's side S. (1, 1) cuts
      S x S pixels of the frames as they are stored; (0.5, 1) also zooms in, up to twofold.
    rotate: angles are uniform in (-rotate, rotate) degrees. Paper: 10.
    jitter: strength of brightness, contrast, saturation and hue as in torchvision's ColorJitter: factors
      uniform in [max(0, 1 - s), 1 + s], hue in [-s, s] turns, s <= 0.5.
    jitter_ops: "all" four of them, or "one" chosen per clip, which is what the released code amounts to.
    """
    if jitter_ops not in ("all", "one"):
        raise ValueError(f"jitter_ops must be 'all' or 'one', got {jitter_ops!r}")
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError(f"jitter must be 4 strengths >= 0, the last (hue) at most 0.5, got {jitter}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be a range 0 < low <= high, got {scale}")
    position = draws.rand(n, 2)
    side = scale[0] + (scale[1] - scale[0]) * draws.rand(n)
    angle = rotate * (2 * draws.rand(n) - 1)
    u, chosen = draws.rand(n, 4), draws.randint(4, n)
    neutral = _tensor((1, 1, 1, 0), u)
    low = _tensor([max(0.0, 1 - s) for s in jitter[:3]] + [-jitter[3]], u)
    high = _tensor([1 + s for s in jitter[:3]] + [jitter[3]], u)
    colour = low + (high - low) * u
    if jitter_ops == "one":
        colour = torch.where(chosen[:, None] == torch.arange(4, device=u.device), colour, neutral)
    return ViewParams(position, side, angle, colour)


def apply_view(clips, size, params, S):
    """Augment and normalise. -> float32 (B, 3, T, S, S), channels_last_3d

    clips: uint8 (B, T, H, W, 3), frames zero-padded at the bottom and the right to a common H, W.
    size: int64 (B, 2), true height and width of each clip's frames; the padding is never read.
    """
    x = crop(clips, size, params.position, params.scale, params.angle, S)  # (B, T, S, S, 3)
    return normalise(recolour(x, params.colour).permute(0, 4, 1, 2, 3))


def eval_view(clips, size, S):
    """The centre S x S pixels as stored, or the largest centre square scaled up to S. Normalised.

    Arguments and result as in `apply_view`.
    """
    B = len(clips)
    centre = torch.full((B, 2), 0.5, device=clips.device)
    x = crop(clips, size, centre, torch.ones_like(centre[:, 0]), torch.zeros_like(centre[:, 0]), S)
    return normalise(x.permute(0, 4, 1, 2, 3))


def crop(clips, size, position, scale, angle, S):
    """Cut a rotated square window out of every clip, bilinearly. -> float32 (B, T, S, S, 3) in [0, 1]

    The window is round(scale * S) pixels wide, at most the short side of the frame. It starts at a
    whole pixel, so that scale 1 without rotation copies pixels. It turns about its own centre; where it
    then sticks out of the frame the border pixel is repeated.
    """
    B, T, H, W, _ = clips.shape
    size = size.to(torch.float32)  # (B, 2) height, width
    side = (scale * S).round().minimum(size.amin(1))[:, None]  # (B, 1) pixels
    corner = (position * (size - side + 1)).floor().minimum(size - side)  # (B, 2)
    y, x = (corner + side / 2)[:, :, None, None].unbind(1)  # (B, 1, 1) centre of the window
    t = ((torch.arange(S, device=clips.device) + 0.5) / S - 0.5) * side  # (B, S) pixels about the centre
    dy, dx = t[:, :, None], t[:, None, :]
    cos, sin = (f(torch.deg2rad(angle))[:, None, None] for f in (torch.cos, torch.sin))
    y, x = y + cos * dy + sin * dx, x + cos * dx - sin * dy  # (B, S, S), pixel centres lie at 0.5, 1.5, ...
    limit = size[:, :, None, None] - 0.5
    y = y.clamp(min=0.5).minimum(limit[:, 0])
    x = x.clamp(min=0.5).minimum(limit[:, 1])
    grid = torch.stack([2 * x / W - 1, 2 * y / H - 1], dim=-1)  # (B, S, S, 2), shared by the frames
    # Frames ride along as channels. The conversion to float and to planes is one pass.
    planes = clips.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    out = F.grid_sample(planes.view(B, T * 3, H, W), grid, align_corners=False)  # (B, T * 3, S, S)
    return out.div_(255).view(B, T, 3, S, S).permute(0, 1, 3, 4, 2)


def recolour(x, colour):
    """Brightness, contrast, saturation, hue as one affine map of RGB per clip, clamped once to [0, 1].

    x: (B, T, S, S, 3) in [0, 1]. colour: (B, 4), see ViewParams.
    Differs from torchvision's ColorJitter: contrast is about the mean grey of the clip, not of each
    frame; hue turns RGB about the grey axis, not in HSV; the order is fixed; nothing is clamped between.
    """
    brightness, contrast, saturation, hue = colour[:, :, None, None].unbind(1)  # (B, 1, 1)
    one = torch.eye(3, device=x.device)
    grey = _tensor(GREY, x)
    cross = _tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], x)
    turn = 2 * math.pi * hue
    # Rodrigues' rotation about (1, 1, 1); a turn of 1/3 sends red to green
    spin = turn.cos() * one + (1 - turn.cos()) / 3 + turn.sin() / math.sqrt(3) * cross  # (B, 3, 3)
    fade = saturation * one + (1 - saturation) * grey  # (B, 3, 3)
    matrix = brightness * contrast * (spin @ fade)
    mean = (x.mean(dim=(1, 2, 3)) * grey).sum(-1)[:, None, None]  # (B, 1, 1), the maps keep greys
    offset = brightness * (1 - contrast) * mean
    B, T, S, _, _ = x.shape
    out = x.reshape(B, -1, 3) @ matrix.mT + offset
    return out.clamp_(0, 1).view(B, T, S, S, 3)


def normalise(x):
    """RGB (B, 3, ...) in [0, 1] -> ImageNet's zero mean and unit variance."""
    shape = (3,) + (1,) * (x.dim() - 2)
    return (x - _tensor(MEAN, x).view(shape)) / _tensor(STD, x).view(shape)


def denormalise(x):
    """The inverse of `normalise`, for pictures."""
    shape = (3,) + (1,) * (x.dim() - 2)
    return x * _tensor(STD, x).view(shape) + _tensor(MEAN, x).view(shape)


def _tensor(values, like):
    """A constant beside `like`, copied without a wait."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
