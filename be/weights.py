"""Weights in and out.

    load(find("rgb_imagenet.pt"), backbone)           a file or a folder; the naming is found by trying ADAPTERS
    load(find("torchvision:googlenet"), backbone)     ImageNet's GoogLeNet into I3D, inflated
    load(find("hf:USER/REPO"), backbone)              what `run.py export ... to=hf:USER/REPO` put on the Hub

    save_pretrained("folder", backbone, {"backbone": "i3d", "width": 64})     backbone.safetensors + config.json
    backbone = from_pretrained("folder")                                      or from_pretrained("USER/REPO")

Loading never goes half well in silence: every convolution must be found, 9 of 10 tensors in all, and no weight inside
the backbone's modules that they have no place for, or the error lists what is missing or left out; and all that happens
is said in one line. A published network was trained on pixels scaled in its own way; where the file shows whose it is,
that scale is folded into the first layer, so that a backbone always takes this project's clips (ImageNet's mean and
standard deviation, `augment.normalise`).
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from be.augment import MEAN, STD
from be.backbones import MIXED, build
from be.config import UserError

ENOUGH = 0.9  # of the tensors of a backbone
Tensors = dict[str, Tensor]


class WeightsError(UserError, ValueError):
    """Weights that are absent, unsafe or do not fit; the message says what was found and what to do."""


# ---- in


def find(source: str) -> Path | None:
    """The file or folder that `source` means, fetched if need be; None if it is a plain name, so an experiment's.

    `torchvision:NAME` (googlenet, r3d_18, r2plus1d_18, s3d) and `hf:USER/REPO` come from their caches or the network.
    Raises WeightsError where there is nothing.
    """
    kind, _, name = source.partition(":")
    if kind == "hf":
        return _from_hub(name)
    if kind == "torchvision":
        return _from_torchvision(name)
    path = Path(source).expanduser()
    if source and path.exists():
        return path
    if "/" in source or path.suffix in (".pt", ".pth", ".tar", ".safetensors"):
        raise WeightsError(f"{path} does not exist")
    return None


def load(path: Path, backbone: nn.Module) -> dict:
    """Loads a file, or the backbone.safetensors of a folder, into `backbone`, and prints what came of it.

    Returns {"naming": key of ADAPTERS, "prefix", "loaded", "missing", "left_out"}, the last three as lists of names.
    `num_batches_tracked`, which nothing here reads, may be absent. Raises WeightsError if the file cannot be read
    safely or does not fit.
    """
    own = backbone.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    tensors = read(path)
    naming, prefix, theirs = _best_fit(tensors, wanted)
    fit = {name: tensor for name, tensor in theirs.items() if name in own and tensor.shape == own[name].shape}
    missing = [name for name in wanted if name not in fit]
    left_out = [name for name in theirs if name not in fit]
    report = f"{len(wanted) - len(missing)} of {len(wanted)} tensors from {path} (naming {naming!r}, under {prefix!r})"
    for what, names in (("missing", missing), ("left out", [_with_shape(name, theirs, own) for name in left_out])):
        if names:
            report += f"; {len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    modules = {name.split(".")[0] for name in own}
    # a gate, a bias, a further block inside a module of ours: without it the module would compute something else
    more = [name for name in left_out if name not in own and name.split(".")[0] in modules
            and name.endswith((".weight", ".bias"))]
    if any(wanted[name].ndim == 5 for name in missing) or len(missing) > (1 - ENOUGH) * len(wanted) or more:
        why = next((text for sign, text in MISFITS if sign(tensors)), f"it takes every convolution, {ENOUGH:.0%} of "
                   "all tensors, and no other weights within its modules; published networks have width=64")
        only = "only " if missing else ""
        raise WeightsError(f"does not fit the backbone: {only}{report}. {why[0].upper()}{why[1:]}")
    backbone.load_state_dict({**own, **fit})
    print(f"loaded {report}")
    return {"naming": naming, "prefix": prefix, "loaded": [n for n in wanted if n in fit], "missing": missing,
            "left_out": left_out}


def read(path: Path) -> Tensors:
    """All tensors of a file under dotted names; the containers of a checkpoint ("state_dict") become part of them.

    Raises WeightsError where torch.load would have to run code from the file.
    """
    path = Path(path) / "backbone.safetensors" if Path(path).is_dir() else Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of scripts: values, not code
            return dict(_flatten(torch.load(path, map_location="cpu", weights_only=True)))
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from None
    except Exception as error:  # of what is not a checkpoint, the unpickler raises nearly anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it wants to build a {found[1]}" if found else f"{type(error).__name__}: {str(error).split('. ')[0]}"
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors and could run code of its author when opened ({reason}). "
            f"If you trust the author, make a file of its tensors once, and use that:\n"
            f"  python -c \"import sys, torch; c = torch.load(sys.argv[1], 'cpu', weights_only=False); "
            f"c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) else c; "
            f"torch.save(getattr(c, 'state_dict', lambda: c)(), sys.argv[2])\" {path} {path.stem}-tensors.pth"
        ) from None


def _flatten(value, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))


def _best_fit(tensors: Tensors, wanted: Tensors) -> tuple[str, str, Tensors]:
    """(naming, prefix, tensors under names of ours) of the pair of adapter and prefix with the most tensors that fit.

    A prefix is all that may stand before the names of a network: `module.`, `encoder_q.0.`, `state_dict.`. Where
    several fit as well, the first in the file wins: a query encoder comes before its momentum encoder.
    """
    heads = Counter(name[:end] for name in tensors for end in (0, *(m.end() for m in re.finditer(r"\.", name))))
    best = (0, "same", "", tensors)
    for prefix in [head for head, count in heads.items() if count >= len(wanted) / 2] or [""]:
        under = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for naming, adapt in ADAPTERS.items():
            theirs = adapt(under)
            fits = sum(name in theirs and theirs[name].shape == tensor.shape for name, tensor in wanted.items())
            if fits > best[0]:
                best = (fits, naming, prefix, theirs)
    return best[1:]


def _with_shape(name: str, theirs: Tensors, own: Tensors) -> str:
    return f"{name} {tuple(theirs[name].shape)} for {tuple(own[name].shape)}" if name in own else name


# ---- namings: each adapter takes a state dict and returns it under our names, or {} if it is not of its kind


def googlenet(tensors: Tensors) -> Tensors:
    """torchvision's GoogLeNet, inflated (Carreira & Zisserman 2017): a k x k kernel becomes k of them, each 1/k, in
    time, so that a video of one repeated frame has the features of the frame. Its pixels are in [-1, 1]."""
    if "inception3a.branch1.conv.weight" not in tensors:
        return {}
    names = {"conv1": "Conv3d_1a_7x7", "conv2": "Conv3d_2b_1x1", "conv3": "Conv3d_2c_3x3"}
    names |= {f"inception{n}{a}": f"Mixed_{n}{b}" for n in "345" for a, b in zip("abcde", "bcdef", strict=True)}
    names |= {"branch1": "b0", "branch2.0": "b1a", "branch2.1": "b1b", "branch3.0": "b2a", "branch3.1": "b2b",
              "branch4.1": "b3b", "conv": "conv3d"}  # fmt: skip
    pattern = re.compile(rf"(?<![^.])({'|'.join(map(re.escape, names))})(?=\.)")
    out = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            k = tensor.shape[-1]
            tensor = tensor[:, :, None].expand(-1, -1, k, -1, -1) / k
        out[pattern.sub(lambda match: names[match[0]], name)] = tensor
    return fold_pixels(out, "Conv3d_1a_7x7.conv3d", "Conv3d_1a_7x7.bn", (0.5,) * 3, (0.5,) * 3)


def i3d_port(tensors: Tensors) -> Tensors:
    """The widespread port of DeepMind's I3D (`rgb_imagenet.pt`, `rgb_charades.pt`): our names, pixels in [-1, 1]."""
    if not {"logits.conv3d.weight", "Conv3d_1a_7x7.conv3d.weight"} <= tensors.keys():
        return {}
    return fold_pixels(tensors, "Conv3d_1a_7x7.conv3d", "Conv3d_1a_7x7.bn", (0.5,) * 3, (0.5,) * 3)


