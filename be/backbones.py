"""The video networks of the paper: clips in, a feature map out, no head inside.

    backbone = BACKBONES["i3d"](width=64)
    features = backbone(clips)      # (B, 3, T, H, W) float -> (B, backbone.dim, T', H', W')

Pooling, projections and classifiers belong to whoever uses the map: the losses, retrieval and CAM
each want a different one. Every stage that halves a size rounds it up, so no input is too small:

                                                T', S' of a clip of T frames, S x S pixels ("TxS")
    name        dim        parameters  T'    S'    16x112  16x224  64x224  16x32  8x32
    c3d         8 width     27.66 M    T/8   S/16    2, 7   2, 14   8, 14   2, 2  1, 2
    r3d18       8 width     33.20 M    T/16  S/32    1, 4   1, 7    4, 7    1, 1  1, 1
    r3d34       8 width     63.51 M    T/16  S/32    1, 4   1, 7    4, 7    1, 1  1, 1
    r3d18tv     8 width     33.17 M    T/8   S/16    2, 7   2, 14   8, 14   2, 2  1, 2
    r2plus1d18  8 width     31.30 M    T/8   S/16    2, 7   2, 14   8, 14   2, 2  1, 2
    i3d        16 width     12.29 M    T/8   S/32    2, 4   2, 7    8, 7    2, 1  1, 1
    s3d        16 width      7.91 M    T/8   S/32    2, 4   2, 7    8, 7    2, 1  1, 1

`width` is the number of channels after the first layer and scales all others in proportion: 64 is
the published network and the parameter counts above, 8 or 16 suits a laptop. A single clip whose
map is 1, 1 cannot be trained alone, since BatchNorm then sees one value per channel.

Any floating dtype, autocast, channels_last_3d and torch.compile work. Keep bfloat16 to the GPU: on
CPUs with native bfloat16, PyTorch's Conv3d (2.15, oneDNN) returns wrong gradients of its weights
where the map has two frames, and may corrupt memory where it is small (BENCHMARKS.md).
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from be.config import choose


def check_clips(clips: Tensor) -> Tensor:
    """The clips themselves, if a backbone can take them: floating point, (B, 3, T, H, W).

    Raises ValueError, with what came instead, otherwise.
    """
    if clips.ndim != 5 or clips.shape[1] != 3:
        raise ValueError(f"clips must be (B, 3, T, H, W), got {tuple(clips.shape)}")
    if not clips.is_floating_point():
        raise ValueError(f"clips must be floating point (normalised pixels), got {clips.dtype}")
    return clips


def scaled(channels: int, width: int) -> int:
    """How many channels stand for the published network's `channels` at this width; at least 1.

    Raises ValueError if the width is not a whole number of at least 1.
    """
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be an integer of at least 1 (64 is the published size), got {width!r}")
    return max(1, round(channels * width / 64))


def he_init(network: nn.Module) -> None:
    """He et al. 2015 for the convolutions, in place. BatchNorm starts as the identity by itself."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def relu(x: Tensor) -> Tensor:
    """In place: the BatchNorm or sum before it does not need its own output to go backward."""
    return F.relu(x, inplace=True)


# ----------------------------------------------------------------------------------------------------
# C3D


