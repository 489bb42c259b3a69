"""The video networks of the paper: clips in, a feature map out, no head inside.

    features = build("i3d", width=64)(clips)      # (B, 3, T, H, W) float -> (B, dim, T', H', W')

                                                T', S' of a clip of T frames, S x S pixels ("TxS")
    name        dim        parameters  T'    S'    16x112  16x224  64x224  16x32  8x32
    c3d         8 width     27.66 M    T/8   S/16    2, 7   2, 14   8, 14   2, 2  1, 2
    r3d18       8 width     33.20 M    T/16  S/32    1, 4   1, 7    4, 7    1, 1  1, 1
    r3d34       8 width     63.51 M    T/16  S/32    1, 4   1, 7    4, 7    1, 1  1, 1
    r3d18tv     8 width     33.17 M    T/8   S/16    2, 7   2, 14   8, 14   2, 2  1, 2
    r2plus1d18  8 width     31.30 M    T/8   S/16    2, 7   2, 14   8, 14   2, 2  1, 2
    i3d        16 width     12.29 M    T/8   S/32    2, 4   2, 7    8, 7    2, 1  1, 1
    s3d        16 width      7.91 M    T/8   S/32    2, 4   2, 7    8, 7    2, 1  1, 1

All halvings round up, so no clip is too small. A single clip whose map is 1, 1 cannot be trained alone: BatchNorm would
see one value per channel. bfloat16 is for GPUs: on CPUs PyTorch's Conv3d returns wrong gradients (docs/BENCHMARKS.md).

A backbone of your own is one function and one entry of BACKBONES, at the end of this file. It owes:

    factory(width=64)  an nn.Module. `width` is the number of channels after the first layer and scales all others in
                       proportion: 64 is the published network, 8 or 16 suits a laptop.
    forward(clips)     float (B, 3, T, H, W), normalised pixels -> (B, dim, T', H', W'): no pooling, no head
    dim                an attribute: the channels of the map, an int
    pieces             an attribute of the network, or of modules in it: the names of methods of which `checkpointing`
                       keeps only the input for the backward pass. They must not draw random numbers.
"""

import re
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from be.config import ConfigError, choose


def check_clips(clips):
    """The clips themselves. Raises ValueError unless they are floating point, (B, 3, T, H, W)."""
    if clips.ndim != 5 or clips.shape[1] != 3 or not clips.is_floating_point():
        raise ValueError(f"clips must be floating point (normalised pixels), (B, 3, T, H, W), got "
                         f"{tuple(clips.shape)} of {clips.dtype}")
    return clips


def scaled(channels, width):
    """`channels` of the published network at this width, at least 1."""
    return max(1, round(channels * width / 64))


def he_init(network):
    """He et al. 2015 for the convolutions, in place. BatchNorm starts as the identity by itself."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class C3D(nn.Module):
    """C3D (Tran et al. 2015), conv1a to conv5b, with BatchNorm, under the names of BE's released code (and of VCOP).

    The paper's: width 64, 16 frames of 112 x 112. No pool5, part of a head; no bias, which BatchNorm would subtract.
    """

    pieces = ("_layer",)
    layers = {  # channels / width, and the max pool behind it
        "1": (1, (1, 2, 2)), "2": (2, (2, 2, 2)), "3a": (4, None), "3b": (4, (2, 2, 2)),
        "4a": (8, None), "4b": (8, (2, 2, 2)), "5a": (8, None), "5b": (8, None),
    }  # fmt: skip

    def __init__(self, width=64):
        super().__init__()
        self.dim = 3
        for name, (times, _) in self.layers.items():
            channels = times * scaled(64, width)
            self.add_module(f"conv{name}", nn.Conv3d(self.dim, channels, 3, padding=1, bias=False))
            self.add_module(f"bn{name}", nn.BatchNorm3d(channels))
            self.dim = channels  # ends at 8 width
        he_init(self)

    def _layer(self, x, name):
        x = F.relu(getattr(self, f"bn{name}")(getattr(self, f"conv{name}")(x)), inplace=True)
        _, pool = self.layers[name]
        return F.max_pool3d(x, pool, ceil_mode=True) if pool else x  # ceil_mode: one cell stays one

    def forward(self, clips):
        x = check_clips(clips)
        for name in self.layers:
            x = self._layer(x, name)
        return x  # (B, 8 width, T/8, S/16, S/16)


def same_padding(length, size, stride):
    """Padding before and after an axis under TensorFlow's SAME rule: the output is ceil(length / stride) long."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def same_max_pool(x, size, stride):
    """Max pool under the SAME rule. ceil_mode lets the last window overhang by the padding after."""
    before = [same_padding(n, k, s)[0] for n, k, s in zip(x.shape[2:], size, stride, strict=True)]
    return F.max_pool3d(x, size, stride, before, ceil_mode=True)