def i3d_branches(tensors: Tensors) -> Tensors:
    """I3D as `conv3d_1a_7x7.batch3d`, `mixed_3b.branch_1.0`: BE's released one, and the port it builds on.

    Their BatchNorm adds 1e-5 to the variance where DeepMind's, and ours, adds 1e-3: its weights make up for that.
    """
    if "conv3d_1a_7x7.conv3d.weight" not in tensors:
        return {}
    out = {}
    for name, tensor in tensors.items():
        for old, new in {r"^(conv3d|mixed)_": lambda m: m[0].capitalize(), r"\.batch3d\.": ".bn.",
                         r"\.branch_0\.": ".b0.", r"\.branch_([12])\.0\.": r".b\1a.",
                         r"\.branch_([123])\.1\.": r".b\1b."}.items():  # fmt: skip
            name = re.sub(old, new, name)
        out[name] = tensor
    out = fold_eps(out, theirs=1e-5, ours=1e-3)
    if "conv3d_0c_1x1.conv3d.weight" in tensors:  # the port's own head; BE renamed its, and changed to our pixels
        out = fold_pixels(out, "Conv3d_1a_7x7.conv3d", "Conv3d_1a_7x7.bn", (0.5,) * 3, (0.5,) * 3)
    return out


def hara(tensors: Tensors) -> Tensors:
    """3D-ResNets of Hara et al. (`r3d18_K_200ep.pth` and so on): our names, Kinetics' mean and deviation.

    They are told from other networks of these names by the classes of Kinetics-700, Moments, STAIR and their unions.
    """
    head = tensors.get("fc.bias", torch.empty(0))
    if "layer4.0.conv1.weight" not in tensors or len(head) not in (700, 339, 100, 1039, 800, 439, 1139):
        return {}
    return fold_pixels(tensors, "conv1", "bn1", (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))