class C3D(nn.Module):
    """C3D (Tran et al. 2015), conv1a to conv5b, with BatchNorm as in BE's released code.

    The paper's: width 64, 16 frames of 112 x 112. pool5 and the fully connected layers are a head, so
    the map is conv5b's. Module names are those of the released code (and of VCOP): `conv1 bn1 conv2
    bn2 conv3a bn3a .. conv5b bn5b`. The convolutions have no bias, as BatchNorm would subtract it:
    to import one, subtract it from `running_mean`.
    """

    pieces = ("_unit",)

    def __init__(self, width: int = 64):
        super().__init__()
        w = scaled(64, width)
        self.dim = 8 * w
        self.conv1, self.bn1 = self._layer(3, w)
        self.conv2, self.bn2 = self._layer(w, 2 * w)
        self.conv3a, self.bn3a = self._layer(2 * w, 4 * w)
        self.conv3b, self.bn3b = self._layer(4 * w, 4 * w)
        self.conv4a, self.bn4a = self._layer(4 * w, 8 * w)
        self.conv4b, self.bn4b = self._layer(8 * w, 8 * w)
        self.conv5a, self.bn5a = self._layer(8 * w, 8 * w)
        self.conv5b, self.bn5b = self._layer(8 * w, 8 * w)
        he_init(self)

    @staticmethod
    def _layer(c_in: int, c_out: int) -> tuple[nn.Conv3d, nn.BatchNorm3d]:
        return nn.Conv3d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm3d(c_out)

    def _unit(self, x: Tensor, name: str, pool: tuple[int, int, int] | None = None) -> Tensor:
        conv, bn = getattr(self, f"conv{name}"), getattr(self, f"bn{name}")
        x = relu(bn(conv(x)))
        # ceil_mode changes nothing at 112 or 224, and keeps one cell where one is left
        return F.max_pool3d(x, pool, pool, ceil_mode=True) if pool else x

    def forward(self, clips: Tensor) -> Tensor:
        x = self._unit(check_clips(clips), "1", pool=(1, 2, 2))  # (B, w, T, S/2, S/2)
        x = self._unit(x, "2", pool=(2, 2, 2))  # (B, 2w, T/2, S/4, S/4)
        x = self._unit(self._unit(x, "3a"), "3b", pool=(2, 2, 2))  # (B, 4w, T/4, S/8, S/8)
        x = self._unit(self._unit(x, "4a"), "4b", pool=(2, 2, 2))  # (B, 8w, T/8, S/16, S/16)
        return self._unit(self._unit(x, "5a"), "5b")  # (B, 8w, T/8, S/16, S/16)


# ----------------------------------------------------------------------------------------------------
# R3D and R(2+1)D: one residual network, two ways to convolve

Triple = tuple[int, int, int]
ConvMaker = Callable[[int, int, int, Triple, Triple], nn.Module]


