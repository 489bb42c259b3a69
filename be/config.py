"""Configuration: a run is the defaults, then a chain of short diffs, then what was typed.

    defaults <- recipe <- parents (`from:`) <- the experiment <- synthetic <- key=value

`Config` declares every key once: its type and range, default and meaning. `run.py VERB --help` prints this source.
`experiments.yaml` holds the diffs. A block may have a part for a stage (`pretrain:` ...), which counts in that stage,
and a part for a data set (`for: {hmdb51: ...}`), which counts where the stage reads it. An unknown key, a wrong type
or a value out of range stops the run with one line (`ConfigError`) that names the nearest choices.
No torch in here, so that `run.py --help` answers at once.
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import os
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

CPU_MAX = "/sys/fs/cgroup/cpu.max"  # microseconds of processors in a period
REGISTRY = Path(__file__).resolve().parent.parent / "experiments.yaml"
STAGES = ("pretrain", "finetune", "retrieve")
# An entry's own, never inherited; parts for data sets; parts for stages
META = ("from", "about", "paper", "against", "same_runs_as", "for", *STAGES)

ENDLESS, LARGEST = float("inf"), 2**31 - 1
Count, Natural = Annotated[int, 1, LARGEST], Annotated[int, 0, LARGEST]
Share, Amount = Annotated[float, 0, 1], Annotated[float, 0, ENDLESS]
Floats = tuple[Amount, ...]
# As other code bases call a key: the nearest choice to what is typed
SYNONYMS = dict(re.findall(r"(\w+):(\w+)", """
learning_rate:lr bs:batch_size num_workers:workers arch:backbone model:backbone queue:K tau:temperature wd:weight_decay
ema:m crop_size:size num_frames:frames clip_len:frames sampling_rate:stride lam:gamma milestones:lr_steps amp:precision
scheduler:schedule weights:pretrained checkpoint:pretrained hflip:flip root:data output_dir:out"""))
# What a value is, for people
KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list",
         tuple: "a list", dict: "keys and values", type(None): "empty"}


class UserError(Exception):
    """Something the person who typed the command must settle; the message is for them, no traceback is shown."""


class ConfigError(UserError, ValueError):
    """A wrong name, key or value; one line with the nearest choices."""


@dataclass(frozen=True)
class Config:
    """All keys. Choices and ranges are in the types; lengths count frames and pixels, epochs passes over the list."""

    # which run
    name: str  # of the run's folder, by default the experiment's; a variant typed on the command line needs its own
    out: str = "runs"  # the folder of runs: OUT/NAME/STAGE-...
    seed: Natural = 0  # of the weights and of every draw
    recipe: Literal["paper", "released", "strong"] = "paper"  # released: the authors' scripts | strong: today's
    synthetic: bool = False  # rehearse any experiment on the demo's videos at the demo's size

    # data
    data: str = "data"  # the folder that holds the data sets, or the data set itself; docs/DATA.md has the layouts
    videos: str | None = None  # the folder of the data set's videos, if it is not found in `data`
    lists: str | None = None  # the folder of its lists, likewise
    dataset: str = "ucf101"  # ucf101 hmdb51 actor_hmdb51 diving48 kinetics400 plain, see be/datasets.py
    split: Count = 1  # of the official lists
    classes: tuple[str, ...] | None = None  # only these classes of the data set, by name; null: all
    subset: str = "test"  # the list to test on; several as test,swapped (drawn videos have `swapped`)
    test_data: str | None = None  # the folder that holds these lists, if it is not `data`; or a `plain` set itself
    workers: Natural = 4  # decoding processes per device
    cache_gb: Amount = 0  # GiB of decoded videos that each of these keeps: lists that fit are decoded once
    strict: bool = False  # a video with damage inside counts as one that cannot be read; else as FFmpeg shows it
    short_side: Count = 128  # after decoding
    size: Count = 112  # of the square crop that the network sees
    frames: Count = 16  # T
    stride: Count = 4  # between the frames of a clip (paper 4.1)
    static: bool = False  # one random frame of a video, repeated: no motion at all (Figure 4)

    # augmentation A: one draw per clip, shared by its frames (paper 4.1)
    scale: Floats | None = None  # [low, high]: resized crops, in shares of the largest square; null: pixels as stored
    flip: Share = 0  # probability that a clip is mirrored
    rotate: Annotated[float, 0, 180] = 10  # degrees, uniform in +-rotate
    jitter: Floats = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue; the paper gives none: MoCo v2's
    jitter_ops: Literal["all", "one"] = "all"  # one: a single op per clip, which the released code amounts to

    # backbone
    backbone: str = "i3d"  # c3d i3d r3d18 r3d34 r3d18tv r2plus1d18 s3d, see be/backbones.py
    width: Count = 64  # channels of the first stage; 8 or 16 for a laptop
    pool: Literal["max", "avg"] = "max"  # over space and time, before the linear layer (paper 3.3.2 and 4.1)
    dropout: Annotated[float, 0, 0.99] = 0  # before the classifier
    pretrained: str | None = "self"  # self: this experiment's own backbone; random; another's, by name; or published
    #                                  weights: a file, a folder, torchvision:googlenet, hf:USER/REPO (be/weights.py)

    # method; of these, method, erase and erase_side are pre-training's: fine-tuning takes its own from `finetune:`
    method: str = "moco"  # moco triplet simclr byol; rotnet puzzles clip_order pace arrow_of_time order_verification;
    #                       classify: see be/objectives.py
    erase: str = "intra-video-frame"  # BE; none; or a variant of Table 4, see be/erase.py
    gamma: Share = 0.3  # lam ~ U[0, gamma] (Eq. 1); larger blurs
    beta: Amount = 1  # weight of L_be in pretext tasks (Eq. 5)
    be_norm: Literal["mean", "sum"] = "mean"  # of L_be's square over channel and time; sum: Eq. 4 to the letter
    erase_side: Literal["query", "key", "both"] = "query"  # the distracted one; both costs MoCo + BE 1.8 times as much
    hard_negative: bool = True  # Eq. 7: another clip of the same video
    hard_negative_view: Literal["own", "a1"] = "own"  # own draw (released) | the query's angle and colours, own window
    hard_negative_gap: Amount = 0.5  # least distance to the query in clip spans, where the video has room; 0: 1 frame
    hard_negative_encoder: Literal["momentum", "query"] = "momentum"  # query: with gradient (released)
    dim: Count = 128  # D of the embedding z
    K: Count = 3569  # queue length, at most the videos to pre-train on; released: 3569, and 65536 for Kinetics-400
    m: Share = 0.999  # momentum of the key encoder
    temperature: Annotated[float, 1e-6, ENDLESS] = 0.07  # tau

    # optimisation (paper 4.1)
    epochs: Count = 50  # passes over the list
    batch_size: Count = 64  # global: over all devices and accumulation steps
    accumulate: Count = 1  # batches are cut in so many parts when they do not fit
    bn_group: Natural = 8  # samples that share BatchNorm statistics: 64 on 8 GPUs gives 8; 0: all of a device's
    shuffle_bn: bool = True  # MoCo's keys pass BatchNorm in another order than the queries (ShuffleBN)
    optimizer: Literal["sgd", "adamw"] = "sgd"  # with momentum | with betas 0.9, 0.999
    lr: Annotated[float, 1e-12, ENDLESS] = 0.01  # for the global batch, on any number of devices
    schedule: Literal["step", "cosine"] = "step"  # falls at lr_steps | to 0 at the end
    warmup: Amount = 0  # epochs in which lr rises from 0
    lr_steps: Floats = (10, 20, 30, 40)  # epochs after which lr is multiplied by lr_factor
    lr_factor: Share = 0.1  # at each of lr_steps
    momentum: Annotated[float, 0, 0.9999] = 0.9  # of SGD
    weight_decay: Amount = 5e-4  # of all parameters
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # fp32 on a CPU whatever is asked
    checkpointing: bool = False  # backward recomputes activations: a third of I3D's memory for +40 % time
    compile: bool = False  # torch.compile for the backbone; minutes at the start

    # test: mean softmax of so many clips spread over the video (paper 4.1)
    test_clips: Count = 10  # of a video
    select: Literal["last", "holdout"] = "last"  # holdout: the best epoch on a held-out tenth of the training list

    # analyses and retrieval
    scene: Literal["median", "masks", "rendered"] = "median"  # tells scene from actor: the video's median, for a still
    #                       camera and an actor who leaves his place | stored masks | the truth of drawn videos
    masks: str | None = None  # the folder of stored masks, as `run.py masks` makes it, for scene=masks
    pairs: str | None = None  # for Action-Swap, a file of HAT's or DEVIAS' pairs, or a folder of some; null: at random
    backgrounds: str | None = None  # for SCUBA, a folder of pictures, such as Places365's; null: drawn stripes
    kind: Literal["human-only", "scene-only", "action-swap", "scuba", "scufo"] = "scuba"  # what `biasset` writes
    protocol: Literal["paper", "vcop", "gap", "clips"] = "paper"  # every 16-frame clip | mean of 10 clips | one clip
    #                                                       (released) | each of `test_clips`, which `linear` reads, too
    memory_gb: Annotated[float, 0.01, ENDLESS] = 2  # GiB for the blocks of the search; the program takes about 1 more

    # housekeeping
    log_every: Count = 10  # steps
    save_every: Count = 500  # steps between checkpoints; one is also written at the end and on SIGTERM or Ctrl-C
    keep: Count = 2  # checkpoints kept
    tracker: Literal["none", "tensorboard", "wandb"] = "none"  # what metrics.jsonl holds goes there, too
    probe_every: Natural = 0  # epochs; 0: never. kNN and linear probe in pre-training, on a part of the training list


TYPES = typing.get_type_hints(Config, include_extras=True)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config) if field.name != "name"}
# Keys that may differ between a run and the command that goes on with it: they do not change what is computed.
FREE_KEYS = {"out", "data", "videos", "lists", "test_data", "workers", "cache_gb", "log_every", "save_every", "keep",
             "probe_every", "subset", "test_clips", "protocol", "memory_gb", "scene", "masks", "pairs", "backgrounds",
             "kind", "tracker", "checkpointing"}
HARD_NEGATIVE = ("hard_negative_view", "hard_negative_gap", "hard_negative_encoder")
# What an entry's own keys hold, where it is not text alone
OWN = {"about": str, "same_runs_as": str, "against": str | list, "paper": dict, "for": dict}
# What an entry, or a person, says of the pre-training; fine-tuning has its own, in a block `finetune:`
OF_PRETRAINING = ("method", "erase", "erase_side")


def cores() -> int:
    """How many processors this process may use: its affinity's, as SLURM sets it, and at most its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup of version 2, or no quota: "max 100000"
        quota, period = Path(CPU_MAX).read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return count