class Unit3D(nn.Module):
    """Convolution, BatchNorm, ReLU under the SAME rule: a cube of `size`, odd, every axis by `stride`."""

    def __init__(self, c_in, c_out, size, stride=1):
        super().__init__()
        self.size, self.stride = size, stride
        # with stride 1, SAME is symmetric and the convolution pads by itself; else forward does
        self.conv3d = nn.Conv3d(c_in, c_out, size, stride, size // 2 if stride == 1 else 0, bias=False)
        # eps as DeepMind's weights expect; momentum 0.1, as in BE's released code (the ports' 0.01 is slow)
        self.bn = nn.BatchNorm3d(c_out, eps=1e-3)

    def forward(self, x):
        if self.stride != 1:
            pads = [same_padding(n, self.size, self.stride) for n in x.shape[2:]]
            x = F.pad(x, pads[2] + pads[1] + pads[0])  # F.pad wants the last axis first
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class Mixed(nn.Module):
    """An Inception module: 1x1x1; 1x1x1 and 3x3x3, twice; max pool and 1x1x1. Concatenated; sizes are kept."""

    pieces = ("forward",)

    def __init__(self, c_in, channels):
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        self.b0 = Unit3D(c_in, c0, 1)
        self.b1a, self.b1b = Unit3D(c_in, c1a, 1), Unit3D(c1a, c1b, 3)
        self.b2a, self.b2b = Unit3D(c_in, c2a, 1), Unit3D(c2a, c2b, 3)
        self.b3b = Unit3D(c_in, c3, 1)

    def forward(self, x):
        pooled = F.max_pool3d(x, 3, 1, padding=1)
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


MIXED = {  # the branches' channels, as published
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64), "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128), "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class I3D(nn.Module):
    """I3D (Carreira & Zisserman 2017), RGB: Inception-v1 inflated, up to Mixed_5c. BE: 16 frames of 224 x 224. Names
    are those of the widespread PyTorch port, `rgb_imagenet.pt`."""

    pieces = ("_bottom", "_stem")

    def __init__(self, width=64):
        super().__init__()
        w, self.dim = scaled(64, width), scaled(192, width)
        self.Conv3d_1a_7x7 = Unit3D(3, w, 7, 2)
        self.Conv3d_2b_1x1 = Unit3D(w, w, 1)
        self.Conv3d_2c_3x3 = Unit3D(w, self.dim, 3)
        for name, channels in MIXED.items():
            c = [scaled(n, width) for n in channels]
            self.add_module(name, Mixed(self.dim, c))
            self.dim = c[0] + c[2] + c[4] + c[5]  # ends at 16 width
        he_init(self)

    def _bottom(self, x):
        return same_max_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))  # (B, w, T/2, S/4, S/4)

    def _stem(self, x):
        return same_max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))  # (B, 3w, T/2, S/8, S/8)

    def forward(self, clips):
        x = self._stem(self._bottom(check_clips(clips)))
        x = same_max_pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))  # (B, 7.5w, T/4, S/16, S/16)
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = same_max_pool(x, (2, 2, 2), (2, 2, 2))  # (B, 13w, T/8, S/32, S/32)
        return self.Mixed_5c(self.Mixed_5b(x))  # (B, 16w, T/8, S/32, S/32)


