"""Weights in and out.

    load(find("rgb_imagenet.pt"), backbone)         a file or a folder of anybody's, under one of NAMINGS
    load(find("torchvision:googlenet"), backbone)   ImageNet's GoogLeNet into I3D, inflated; also hf:USER/REPO
    load_weights("model.safetensors", model)        a file of a run, heads and all, strictly
    backbone = from_pretrained("USER/REPO")         what `export` put there, or a folder: of a run, or of `export`

Nothing is loaded in part without an error: every convolution must be found, 9 of 10 tensors in all, and no weight may
be left over inside the backbone's modules. Published networks were trained on pixels scaled in their own way; that is
folded into the first layer, so that a backbone always takes the clips of `augment.normalise`.
"""

import argparse
import contextlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from be.augment import MEAN, STD
from be.backbones import BACKBONES, build
from be.config import UserError

Tensors = dict[str, Tensor]


class WeightsError(UserError, ValueError):
    """Weights that are absent, unsafe or do not fit; the message says what was found and what to do."""


@contextlib.contextmanager
def refused(what: str):
    """Turns what a library raises in here into a WeightsError that begins with `what`."""
    try:
        yield
    except Exception as error:  # safetensors' and the Hub's own, and those of whichever HTTP library it uses
        raise WeightsError(f"{what}: {error}") from None


