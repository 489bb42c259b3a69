"""The networks against slow or independent forms of them, their sizes, and what a backbone owes (be/backbones.py)."""

import copy
import math
import re
import zlib

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import awake, hara_names
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from be import backbones, objectives
from be.augment import Draws
from be.backbones import BACKBONES, he_init
from be.config import ConfigError

STRIDES = {"c3d": (8, 16), "r3d18": (16, 32), "r3d34": (16, 32), "r3d18tv": (8, 16), "r2plus1d18": (8, 16),
           "i3d": (8, 32), "s3d": (8, 32)}
NAMES = sorted(STRIDES)
ALL = sorted(BACKBONES)  # one of a fork's owes the same, and is tested by the same


def build(name, width=8, seed=0):
    torch.manual_seed(seed)
    return BACKBONES[name](width=width)


def clips(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs)


def count(network):
    return sum(p.numel() for p in network.parameters())


def normalise(x, weights, name, eps=1e-5):
    """BatchNorm in eval mode, from its definition."""
    w, b, mean, var = (
        weights[f"{name}.{key}"][:, None, None, None]
        for key in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + eps).sqrt() * w + b


# Sizes and parameters, at full width on the meta device: shapes without the arithmetic


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return {name: BACKBONES[name]() for name in NAMES}


@pytest.mark.parametrize("name, blocks", [("r3d18", (2, 2, 2, 2)), ("r3d34", (3, 4, 6, 3))])
def test_r3d_parameters_closed_form(published, name, blocks):
    total, c_in = 7**3 * 3 * 64 + 2 * 64, 64
    for n, c in zip(blocks, (64, 128, 256, 512), strict=True):
        total += 27 * c_in * c + (2 * n - 1) * 27 * c * c + 2 * n * 2 * c
        total += (c_in * c + 2 * c) * (c_in != c)  # the projection
        c_in = c
    assert count(published[name]) == total


def test_parameters_are_those_of_the_table(published):
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    assert count(published["c3d"]) == sum(27 * i * o + 2 * o for i, o in zip(channels, channels[1:], strict=False))
    for name, network in published.items():
        assert re.search(rf"{name} .* {count(network) / 1e6:.2f} M ", backbones.__doc__), name


def test_i3d_is_googlenet_inflated(published):
    with torch.device("meta"):
        flat = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    expected = [(*p.shape, p.shape[-1]) for p in flat.parameters() if p.ndim == 4]
    assert [tuple(p.shape) for p in published["i3d"].parameters() if p.ndim == 5] == expected
    assert count(published["i3d"]) == 12_287_264  # the port's 12,697,264 less its 400-way logits