def changes(saved: Path, cfg: Config, keys=None) -> str:
    """In what `cfg` would compute something else than the run whose config.yaml is `saved`; "" in nothing.
    A key that the code gained after that run was made stands for its default. keys: to look at these alone."""
    before, now = vars(load(str(saved))), vars(cfg)
    free = FREE_KEYS - ({"test_clips"} if cfg.select == "holdout" else set())  # they choose the epoch there
    for key, value, idle in (("erase", "none", ("erase_side", "gamma")), ("hard_negative", False, HARD_NEGATIVE)):
        if before[key] == now[key] == value:
            free = free.union(idle)  # they mean nothing then
    return ", ".join(f"{k}: {before[k]} -> {now[k]}" for k in keys or now
                     if (keys or k not in free) and before[k] != now[k])


def choose(table, name, what: str):
    """`table[name]`, or a ConfigError that lists the choices, nearest first."""
    if name in table:
        return table[name]
    raise ConfigError(f"unknown {what} {name!r}; {nearest(name, table)}")


def load(name_or_file: str, overrides: list[str] | tuple[str, ...] = (), stage: str = "pretrain") -> Config:
    """The resolved config of one stage of an experiment.

    `name_or_file`: an entry of experiments.yaml, or a YAML file holding one entry that says `from: ENTRY`, or the
    complete `config.yaml` saved with a run, which has its presets in it. `overrides`: `key=value`, values in YAML.
    """
    entries = registry()
    typed = dict(_typed(word, TYPES) for word in overrides)
    path, file = Path(name_or_file).expanduser(), str(name_or_file).endswith((".yaml", ".yml"))
    if file:
        entry = _read_yaml(path)
        _check_entry(str(path), entry)
        if "from" not in entry:  # a run's own, complete
            return _config({"name": path.stem, **DEFAULTS, **entry, **typed})
    own_name, chain = (path.stem, [*_chain(entry["from"]), entry]) if file else (name_or_file, _chain(name_or_file))
    if stage == "finetune":
        typed = {key: value for key, value in typed.items() if key not in OF_PRETRAINING}
    # Two keys name presets: the recipe is another set of defaults, so what a row of the paper fixes wins over it;
    # synthetic=true shrinks whatever the experiment asks for.
    blocks = [entries["defaults"], *chain]

    def values(dataset=None):
        return {**DEFAULTS, **_merged(blocks, stage, dataset), **typed}

    said = values()
    if said["recipe"] in entries["presets"]:
        blocks.insert(1, entries["presets"][said["recipe"]])
    if said["synthetic"] is True:
        blocks.append(entries["presets"]["synthetic"])
    name = chain[-1].get("same_runs_as", own_name)
    if name != own_name:
        _chain(name)  # or says that there is none
    return _config({"name": name, **values(values()["dataset"])})