def hara(blocks):
    """R3D (Hara et al. 2018) of torchvision's parts. BE: 16 frames, 18 layers at 112 pixels, 34 at 224."""
    from torchvision.models.video import resnet

    def stem():
        return nn.Sequential(nn.Conv3d(3, 64, 7, (1, 2, 2), 3, bias=False), nn.BatchNorm3d(64), nn.ReLU(inplace=True),
                             nn.MaxPool3d(3, 2, 1))  # (B, w, T/2, S/4, S/4)

    return resnet.VideoResNet(resnet.BasicBlock, [resnet.Conv3DSimple] * 4, blocks, stem)


def extra(name):
    """R3D and R(2+1)D (Tran et al. 2018) and S3D (Xie et al. 2018), as torchvision has them; not in the paper."""
    from torchvision.models import get_model  # takes a second, and few ask for it
    return get_model(name)


class Torchvision(nn.Module):
    """A network of torchvision, as `make` makes it, under its names, without its head, at any width. S3D as CoCLR has
    it: BatchNorm's eps is 1e-5, and the last pool keeps the end of an odd map, as the SAME rule does."""

    def __init__(self, make, width=64):
        super().__init__()
        with torch.device("meta"):
            network = make()
        for name, stage in network.named_children():
            if name in ("avgpool", "fc", "classifier"):
                continue
            self.add_module(name, stage)
            for part in [stage] if name == "stem" else stage:
                part.pieces = ("forward",)
        for module in list(self.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, nn.Conv3d):
                    setattr(module, name, nn.LazyConv3d(scaled(layer.out_channels, width), layer.kernel_size,
                                                        layer.stride, layer.padding, bias=False))
                elif isinstance(layer, nn.BatchNorm3d):
                    setattr(module, name, nn.LazyBatchNorm3d())
                elif isinstance(layer, nn.MaxPool3d):
                    layer.ceil_mode = layer.kernel_size == (2, 2, 2)
        with torch.no_grad():
            self.dim = self.eval()(torch.zeros(1, 3, 8, 32, 32)).shape[1]  # the layers count their inputs
        he_init(self.train())
        self.register_load_state_dict_pre_hook(lambda module, state, *_: names_of_now(state))

    def forward(self, clips):
        x = check_clips(clips)
        for stage in self.children():
            x = stage(x)
        return x


BLOCK_NAMES = (r"(layer\d\.\d\.conv[12]\.)", r"\g<1>0."), (r"(layer\d\.\d\.)bn([12])\.", r"\1conv\2.1.")
OLDER_NAMES = {  # a tensor that tells the network -> what stands in its names, and what in torchvision's
    "Conv_1a.bn1.weight": tuple((rf"^[CM]\w+_{place}\.", f"features.{i}.") for i, place in enumerate(
        ("1a", "", "2b", "2c", "", "3b", "3c", "", "4b", "4c", "4d", "4e", "4f", "", "5b", "5c")) if place) + (
        (r"\.conv1\.", ".0.0."), (r"\.bn1\.", ".0.1."), (r"\.conv2\.", ".1.0."), (r"\.bn2\.", ".1.1."),
        (r"branch0\.0\.", "branch0."), (r"\.conv\.", ".0."), (r"\.bn\.", ".1.")),
    "layer1.0.conv1.3.weight": (*BLOCK_NAMES, (r"^bn1\.", "stem.4."), (r"^conv1\.", "stem.")),
    "layer1.0.bn1.weight": (*BLOCK_NAMES, (r"^bn1\.", "stem.1."), (r"^conv1\.", "stem.0.")),
}


