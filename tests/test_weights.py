"""Checkpoints of others become backbones that compute what theirs computed, or are refused with the reason."""

import argparse
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import TINY
from networks import awake, hara_names
from safetensors.torch import save_file
from torch import nn

from be import config, weights
from be.augment import MEAN, STD, normalise
from be.backbones import BACKBONES, Unit3D, build, he_init
from be.train import finetune, pretrain
from be.weights import NAMINGS, WeightsError, find, fold_pixels, from_pretrained, load, load_weights


def trained(name, width=4, seed=1):
    torch.manual_seed(seed)
    return awake(build(name, width), seed)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def saved(tmp_path, state, name="theirs.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def fresh(name, width=4):
    torch.manual_seed(9)
    return build(name, width).eval()


def outputs(network, clips):
    with torch.no_grad():
        return network(clips)


def scaled(pixels, mean, std):
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


def same_but_at_the_border(ours, theirs):
    inner = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    assert theirs[inner].numel() > 100
    torch.testing.assert_close(ours[inner], theirs[inner], rtol=1e-4, atol=1e-4)


# ---- what theirs computed


def test_pixels_of_another_scale_are_folded_into_the_first_layer():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    pixels = random(2, 3, 4, 9, 9)
    theirs = awake(nn.Sequential(nn.Conv3d(3, 5, 3, bias=False), nn.BatchNorm3d(5)))  # no border
    ours = nn.Sequential(nn.Conv3d(3, 5, 3, bias=False), nn.BatchNorm3d(5)).eval()
    ours.load_state_dict(fold_pixels(theirs.state_dict(), "0", "1", mean, std))
    torch.testing.assert_close(outputs(ours, normalise(pixels)), outputs(theirs, scaled(pixels, mean, std)))


def repeat_ends(unit):
    """The unit's forward, with clips continued in time by their first and last frame, not by zeros."""
    def forward(x):
        k, s = unit.size, unit.stride
        pads = [(2, 3) if (k, s) == (7, 2) else (k // 2, k // 2)] * 3  # of even lengths
        x = F.pad(F.pad(x, (0, 0, 0, 0, *pads[2]), mode="replicate"), pads[0] + pads[1])
        return unit.bn(F.conv3d(x, unit.conv3d.weight, stride=s)).relu()
    return forward


def test_googlenet_on_a_boring_video(tmp_path):
    """A video of one frame for ever has the features of the frame in torchvision's GoogLeNet on pixels in [-1, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        flat = awake(torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False))
    ours = fresh("i3d", 64)
    report = load(saved(tmp_path, flat.state_dict()), ours)
    assert report["naming"] == "googlenet" and report["missing"] == []
    assert {name.split(".")[0] for name in report["left_out"]} == {"aux1", "aux2", "fc"}

    frame = random(1, 3, 64, 64)
    flat.conv1.conv.padding = (0, 0)  # TensorFlow pads 2 before and 3 after, torchvision 3 and 3
    children = dict(flat.named_children())
    theirs = nn.Sequential(*[m for n, m in children.items() if n not in ("aux1", "aux2", "avgpool", "dropout", "fc")])
    grey = (0.5 - torch.tensor(MEAN)) / torch.tensor(STD)  # their zero, so that both pad with the same
    expected = outputs(theirs, F.pad(2 * frame - 1, (2, 3, 2, 3)))
    for unit in (m for m in ours.modules() if isinstance(m, Unit3D)):
        unit.forward = repeat_ends(unit)
    first = ours.Conv3d_1a_7x7
    def padded_by_grey(x, conv=first.conv3d):
        x = F.pad(x, (0, 0, 0, 0, 2, 3), mode="replicate")
        x = torch.stack([F.pad(c, (2, 3, 2, 3), value=g.item()) for c, g in zip(x.unbind(1), grey, strict=True)], 1)
        return first.bn(F.conv3d(x, conv.weight, stride=2)).relu()
    first.forward = padded_by_grey
    clip = normalise(frame)[:, :, None].expand(-1, -1, 16, -1, -1)
    features = outputs(ours, clip)  # (1, 1024, 2, 2, 2)
    for t in range(features.shape[2]):
        torch.testing.assert_close(features[:, :, t], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, theirs", [("r2plus1d18", "r2plus1d_18"), ("r3d18tv", "r3d_18")])
def test_residual_networks_of_torchvision(tmp_path, name, theirs):
    torch.manual_seed(0)
    transform = torchvision.models.get_model_weights(theirs).DEFAULT.transforms()
    theirs = awake(getattr(torchvision.models.video, theirs)())
    ours = fresh(name, 64)
    report = load(saved(tmp_path, theirs.state_dict()), ours)
    assert (report["naming"], report["missing"]) == ("torchvision", [])
    assert report["left_out"] == ["fc.weight", "fc.bias"]
    theirs.avgpool = theirs.fc = nn.Identity()
    pixels = random(1, 3, 8, 48, 48)
    x = scaled(pixels, transform.mean, transform.std)
    same_but_at_the_border(*(outputs(nn.Sequential(*list(network.stem)[:2]), seen)
                             for network, seen in ((ours, normalise(pixels)), (theirs, x))))
    a, b = outputs(theirs, x).flatten(), outputs(ours, normalise(pixels)).flatten()
    assert F.cosine_similarity(a, b, dim=0) > 0.999  # what the border's other grey comes to


def test_c3d_with_biases(tmp_path):
    """As released: biases in the convolutions, under `model` and `module.`, beside a head and the script's options."""
    ours, network = fresh("c3d"), trained("c3d")
    state, clips = network.state_dict(), random(2, 3, 8, 32, 32)
    convs = [name for name in state if name.startswith("conv")]
    for name in convs:
        state[name.replace("weight", "bias")] = random(len(state[name]), seed=3)
    bias = {id(m): state[f"{n}.bias"] for n, m in network.named_modules() if n.startswith("conv")}
    for module in network.modules():
        if id(module) in bias:
            module.bias = nn.Parameter(bias[id(module)])
    state["id_head.2.weight"] = torch.zeros(128, 32)
    file = saved(tmp_path, {"opt": argparse.Namespace(pt_method="be", lr=[0.1]),
                            "model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3})
    report = load(file, ours)
    assert (report["naming"], report["prefix"]) == ("c3d", "model.module.")
    assert (report["missing"], report["left_out"]) == ([], ["id_head.2.weight"])
    torch.testing.assert_close(outputs(ours, clips), outputs(network, clips))


def branch_names(state):
    """Our I3D's state dict under the names of BE's released code, by its own construction."""
    branches = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1",
                "b3b": "branch_3.1"}  # fmt: skip
    out = {}
    for name, tensor in state.items():
        parts = [branches.get(part, {"bn": "batch3d"}.get(part, part)) for part in name.split(".")]
        parts[0] = parts[0].replace("Mixed", "mixed").replace("Conv3d", "conv3d")
        out[".".join(parts)] = tensor
    return out


def test_i3d_as_released(tmp_path):
    """Its BatchNorm adds 1e-5: the network with that, and small variances, computes the same as ours with 1e-3."""
    theirs, ours, clips = trained("i3d"), fresh("i3d"), random(1, 3, 8, 33, 32)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_var *= 0.01
            module.weight.data *= 0.1
            module.eps = 1e-5
    state = branch_names(theirs.state_dict())
    assert {"conv3d_2c_3x3.batch3d.bias", "mixed_4f.branch_3.1.conv3d.weight"} <= state.keys()
    state["conv3d_0c_1x1_custom.conv3d.weight"] = torch.zeros(101, 64, 7, 1, 1)
    report = load(saved(tmp_path, {"state_dict": {f"module.base_model.{k}": v for k, v in state.items()}}), ours)
    assert (report["naming"], report["missing"]) == ("i3d-branches", [])
    torch.testing.assert_close(outputs(ours, clips), outputs(theirs, clips), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("naming", ["i3d-port", "i3d-branches-port"])
def test_i3d_of_deepmind_sees_pixels_between_minus_one_and_one(tmp_path, naming):
    theirs, ours = trained("i3d"), fresh("i3d")
    state = theirs.state_dict()
    if naming == "i3d-port":
        state |= {"logits.conv3d.weight": torch.zeros(400, 64, 1, 1, 1), "logits.conv3d.bias": torch.zeros(400)}
        state = {name: tensor for name, tensor in state.items() if "num_batches" not in name}  # as in 2017
    else:
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = 1e-5
        state = branch_names(state) | {"conv3d_0c_1x1.conv3d.weight": torch.zeros(400, 64, 1, 1, 1)}
    report = load(saved(tmp_path, state), ours)
    assert (report["naming"], report["missing"]) == (naming, [])
    pixels = random(1, 3, 16, 64, 64)
    same_but_at_the_border(outputs(ours.Conv3d_1a_7x7, normalise(pixels)),
                           outputs(theirs.Conv3d_1a_7x7, 2 * pixels - 1))


def test_hara(tmp_path):
    theirs, ours = trained("r3d18"), fresh("r3d18")
    state = {f"module.{key}": tensor for key, tensor in hara_names(theirs.state_dict()).items()}
    assert {"module.conv1.weight", "module.layer4.1.bn2.weight", "module.layer2.0.downsample.1.bias"} < state.keys()
    state |= {"module.fc.weight": torch.zeros(700, 32), "module.fc.bias": torch.zeros(700)}
    report = load(saved(tmp_path, {"epoch": 200, "arch": "resnet", "state_dict": state, "optimizer": {}}), ours)
    assert (report["naming"], report["prefix"], report["missing"]) == ("hara", "state_dict.module.", [])
    pixels = random(1, 3, 16, 64, 64)
    x = scaled(pixels, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
    same_but_at_the_border(outputs(lambda x: ours.stem[1](ours.stem[0](x)), normalise(pixels)),
                           outputs(lambda x: theirs.stem[1](theirs.stem[0](x)), x))


def older(network, state):
    """A state dict of a network under the names that ours had before 0.2."""
    if network == "s3d":
        return coclr_names(state)
    if network == "r2plus1d18":
        rules = [(r"^stem\.4", "bn1"), ("^stem", "conv1"), (r"(layer\d\.\d)\.conv([12])\.1\.(?=\D)", r"\1.bn\2."),
                 (r"(layer\d\.\d\.conv[12])\.0\.(?=\d)", r"\1.")]
        for new, old in rules:
            state = {re.sub(new, old, name): tensor for name, tensor in state.items()}
        return state
    return hara_names(state)


@pytest.mark.parametrize("network", ["r3d34", "r3d18tv", "r2plus1d18", "s3d"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder_q.0."])
def test_names_of_before_are_read(tmp_path, network, prefix):
    """BE's released R3D; backbones, whole models, which are read strictly, and checkpoints of ours before 0.2."""
    model, state = nn.Module(), trained(network, 8).state_dict()
    model.backbone, model.head = trained(network, 8), nn.Linear(3, 2)
    theirs = model if prefix == "backbone." else model.backbone
    old = {f"{prefix}{name}": tensor.clone() for name, tensor in older(network, state).items()}
    assert {name.removeprefix(prefix) for name in old} != state.keys()
    old |= {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith("head")}
    for tensor in model.backbone.state_dict().values():
        tensor.zero_()
    load(saved(tmp_path, old), theirs, strict=True)
    torch.testing.assert_close(model.backbone.state_dict(), state, rtol=0, atol=0)
    if prefix == "backbone.":
        for tensor in model.backbone.state_dict().values():
            tensor.zero_()
        model.load_state_dict(old)  # as a run goes on from its checkpoint
        torch.testing.assert_close(model.backbone.state_dict(), state, rtol=0, atol=0)


def test_s3d_of_torchvision(tmp_path):
    """Its BatchNorm adds 1e-3, and some channels hardly vary. Without a border the features are the same throughout."""
    torch.manual_seed(0)
    theirs = torchvision.models.video.s3d()
    he_init(theirs)  # from torchvision's own start, hardly anything of the clip gets through
    for module in awake(theirs).modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.eps == 1e-3
            module.running_var[::3] *= 1e-3
            module.weight.data[::3] *= 0.03
    ours = fresh("s3d", 64)
    report = load(saved(tmp_path, theirs.state_dict()), ours)
    assert (report["naming"], report["missing"]) == ("torchvision-s3d", [])
    assert report["left_out"] == ["classifier.1.weight", "classifier.1.bias"]
    transform = torchvision.models.video.S3D_Weights.DEFAULT.transforms()
    pixels = random(1, 3, 16, 70, 70)
    x = scaled(pixels, transform.mean, transform.std)
    inner = (..., slice(64), slice(64))
    a, b = outputs(theirs.features, x[inner]).flatten(), outputs(ours, normalise(pixels)[inner]).flatten()
    assert F.cosine_similarity(a, b, dim=0) > 0.99  # what the border's other grey comes to
    for first in (theirs.features[0][0][0], ours.features[0][0][0]):
        assert first.padding == (0, 3, 3)
        first.padding = (0, 0, 0)
    expected = outputs(theirs.features, x)
    assert expected.shape == (1, 1024, 2, 2, 2)
    assert (expected - outputs(theirs.features, normalise(pixels))).abs().max() > 0.1  # their pixels do matter
    torch.testing.assert_close(outputs(ours, normalise(pixels)), expected, rtol=1e-3, atol=1e-3)


LAYERS = {0: "Conv_1a", 2: "Conv_2b", 3: "Conv_2c", 5: "Mixed_3b", 6: "Mixed_3c", 8: "Mixed_4b", 9: "Mixed_4c",
          10: "Mixed_4d", 11: "Mixed_4e", 12: "Mixed_4f", 14: "Mixed_5b", 15: "Mixed_5c"}  # fmt: skip


def coclr_names(state):
    """torchvision's S3D under CoCLR's names: by hand, part by part."""
    out = {}
    for name, tensor in state.items():
        _, place, *parts, what = name.split(".")
        branch, parts = (parts[:1], parts[1:]) if parts[0].startswith("branch") else ([], parts)
        if branch == ["branch0"]:
            parts = ["0", *parts]
        kind, inner = ("conv", "bn")[int(parts[-1])], parts[:-1]
        if (branch and len(inner) == 2) or (not branch and inner):  # space and time, factored
            kind, inner = f"{kind}{1 + int(inner[-1])}", inner[:-1]
        out[".".join([LAYERS[int(place)], *branch, *inner, kind, what])] = tensor
    return out


def encoder(seed, gates=()):
    """The state of CoCLR's S3D, channels / 8, and projection: each layer by its own name and in one of five blocks."""
    places = {"1a": "1.0", "2b": "2.1", "2c": "2.2", "3b": "3.1", "3c": "3.2", "4b": "4.1", "4c": "4.2", "4d": "4.3",
              "4e": "4.4", "4f": "4.5", "5b": "5.1", "5c": "5.2"}  # behind the pools
    state = coclr_names(trained("s3d", 8, seed).state_dict()) | {name: torch.zeros(4, 4) for name in gates}
    again = {re.sub(r"^\w+_(\d.)\.", lambda m: f"block{places[m[1]]}.", name): tensor for name, tensor in state.items()}
    both = {f"0.{name}": tensor for name, tensor in (state | again).items()}
    return both | {"2.weight": torch.zeros(128, 128, 1, 1, 1), "4.weight": torch.zeros(16, 128, 1, 1, 1)}


def coclr_file(tmp_path, states, module=""):
    """A checkpoint as its scripts write it, of {"encoder_q": state, ...}."""
    state = {f"{module}queue": torch.zeros(16, 32), f"{module}queue_ptr": torch.zeros(1, dtype=torch.long)}
    state |= {f"{module}{name}.{key}": tensor for name, part in states.items() for key, tensor in part.items()}
    moments = {"step": 7, "exp_avg": torch.zeros(8, 3, 1, 7, 7), "exp_avg_sq": torch.zeros(8, 3, 1, 7, 7)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]}
    return saved(tmp_path, {"epoch": 299, "state_dict": state, "best_acc": 0.5, "optimizer": optimizer, "iteration": 8})


@pytest.mark.parametrize("module", ["", "module."])
def test_coclr(tmp_path, module, capsys):
    """The query encoder, of three networks that hold each tensor twice."""
    states, ours = {"encoder_q": encoder(1), "encoder_k": encoder(2), "sampler": encoder(3)}, fresh("s3d", 8)
    assert {"0.Mixed_3b.branch1.1.conv2.weight", "0.block3.1.branch1.1.conv2.weight", "0.block1.0.bn2.running_var",
            "0.Conv_2b.conv.weight", "0.block2.1.conv.weight", "0.Mixed_5c.branch0.0.bn.bias"} <= {*states["sampler"]}
    report = load(coclr_file(tmp_path, states, module), ours)
    assert (report["prefix"], report["missing"]) == (f"state_dict.{module}encoder_q.0.", [])
    assert {name.split(".")[0] for name in report["left_out"]} == {f"block{i}" for i in range(1, 6)}
    said = capsys.readouterr().out
    assert "loaded 385 of 385 tensors" in said and "missing" not in said
    torch.testing.assert_close(ours.state_dict(), trained("s3d", 8, 1).state_dict(), rtol=0, atol=0)


def test_s3d_elsewhere_and_s3d_with_gates_are_refused(tmp_path):
    """S3D-G has all tensors of S3D, and more: that they would all fit is no reason to take them."""
    gates = encoder(1, gates=["Mixed_3b.gating_b0.fc.weight"])
    with pytest.raises(WeightsError, match=r"385 of 385 tensors.*gating_b0\.fc\.weight"):
        load(coclr_file(tmp_path, {"encoder_q": gates}), fresh("s3d", 8))
    with pytest.raises(WeightsError, match="only 0 of 285 tensors"):
        load(coclr_file(tmp_path, {"encoder_q": encoder(1)}), fresh("i3d", 8))
    flow = {name: x[:, :2] if name.endswith(("Conv_1a.conv1.weight", "block1.0.conv1.weight")) else x
            for name, x in encoder(1).items()}
    said = r"features.0.0.0.weight \(8, 2, 1, 7, 7\) for \(8, 3, 1, 7, 7\)"
    with pytest.raises(WeightsError, match=f"only 384 of 385 tensors.*{said}"):
        load(coclr_file(tmp_path, {"encoder_q": flow}), fresh("s3d", 8))


# ---- what is found, and what is refused


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "student.net."])
def test_prefixes(tmp_path, prefix, capsys):
    theirs, clips = trained("r3d18"), random(1, 3, 8, 32, 32)
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    for key in ("state_dict", None):
        ours = fresh("r3d18")
        load(saved(tmp_path, {key: state} if key else state), ours)
        assert torch.equal(outputs(ours, clips), outputs(theirs, clips))
        said = capsys.readouterr().out
        assert "loaded 100 of 100 tensors" in said and ("below" in said) == bool(key or prefix)
        assert not (key or prefix) or repr(f"{key}.{prefix}" if key else prefix) in said


def test_all_namings_are_tried_and_none_fits_by_chance():
    """On our own names every other naming declines."""
    for name in BACKBONES:
        state = build(name, 2).state_dict()
        assert [key for key, naming in NAMINGS.items() if set(naming.sign) <= state.keys()] == ["same"]


def test_too_little_is_refused_with_what_is_missing(tmp_path):
    state = trained("r3d18").state_dict()
    few = {name: tensor for name, tensor in state.items() if name not in ("stem.1.bias", "layer4.1.conv2.1.weight")}
    report = load(saved(tmp_path, few), fresh("r3d18"))
    assert report["missing"] == ["stem.1.bias", "layer4.1.conv2.1.weight"]

    many = {name: tensor for name, tensor in state.items() if not name.endswith("running_mean")}
    with pytest.raises(WeightsError, match=r"only 80 of 100 tensors.*20 missing: stem.1.running_mean, .*, \.\.\."):
        load(saved(tmp_path, many), fresh("r3d18"))
    first = {name: tensor for name, tensor in state.items() if name != "stem.0.weight"}
    with pytest.raises(WeightsError, match=r"only 99 of 100 tensors.*1 missing: stem.0.weight"):
        load(saved(tmp_path, first), fresh("r3d18"))
    with pytest.raises(WeightsError, match=r"stem.0.weight \(4, 3, 7, 7, 7\) for \(8, 3, 7, 7, 7\)"):
        load(saved(tmp_path, state), fresh("r3d18", 8))
    with pytest.raises(WeightsError, match="only 0 of 100 tensors"):
        load(saved(tmp_path, {"w": torch.ones(2)}), ours := fresh("r3d18"))
    torch.testing.assert_close(ours.state_dict(), fresh("r3d18").state_dict(), rtol=0, atol=0)  # as it was


def test_a_deeper_network_is_refused_where_the_shallower_one_fits(tmp_path):
    """R3D-34 has all tensors of R3D-18. Blocks that are left out are another matter than a head that is."""
    said = r"does not fit Torchvision: 100 of 100 tensors.*left out: layer1\.2\.conv1\.0\.weight"
    with pytest.raises(WeightsError, match=said):
        load(saved(tmp_path, trained("r3d34").state_dict()), fresh("r3d18"))
    head = {"fc.weight": torch.zeros(7, 32), "projection.0.bias": torch.zeros(5)}
    assert load(saved(tmp_path, trained("r3d18").state_dict() | head), fresh("r3d18"))["left_out"] == list(head)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('the trap ran')",)


def test_pickles_that_could_run_code_are_refused_and_the_way_out_works(tmp_path):
    with pytest.raises(WeightsError, match="could run code of its author.*exec"):
        load(saved(tmp_path, {"model": {}, "trap": Trap()}), fresh("r3d18"))

    theirs = trained("r3d18")
    path = saved(tmp_path, {"state_dict": theirs.state_dict(), "when": Path("a")})  # pathlib: harmless, but no tensor
    with pytest.raises(WeightsError, match="pathlib") as error:
        load(path, fresh("r3d18"))
    command = re.search(r"python (-c .*)", str(error.value))[1]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=tmp_path)
    assert load(tmp_path / "theirs-tensors.pth", fresh("r3d18"))["missing"] == []


PAGE, POINTER = "is a web page, as Google Drive", "is a Git-LFS pointer.*git lfs pull"
NO_WEIGHTS = {  # what a file is instead: (its bytes, of those of a sound one, what is said)
    "empty": (lambda whole: b"", "is empty"), "blank": (lambda whole: b"\n \n", "is empty"),
    "page": (lambda whole: b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", PAGE),
    "page, BOM": (lambda whole: b"\xef\xbb\xbf\r\n<html lang=de><title>Anmelden</title>", PAGE),
    "xml": (lambda whole: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", PAGE),
    "pointer": (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", POINTER),
    "json": (lambda whole: b'{"error": "Repository not found"}', "is text, not weights; it begins with '{\"error"),
    "half": (lambda whole: whole[: len(whole) // 2], "breaks off after [0-9]+ bytes, as half a download"),
    "nine tenths": (lambda whole: whole[: len(whole) * 9 // 10], "breaks off after"),
    "noise": (lambda whole: bytes(range(128, 256)), "is damaged|cannot be read as safetensors"),
}


@pytest.mark.parametrize("what", NO_WEIGHTS)
@pytest.mark.parametrize("kind", [".pth", ".safetensors", ".pth.tar"])
def test_what_is_not_weights_is_named(tmp_path, what, kind):
    path, tensors = tmp_path / f"theirs{kind}", trained("r3d18").state_dict()
    if kind == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == ".pth")  # .pth.tar: as before torch 1.6
    assert load(path, fresh("r3d18"))["missing"] == []
    content, said = NO_WEIGHTS[what]
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(WeightsError, match=f"^{path} .*{said}"):
        load(path, fresh("r3d18"))
    if kind == ".safetensors":
        with pytest.raises(WeightsError, match=said):
            weights.read_about(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_diverged_are_refused(tmp_path, value):
    state, ours = trained("r3d18").state_dict(), fresh("r3d18")
    state["layer4.1.conv2.1.weight"][1] = value
    with pytest.raises(WeightsError, match="1 of 120 tensors hold NaN or infinity, such as layer4.1.conv2.1.weight"):
        load(saved(tmp_path, state), ours)
    torch.testing.assert_close(ours.state_dict(), fresh("r3d18").state_dict(), rtol=0, atol=0)  # as it was
    unused = {"fc.weight": torch.full((9,), value)}  # a head that is left out may hold what it likes
    assert load(saved(tmp_path, trained("r3d18").state_dict() | unused), ours)["left_out"] == ["fc.weight"]


def test_the_weights_of_a_folder(tmp_path):
    with pytest.raises(WeightsError, match=f"{tmp_path} has no weights: none of backbone.safetensors, model.safe"):
        load(tmp_path, fresh("r3d18"))
    for seed, name in enumerate(["pytorch_model.bin", "model.safetensors", "backbone.safetensors"]):
        state, ours = trained("r3d18", seed=seed).state_dict(), fresh("r3d18")
        (torch.save if name.endswith("bin") else save_file)(state, tmp_path / name)
        load(tmp_path, ours)
        assert torch.equal(ours.stem[0].weight, state["stem.0.weight"]), name


@pytest.mark.parametrize("query, momentum", [("encoder_q", "encoder_k"), ("online_network", "target_network"),
                                             ("backbone", "momentum"), ("module.net", "module.momentum_net")])
def test_a_momentum_encoder_is_not_taken_whatever_the_order(tmp_path, query, momentum):
    first, second = trained("r3d18", seed=1).state_dict(), trained("r3d18", seed=2).state_dict()
    state = {f"{momentum}.{name}": tensor for name, tensor in second.items()}
    state |= {f"{query}.{name}": tensor for name, tensor in first.items()}
    load(saved(tmp_path, {"state_dict": state}), ours := fresh("r3d18"))
    assert torch.equal(ours.stem[0].weight, first["stem.0.weight"])


def test_where_weights_are_looked_for(tmp_path, monkeypatch):
    assert find("table1-moco-be") is None
    assert find(str(tmp_path)) == tmp_path
    for source in (f"{tmp_path}/nothing", "nothing.pth"):
        with pytest.raises(WeightsError, match="nothing(.pth)? does not exist"):
            find(source)
    with pytest.raises(WeightsError, match=r"torchvision:googlnet \(googlenet, .*Unknown model"):
        find("torchvision:googlnet")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    cached = tmp_path / "checkpoints" / "googlenet-1378be20.pth"
    cached.write_bytes(b"")
    assert find("torchvision:googlenet") == cached
    cached.unlink()
    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=f"is not in {cached.parent}: no network"):
        find("torchvision:googlenet")


# ---- out


def test_files_of_ours_load_strictly(tmp_path, capsys):
    path, net = tmp_path / "model.safetensors", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    weights.write(path, net, {"backbone": "x", "classes": ["a", "b"]})
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert load_weights(path, other) == {"backbone": "x", "classes": ["a", "b"]} == weights.read_about(path)
    assert "loaded 6 of 6 tensors" in capsys.readouterr().out
    torch.testing.assert_close(other.state_dict(), net.state_dict())
    for layers, said in [([nn.Linear(3, 4)], "2 of 2 tensors.*5 left out: 1.num_batches_tracked"),
                         ([nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)], "2 missing: 2.weight, 2.bias"),
                         ([nn.Linear(2, 4), nn.BatchNorm1d(4)], r"0.weight \(4, 3\) for \(4, 2\)")]:
        with pytest.raises(WeightsError, match=said):
            load_weights(path, nn.Sequential(*layers))
    with pytest.raises(WeightsError, match="nothing.safetensors does not exist; the stage"):
        load_weights(tmp_path / "nothing.safetensors", net)


def finished(folder, name, width=4):
    """A run directory of pre-training with nothing in it but what `export` reads. Returns the backbone, too."""
    folder.mkdir()
    (folder / "config.yaml").write_text("{method: moco, epochs: 3}")
    weights.write(folder / "backbone.safetensors", network := trained(name, width), {"backbone": name, "width": width})
    return folder, network


def test_a_folder_and_back(tmp_path):
    (run, theirs), clips = finished(tmp_path / "run", "i3d"), random(1, 3, 8, 32, 32)
    weights.export(str(run), str(folder := tmp_path / "out"))
    assert sorted(path.name for path in folder.iterdir()) == ["backbone.safetensors", "config.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config.items() >= {"backbone": "i3d", "dim": 64, "method": "moco", "epochs": 3}.items()
    assert config["pixels"] == {"order": "RGB", "mean": list(MEAN), "std": list(STD)}
    back = from_pretrained(folder)
    assert not back.training and back.config == config
    assert torch.equal(outputs(back, clips), outputs(theirs, clips))
    weights.write(folder / "backbone.safetensors", theirs, {})
    with pytest.raises(WeightsError, match="does not say which backbone it is: 'backbone'"):
        from_pretrained(folder)


def test_the_hub(tmp_path, monkeypatch, capsys):
    """The calls that huggingface_hub gets, served from a folder: nothing here reaches the network."""
    import huggingface_hub as hub

    store = tmp_path / "store"
    def create_repo(repo_id, private, exist_ok):
        assert repo_id == "me/mine" and private and exist_ok
        return f"https://hub/{repo_id}"
    def download(repo_id, filename):
        if repo_id != "me/mine":
            raise hub.errors.LocalEntryNotFoundError("cannot find the requested files")
        return str(store / filename)
    monkeypatch.setattr(hub, "create_repo", create_repo)
    monkeypatch.setattr(hub, "upload_folder", lambda repo_id, folder_path: shutil.copytree(folder_path, store))
    monkeypatch.setattr(hub, "hf_hub_download", download)

    run, theirs = finished(tmp_path / "run", "r3d18")
    weights.export(str(run), "hf:me/mine")
    assert "written to https://hub/me/mine" in capsys.readouterr().out
    assert json.loads((store / "config.json").read_text())["method"] == "moco"
    for back in (from_pretrained("me/mine"), from_pretrained("hf:me/mine")):
        assert torch.equal(back.stem[0].weight, theirs.stem[0].weight)
    assert find("hf:me/mine") == store
    with pytest.raises(WeightsError, match="hf:me/other cannot be fetched"):
        from_pretrained("me/other")

    class ConnectError(Exception):
        """As HTTP libraries have it: no OSError."""
    def offline(*_, **__):
        raise ConnectError("Name or service not known")
    monkeypatch.setattr(hub, "create_repo", offline)
    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(WeightsError, match="hf:me/mine cannot be written .*: Name or service not known"):
        weights.export(str(run), "hf:me/mine")
    with pytest.raises(WeightsError, match="cannot be fetched.*Name or service not known"):
        from_pretrained("me/mine")


def test_from_a_run_to_a_folder_to_another_run(tiny, tmp_path, capsys):
    """pretrain -> export -> finetune from the folder; weights in mid-run; what is not a run."""
    words = [f"data={tiny}", f"out={tmp_path}", *TINY, "epochs=1"]
    pretrain(config.load("demo-moco-be", words))
    source = tmp_path / "demo-moco-be/pretrain-seed0"
    weights.export(str(source), str(tmp_path / "out"))
    capsys.readouterr()
    finetune(config.load("demo-moco-be", [*words, f"pretrained={tmp_path / 'out'}", "name=again"], "finetune"))
    assert re.search(rf"loaded (\d+) of \1 tensors from {tmp_path / 'out'}\n", capsys.readouterr().out)
    report = load(next((source / "checkpoint").glob("*.pt")), from_pretrained(tmp_path / "out"))
    assert report["missing"] == [] and report["prefix"].startswith("objective.") and "momentum" not in report["prefix"]
    with pytest.raises(WeightsError, match="is not the directory of a finished run: .*does not exist"):
        weights.export(str(tmp_path), "x")
