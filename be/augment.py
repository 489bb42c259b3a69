"""Views of clips: crop, rotation and colour, drawn once per clip and shared by its frames.

The loader hands over uint8 frames. Everything here happens a batch at a time, on the tensors' device, in float32.
Drawing and applying are two steps, because two clips may share a draw:

    a1 = draw_view(draws, B, rotate=10.0, jitter=(0.5, 0.5, 0.25, 0.5))
    x_o = apply_view(clips[:, 0], size, a1, S)                      # (B, 3, T, S, S)
    x_n = apply_view(clips[:, 1], size, a1.framed_as(another), S)   # the same angle and colours, another window

The paper's set A: a random crop of the stored size, a rotation below 10 degrees, colour jitter of strengths it does not
give. Resized crops and flips are of later recipes, and off by default.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in PIL; sums to 1, so that greys stay as they are


class Draws:
    """The random numbers of one training step: a pure function of (seed, step), with no state to save.

    Every draw is made for the *global* batch of world * n rows, of which this rank gets n rows from rank * n on. Two
    processes of n rows thus draw what one of 2n rows draws, if all make the same calls in the same order. numpy makes
    them on the CPU, so that they are the same on every kind of device: some hundreds a step, in microseconds; noise
    frames, 64 x 3 x 112 x 112, take about 30 ms.
    """

    def __init__(self, seed, step, rank=0, world=1, device="cpu"):
        # numpy fills short seeds up with zeros: the last two words keep these numbers apart from those of the loader,
        # seeded by (seed, epoch, index). A torch.Generator on the CPU has seeds of 32 bits only.
        self.rng = np.random.default_rng((seed, step, 0, 1))
        self.rank, self.world, self.device = rank, world, torch.device(device)

    def rand(self, n, *shape):
        """Uniform in [0, 1). -> float32 (n, *shape)"""
        return self._rows(self.rng.random, n, shape, dtype=np.float32)

    def randn(self, n, *shape):
        """Standard normal. -> float32 (n, *shape)"""
        return self._rows(self.rng.standard_normal, n, shape, dtype=np.float32)

    def randint(self, high, n, *shape):
        """Uniform in 0..high-1. -> int64 (n, *shape)"""
        return self._rows(self.rng.integers, n, shape, low=0, high=high)

    def randperm(self, n):
        """A permutation of the rows of the global batch, the same on every rank. -> int64 (world * n,)"""
        return self._send(self.rng.permutation(self.world * n))

    def dropout(self, x, p):
        """What F.dropout does in training, with the mask drawn here. x: (n, ...), p: in [0, 1)."""
        return x * ((self.rand(*x.shape) >= p) / (1 - p)).to(x.dtype)

    def _rows(self, draw, n, shape, **how):
        return self._send(draw(size=(self.world * n, *shape), **how)[self.rank * n : (self.rank + 1) * n])

    def _send(self, values):
        values = torch.from_numpy(values)
        if self.device.type == "cuda":  # pinned memory: the copy waits for no kernel, the host for no copy
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)


@dataclass(frozen=True)
class ViewParams:
    """One augmentation per clip. It holds for frames of any size and for clips of any length."""

    position: torch.Tensor  # (B, 2) in [0, 1), of the window in the room it has: 0 = at the top, at the left
    area: torch.Tensor | None  # (B,) of the window, 1 = the frame's largest square; None: S x S pixels as stored
    flip: torch.Tensor  # (B,) bool, left and right change places
    angle: torch.Tensor  # (B,) degrees, the picture turns counter-clockwise
    colour: torch.Tensor  # (B, 4) factors of brightness, contrast and saturation; hue in turns

    def framed_as(self, other):
        """These angles and colours in the windows (place, size, flip) of `other`, ViewParams of as many clips."""
        return replace(self, position=other.position, area=other.area, flip=other.flip)


def draw_view(draws, n, scale=None, flip=0.0, rotate=0.0, jitter=(0.0, 0.0, 0.0, 0.0), jitter_ops="all"):
    """Draw n augmentations, of keys whose ranges be/config.py holds. Default: a plain random crop. -> ViewParams

    An argument of your own is a key of Config of the same name. Draw for it after what is drawn already: runs of before
    then see the same views.

    scale: range of the area of a square window, resized to S x S; 1 = the frame's largest. None: S x S as stored.
    flip: probability that left and right change places.
    rotate: angles are uniform in (-rotate, rotate) degrees. Paper: 10.
    jitter: strengths s of brightness, contrast, saturation, hue as in torchvision's ColorJitter: a factor uniform in
      [max(0, 1 - s), 1 + s], a hue uniform in [-s, s] turns. Released code: 0.5, 0.5, 0.25, 0.5.
    jitter_ops: "all" of the four, or "one" of them, drawn per clip, as the released code has it in effect.
    """
    u = draws.rand(n, 10)  # all at once: one copy to the device
    still, reach = _constant([1, 1, 1, 0], u), _constant(jitter, u)
    low, high = (still - reach).maximum(_constant([0, 0, 0, -0.5], u)), still + reach
    colour = low + (high - low) * u[:, 4:8]
    if jitter_ops == "one":
        chosen = (4 * u[:, 8:9]).long() == torch.arange(4, device=u.device)  # (n, 4), one True in a row
        colour = torch.where(chosen, colour, still)
    area = None if scale is None else scale[0] + (scale[1] - scale[0]) * u[:, 2]
    angle = rotate * (2 * u[:, 3] - 1)
    return ViewParams(position=u[:, 0:2], area=area, flip=u[:, 9] < flip, angle=angle, colour=colour)


def apply_view(clips, size, params, S):
    """Crop, rotate, recolour, normalise. -> float32 (B, 3, T, S, S), contiguous

    clips: uint8 (B, T, H, W, 3), frames zero-padded at the bottom and at the right to a common H and W.
    size: int64 (B, 2), the true height and width of each clip's frames. The padding is never read.
    Raises ValueError if clips are of another type or shape.
    """
    side = torch.full_like(params.angle, S) if params.area is None else size.amin(1) * params.area.sqrt()
    x = crop(clips, size, params.position, side, params.angle, S, params.flip)
    return normalise(recolour(x, params.colour))


def eval_view(clips, size, S):
    """The central S x S pixels as they are stored, or the largest central square scaled up to S; normalised. Arguments,
    result and errors are those of `apply_view`."""
    half = torch.full((len(clips), 2), 0.5, device=clips.device)
    one = torch.ones_like(half[:, 0])
    return normalise(crop(clips, size, half, S * one, 0 * one, S))


def crop(clips, size, position, side, angle, S, flip=None):
    """Cut a square window out of every clip and sample it bilinearly. -> float32 (B, 3, T, S, S) in [0, 1]

    The window is `side` (B,) pixels wide, rounded, or the short side of the frame if that is less. It starts at a whole
    pixel, so that a side of S without rotation copies pixels. It turns about its own centre; what of it then sticks out
    of the frame repeats the frame's border. A window larger than S is sampled without a low-pass. flip: None for no
    clip. Other arguments as in ViewParams, apply_view.
    """
    if clips.dtype != torch.uint8 or clips.dim() != 5 or clips.shape[-1] != 3:
        raise ValueError(f"clips must be uint8 (B, T, H, W, 3), got {clips.dtype} {tuple(clips.shape)}")
    B, T, H, W, _ = clips.shape
    size = size.float().flip(1)  # (B, 2): width, height
    side = side.round().clamp(min=1).minimum(size.amin(1))[:, None]  # (B, 1)
    start = (position.flip(1) * (size - side + 1)).floor()  # (B, 2), 0 to the room there is
    # Where the centre of each output pixel lies in its frame, in pixels; pixel i covers [i, i + 1].
    t = ((torch.arange(S, device=clips.device) + 0.5) / S - 0.5) * side  # (B, S), 0 = centre of the window
    x, y = torch.broadcast_tensors((t if flip is None else torch.where(flip[:, None], -t, t))[:, None], t[:, :, None])
    turn = torch.polar(torch.ones_like(angle), angle.deg2rad())  # as complex numbers x + iy
    xy = torch.view_as_real(torch.complex(x, y) * turn[:, None, None]) + (start + side / 2)[:, None, None]
    xy = xy.clamp(min=0.5).minimum(size[:, None, None] - 0.5)  # (B, S, S, 2)
    grid = 2 * xy / _constant([W, H], xy) - 1  # -1 and 1 are the outer borders
    # The frames of a clip share its grid, so they ride along as channels; one pass makes floats and planes.
    planes = clips.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    x = F.grid_sample(planes.view(B, 3 * T, H, W), grid, align_corners=False)  # (B, 3 * T, S, S)
    return x.view(B, 3, T, S, S).div_(255)


def recolour(x, colour):
    """Brightness, contrast, saturation and hue as one affine map of RGB per clip, clamped once to [0, 1].

    x: float (B, 3, T, S, S) in [0, 1]. colour: (B, 4), see ViewParams. -> like x
    Unlike torchvision's ColorJitter, contrast is about the mean grey of the clip, not of each frame; hue turns RGB
    about the grey axis; brightness, contrast, saturation, hue always come in this order; nothing is rounded in between.
    """
    brightness, contrast, saturation, hue = colour[:, :, None, None].unbind(1)  # (B, 1, 1) each
    grey = _constant(GREY, x)
    cross = _constant([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], x)
    eye = torch.eye(3, device=x.device)
    cos, sin = (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()
    spin = cos * eye + (1 - cos) / 3 + sin / math.sqrt(3) * cross  # (B, 3, 3), Rodrigues about (1, 1, 1)
    fade = saturation * eye + (1 - saturation) * grey  # (B, 3, 3), the second term has `grey` in each row
    with torch.autocast(x.device.type, enabled=False):  # bf16 would keep 8 bits of a colour
        matrix = brightness * contrast * (spin @ fade)  # (B, 3, 3)
        mean = (x.mean((2, 3, 4)) @ grey)[:, None, None]  # (B, 1, 1), the mean grey of the clip
        offset = brightness * (1 - contrast) * mean  # (B, 1, 1), a grey, which spin and fade leave alone
        out = (matrix @ x.flatten(2)).add_(offset)  # (B, 3, T * S * S)
    return out.clamp_(0, 1).view_as(x)


def normalise(x):
    """RGB in [0, 1] to zero mean and unit variance over ImageNet. x: float (B, 3, ...) -> like x"""
    mean, std = _statistics(x)
    return torch.addcmul(-mean / std, x, 1 / std)  # in one pass


def denormalise(x):
    """The inverse of `normalise`, for pictures. x: float (B, 3, ...) -> like x, in [0, 1] up to rounding"""
    mean, std = _statistics(x)
    return x * std + mean


def _statistics(x):
    return _constant([MEAN, STD], x).view(2, 3, *[1] * (x.dim() - 2))


def _constant(values, like):
    """A tensor of the type and on the device of `like`. The host does not wait for the copy."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
