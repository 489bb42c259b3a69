"""Weights in and out.

    load(find("rgb_imagenet.pt"), backbone)         a file or a folder of anybody's, under one of NAMINGS
    load(find("torchvision:googlenet"), backbone)   ImageNet's GoogLeNet into I3D, inflated; also hf:USER/REPO
    backbone = from_pretrained("USER/REPO")         what `export` put there, or a folder: of a run, or of `export`

A file fits if it has every convolution, 9 of 10 tensors in all, and no further weight inside the backbone's modules.
The scale of the pixels that a published network was trained on is folded into its first layer.
"""

import argparse
import contextlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from be.augment import MEAN, STD
from be.backbones import build, names_of_now
from be.config import UserError


class WeightsError(UserError, ValueError):
    """Weights that are absent, unsafe or do not fit; the message says what was found and what to do."""


@contextlib.contextmanager
def refused(what: str):
    """Turns what a library raises in here into a WeightsError that begins with `what`."""
    try:
        yield
    except Exception as error:  # safetensors' and the Hub's own, and those of whichever HTTP library it uses
        raise WeightsError(f"{what}: {error}") from None


def write(path, module, about):
    """The state dict of `module` as safetensors, with `about` (plain values) as JSON in its header."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in module.state_dict().items()}
    save_file(tensors, path, {"about": json.dumps(about)})


def read_about(path: Path) -> dict:
    """What `write` was told about the file, without reading its tensors. Raises WeightsError where there is none."""
    if not path.exists():
        raise WeightsError(f"{path} does not exist; the stage that writes it has not been run, or not to its end")
    with named(path), safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("about", "{}"))


def load_weights(path, module) -> dict:
    """Loads a file of `write` into `module`, which must have the same tensors; returns what the file is about."""
    about = read_about(path)
    load(path, module, strict=True)
    return about


def find(source: str) -> Path | None:
    """The file or folder that `source` means; None if it is a plain name, so an experiment's. `torchvision:NAME` and
    `hf:USER/REPO` come from their caches or the network. WeightsError where there is nothing."""
    kind, _, name = source.partition(":")
    if kind == "hf":
        with refused(f"{source} cannot be fetched, and is not a folder here"):
            return Path(huggingface_hub.hf_hub_download(name, "backbone.safetensors")).parent
    if kind == "torchvision":
        from torchvision.models import get_model_weights
        folder = Path(torch.hub.get_dir(), "checkpoints")
        with refused(f"{source} (googlenet, r3d_18, r2plus1d_18 or s3d) cannot be fetched, and is not in {folder}"):
            weights = get_model_weights(name).DEFAULT
            if not (path := folder / Path(weights.url).name).exists():
                weights.get_state_dict(check_hash=True)  # leaves the file there
            return path
    path = Path(source).expanduser()
    if not path.exists() and ("/" in source or path.suffix in (".pt", ".pth", ".tar", ".safetensors")):
        raise WeightsError(f"{path} does not exist")
    return path if source and path.exists() else None


def load(path: Path, module: nn.Module, strict: bool = False) -> dict:
    """Loads a file, or that of a folder (FILES), into `module`, and prints what came of it.

    strict: names and shapes must all be the same. -> {"naming": key of NAMINGS, "prefix": what stood before the names,
    "missing", "left_out": names}. Raises WeightsError.
    """
    own = module.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    names_of_now(tensors := read(path))
    naming, prefix, theirs = _best_fit(tensors, wanted)
    fit = {name: tensor for name, tensor in theirs.items() if name in own and tensor.shape == own[name].shape}
    missing, left_out = ([name for name in names if name not in fit] for names in (wanted, theirs))
    modules = {name.split(".")[0] for name in own}
    # A gate, a bias or a block of a deeper network: what theirs computes is not what ours does
    inside = [name for name in left_out if name.split(".")[0] in modules and name.endswith((".weight", ".bias"))]
    told = [f"{name} {(*theirs[name].shape,)} for {(*own[name].shape,)}" if name in own else name
            for name in dict.fromkeys(inside + left_out)]
    report = (f"{len(wanted) - len(missing)} of {len(wanted)} tensors from {path}"
              f"{f', which is named as {naming} names it' * (naming != 'same')}{f', below {prefix!r}' * bool(prefix)}")
    for names, what in ((missing, "missing"), (told, "left out")):
        if names:
            report += f"; {len(names)} {what}: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
    lacks = len(missing) > 0.1 * len(wanted) or any(own[name].ndim == 5 for name in missing)
    if inside or lacks or (strict and missing + left_out):
        raise WeightsError(f"does not fit {type(module).__name__}: {'only ' if missing else ''}{report}")
    if bad := [name for name, tensor in fit.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{path}: {len(bad)} of {len(fit)} tensors hold NaN or infinity, such as {bad[0]}: the "
                           f"training that wrote them had diverged")
    module.load_state_dict({**own, **as_ours(fit, NAMINGS[naming], module)})
    print(f"loaded {report}")
    return {"naming": naming, "prefix": prefix, "missing": missing, "left_out": left_out}


def read(path):
    """All tensors of a file, or of the first of FILES in a folder, under dotted names; the containers of a checkpoint
    ("state_dict") become part of them. Raises WeightsError as `named` does."""
    path = Path(path)
    if path.is_dir():
        path, folder = next(filter(Path.is_file, (path / name for name in FILES)), None), path
        if path is None:
            raise WeightsError(f"{folder} has no weights: none of {', '.join(FILES)} is in that folder; name a file")
    with named(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of scripts: values, not code
            return _flatten(torch.load(path, map_location="cpu", weights_only=True))


FILES = "backbone.safetensors", "model.safetensors", "pytorch_model.bin"  # ours, and those of the Hub
INSTEAD = {  # how a file begins -> what it is
    b"": "is empty, as a full disk or a download that failed leaves it: fetch it again",
    b"<": "is a web page, as Google Drive sends one in place of a large file: fetch it with a browser, or with gdown",
    b"version https://git-lfs": "is a Git-LFS pointer, not the weights: run `git lfs pull` where it was cloned",
}
CONVERT = """is damaged, or holds more than tensors and could run code of its author when opened ({error}). \
If you trust the author, make a file of its tensors, and use that:
  python -c "import torch; c = torch.load('{path}', 'cpu', weights_only=False); torch.save(c.get('state_dict', \
c.get('model', c)) if isinstance(c, dict) else c.state_dict(), '{path.stem}-tensors.pth')" """
BREAKS_OFF = "central directory|EOF|truncated|Ran out of input|not fully covered|InvalidHeaderLength|expected .* bytes"


@contextlib.contextmanager
def named(path: Path):
    """Turns what reading `path` raises into a WeightsError: what it is instead, or that it could run code."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of what is not a checkpoint, the unpickler raises nearly anything
        raise WeightsError(f"{path} {_instead(path, str(error))}") from None


