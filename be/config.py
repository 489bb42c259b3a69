"""Configuration: a run is the defaults, then a chain of short diffs, then what was typed.

    defaults <- recipe <- parents (`from:`) <- the experiment <- synthetic <- key=value

`experiments.yaml` holds the values and says what each key means; `Config` below holds the types. A block may have a
part for each stage (`pretrain:` ...), which counts only in that stage, and a part for each data set (`for: {hmdb51:
...}`), which counts where the stage reads that one. An unknown key, a wrong type or a value
outside the choices stops the run with one line (`ConfigError`) that names the nearest choices. No torch in here, so
that `run.py --help` answers at once.
"""

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

REGISTRY = Path(__file__).resolve().parent.parent / "experiments.yaml"
STAGES = ("pretrain", "finetune", "retrieve")
# An entry's own, never inherited; what a recipe says for a data set; the blocks of stages
META = ("name", "from", "about", "paper", "against", "for", *STAGES)


class UserError(Exception):
    """Something the person who typed the command must settle; the message is for them, no traceback is shown."""


class ConfigError(UserError, ValueError):
    """A wrong name, key or value; one line with the nearest choices."""


@dataclass(frozen=True)
class Config:
    """Types of all keys; their values and meaning stand in `experiments.yaml`, block `defaults`."""

    # which run
    name: str
    out: str
    seed: int
    recipe: Literal["paper", "released", "strong"]
    synthetic: bool
    # data
    data: str
    dataset: str
    split: int
    subset: str
    workers: int
    cache_gb: float
    short_side: int
    size: int
    frames: int
    stride: int
    static: bool
    # augmentation A
    scale: list[float] | None
    flip: float
    rotate: float
    jitter: list[float]
    jitter_ops: Literal["all", "one"]
    # backbone
    backbone: str
    width: int
    pool: Literal["max", "avg"]
    dropout: float
    pretrained: str | None
    # method
    method: str
    erase: str
    gamma: float
    beta: float
    be_norm: Literal["mean", "sum"]
    erase_side: Literal["query", "key", "both"]
    hard_negative: bool
    hard_negative_view: Literal["own", "a1"]
    hard_negative_gap: float
    hard_negative_encoder: Literal["momentum", "query"]
    dim: int
    K: int
    m: float
    temperature: float
    # optimisation
    epochs: int
    batch_size: int
    accumulate: int
    bn_group: int
    shuffle_bn: bool
    optimizer: Literal["sgd", "adamw"]
    lr: float
    schedule: Literal["step", "cosine"]
    warmup: float
    lr_steps: list[float]
    lr_factor: float
    momentum: float
    weight_decay: float
    precision: Literal["fp32", "bf16", "fp16"]
    checkpointing: bool
    compile: bool
    # test
    test_clips: int
    select: Literal["last", "holdout"]
    # analyses
    scene: Literal["median", "rendered"]
    # retrieval
    protocol: Literal["paper", "vcop", "gap"]
    memory_gb: float
    # housekeeping
    log_every: int
    save_every: int
    keep: int
    tracker: Literal["none", "tensorboard", "wandb"]
    probe_every: int


TYPES = typing.get_type_hints(Config)
ENDLESS = float("inf")
# The least and the largest value of what is counted or divided by, of shares and strengths
RANGES = {**dict.fromkeys(("epochs", "batch_size", "accumulate", "log_every", "save_every", "keep", "K", "dim",
                           "frames", "stride", "size", "short_side", "width", "test_clips"), (1, ENDLESS)),
          **dict.fromkeys(("workers", "bn_group", "probe_every", "warmup", "hard_negative_gap"), (0, ENDLESS)),
          **dict.fromkeys(("flip", "gamma"), (0, 1))}


def problem(values: dict[str, Any]) -> str | None:
    """What is wrong with keys that have the right types: a value out of range, or keys that do not go together."""
    for key, (least, most) in RANGES.items():
        if values[key] < least:
            return f"{key}={values[key]} is too small, expected at least {least}"
        if values[key] > most:
            return f"{key}={values[key]} is too large, expected at most {most}"
    scale = values["scale"]
    if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        return f"scale={scale} must be null or a range [low, high] of areas in (0, 1]"
    if values["warmup"] >= values["epochs"]:
        return f"warmup={values['warmup']:g} takes the whole run of epochs={values['epochs']}; give a shorter one"
    if values["compile"] and values["checkpointing"]:
        return ("compile=true and checkpointing=true do not go together (torch.compile refuses the one in the other); "
                "choose one")
    return None


# Keys that may differ between a run and the command that goes on with it: they do not change what is computed.
FREE_KEYS = {"out", "data", "workers", "cache_gb", "log_every", "save_every", "keep", "probe_every", "subset",
             "test_clips", "protocol", "memory_gb", "scene", "tracker", "checkpointing"}


def changes(saved: Path, cfg: Config) -> str:
    """In what `cfg` would compute something else than the run whose config.yaml is `saved`; "" in nothing."""
    before, now = yaml.safe_load(saved.read_text()), dataclasses.asdict(cfg)
    free = FREE_KEYS - ({"test_clips"} if cfg.select == "holdout" else set())  # they choose the epoch there
    return ", ".join(f"{k}: {before.get(k)} -> {now[k]}" for k in now if k not in free and before.get(k) != now[k])