def write(path: Path, module: nn.Module, about: dict) -> None:
    """The state dict of `module` as safetensors, with `about` (plain values) as JSON in its header."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}
    save_file(tensors, path, {"about": json.dumps(about)})


def read_about(path: Path) -> dict:
    """What `write` was told about the file, without reading its tensors. Raises WeightsError where there is none."""
    if not Path(path).exists():
        raise WeightsError(f"{path} does not exist; the stage that writes it has not been run, or not to its end")
    with refused(f"{path} cannot be read as safetensors"), safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("about", "{}"))


def load_weights(path: Path, module: nn.Module) -> dict:
    """Loads a file of `write` into `module`, which must have the same tensors; returns what the file is about."""
    about = read_about(path)
    load(path, module, strict=True)
    return about


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


def load(path: Path, module: nn.Module, strict: bool = False) -> dict:
    """Loads a file, or the backbone.safetensors of a folder, into `module`, and prints what came of it.

    strict: names and shapes must all be the same. -> {"naming": key of NAMINGS, "prefix": what stood before the names,
    "missing", "left_out": names}. `num_batches_tracked`, which nothing here reads, may be absent. Raises WeightsError
    if the file cannot be read safely or does not fit.
    """
    own, tensors = module.state_dict(), read(path)
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    naming, prefix, theirs = _best_fit(tensors, wanted)
    fit = {name: tensor for name, tensor in theirs.items() if name in own and tensor.shape == own[name].shape}
    missing, left_out = ([name for name in names if name not in fit] for names in (wanted, theirs))
    modules = {name.split(".")[0] for name in own}
    left_out.sort(key=lambda name: name.split(".")[0] not in modules)  # first what our modules have no place for
    told = [f"{k} {tuple(theirs[k].shape)} for {tuple(own[k].shape)}" if k in own else k for k in left_out]
    report = f"{len(wanted) - len(missing)} of {len(wanted)} tensors from {path} (naming {naming!r}, under {prefix!r})"
    for what, names in (("missing", missing), ("left out", told)):
        if names:
            report += f"; {len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    if (strict and missing + left_out) or _lacks(wanted, theirs):
        raise WeightsError(f"does not fit {type(module).__name__}: {'only ' if missing else ''}{report}"
                           f"{'' if strict else _takers(tensors)}")
    module.load_state_dict({**own, **as_ours(fit, NAMINGS[naming], module)})
    print(f"loaded {report}")
    return {"naming": naming, "prefix": prefix, "missing": missing, "left_out": left_out}


def _lacks(wanted: Tensors, theirs: Tensors) -> bool:
    """Whether a convolution or more than a tenth is missing, or a gate, bias or block left over inside our modules."""
    missing = [name for name in wanted if name not in theirs or theirs[name].shape != wanted[name].shape]
    if len(missing) > 0.1 * len(wanted) or any(wanted[name].ndim == 5 for name in missing):
        return True
    more = {name.split(".")[0] for name in theirs.keys() - wanted.keys() if name.endswith((".weight", ".bias"))}
    return bool(more & {name.split(".")[0] for name in wanted})


def _takers(tensors: Tensors) -> str:
    """Which backbones would take a file that was refused."""
    takers = []
    for name in BACKBONES:
        with torch.device("meta"):
            wanted = {key: x for key, x in build(name).state_dict().items() if "num_batches" not in key}
        takers += [] if _lacks(wanted, _best_fit(tensors, wanted)[2]) else [f"backbone={name}"]
    return f". Of width 64 it fits {' or '.join(takers) or 'no backbone here'}"


def read(path: Path) -> Tensors:
    """All tensors of a file under dotted names; the containers of a checkpoint ("state_dict") become part of them.

    Raises WeightsError where torch.load would have to run code from the file.
    """
    path = Path(path) / "backbone.safetensors" if Path(path).is_dir() else Path(path)
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        with refused(f"{path} cannot be read as safetensors"):
            return load_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of scripts: values, not code
            return dict(_flatten(torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # of what is not a checkpoint, the unpickler raises nearly anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it wants to build a {found[1]}" if found else f"{type(error).__name__}: {str(error).split('. ')[0]}"
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors and could run code of its author when opened ({reason}). "
            f"If you trust the author, make a file of its tensors once, and use that:\n  python -c \"import torch; c = "
            f"torch.load('{path}', 'cpu', weights_only=False); torch.save(c.get('state_dict', c.get('model', c)) "
            f"if isinstance(c, dict) else c.state_dict(), '{path.stem}-tensors.pth')\"") from None


def _flatten(value, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))


def _best_fit(tensors: Tensors, wanted: Tensors) -> tuple[str, str, Tensors]:
    """(naming, prefix, tensors under names of ours) of the pair of naming and prefix with the most tensors that fit.

    A prefix is all that may stand before the names of a network: `module.`, `encoder_q.0.`, `state_dict.`. Where
    several fit as well, the first in the file wins: a query encoder comes before its momentum encoder.
    """
    heads = Counter(name[:end] for name in tensors for end in (0, *(m.end() for m in re.finditer(r"\.", name))))
    best = (0, "same", "", tensors)
    for prefix in [head for head, count in heads.items() if count >= len(wanted) / 2]:
        under = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for naming in (name for name, naming in NAMINGS.items() if set(naming.sign) <= under.keys()):
            theirs = NAMINGS[naming].ours(under)
            fits = sum(name in theirs and theirs[name].shape == tensor.shape for name, tensor in wanted.items())
            best = max(best, (fits, naming, prefix, theirs), key=lambda found: found[0])
    return best[1:]


# ---- whose names they are


def by_place(theirs: str, ours: str, tensors: Tensors) -> Tensors:
    """torchvision's network under our names: it has the same tensors in the same order, and its head behind them.

    Of GoogLeNet a k x k kernel becomes k of them in time, each 1/k (Carreira & Zisserman 2017), so that a video of one
    repeated frame has the features of the frame.
    """
    from torchvision.models import get_model  # takes a second, and few ask for it

    options = {"aux_logits": False, "init_weights": False} if theirs == "googlenet" else {}
    with torch.device("meta"):
        names = dict(zip(get_model(theirs, **options).state_dict(), build(ours).state_dict(), strict=False))
    return {names.get(name, name): x[:, :, None].expand(-1, -1, x.shape[-1], -1, -1) / x.shape[-1] if x.ndim == 4 else x
            for name, x in tensors.items()}


def branches(tensors: Tensors) -> Tensors:
    """I3D as `conv3d_1a_7x7.batch3d`, `mixed_3b.branch_1.0`: BE's released one, and the port it builds on."""
    out = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^(conv3d|mixed)_", lambda m: m[0].capitalize(), name).replace(".batch3d.", ".bn.")
        name = re.sub(r"\.branch_([123])\.([01])\.", lambda m: f".b{m[1]}{'ab'[int(m[2])]}.", name)
        out[name.replace(".branch_0.", ".b0.")] = tensor
    return out