@functools.cache
def registry() -> dict[str, dict]:
    """All blocks of experiments.yaml by name: `defaults`, `presets` and the experiments. Not to be changed."""
    entries = _read_yaml(REGISTRY)
    for name, entry in entries.items():
        for block in entry.values() if name == "presets" else [entry]:
            _check_entry(name, block)
    return entries


def experiments() -> dict[str, dict]:
    """The experiments alone, in the order of the file."""
    return {name: entry for name, entry in registry().items() if name not in ("defaults", "presets")}


def paper_numbers(name: str) -> dict[str, float]:
    """The paper's numbers of an experiment, `{"ucf101": 86.8, ...}`; never inherited: a variant is another row."""
    return experiments().get(name, {}).get("paper", {})


def run_dir(cfg: Config, stage: str, name: str | None = None) -> Path:
    """Where a stage of an experiment lives. All but pre-training name their list: one pre-training serves many."""
    target = "" if stage == "pretrain" else f"-{cfg.dataset}-split{cfg.split}"
    return Path(cfg.out) / (name or cfg.name) / f"{stage}{target}-seed{cfg.seed}"


def as_text(config: Config) -> str:
    """The resolved config as YAML, in the order of the fields; `load` reads it back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, default_flow_style=None, allow_unicode=True)


def arguments(function, overrides: list[str]) -> dict[str, Any]:
    """`key=value` strings as keyword arguments of `function`, checked against its signature."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters, values = inspect.signature(function).parameters, {}
    values.update(_typed(word, {key: hints.get(key) for key in parameters}) for word in overrides)
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in values]
    if missing:
        raise ConfigError(f"{function.__name__} needs {', '.join(f'{k}=...' for k in missing)}")
    return values