def names_of_now(state: dict):
    """Renames tensors, in place: R3D's and R(2+1)D's had Hara's names before 0.2, S3D's CoCLR's, now torchvision's."""
    told = {name.removesuffix(one): rules for one, rules in reversed(OLDER_NAMES.items())
            for name in state if f".{name}".endswith(f".{one}")}  # of each network in it
    tensors = list(state.items())
    state.clear()
    for name, tensor in tensors:
        top = next((top for top in told if name.startswith(top)), name)
        name = name.removeprefix(top)
        for old, now in told.get(top, ()):
            name = re.sub(old, now, name)
        state[top + name] = tensor


def checkpoint_activations(network):
    """Activation checkpointing (Chen et al. 2016), in place: backward computes the network's `pieces` a second time.
    Outputs, gradients, statistics and names stay the same. I3D's activations take a third of the memory, R(2+1)D's
    half, R3D's hardly less: its stem is most of it."""
    for module in network.modules():
        for name in getattr(module, "pieces", ()):
            setattr(module, name, partial(checkpoint, getattr(module, name), use_reentrant=False,
                                          preserve_rng_state=False, context_fn=partial(_contexts, module)))  # fmt: skip


def padded(convolution, x):
    """`convolution(x)` for x of 3 channels, up to rounding. In 16 bits on a GPU, zeros make them 8: for 3, cuDNN took a
    kernel without tensor cores, and 2.5 times as long (docs/GPU.md)."""
    weight = convolution.weight
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        x, weight = (F.pad(tensor.to(half), (0, 0, 0, 0, 0, 0, 0, 5)) for tensor in (x, weight))
    return convolution._conv_forward(x, weight, convolution.bias)


def _contexts(module):
    """Of the first and the second time. Running statistics have seen this batch already when it comes again."""
    @contextmanager
    def statistics_at_rest():
        before = [(m, m.momentum, m.num_batches_tracked) for m in module.modules() if isinstance(m, nn.BatchNorm3d)]
        try:
            for norm, *_ in before:
                norm.momentum, norm.num_batches_tracked = 0.0, None
            yield
        finally:
            for norm, momentum, batches in before:
                norm.momentum, norm.num_batches_tracked = momentum, batches

    return nullcontext(), statistics_at_rest()


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "c3d": C3D,
    "r3d18": partial(Torchvision, partial(hara, (2, 2, 2, 2))),
    "r3d34": partial(Torchvision, partial(hara, (3, 4, 6, 3))),
    "r3d18tv": partial(Torchvision, partial(extra, "r3d_18")),
    "r2plus1d18": partial(Torchvision, partial(extra, "r2plus1d_18")),
    "i3d": I3D,
    "s3d": partial(Torchvision, partial(extra, "s3d")),
}


def build(name: str, width: int = 64, checkpointing: bool = False) -> nn.Module:
    """`BACKBONES[name](width)`. Raises ConfigError for an unknown name, or a network that breaks the contract above."""
    factory = choose(BACKBONES, name, "backbone")
    network = factory(width=width)
    dim = getattr(network, "dim", None)
    if not isinstance(dim, int) or dim < 1:
        raise ConfigError(f"backbone={name}: its attribute `dim` must be the channels of its map, an int, got {dim!r}")
    with torch.device("meta"):  # shapes without the memory
        if width != 64 and dim == factory(width=64).dim:
            raise ConfigError(f"backbone={name}: its factory ignores `width`: dim={dim} for width={width} as for 64")
    for m in network.modules():  # 3 x 3 x 3 gains nothing; a class of your own knows what it does
        if type(m) is nn.Conv3d and m.groups == 1 and m.in_channels == 3 and 7 in m.kernel_size:
            m.forward = partial(padded, m)
    if checkpointing:
        if not any(getattr(module, "pieces", ()) for module in network.modules()):
            raise ConfigError(f"backbone={name}: checkpointing=true, but none of its modules names its `pieces`")
        checkpoint_activations(network)
    return network