def torchvision_video(tensors: Tensors) -> Tensors:
    """torchvision's `r3d_18` and `r2plus1d_18`, with Kinetics' mean and deviation as their transforms give them."""
    if "stem.0.weight" not in tensors:
        return {}
    if "stem.3.weight" in tensors:  # R(2+1)D: space, BatchNorm, ReLU, time, BatchNorm
        stem, first = {r"^stem\.4\.": "bn1.", r"^stem\.": "conv1."}, ("conv1.0", "conv1.1")
    else:
        stem, first = {r"^stem\.0\.": "conv1.", r"^stem\.1\.": "bn1."}, ("conv1", "bn1")
    out = {}
    for name, tensor in tensors.items():
        for old, new in {**stem, r"^(layer\d\.\d)\.conv(\d)\.1\.": r"\1.bn\2.",
                         r"^(layer\d\.\d\.conv\d)\.0\.": r"\1."}.items():  # fmt: skip
            name = re.sub(old, new, name)
        out[name] = tensor
    return fold_pixels(out, *first, *KINETICS)


def torchvision_s3d(tensors: Tensors) -> Tensors:
    """torchvision's `s3d`, with numbers where CoCLR has names: Kinetics' pixels, 1e-3 added by BatchNorm."""
    if "features.5.branch0.0.weight" not in tensors:
        return {}
    places = (0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 14, 15)  # the others are pools
    layers = dict(zip(map(str, places), ("Conv_1a", "Conv_2b", "Conv_2c", *MIXED), strict=True))
    parts = {"0": "conv", "1": "bn", "0.0": "conv1", "0.1": "bn1", "1.0": "conv2", "1.1": "bn2"}
    out = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^features\.(\d+)", lambda m: layers.get(m[1], m[0]), name).replace("branch0.", "branch0.0.")
        name = re.sub(r"(Conv_..|branch\d\.[01])\.([01](\.[01])?)\.(?=[a-z])", lambda m: f"{m[1]}.{parts[m[2]]}.", name)
        out[name] = tensor
    out = fold_eps(out, theirs=1e-3, ours=1e-5)
    return fold_pixels(out, "Conv_1a.conv1", "Conv_1a.bn1", *KINETICS)


def coclr(tensors: Tensors) -> Tensors:
    """CoCLR's S3D: our names, and each tensor once more by its place, `block3.1.branch0` for `Mixed_3b.branch0`."""
    if not {"Conv_1a.conv1.weight", "block1.0.conv1.weight"} <= tensors.keys():
        return {}
    return {name: tensor for name, tensor in tensors.items() if not re.match(r"block[1-5]\.", name)}