def _config(values: dict[str, Any]) -> Config:
    """Raises ConfigError for a value of the wrong type or out of range, and for keys that do not go together."""
    cfg = Config(**{key: typed_value(key, value, TYPES[key]) for key, value in values.items()})
    if Path(cfg.name).name != cfg.name or cfg.name == "..":
        raise ConfigError(f"name={cfg.name} is no name of a folder in {cfg.out}; the place of all runs is out=...")
    if cfg.scale is not None and not (len(cfg.scale) == 2 and 0 < cfg.scale[0] <= cfg.scale[1] <= 1):
        raise ConfigError(f"scale={list(cfg.scale)} must be null or a range [low, high] of areas in (0, 1]")
    if len(cfg.jitter) != 4 or cfg.jitter[3] > 0.5:
        raise ConfigError(f"jitter={list(cfg.jitter)} must be 4 strengths >= 0, the last one (hue) <= 0.5")
    if cfg.classes == ():
        raise ConfigError("classes=[] names no class; give some, or null for all")
    if cfg.warmup >= cfg.epochs:
        raise ConfigError(f"warmup={cfg.warmup:g} takes the whole run of epochs={cfg.epochs}; give a shorter one")
    if cfg.compile and cfg.checkpointing:
        raise ConfigError("compile=true and checkpointing=true do not go together (torch.compile refuses the one in "
                          "the other); choose one")
    return cfg


def _chain(name: str, seen: tuple = ()) -> list[dict]:
    """The entry and its parents, oldest first."""
    if str(name) not in experiments():
        raise ConfigError(f"unknown experiment {name!r}; {nearest(name, experiments())}; `run.py list` shows them all")
    if name in seen:
        raise ConfigError(f"experiments.yaml: `from` goes in a circle: {' -> '.join((*seen, name))}")
    entry = experiments()[name]
    return [*(_chain(entry["from"], (*seen, name)) if "from" in entry else []), entry]