def conv3d(c_in: int, c_mid: int, c_out: int, size: Triple, stride: Triple) -> nn.Module:
    """A 3D convolution, centred padding, no bias. `c_mid` is only for its factored sister."""
    return nn.Conv3d(c_in, c_out, size, stride, tuple(n // 2 for n in size), bias=False)


def conv2plus1d(c_in: int, c_mid: int, c_out: int, size: Triple, stride: Triple) -> nn.Module:
    """The same factored: space first, into `c_mid` channels, then time (Tran et al. 2018)."""
    (t, h, w), (st, sh, sw) = size, stride
    return nn.Sequential(
        conv3d(c_in, 0, c_mid, (1, h, w), (1, sh, sw)),
        nn.BatchNorm3d(c_mid),
        nn.ReLU(inplace=True),
        conv3d(c_mid, 0, c_out, (t, 1, 1), (st, 1, 1)),
    )


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions around a shortcut; strided or widening ones project it (type B).

    (B, c_in, T, H, W) -> (B, c_out, T/stride, H/stride, W/stride), sizes rounded up.
    """

    pieces = ("forward",)

    def __init__(self, c_in: int, c_out: int, stride: int, conv: ConvMaker):
        super().__init__()
        c_mid = 27 * c_in * c_out // (9 * c_in + 3 * c_out)  # as many weights as the unfactored kernel
        self.conv1 = conv(c_in, c_mid, c_out, (3, 3, 3), (stride,) * 3)
        self.bn1 = nn.BatchNorm3d(c_out)
        self.conv2 = conv(c_out, c_mid, c_out, (3, 3, 3), (1, 1, 1))
        self.bn2 = nn.BatchNorm3d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            projection = nn.Conv3d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return relu(x)


class ResNet3D(nn.Module):
    """A stem of stride (1, 2, 2) and four stages of basic blocks, of width, 2, 4 and 8 times width.

    blocks: how many per stage. conv: how all but the shortcuts convolve. stem: its kernel; stem_mid:
    its channels between space and time, if factored; pool: whether a 3x3x3 max pool of stride 2
    follows it. Module names are Hara's: `conv1 bn1 layer1.0.conv1 layer1.0.bn1 .. layer2.0.downsample.0 ..`.
    """

    pieces = ("_stem",)

    def __init__(
        self, blocks: tuple[int, ...], width: int, *, conv: ConvMaker, stem: Triple, stem_mid: int, pool: bool
    ):
        super().__init__()
        w = scaled(64, width)
        self.dim = 8 * w
        self.pool = pool
        self.conv1 = conv(3, stem_mid, w, stem, (1, 2, 2))
        self.bn1 = nn.BatchNorm3d(w)
        self.layer1 = self._stage(w, w, blocks[0], 1, conv)
        self.layer2 = self._stage(w, 2 * w, blocks[1], 2, conv)
        self.layer3 = self._stage(2 * w, 4 * w, blocks[2], 2, conv)
        self.layer4 = self._stage(4 * w, 8 * w, blocks[3], 2, conv)
        he_init(self)

    @staticmethod
    def _stage(c_in: int, c_out: int, blocks: int, stride: int, conv: ConvMaker) -> nn.Sequential:
        rest = [BasicBlock(c_out, c_out, 1, conv) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(c_in, c_out, stride, conv), *rest)

    def _stem(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))  # (B, w, T, S/2, S/2)
        return F.max_pool3d(x, 3, 2, padding=1) if self.pool else x  # (B, w, T/2, S/4, S/4)

    def forward(self, clips: Tensor) -> Tensor:
        x = self._stem(check_clips(clips))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return self.layer4(x)  # (B, 8w, T/16, S/32, S/32), or T/8, S/16 without the pool


def r3d18(width: int = 64) -> ResNet3D:
    """R3D-18 (Hara et al. 2018): 7x7x7 stem, max pool, shortcuts of type B (projections).

    Theirs: width 64, 16 frames of 112 x 112. Their first Kinetics weights of 18 and 34 layers have
    shortcuts of type A (subsampled, padded with zero channels) and do not fit; the later `r3d18_*`
    and `r3d34_*` do, under these very names.
    """
    return ResNet3D((2, 2, 2, 2), width, conv=conv3d, stem=(7, 7, 7), stem_mid=0, pool=True)


def r3d34(width: int = 64) -> ResNet3D:
    """R3D-34 (Hara et al. 2018), r3d18 with 3, 4, 6 and 3 blocks. BE: width 64, 16 frames of 224 x 224."""
    return ResNet3D((3, 4, 6, 3), width, conv=conv3d, stem=(7, 7, 7), stem_mid=0, pool=True)


def r3d18tv(width: int = 64) -> ResNet3D:
    """R3D-18 (Tran et al. 2018) as torchvision builds it, 3x7x7 stem and no pool; an extra, not in the BE paper.

    Theirs: width 64, 16 frames of 112 x 112. torchvision's weights fit once `stem.0` is `conv1`, `stem.1` is `bn1`,
    and in each block `convN.1` is `bnN` and then `convN.0` is `convN`.
    """
    return ResNet3D((2, 2, 2, 2), width, conv=conv3d, stem=(3, 7, 7), stem_mid=0, pool=False)


def r2plus1d18(width: int = 64) -> ResNet3D:
    """R(2+1)D-18 (Tran et al. 2018) as torchvision builds it; an extra, not in the BE paper.

    Theirs: width 64, 16 frames of 112 x 112. torchvision's weights fit once `stem.{0,1,3}` is
    `conv1.{0,1,3}`, `stem.4` is `bn1`, and in each block `convN.1` is `bnN` and then `convN.0` is `convN`.
    """
    mid = scaled(45, width)
    return ResNet3D((2, 2, 2, 2), width, conv=conv2plus1d, stem=(3, 7, 7), stem_mid=mid, pool=False)


# ----------------------------------------------------------------------------------------------------
# I3D


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Padding before and after an axis under TensorFlow's SAME rule, the odd one after.

    The output is ceil(length / stride) long: 7 wide, stride 2, over 224 -> (2, 3); over 111 -> (3, 3).
    """
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def same_max_pool(x: Tensor, size: Triple, stride: Triple) -> Tensor:
    """Max pool under the SAME rule, without a padded copy.

    Only the padding before is given: ceil_mode lets the last window overhang by the padding after.
    Nothing outside takes part in a maximum, which after a ReLU equals the zeros other ports pad with.
    """
    before = [same_padding(n, k, s)[0] for n, k, s in zip(x.shape[2:], size, stride, strict=True)]
    return F.max_pool3d(x, size, stride, before, ceil_mode=True)


class Unit3D(nn.Module):
    """Convolution, BatchNorm, ReLU under the SAME rule: a cube of `size`, odd, every axis by `stride`."""

    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1):
        super().__init__()
        self.size, self.stride = size, stride
        # with stride 1, SAME is symmetric and the convolution pads by itself; else forward does
        self.conv3d = nn.Conv3d(c_in, c_out, size, stride, size // 2 if stride == 1 else 0, bias=False)
        # eps as DeepMind's weights expect. Momentum stays 0.1, as in BE's released code: the ports'
        # 0.01 suits weights already trained, but leaves a short run's averages far behind.
        self.bn = nn.BatchNorm3d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != 1:
            pads = [same_padding(n, self.size, self.stride) for n in x.shape[2:]]
            x = F.pad(x, pads[2] + pads[1] + pads[0])  # F.pad wants the last axis first
        return relu(self.bn(self.conv3d(x)))


class Mixed(nn.Module):
    """An Inception module: four branches over one map, concatenated over channels; sizes are kept.

    channels: of 1x1x1; of 1x1x1 and 3x3x3; of 1x1x1 and 3x3x3; of 1x1x1 after a max pool.
    """

    pieces = ("forward",)

    def __init__(self, c_in: int, channels: list[int]):
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        self.dim = c0 + c1b + c2b + c3
        self.b0 = Unit3D(c_in, c0, 1)
        self.b1a, self.b1b = Unit3D(c_in, c1a, 1), Unit3D(c1a, c1b, 3)
        self.b2a, self.b2b = Unit3D(c_in, c2a, 1), Unit3D(c2a, c2b, 3)
        self.b3b = Unit3D(c_in, c3, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = same_max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


MIXED = {  # the branches' channels, as published
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class I3D(nn.Module):
    """I3D (Carreira & Zisserman 2017), RGB: Inception-v1 inflated, up to Mixed_5c.

    BE: width 64, 16 frames of 224 x 224 (its released code fine-tunes with 64 frames). Module names
    are the widespread PyTorch port's: `Conv3d_1a_7x7.conv3d`, `Mixed_3b.b1a.bn`; its `rgb_imagenet.pt`
    fits as it is, less `logits.*`. Those weights were trained on pixels in [-1, 1].
    """

    pieces = ("_bottom", "_stem")

    def __init__(self, width: int = 64):
        super().__init__()
        w64, w192 = scaled(64, width), scaled(192, width)
        self.Conv3d_1a_7x7 = Unit3D(3, w64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit3D(w64, w64, 1)
        self.Conv3d_2c_3x3 = Unit3D(w64, w192, 3)
        self.dim = w192
        for name, channels in MIXED.items():
            mixed = Mixed(self.dim, [scaled(c, width) for c in channels])
            self.add_module(name, mixed)
            self.dim = mixed.dim  # ends at 16 width
        he_init(self)

    def _bottom(self, x: Tensor) -> Tensor:
        x = self.Conv3d_1a_7x7(x)  # (B, w, T/2, S/2, S/2)
        return same_max_pool(x, (1, 3, 3), (1, 2, 2))

    def _stem(self, x: Tensor) -> Tensor:
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))  # (B, 3w, T/2, S/4, S/4)
        return same_max_pool(x, (1, 3, 3), (1, 2, 2))

    def forward(self, clips: Tensor) -> Tensor:
        x = self._stem(self._bottom(check_clips(clips)))
        x = self.Mixed_3c(self.Mixed_3b(x))  # (B, 7.5w, T/2, S/8, S/8)
        x = same_max_pool(x, (3, 3, 3), (2, 2, 2))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = same_max_pool(x, (2, 2, 2), (2, 2, 2))  # (B, 13w, T/8, S/32, S/32)
        return self.Mixed_5c(self.Mixed_5b(x))  # (B, 16w, T/8, S/32, S/32)


# ----------------------------------------------------------------------------------------------------
# S3D: I3D's modules, factored


class Pointwise(nn.Module):
    """A 1x1x1 convolution, BatchNorm, ReLU; sizes are kept."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = conv3d(c_in, 0, c_out, (1, 1, 1), (1, 1, 1))
        self.bn = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class Separable(nn.Module):
    """Space, BatchNorm, ReLU, then time, BatchNorm, ReLU: a cube of `size`, odd, in two; every axis by `stride`.

    (B, c_in, T, H, W) -> (B, c_out, T/stride, H/stride, W/stride), sizes rounded up.
    """

    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv3d(c_in, 0, c_out, (1, size, size), (1, stride, stride))
        self.bn1 = nn.BatchNorm3d(c_out)
        self.conv2 = conv3d(c_out, 0, c_out, (size, 1, 1), (stride, 1, 1))
        self.bn2 = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))  # (B, c_out, T, H/stride, W/stride)
        return relu(self.bn2(self.conv2(x)))


class SeparableMixed(nn.Module):
    """`Mixed` with its 3x3x3 convolutions factored; the same channels, CoCLR's names."""

    pieces = ("forward",)

    def __init__(self, c_in: int, channels: list[int]):
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        self.dim = c0 + c1b + c2b + c3
        self.branch0 = nn.Sequential(Pointwise(c_in, c0))
        self.branch1 = nn.Sequential(Pointwise(c_in, c1a), Separable(c1a, c1b, 3))
        self.branch2 = nn.Sequential(Pointwise(c_in, c2a), Separable(c2a, c2b, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, padding=1), Pointwise(c_in, c3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


class S3D(nn.Module):
    """S3D (Xie et al. 2018) without gates, up to Mixed_5c: CoCLR's backbone; an extra, not in the BE paper.

    CoCLR: width 64, 32 frames of 128 x 128. Module names are CoCLR's: `Conv_1a.conv1`, `Mixed_3b.branch1.1.bn2`.
    So is BatchNorm's eps, 1e-5, so that its weights fit as they are and train on as they did; torchvision's, made
    with 1e-3, are rescaled (weights.py). One thing differs from both: of an odd map (7 at 112 pixels) the pool before
    Mixed_5b keeps the last row, as every backbone here does, and the SAME rule of the paper's TensorFlow code.
    """

    pieces = ("_bottom", "_stem")

    def __init__(self, width: int = 64):
        super().__init__()
        w64, w192 = scaled(64, width), scaled(192, width)
        self.Conv_1a = Separable(3, w64, 7, stride=2)
        self.Conv_2b = Pointwise(w64, w64)
        self.Conv_2c = Separable(w64, w192, 3)
        self.dim = w192
        for name, channels in MIXED.items():
            mixed = SeparableMixed(self.dim, [scaled(c, width) for c in channels])
            self.add_module(name, mixed)
            self.dim = mixed.dim  # ends at 16 width
        he_init(self)

    def _bottom(self, x: Tensor) -> Tensor:
        x = self.Conv_1a(x)  # (B, w, T/2, S/2, S/2)
        # padded alike on both sides, where I3D's SAME rule pads an even size after its end only
        return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))

    def _stem(self, x: Tensor) -> Tensor:
        x = self.Conv_2c(self.Conv_2b(x))  # (B, 3w, T/2, S/4, S/4)
        return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        x = self._stem(self._bottom(check_clips(clips)))
        x = self.Mixed_3c(self.Mixed_3b(x))  # (B, 7.5w, T/2, S/8, S/8)
        x = F.max_pool3d(x, 3, 2, padding=1)
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = F.max_pool3d(x, 2, 2, ceil_mode=True)  # (B, 13w, T/8, S/32, S/32)
        return self.Mixed_5c(self.Mixed_5b(x))  # (B, 16w, T/8, S/32, S/32)


# ----------------------------------------------------------------------------------------------------
# Memory for time


def checkpoint_activations(network: nn.Module) -> None:
    """Activation checkpointing (Chen et al. 2016), in place: backward computes activations a second time.

    Of each of the network's `pieces` (methods of its modules: stems, residual blocks, Inception modules)
    only the input is kept for the backward pass. Outputs, gradients, BatchNorm's running statistics and
    parameter names are those of the network without it; a training step costs one more forward pass.

    I3D's activations take a third of the memory then, those of R(2+1)D half of it (clips of 32 and 64 frames,
    a CPU). R3D gains little: its stem, computed as a whole, is most of what it needs.
    """
    for module in network.modules():
        for name in getattr(module, "pieces", ()):
            contexts = partial(_first_and_second_time, module)
            piece = partial(checkpoint, getattr(module, name), use_reentrant=False, preserve_rng_state=False,
                            context_fn=contexts)  # there is nothing random in a backbone
            setattr(module, name, piece)


def _first_and_second_time(module: nn.Module):
    return nullcontext(), _statistics_at_rest(module)


@contextmanager
def _statistics_at_rest(module: nn.Module):
    """Running statistics have seen this batch already when a piece is computed for the second time."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm3d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "c3d": C3D,
    "r3d18": r3d18,
    "r3d34": r3d34,
    "r3d18tv": r3d18tv,
    "r2plus1d18": r2plus1d18,
    "i3d": I3D,
    "s3d": S3D,
}


def build(name: str, width: int = 64, checkpointing: bool = False) -> nn.Module:
    """`BACKBONES[name](width)`, or a ConfigError that lists the choices; `checkpointing`: less memory, more time."""
    network = choose(BACKBONES, name, "backbone")(width=width)
    if checkpointing:
        checkpoint_activations(network)
    return network