def choose(table, name, what: str):
    """`table[name]`, or a ConfigError that lists the choices, nearest first."""
    if name in table:
        return table[name]
    raise ConfigError(f"unknown {what} {name!r}; {_nearest(name, table)}")


def load(name_or_file: str, overrides: list[str] | tuple[str, ...] = (), stage: str = "pretrain") -> Config:
    """The resolved config of one stage of an experiment.

    `name_or_file`: an entry of experiments.yaml, or a YAML file holding one entry that says `from: ENTRY`, or the
    complete `config.yaml` saved with a run, which has its presets in it. `overrides`: `key=value`, values in YAML.
    """
    entries, saved = registry(), False
    typed = dict(_parse(text) for text in overrides)
    if str(name_or_file).endswith((".yaml", ".yml")):
        path = Path(name_or_file)
        entry = _read_yaml(path)
        _check_entry(str(path), entry)
        default_name, saved = path.stem, "from" not in entry
        chain = [*_chain(entry["from"], entries), entry] if "from" in entry else [entry]
    else:
        default_name, chain = name_or_file, _chain(name_or_file, entries)

    # Two keys name presets: the recipe is another set of defaults, so what a row of the paper fixes wins over it;
    # synthetic=true shrinks whatever the experiment asks for.
    blocks = [entries["defaults"], *chain]
    said = {**_merged(blocks, stage), **typed}
    if said["recipe"] in entries["presets"] and not saved:
        blocks.insert(1, entries["presets"][said["recipe"]])
    if said["synthetic"] is True and not saved:
        blocks.append(entries["presets"]["synthetic"])
        said = {**_merged(blocks, stage), **typed}
    values: dict[str, Any] = {"name": chain[-1].get("name", default_name), **_merged(blocks, stage, said["dataset"])}
    values.update(typed)
    values = {key: _typed(key, value) for key, value in values.items()}
    if wrong := problem(values):
        raise ConfigError(wrong)
    return Config(**values)


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
    entries = registry()
    return {name: entry for name, entry in entries.items() if name not in ("defaults", "presets")}


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
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    keys, values = list(parameters), {}
    for key, value in map(_split, overrides):
        if key not in keys:
            raise ConfigError(f"unknown key {key!r}; {_nearest(key, keys)}")
        values[key] = _typed(key, value, hints[key])
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in values]
    if missing:
        raise ConfigError(f"{function.__name__} needs {', '.join(f'{k}=...' for k in missing)}")
    return values


def _chain(name: str, entries: dict, seen: tuple = ()) -> list[dict]:
    """The entry and its parents, oldest first."""
    names = [key for key in entries if key not in ("defaults", "presets")]
    if name not in names:
        raise ConfigError(f"unknown experiment {name!r}; {_nearest(name, names)}; `run.py list` shows them all")
    if name in seen:
        raise ConfigError(f"experiments.yaml: `from` goes in a circle: {' -> '.join((*seen, name))}")
    entry = entries[name]
    parents = _chain(entry["from"], entries, (*seen, name)) if "from" in entry else []
    return [*parents, entry]


def _merged(blocks: list[dict], stage: str, dataset: str | None = None) -> dict[str, Any]:
    """One block over the other: its common keys, its keys of this stage, and both of its part `for` the data set."""
    values: dict[str, Any] = {}
    for block in blocks:
        for part in (block, (block.get("for") or {}).get(dataset, {})):
            values.update({key: value for key, value in part.items() if key not in META})
            values.update(part.get(stage) or {})
    return values


def _check_entry(where: str, entry: dict) -> None:
    fields = [field.name for field in dataclasses.fields(Config)]
    stage_keys = [key for stage in STAGES for key in (entry.get(stage) or {})]
    for dataset, block in (entry.get("for") or {}).items():
        _check_entry(f"{where}, for {dataset}", block)
    for key in [key for key in entry if key not in META] + stage_keys:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; {_nearest(key, fields)}")


def _parse(text: str) -> tuple[str, Any]:
    key, value = _split(text)
    fields = [field.name for field in dataclasses.fields(Config)]
    if key not in fields:
        raise ConfigError(f"unknown key {key!r}; {_nearest(key, fields)}")
    return key, _typed(key, value)


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not of the form key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{text!r}: the value is not YAML") from None


def _typed(key: str, value, kind=None):
    """`value` as the type of field `key`, without guessing: an int may stand for a float, nothing else converts."""
    kind = kind or TYPES[key]
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            choices = ", ".join(map(str, typing.get_args(kind)))
            raise ConfigError(f"{key}={value!r} is not one of {choices}")
        return value
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # X | None; Python 3.10 says Optional[X]
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [_typed(key, item, *typing.get_args(kind)) for item in value]
    if kind is float:
        return _as_float(key, value)
    if type(value) is not kind:
        wanted = getattr(kind, "__name__", str(kind))
        raise ConfigError(f"{key}={value!r} is {type(value).__name__}, expected {wanted}")
    return value


def _as_float(key: str, value) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)  # also "1e-3", which YAML 1.1 reads as text
    except (TypeError, ValueError):
        raise ConfigError(f"{key}={value!r} is {type(value).__name__}, expected a number") from None


def _read_yaml(path: Path) -> dict:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, expected keys and values")
    return data


def _nearest(name: str, choices) -> str:
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=4, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else f"choices: {', '.join(map(str, choices))}"