def _merged(blocks: list[dict], stage: str, dataset: str | None = None) -> dict[str, Any]:
    """One block over the other: its common keys, its keys of this stage, and both of its part `for` the data set."""
    values: dict[str, Any] = {}
    for block in blocks:
        for part in (block, block.get("for", {}).get(dataset, {})):
            own = META if stage != "finetune" else (*META, *OF_PRETRAINING)
            values.update({key: value for key, value in part.items() if key not in own})
            values.update(part.get(stage, {}))
    return values


def _check_entry(where: str, entry: dict, known=META) -> None:
    """Keys, types and ranges of all stages and data sets, so that none is found wrong after a pre-training."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} holds {entry!r}, expected keys and values")
    for key, value in entry.items():
        if key not in known:
            kind = choose(TYPES, key, f"key in {where}:")
            try:
                typed_value(key, value, kind)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
        elif key in STAGES:
            _check_entry(f"{where}, {key}", value, ())
        elif not isinstance(value, OWN.get(key, object)):
            raise ConfigError(f"{where}: {key} cannot be {value!r}; experiments.yaml shows what it holds")
    for name, part in entry.get("for", {}).items() if "for" in known else ():
        _check_entry(f"{where}, for {name}", part)


def _typed(word: str, kinds: dict) -> tuple[str, Any]:
    """(key, value) of `key=value`. The value is YAML, but stays as typed where the kind is str: `name=2026-09-30`."""
    key, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"{word!r} is not of the form key=value")
    kind = choose(kinds, key, "key")
    options, value = _options(kind), text
    if str not in options or text[:1] in ("", "'", '"') or text == "null" and type(None) in options:
        texts = tuple[str, ...] in options and text != "null"
        try:
            value = yaml.load(text, yaml.BaseLoader if texts else yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: the 31st of February
            raise ConfigError(f"{word!r}: the value is not YAML") from None
    return key, typed_value(key, value, kind)


def _options(kind) -> tuple:
    """(X, NoneType) of X | None, which Python 3.10 also calls Optional[X]; (kind,) of others."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def typed_value(key: str, value, kind):
    """`value` as the type `kind` of a key, without guessing: an int may stand for a float, nothing else converts.

    `~` at the start of a text is the home folder. Raises ConfigError for another type, a value that is no choice of a
    Literal, a number that is not finite, or one out of an Annotated range.
    """
    if key == "pretrained" and value in (None, "none"):  # as it was once written
        value = "random" if value else "self"
    kind, *null = _options(kind)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if null and value is None:
        return None
    if origin is Annotated:
        value, (_, least, most) = typed_value(key, value, parts[0]), parts
        if value < least or value > most:
            limit = f"small, expected at least {least}" if value < least else f"large, expected at most {most}"
            raise ConfigError(f"{key}={value} is too {limit}")
        return value
    if origin is Literal:
        if value not in parts:
            raise ConfigError(f"{key}={value!r} is not one of {', '.join(map(str, parts))}")
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(typed_value(key, item, parts[0]) for item in value)
    if kind is float and type(value) in (int, str):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)  # "1e-3" is text in YAML 1.1
    if type(value) is not kind or kind is float and not math.isfinite(value):
        found = "not finite" if type(value) is kind else KINDS.get(type(value), type(value).__name__)
        shown = "" if value is None else repr(value)
        raise ConfigError(f"{key}={shown} is {found}, expected {KINDS.get(origin or kind, kind)}")
    return os.path.expanduser(value) if kind is str else value


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML takes the last without a word."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{twice[0]} is given twice, line {node.start_mark.line + 1} and below")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {KINDS.get(type(data), 'a value')}, expected keys and values")
    return data


def nearest(name: str, choices) -> str:
    """The few of `choices` that are most like `name`, or what the field means by it; else the first of all."""
    names = {str(choice).casefold(): str(choice) for choice in choices}
    near = [names[one] for one in difflib.get_close_matches(str(name).casefold(), names, n=4, cutoff=0.4)]
    meant = SYNONYMS.get(str(name).lower().replace("-", "_").split(".")[-1])
    if near or meant in choices:
        return f"nearest: {meant if meant in choices else ', '.join(near)}"
    return f"choices: {', '.join([*names.values()][:12])}{f', ... ({len(names)} in all)' if len(names) > 12 else ''}"