def c3d(tensors: Tensors) -> Tensors:
    """C3D with BatchNorm and biases (released BE, VCOP): a bias before BatchNorm is a shift of its mean."""
    biases = [name for name in tensors if re.fullmatch(r"conv\d[ab]?\.bias", name)]
    means = [re.sub(r"conv(.*)\.bias", r"bn\1.running_mean", name) for name in biases]
    if not biases or not tensors.keys() >= set(means):
        return {}
    shifted = {mean: tensors[mean] - tensors[bias] for mean, bias in zip(means, biases, strict=True)}
    return {name: tensor for name, tensor in {**tensors, **shifted}.items() if name not in biases}


def same(tensors: Tensors) -> Tensors:
    """Our names: weights from here, BE's released R3D, and whatever else follows the same sources."""
    return tensors


ADAPTERS: dict[str, Callable[[Tensors], Tensors]] = {  # of equal fits the first wins: `same` knows nothing of pixels
    "googlenet": googlenet,
    "i3d-port": i3d_port,
    "i3d-branches": i3d_branches,
    "hara": hara,
    "torchvision": torchvision_video,
    "torchvision-s3d": torchvision_s3d,
    "coclr": coclr,
    "c3d": c3d,
    "same": same,
}


KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # torchvision's: mean, standard deviation


def fold_eps(tensors: Tensors, theirs: float, ours: float) -> Tensors:
    """BatchNorms that add `theirs` to the variance become ones that add `ours`: their weights make up for it.

    Exact with the running statistics, that is in eval mode.
    """
    scaled = {}
    for name in [name for name in tensors if name.endswith(".running_var")]:
        weight = name.replace("running_var", "weight")
        if weight in tensors:
            scaled[weight] = tensors[weight] * ((tensors[name] + ours) / (tensors[name] + theirs)).sqrt()
    return {**tensors, **scaled}


def fold_pixels(tensors: Tensors, conv: str, bn: str, mean, std) -> Tensors:
    """A first layer trained on (p - mean) / std becomes one for ours, x = (p - MEAN) / STD. p: RGB in [0, 1].

    (p - mean) / std = (STD / std) x + (MEAN - mean) / std: the factor goes into the convolution, the constant into
    the mean of its BatchNorm. Exact but at the border, where padding with zeros stands for another grey.
    """
    if not {f"{conv}.weight", f"{bn}.running_mean"} <= tensors.keys() or tensors[f"{conv}.weight"].shape[1] != 3:
        return tensors
    mean, std, MEAN_, STD_ = (torch.tensor(values, dtype=torch.double) for values in (mean, std, MEAN, STD))
    weight = tensors[f"{conv}.weight"].double()  # (C, 3, t, h, w)
    shift = weight.flatten(2).sum(2) @ ((MEAN_ - mean) / std)  # (C,)
    return {**tensors,
            f"{conv}.weight": (weight * (STD_ / std)[:, None, None, None]).float(),
            f"{bn}.running_mean": (tensors[f"{bn}.running_mean"].double() - shift).float()}


def _has(*endings: str) -> Callable[[Tensors], bool]:
    return lambda tensors: all(any(name.endswith(ending) for name in tensors) for ending in endings)


MISFITS: list[tuple[Callable[[Tensors], bool], str]] = [  # what a file that does not fit looks like, and what it is
    (_has("gating_b0.fc.weight"), "this is S3D-G, whose Mixed modules end in gates; backbone=s3d has none, and without "
     "its gates it would compute something else"),
    (lambda t: _has("Conv_1a.conv1.weight")(t) or _has("features.5.branch0.0.weight")(t), "this is S3D (CoCLR's or "
     "torchvision's): backbone=s3d width=64 takes it"),
    (_has("stem.0.weight", "layer1.0.conv1.1.running_mean"), "this is one of torchvision's: backbone=r3d18tv width=64 "
     "takes r3d_18, backbone=r2plus1d18 r2plus1d_18; mc3_18 fits none, as the later stages of all backbones here "
     "look at time"),
    (_has("inception3a.branch1.conv.weight"), "this is GoogLeNet, which inflates into backbone=i3d width=64"),
    (lambda t: _has("layer2.0.conv1.weight")(t) and not _has("layer2.0.downsample.0.weight")(t), "it has shortcuts of "
     "type A (resnet-18- and resnet-34-kinetics.pth of 2018); take the authors' later r3d18_* or r3d34_* files"),
    (lambda t: any(x.ndim == 4 for x in t.values()) and not any(x.ndim == 5 for x in t.values()),
     "this is a network for images; of these only torchvision's GoogLeNet is inflated, into backbone=i3d width=64"),
]