def hara(tensors: Tensors) -> Tensors:
    """Our names, and those of others. Told by the classes of Kinetics-700, Moments, STAIR and their unions."""
    return tensors if len(tensors["fc.bias"]) in (700, 339, 100, 1039, 800, 439, 1139) else {}


def biases_into_means(tensors: Tensors) -> Tensors:
    """C3D with biases (released BE, VCOP): a bias before BatchNorm is a shift of its mean."""
    biases = {name: tensor for name, tensor in tensors.items() if re.fullmatch(r"conv\d[ab]?\.bias", name)}
    means = {re.sub(r"conv(.*)\.bias", r"bn\1.running_mean", name): bias for name, bias in biases.items()}
    moved = {name: tensors[name] - bias for name, bias in means.items()}
    return {name: tensor for name, tensor in {**tensors, **moved}.items() if name not in biases}


class Naming(NamedTuple):
    """How the files of one source differ from ours. A source of your own is one more entry of NAMINGS."""

    sign: tuple[str, ...]  # tensors that tell them from others
    ours: Callable[[Tensors], Tensors] = dict  # a state dict of theirs -> one under our names; {}: is not of theirs
    pixels: tuple | None = None  # they were trained on (RGB in [0, 1] - mean) / standard deviation; None: as ours are
    eps: float | None = None  # what their BatchNorms add to the variance; None: as ours do


UNIT = ((0.5,) * 3, (0.5,) * 3)  # pixels in [-1, 1]
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # torchvision's: mean, standard deviation
HARA = ((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
PORT = ("conv3d_1a_7x7.conv3d.weight", "conv3d_0c_1x1.conv3d.weight")
NAMINGS: dict[str, Naming] = {  # of equal fits the first wins: `same` knows nothing of pixels
    "googlenet": Naming(("inception3a.branch1.conv.weight",), partial(by_place, "googlenet", "i3d"), UNIT),
    "torchvision-r2plus1d": Naming(("stem.3.weight",), partial(by_place, "r2plus1d_18", "r2plus1d18"), KINETICS),
    "torchvision-r3d": Naming(("stem.0.weight",), partial(by_place, "r3d_18", "r3d18tv"), KINETICS),
    "torchvision-s3d": Naming(("features.5.branch0.0.weight",), partial(by_place, "s3d", "s3d"), KINETICS, 1e-3),
    # DeepMind's I3D, in the widespread port (`rgb_imagenet.pt`) and in another one
    "i3d-port": Naming(("logits.conv3d.weight", "Conv3d_1a_7x7.conv3d.weight"), pixels=UNIT),
    "i3d-branches-port": Naming(PORT, branches, UNIT, 1e-5),
    "i3d-branches": Naming(PORT[:1], branches, eps=1e-5),
    "c3d": Naming(("conv3a.bias", "bn3a.running_mean"), biases_into_means),
    "hara": Naming(("layer4.0.conv1.weight", "fc.bias"), hara, HARA),  # `r3d18_K_200ep.pth` and so on
    "same": Naming(()),  # ours, BE's released R3D, CoCLR's S3D (each tensor twice, `block3.1.branch0` is left out)
}


def as_ours(tensors: Tensors, naming: Naming, module: nn.Module) -> Tensors:
    """Tensors under our names, as our BatchNorms (exactly so in eval mode) and our pixels want them."""
    layers = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Conv3d | nn.BatchNorm3d)][:2]
    if naming.eps is not None:
        scale = {name.replace("running_var", "weight"): ((var + layers[1][1].eps) / (var + naming.eps)).sqrt()
                 for name, var in tensors.items() if name.endswith("running_var")}
        tensors = {name: tensor * scale.get(name, 1) for name, tensor in tensors.items()}
    return fold_pixels(tensors, layers[0][0], layers[1][0], *naming.pixels) if naming.pixels else tensors