SIZES = [(16, 112), (16, 224), (64, 224), (8, 32), (17, 97), (5, 13), (1, 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames, side", SIZES)
def test_sizes_round_up(published, name, frames, side):
    backbone, (t, s) = published[name], STRIDES[name]
    out = backbone(torch.empty(2, 3, frames, side, side + 3, device="meta"))
    expected = (math.ceil(frames / t), math.ceil(side / s), math.ceil((side + 3) / s))
    assert out.shape == (2, backbone.dim, *expected)


@pytest.mark.parametrize("width", [3, 16])
@pytest.mark.parametrize("name", NAMES)
def test_width_scales_every_channel(published, name, width):
    with torch.device("meta"):
        narrow = BACKBONES[name](width=width)
    assert narrow.dim == published[name].dim * width // 64
    assert narrow(torch.empty(2, 3, 8, 32, 32, device="meta")).shape[1] == narrow.dim
    for (key, p), q in zip(narrow.named_parameters(), published[name].parameters(), strict=True):
        assert abs(p.shape[0] - q.shape[0] * width / 64) <= 0.75, key


# The arithmetic, against slow or independent forms of it


def same_before(n, k, s):
    """Padding before, by search: ceil(n / s) windows that overhang equally, or by one more after."""
    windows = math.ceil(n / s)
    overhang = {b: max(b + n, (windows - 1) * s + k) - b - n for b in range(k)}
    (before,) = [b for b, after in overhang.items() if after - b in (0, 1)]
    return before, overhang[before]


@pytest.mark.parametrize("shape", [(8, 32, 32), (7, 21, 38)])
def test_i3d_features_are_the_ports(shape):
    """Every convolution and pool on zero-padded copies, floor mode, read off the state dict by name."""
    network = awake(build("i3d").double())
    weights = network.state_dict()
    x = clips(1, 3, *shape, dtype=torch.float64)

    def pad(x, size, stride):
        t, h, w = (same_before(n, k, s) for n, k, s in zip(x.shape[2:], size, stride, strict=True))
        return F.pad(x, w + h + t)

    def unit(x, name, size, stride=1):
        x = F.conv3d(pad(x, (size,) * 3, (stride,) * 3), weights[f"{name}.conv3d.weight"], stride=stride)
        return normalise(x, weights, f"{name}.bn", eps=1e-3).clamp(min=0)

    def pool(x, size, stride):
        return F.max_pool3d(pad(x, size, stride), size, stride)

    def mixed(x, name):
        b1 = unit(unit(x, f"{name}.b1a", 1), f"{name}.b1b", 3)
        b2 = unit(unit(x, f"{name}.b2a", 1), f"{name}.b2b", 3)
        b3 = unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b", 1)
        return torch.cat([unit(x, f"{name}.b0", 1), b1, b2, b3], 1)

    with torch.no_grad():
        y = unit(x, "Conv3d_1a_7x7", 7, 2)
        y = unit(unit(pool(y, (1, 3, 3), (1, 2, 2)), "Conv3d_2b_1x1", 1), "Conv3d_2c_3x3", 3)
        y = pool(y, (1, 3, 3), (1, 2, 2))
        for name in ("3b", "3c", "pool 3", "4b", "4c", "4d", "4e", "4f", "pool 2", "5b", "5c"):
            k = int(name[-1]) if "pool" in name else 0
            y = pool(y, (k,) * 3, (2, 2, 2)) if k else mixed(y, f"Mixed_{name}")
        torch.testing.assert_close(network(x), y)


def residual_block(x, weights, name, stride):
    y = F.conv3d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
    y = normalise(y, weights, f"{name}.bn1").clamp(min=0)
    y = F.conv3d(y, weights[f"{name}.conv2.weight"], padding=1)
    y = normalise(y, weights, f"{name}.bn2")
    if f"{name}.downsample.0.weight" in weights:
        x = F.conv3d(x, weights[f"{name}.downsample.0.weight"], stride=stride)
        x = normalise(x, weights, f"{name}.downsample.1")
    return (x + y).clamp(min=0)


@pytest.mark.parametrize("name, blocks", [("r3d18", (2, 2, 2, 2)), ("r3d34", (3, 4, 6, 3))])
def test_r3d_features_by_hara_names(name, blocks):
    network = awake(build(name).double())
    weights = hara_names(network.state_dict())
    x = clips(1, 3, 9, 45, 32, dtype=torch.float64)
    y = F.conv3d(x, weights["conv1.weight"], stride=(1, 2, 2), padding=3)
    y = F.max_pool3d(normalise(y, weights, "bn1").clamp(min=0), 3, 2, 1)
    for stage, n in enumerate(blocks, 1):
        for block in range(n):
            y = residual_block(y, weights, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
    torch.testing.assert_close(network(x), y)


@pytest.mark.parametrize("name, theirs", [("r2plus1d18", "r2plus1d_18"), ("r3d18tv", "r3d_18"), ("s3d", "s3d")])
def test_features_are_torchvisions(name, theirs):
    """Under its names, before its head, with our eps. Of odd maps S3D's last pool there drops the end."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.video, theirs)()
    he_init(theirs)
    for module in awake(theirs.double()).modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-5
    with torch.device("meta"):
        ours = BACKBONES[name]()
    ours.load_state_dict({key: x for key, x in theirs.state_dict().items() if key in ours.state_dict()}, assign=True)
    theirs.avgpool = theirs.fc = theirs.classifier = nn.Identity()
    x = clips(1, 3, 8, 32, 32, dtype=torch.float64)  # of which S3D leaves 1 x 1 x 1, which it averages
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x).flatten(1), theirs(x).flatten(1))


def test_c3d_features_in_plain_layers():
    network = awake(build("c3d").double())
    convs = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    pools = {0: nn.MaxPool3d((1, 2, 2)), 1: nn.MaxPool3d(2), 3: nn.MaxPool3d(2), 5: nn.MaxPool3d(2)}
    layers = []
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        layers += [conv, norm, nn.ReLU(), pools.get(i, nn.Identity())]
    x = clips(1, 3, 16, 48, 32, dtype=torch.float64)
    torch.testing.assert_close(network(x), nn.Sequential(*layers)(x))


# Behaviour in training


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    network = build(name)
    features = network(clips(2, 3, 8, 48, 33))
    (features * clips(*features.shape, seed=1)).sum().backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("name", NAMES)
def test_he_init(name):
    torch.manual_seed(0)
    network = BACKBONES[name](width=16)
    checked = 0
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            checked += 1
        elif isinstance(module, nn.BatchNorm3d):
            assert module.weight.eq(1).all() and module.bias.eq(0).all()
    assert checked > 5


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("name", NAMES)
def test_channels_last_and_bfloat16_agree(name):
    network = build(name).eval()
    x = clips(2, 8, 48, 48, 3).permute(0, 4, 1, 2, 3)  # as decoded: (B, T, H, W, C) seen as (B, C, T, H, W)
    with torch.no_grad():
        plain = network(x.contiguous())
        network.to(memory_format=torch.channels_last_3d)
        last = network(x)
        # oneDNN's bfloat16 Conv3d is not right on every CPU; PyTorch's own is
        with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x)
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=2e-4)  # of values of tens: sums in another order
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float().flatten(), plain.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs_are_named(name):
    network = build(name)
    for shape in [(3, 8, 32, 32), (2, 1, 8, 32, 32), (2, 8, 32, 32, 3)]:
        with pytest.raises(ValueError, match=re.escape(f"(B, 3, T, H, W), got {shape}")):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match="floating point.*torch.uint8"):
        network(torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8))


# The contract


@pytest.mark.parametrize("name", ALL)
def test_every_backbone_keeps_the_contract(name):
    clips = torch.randn(2, 3, 16, 112, 112, device="meta")
    for width in (64, 16):
        with torch.device("meta"):
            network = backbones.build(name, width, checkpointing=True)
        out = network(clips)
        assert out.shape[:2] == (2, network.dim) and out.ndim == 5


class Own(nn.Module):
    """A fork's backbone."""

    pieces = ("forward",)

    def __init__(self, width=64):
        super().__init__()
        self.dim = width
        self.conv = nn.Conv3d(3, width, 3, 2, 1)

    def forward(self, clips):
        return self.conv(clips)


class Flat(Own):
    pieces = ()


class NoDim(Own):
    def __init__(self, width=64):
        super().__init__(width)
        del self.dim


def test_a_backbone_of_ones_own(monkeypatch):
    for name, factory in {"own": Own, "flat": Flat, "no-dim": NoDim, "fixed": lambda width: Own(24)}.items():
        monkeypatch.setitem(BACKBONES, name, factory)
    assert backbones.build("own", 6, checkpointing=True)(torch.randn(2, 3, 4, 8, 8)).shape == (2, 6, 2, 4, 4)
    assert backbones.build("fixed", 64).dim == backbones.build("flat", 24).dim == 24
    for name, args, said in [("flat", (8, True), "checkpointing=true, but none of its modules names its `pieces`"),
                             ("no-dim", (), "`dim` must be .*an int, got None"),
                             ("fixed", (8,), "ignores `width`: dim=24 for width=8 as for 64")]:
        with pytest.raises(ConfigError, match=f"backbone={name}: .*{said}"):
            backbones.build(name, *args)
    with pytest.raises(ConfigError, match="resnet50.*" + ".*".join(STRIDES)):
        backbones.build("resnet50")


NAMES_AND_SHAPES = {"c3d": 0x0cc453d7, "i3d": 0x13029a97, "r2plus1d18": 0xcb6a7ae5, "r3d18": 0xc54a4f17,
                    "r3d18tv": 0x937e2cca, "r3d34": 0x4a41f6d0, "s3d": 0x46f89865}


@pytest.mark.parametrize("name", NAMES)
def test_files_written_so_far_still_fit(name):
    """CRC-32 of the names and shapes of all tensors: who changes them must rename those of files there are."""
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in build(name, width=6).state_dict().items())
    assert zlib.crc32(text.encode()) == NAMES_AND_SHAPES[name]


# Activation checkpointing changes what is kept for backward, and nothing else


def both(name):
    torch.manual_seed(0)
    plain = backbones.build(name, width=4)
    thrifty = backbones.build(name, width=4, checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())  # strict: the names are the same
    return plain, thrifty


def kept(network, clips):
    """Bytes of activations that autograd keeps between forward and backward, and the output."""
    storages = {}

    def count(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in (clips, *network.parameters(), *network.buffers())}
    with saved_tensors_hooks(count, lambda tensor: tensor):
        out = network(clips)
    return sum(nbytes for pointer, nbytes in storages.items() if pointer not in own), out


@pytest.mark.parametrize("name", NAMES)
def test_same_outputs_gradients_and_statistics_from_less_memory(name):
    plain, thrifty = both(name)
    clips = torch.randn(2, 3, 16, 48, 48)
    memory, out = {}, {}
    for _ in range(2):  # the second time with statistics of the first
        for network in (plain, thrifty):
            memory[network], out[network] = kept(network, clips)
            (out[network] * torch.linspace(-1, 1, out[network].numel()).view_as(out[network])).sum().backward()
    assert torch.equal(out[plain], out[thrifty])
    for (key, p), q in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    for (key, p), q in zip(plain.named_buffers(), thrifty.buffers(), strict=True):
        assert torch.equal(p, q), key
    assert memory[thrifty] < 0.35 * memory[plain], f"{memory[thrifty] / memory[plain]:.2f}"
    with torch.no_grad():
        assert torch.equal(plain.eval()(clips), thrifty.eval()(clips))


def test_moco_steps_are_the_same():
    """With a copy of the backbone as momentum encoder, BatchNorm groups, and the query's hard negative."""
    states = []
    for backbone in both("r3d18"):
        torch.manual_seed(1)
        moco = objectives.build("moco", backbone, dict(frames=8, stride=1, dim=8, K=6, m=0.5, bn_group=2,
                                                       hard_negative_encoder="query"))  # fmt: skip
        optimizer = torch.optim.SGD([p for p in moco.parameters() if p.requires_grad], lr=0.1)
        for step in range(2):
            views = [torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
            loss, _ = moco(views, None, torch.arange(4), Draws(0, step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(copy.deepcopy(moco.state_dict()))
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["r3d18", "i3d", "r2plus1d18", "s3d"])
def test_first_layer_of_eight_channels_computes_the_same(name, monkeypatch):
    class OnGPU(torch.Tensor):
        is_cuda = True

    network = backbones.build(name, width=4).eval()
    first = next(m for m in network.modules() if isinstance(m, nn.Conv3d))
    x, channels, convolve = torch.randn(2, 3, 4, 32, 32), [], first._conv_forward
    first._conv_forward = lambda x, *how: channels.append(x.shape[1]) or convolve(x, *how)
    expected, copied = network(x), copy.deepcopy(network)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    got = network(x.as_subclass(OnGPU))
    assert channels == [3, 8]
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected)
    with torch.no_grad():
        first.weight.zero_()
    torch.testing.assert_close(copied(x), expected)  # a momentum encoder's first layer is its own


def test_first_layer_of_ones_own_stays_as_it_is(monkeypatch):
    class Own(nn.Conv3d):
        def forward(self, x):
            return super().forward(F.pad(x, [3] * 6))

    def network(layer):
        layer.dim = 8
        return layer

    for layer in Own(3, 8, 7), nn.Conv3d(3, 9, 7, groups=3), nn.Conv3d(3, 8, 3):
        monkeypatch.setitem(BACKBONES, "own", lambda width, layer=layer: network(layer))
        assert "forward" not in vars(backbones.build("own"))
    monkeypatch.setitem(BACKBONES, "own", lambda width: network(nn.Conv3d(3, 8, 7)))
    assert "forward" in vars(backbones.build("own"))