def _from_torchvision(name: str) -> Path:
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(name).DEFAULT
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        if not path.exists():
            weights.get_state_dict(progress=True, check_hash=True)  # leaves the file there
        return path
    except ValueError:
        raise WeightsError(f"torchvision has no model {name!r}; googlenet, r3d_18, r2plus1d_18 and s3d fit "
                           f"backbones here") from None
    except OSError as error:
        raise WeightsError(f"{weights.url} cannot be fetched ({error}); fetch it elsewhere and put it at {path}, or "
                           f"name the file itself") from None


# ---- out


def export(run: str, to: str, private: bool = True):
    """export: make the backbone of a run a folder, or a repository on the Hugging Face Hub, for others to load

    run      a run directory, such as runs/table1-moco-be/pretrain-seed0
    to       a folder, or hf:USER/REPO (log in before: `hf auth login`)
    private  whether a new repository starts out private

    Either is loaded again by `pretrained=` of `finetune` and `retrieve`, or be.weights.from_pretrained.
    """
    source = Path(run) / "backbone.safetensors"
    try:
        with safe_open(source, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
        run_config = yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, KeyError) as error:
        raise WeightsError(f"{run} is not the directory of a finished run ({error})") from None
    backbone = build(about["backbone"], about["width"])
    load(source, backbone)
    keys = ("method", "erase", "dataset", "split", "seed", "epochs", "frames", "stride", "short_side", "size")
    about = {"backbone": about["backbone"], "width": about["width"], "experiment": about["experiment"],
             **{key: run_config.get(key) for key in keys}}
    if not to.startswith("hf:"):
        print(f"written to {save_pretrained(to, backbone, about)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, backbone, about)
        print(f"written to {push_to_hub(folder, to.removeprefix('hf:'), private)}")


def save_pretrained(folder, network: nn.Module, about: dict) -> Path:
    """Writes backbone.safetensors, config.json and a README.md. `about` says at least `backbone` and `width`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {**about, "dim": network.dim, "pixels": {"order": "RGB", "mean": MEAN, "std": STD}}
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in network.state_dict().items()},
              folder / "backbone.safetensors", {"about": json.dumps(about)})
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(CARD.format(**{"method": "?", "dataset": "?", "experiment": "?", **about}),
                                      encoding="utf-8")
    return folder


def from_pretrained(source) -> nn.Module:
    """The backbone of a folder, or of a repository `USER/REPO` on the Hub, in eval mode; `.config` is its config.json.

    All tensors must fit. Raises WeightsError if there is no such thing.
    """
    folder = Path(source) if Path(source).is_dir() else _from_hub(str(source).removeprefix("hf:"))
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        backbone = build(about["backbone"], about["width"])
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{folder} has no config.json with `backbone` and `width` in it ({error})") from None
    missing = load(folder, backbone)["missing"]
    if missing:
        raise WeightsError(f"{folder} lacks {len(missing)} tensors: {', '.join(missing[:4])}")
    backbone.config = about
    return backbone.eval()


def push_to_hub(folder, repo: str, private: bool = True) -> str:
    """Uploads a folder of `save_pretrained` to `repo` (USER/REPO), made if need be. -> its address"""
    from huggingface_hub import HfApi

    try:
        url = HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="backbone")
    except Exception as error:  # the client's, or of whichever HTTP library it uses
        raise WeightsError(f"hf:{repo} cannot be written ({error}); was there a `hf auth login`?") from None
    return str(url)


def _from_hub(repo: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return [Path(hf_hub_download(repo, name)).parent for name in ("config.json", "backbone.safetensors")][-1]
    except Exception as error:  # as above
        raise WeightsError(f"hf:{repo} cannot be fetched, and is not a folder here: {error}") from None


CARD = """---
library_name: be
tags: [video, self-supervised, background-erasing]
---
Video backbone {backbone} of width {width}, trained by `{method}` on {dataset} (experiment `{experiment}`) with
[Background Erasing](https://arxiv.org/abs/2009.05769). What it was trained with stands in config.json.

    from be.weights import from_pretrained

    backbone = from_pretrained("this folder, or USER/REPO")
    features = backbone(clips)  # (B, 3, T, S, S), RGB, normalised -> (B, {dim}, T', S', S')
"""