def _instead(path, error):
    with open(path, "rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    for sign, what in INSTEAD.items():
        if start.startswith(sign) if sign else not start:
            return what
    if start.isascii() and b"\0" not in start:
        return f"is text, not weights; it begins with {start.decode()!r}"
    if re.search(BREAKS_OFF, error):
        return f"breaks off after {path.stat().st_size} bytes, as half a download does: fetch it again ({error})"
    if path.suffix == ".safetensors":
        return f"cannot be read as safetensors: {error}"
    found = re.search(r"GLOBAL \S+", error)
    return CONVERT.format(path=path, error=found[0] if found else error.split(". ")[0])


def _flatten(value, name=""):
    if isinstance(value, Mapping):
        parts = (_flatten(item, f"{name}.{key}".removeprefix(".")) for key, item in value.items())
        return dict(chain.from_iterable(part.items() for part in parts))
    return {name: value} if isinstance(value, torch.Tensor) else {}


def _best_fit(tensors, wanted):
    """(naming, prefix, tensors under names of ours) of the pair of naming and prefix with the most tensors that fit.

    A prefix is all that may stand before the names of a network: `module.`, `encoder_q.0.`, `state_dict.`. Where
    several fit as well, a momentum encoder (`encoder_k`, `target`) loses, then the first in the file wins.
    """
    heads = Counter(name[:end] for name in tensors for end in (0, *(m.end() for m in re.finditer(r"\.", name))))
    found = [(0, True, "same", "", tensors)]
    for prefix in [head for head, count in heads.items() if count >= len(wanted) / 2]:
        under = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        query = not re.search(r"momentum|target|_k\b|\bkey", prefix)
        for name, naming in NAMINGS.items():
            if set(naming.sign) <= under.keys():
                theirs = naming.ours(under)
                fits = sum(key in theirs and theirs[key].shape == tensor.shape for key, tensor in wanted.items())
                found.append((fits, query, name, prefix, theirs))
    return max(found, key=lambda one: one[:2])[2:]


# ---- whose names they are


def googlenet(tensors):
    """torchvision's, inflated into I3D (Carreira & Zisserman 2017): a k x k kernel becomes k of them in time, each 1/k.
    It has the same tensors in the same order, and its head behind them."""
    from torchvision.models import get_model  # takes a second, and few ask for it
    with torch.device("meta"):
        theirs, ours = get_model("googlenet", aux_logits=False, init_weights=False), build("i3d")
    names = dict(zip(theirs.state_dict(), ours.state_dict(), strict=False))
    return {names.get(name, name): x[:, :, None].expand(-1, -1, x.shape[-1], -1, -1) / x.shape[-1] if x.ndim == 4 else x
            for name, x in tensors.items()}


def branches(tensors):
    """I3D as `conv3d_1a_7x7.batch3d`, `mixed_3b.branch_1.0`: BE's released one, and the port it builds on."""
    def ours(name):
        name = re.sub(r"^(conv3d|mixed)_", lambda m: m[0].capitalize(), name).replace(".batch3d.", ".bn.")
        name = re.sub(r"\.branch_([123])\.0\.", r".b\1a.", re.sub(r"\.branch_([123])\.1\.", r".b\1b.", name))
        return name.replace(".branch_0.", ".b0.")

    return {ours(name): tensor for name, tensor in tensors.items()}


def hara(tensors):
    """Told from torchvision's by the classes of Kinetics-700, Moments, STAIR and their unions."""
    return tensors if len(tensors["fc.bias"]) in (700, 339, 100, 1039, 800, 439, 1139) else {}


def biases_into_means(tensors):
    """C3D with biases (released BE, VCOP): a bias before BatchNorm is a shift of its mean."""
    out = dict(tensors)
    for name in [name for name in tensors if re.fullmatch(r"conv\d[ab]?\.bias", name)]:
        mean = name.replace("conv", "bn").replace("bias", "running_mean")
        out[mean] = out[mean] - out.pop(name)
    return out


class Naming(NamedTuple):
    """How the files of one source differ from ours. A source of your own is one more entry of NAMINGS."""

    sign: tuple[str, ...]  # tensors that tell them from others
    ours: Callable = dict  # a state dict of theirs -> one under our names; {}: is not of theirs
    pixels: tuple | None = None  # they were trained on (RGB in [0, 1] - mean) / standard deviation; None: as ours are
    eps: float | None = None  # what their BatchNorms add to the variance; None: as ours do


UNIT = ((0.5,) * 3, (0.5,) * 3)  # pixels in [-1, 1]
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # torchvision's: mean, standard deviation
HARA = ((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
NAMINGS: dict[str, Naming] = {  # of equal fits the first wins: `same` knows nothing of pixels
    "googlenet": Naming(("inception3a.branch1.conv.weight",), googlenet, UNIT),
    "hara": Naming(("stem.0.weight", "fc.bias"), hara, HARA),  # `r3d18_K_200ep.pth` and so on
    "torchvision": Naming(("stem.0.weight", "fc.bias"), pixels=KINETICS),
    "torchvision-s3d": Naming(("features.0.0.0.weight", "classifier.1.weight"), pixels=KINETICS, eps=1e-3),
    "i3d-port": Naming(("logits.conv3d.weight", "Conv3d_1a_7x7.conv3d.weight"), pixels=UNIT),  # rgb_imagenet.pt
    "i3d-branches-port": Naming(("conv3d_0c_1x1.conv3d.weight",), branches, UNIT, 1e-5),
    "i3d-branches": Naming(("conv3d_1a_7x7.conv3d.weight",), branches, eps=1e-5),
    "c3d": Naming(("conv3a.bias", "bn3a.running_mean"), biases_into_means),
    "same": Naming(()),  # ours, BE's released R3D, CoCLR's S3D
}


def as_ours(tensors, naming, module):
    """Tensors under our names, as our BatchNorms (exactly so in eval mode) and our pixels want them."""
    layers = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Conv3d | nn.BatchNorm3d)][:2]
    if naming.eps is not None:
        scale = {name.replace("running_var", "weight"): ((var + layers[1][1].eps) / (var + naming.eps)).sqrt()
                 for name, var in tensors.items() if name.endswith("running_var")}
        tensors = {name: tensor * scale.get(name, 1) for name, tensor in tensors.items()}
    return fold_pixels(tensors, layers[0][0], layers[1][0], *naming.pixels) if naming.pixels else tensors


def fold_pixels(tensors, conv, bn, mean, std):
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


# ---- out


def export(run: str, to: str, private: bool = True):
    """export: make the backbone of a run a folder, or a repository on the Hugging Face Hub, for others to load

    run      a run directory, such as runs/table1-moco-be/pretrain-seed0
    to       a folder, or hf:USER/REPO (log in before: `hf auth login`)
    private  whether a new repository starts out private

    Either is loaded again by `pretrained=` of `finetune` and `retrieve`, or be.weights.from_pretrained.
    """
    if not Path(run).is_dir():
        raise WeightsError(f"run={run} is no folder; `run.py status` lists the runs")
    with refused(f"{run} is not the directory of a finished run"):
        backbone = from_pretrained(run)
        run_config = yaml.safe_load((Path(run) / "config.yaml").read_text(encoding="utf-8"))
    keys = ("method", "erase", "dataset", "split", "seed", "epochs", "frames", "stride", "short_side", "size")
    about = {**backbone.config, **{key: run_config.get(key) for key in keys}, "dim": backbone.dim,
             "pixels": {"order": "RGB", "mean": MEAN, "std": STD}}
    repo = to.removeprefix("hf:")
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(to if repo == to else aside)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "backbone.safetensors", backbone, about)
        (folder / "config.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
        if repo != to:
            with refused(f"{to} cannot be written (was there a `hf auth login`?)"):
                to = huggingface_hub.create_repo(repo, private=private, exist_ok=True)
                huggingface_hub.upload_folder(repo_id=repo, folder_path=folder)
    print(f"written to {to}")


def from_pretrained(source) -> nn.Module:
    """The backbone of a folder, of a run or of `export`, or of a repository `USER/REPO` on the Hub, in eval mode.
    `.config` is what the file says about it. Raises WeightsError."""
    folder = Path(source) if Path(source).is_dir() else find(f"hf:{str(source).removeprefix('hf:')}")
    about = read_about(folder / "backbone.safetensors")
    with refused(f"{folder}: backbone.safetensors does not say which backbone it is"):
        backbone = build(about["backbone"], about["width"])
    load_weights(folder / "backbone.safetensors", backbone)
    backbone.config = about
    return backbone.eval()