def fold_pixels(tensors: Tensors, conv: str, bn: str, mean, std) -> Tensors:
    """A first layer trained on (p - mean) / std becomes one for ours, x = (p - MEAN) / STD. p: RGB in [0, 1].

    (p - mean) / std = (STD / std) x + (MEAN - mean) / std: the factor goes into the convolution, the constant into
    the mean of its BatchNorm. Exact but at the border, where padding with zeros stands for another grey.
    """
    mean, std, our_mean, our_std = (torch.tensor(values, dtype=torch.double) for values in (mean, std, MEAN, STD))
    weight = tensors[f"{conv}.weight"].double()  # (C, 3, t, h, w)
    shift = weight.flatten(2).sum(2) @ ((our_mean - mean) / std)  # (C,)
    before = tensors.get(f"{bn}.running_mean", torch.zeros(len(weight)))
    return {**tensors, f"{conv}.weight": (weight * (our_std / std)[:, None, None, None]).float(),
            f"{bn}.running_mean": (before.double() - shift).float()}


def _from_torchvision(name: str) -> Path:
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(name).DEFAULT
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        if not path.exists():
            weights.get_state_dict(progress=True, check_hash=True)  # leaves the file there
        return path
    except ValueError:
        raise WeightsError(f"torchvision has no model {name!r}; choices: googlenet, r3d_18, r2plus1d_18, s3d") from None
    except OSError as error:
        raise WeightsError(f"{weights.url} cannot be fetched ({error}); put it at {path}, or name the file") from None


# ---- out


def export(run: str, to: str, private: bool = True):
    """export: make the backbone of a run a folder, or a repository on the Hugging Face Hub, for others to load

    run      a run directory, such as runs/table1-moco-be/pretrain-seed0
    to       a folder, or hf:USER/REPO (log in before: `hf auth login`)
    private  whether a new repository starts out private

    Either is loaded again by `pretrained=` of `finetune` and `retrieve`, or be.weights.from_pretrained.
    """
    try:
        backbone = from_pretrained(run)
        run_config = yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, WeightsError) as error:
        raise WeightsError(f"{run} is not the directory of a finished run ({error})") from None
    keys = ("method", "erase", "dataset", "split", "seed", "epochs", "frames", "stride", "short_side", "size")
    about = {**backbone.config, **{key: run_config.get(key) for key in keys}}
    if not to.startswith("hf:"):
        print(f"written to {save_pretrained(to, backbone, about)}")
        return
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder, refused(f"{to} cannot be written (was there a `hf auth login`?)"):
        repo = to.removeprefix("hf:")
        url = HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=save_pretrained(folder, backbone, about))
        print(f"written to {url}")


def save_pretrained(folder, network: nn.Module, about: dict) -> Path:
    """Writes backbone.safetensors, config.json and a README.md. `about` says at least `backbone` and `width`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    about = {**about, "dim": network.dim, "pixels": {"order": "RGB", "mean": MEAN, "std": STD}}
    write(Path(folder) / "backbone.safetensors", network, about)
    (Path(folder) / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (Path(folder) / "README.md").write_text(CARD.format(**about), encoding="utf-8")
    return Path(folder)


def from_pretrained(source) -> nn.Module:
    """The backbone of a folder, of a run or of `save_pretrained`, or of a repository `USER/REPO` on the Hub.

    It is in eval mode; `.config` is what the file says about it. Raises WeightsError if there is no such thing.
    """
    folder = Path(source) if Path(source).is_dir() else _from_hub(str(source).removeprefix("hf:"))
    about = read_about(folder / "backbone.safetensors")
    if not {"backbone", "width"} <= about.keys():
        raise WeightsError(f"{folder}: backbone.safetensors does not say which `backbone` of which `width` it is")
    backbone = build(about["backbone"], about["width"])
    load_weights(folder / "backbone.safetensors", backbone)
    backbone.config = about
    return backbone.eval()


def _from_hub(repo: str) -> Path:
    from huggingface_hub import hf_hub_download

    with refused(f"hf:{repo} cannot be fetched, and is not a folder here"):
        return Path(hf_hub_download(repo, "backbone.safetensors")).parent


CARD = """---
library_name: be
tags: [video, self-supervised, background-erasing]
---
A video backbone, {backbone} of width {width}, trained by [Background Erasing](https://arxiv.org/abs/2009.05769): how,
stands in config.json. To load it: `be.weights.from_pretrained(a folder or USER/REPO)`. It takes clips (B, 3, T, S, S),
RGB, normalised, and returns features (B, {dim}, T', S', S').
"""
