#!/usr/bin/env python
"""Background Erasing, from the command line.

  python run.py list                                     the experiments and the paper's numbers
  python run.py pretrain --cfg table1-moco-be            on one device
  accelerate launch run.py pretrain --cfg table1-moco-be on all GPUs of this machine, or on many machines
  python run.py finetune --cfg table1-moco-be split=2    key=value wins over experiments.yaml
  python run.py evaluate --cfg table1-moco-be split=2    10 clips a video
  python run.py report                                   all results beside the paper's

`python run.py VERB --help` says what a verb does and takes.
"""

import ast
import difflib
import fnmatch
import importlib
import inspect
import itertools
import json
import os
import re
import sys
import textwrap
import time
import typing
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (pyproject.toml says it to pip alone)
    sys.exit(f"run.py: Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}")

# What ends a run from outside: a part of the error's text, and what to do about it
ADVICE = {
    "shared memory": "/dev/shm is too small for batches of decoded clips (Docker's is 64 MB): docker run --ipc=host, "
                     "or --shm-size=16g; or workers=0, which needs none",
    "DataLoader worker": "a process that decodes videos was ended from outside, mostly for want of memory: give fewer "
                         "workers=, or a smaller cache_gb=",
    "out of memory|not enough memory|can't allocate memory":
        "the memory is too small: give accumulate=2 or more, which cuts a batch into parts, checkpointing=true, or a "
        "smaller batch_size, width or size",
}

# verb: (module, function, stage of the config it runs under, an example). Modules are imported when
# a verb runs, since torch takes seconds; a verb without a stage takes the arguments of its function as key=value. The
# stage `runs` is for verbs that look at finished runs: --cfg names their directories, the function gets (directory,
# config) of each. The stage `dataset`: --cfg names a data set, all else are arguments of the function.
VERBS = {
    "list": ("run", "show_list", None, "run.py list"),
    "steps": ("be.prepare", "steps", None, "run.py steps target=table1-moco-be splits=[1] synth=true"),
    "synth": ("be.synthetic", "synth", None, "run.py synth root=data/demo scene_bias=0.9"),
    "prepare": ("be.prepare", "prepare", "dataset", "run.py prepare --cfg ucf101 data=data"),
    "masks": ("be.analysis", "masks", "dataset", "run.py masks --cfg hmdb51 data=data source=maskrcnn_resnet50_fpn_v2"),
    "actors": ("be.analysis", "actors", None, "run.py actors data=data"),
    "plan": ("be.train", "plan", "pretrain,finetune", "run.py plan --cfg table1-moco-be batch_size=32"),
    "pretrain": ("be.train", "pretrain", "pretrain", "run.py pretrain --cfg demo-moco-be seed=1"),
    "finetune": ("be.train", "finetune", "finetune", "run.py finetune --cfg table1-moco-be dataset=hmdb51 split=1"),
    "evaluate": ("be.evaluate", "evaluate", "finetune", "run.py evaluate --cfg demo-moco-be subset=swapped"),
    "retrieve": ("be.retrieve", "retrieve", "retrieve", "run.py retrieve --cfg table3-moco-be-i3d protocol=paper"),
    "linear": ("be.retrieve", "linear", "finetune", "run.py linear --cfg table1-moco-be dataset=ucf101 split=1"),
    "biasset": ("be.bias", "biasset", "finetune", "run.py biasset --cfg table1-moco-be dataset=ucf101 kind=scuba"),
    "robustness": ("be.bias", "robustness", "runs",
                   "run.py robustness --cfg runs/A/finetune-ucf101-split1-seed0,runs/B/finetune-ucf101-split1-seed0"),
    "figure4": ("be.report", "figure4", None, "run.py figure4 dataset=hmdb51 base=table1-moco better=table1-moco-be"),
    "gain": ("be.report", "figure4", None, "run.py gain dataset=hmdb51"),  # its name until it was called figure4
    "figure5": ("be.report", "report", None, "run.py figure5 names=figure5-*"),
    "bars": ("be.report", "report", None, "run.py bars names=figure5-*"),
    "cam": ("be.analysis", "cam", "runs",
            "run.py cam --cfg runs/A/pretrain-seed0,runs/B/pretrain-seed0 dataset=hmdb51"),
    "show-batch": ("be.analysis", "show_batch", "pretrain", "run.py show-batch --cfg demo-moco-be"),
    "strip": ("be.analysis", "show_batch", "pretrain", "run.py strip --cfg demo-moco-be"),
    "status": ("be.runs", "status", None, "run.py status"),
    "export": ("be.weights", "export", None, "run.py export run=runs/table1-moco-be/pretrain-seed0 to=exported"),
    "report": ("be.report", "report", None, "run.py report out=runs"),
    "scenebias": ("be.synthetic", "scenebias", None, "run.py scenebias data=data size=tiny"),
}


def main(argv: list[str]) -> int:
    """Runs one verb. Returns 0, or 2 after one line on stderr about what the person must settle."""
    from be.config import STAGES, ConfigError, UserError, arguments, experiments, load, run_dir

    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nverbs:\n" + "".join(f"  {verb:16}{docstring(verb)[0]}\n" for verb in VERBS))
        return 0
    verb, words = argv[0], argv[1:]
    try:
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=2)
            raise ConfigError(f"unknown verb {verb!r}; choices: {', '.join(near or VERBS)}; see run.py --help")
        if {"-h", "--help"} & set(words):
            print(help_text(verb))
            return 0
        module, function, stage, example = VERBS[verb]
        cfg, overrides = split_words(words)
        if stage and cfg is None:
            raise ConfigError(f"{verb} needs --cfg NAME, as in: {example}")
        if not stage and cfg is not None:
            raise ConfigError(f"{verb} takes no --cfg, only key=value, as in: {example}")
        if stage == "runs":
            runs = [run_dir(load(run, overrides, "finetune"), "finetune") if run in experiments()
                    else Path(run).expanduser() for run in cfg.split(",")]
            runs = [(run, load(run / "config.yaml", overrides)) for run in runs]
            getattr(importlib.import_module(module), function)(*runs)
        elif stage == "dataset":
            call = getattr(importlib.import_module(module), function)
            call(**arguments(call, [f"dataset={cfg}", *overrides]))
        elif stage:
            others = [load(cfg, (), one) for one in STAGES]  # as the entry has them: none is to be found wrong after
            configs = [load(cfg, overrides, one) for one in stage.split(",")]  # days of another. Here is no torch yet
            check_names(others + configs)
            getattr(importlib.import_module(module), function)(*configs)
        else:
            call = getattr(importlib.import_module(module), function)
            call(**arguments(call, overrides))
        leave()
    except UserError as error:
        complain(f"run.py {verb}: {error}")
        return 2
    except KeyboardInterrupt:
        complain(f"run.py {verb}: interrupted")
        return 130
    except (OSError, RuntimeError, MemoryError) as error:
        said = [text for part, text in ADVICE.items() if re.search(part, str(error), re.I)]
        if not said and getattr(error, "filename", None) is None:
            raise
        complain(f"run.py {verb}: {said[0] if said else f'{error.filename}: {error.strerror}'}")
        return 2
    return 0


def show_list(names: str = "*"):
    """list: show the experiments and the paper's numbers, in [] and %

    names   a pattern such as table1-* (default: all)

    Each but the demo's is a target of make, and so is a table. `run.py plan --cfg NAME` says what one costs.
    """
    from be.config import ConfigError, experiments, nearest, paper_numbers

    found = fnmatch.filter(experiments(), names)
    if not found:
        raise ConfigError(f"no experiment is named {names}; {nearest(names, experiments())}")
    width = 100 if sys.stdout.isatty() else sys.maxsize  # in a pipe, a line is an experiment
    for _, group in itertools.groupby(found, lambda name: name.split("-")[0]):
        names = list(group)
        print(end="" if names[0] == found[0] else "\n")
        for name in names:
            paper = ", ".join(f"{key}\xa0{value}" for key, value in paper_numbers(name).items() if value is not None)
            text = f"{experiments()[name].get('about', '')}{f'  [{paper}]' if paper else ''}"
            start = f"{name:{max(map(len, names))}}  "
            lines = textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * len(start))
            print(lines.replace("\xa0", " "))  # which kept a number with its name


def check_names(configs):
    """Raises ConfigError for a data set, backbone, method or way to distract that does not exist, and for options that
    the method does not take."""
    from be import backbones, datasets, erase, objectives
    from be.config import choose

    for cfg in configs:
        choose(datasets.DATASETS, cfg.dataset, "dataset")
        choose(backbones.BACKBONES, cfg.backbone, "backbone")
        choose(erase.ERASE, cfg.erase, "erase")
        objectives.taken(choose(objectives.OBJECTIVES, cfg.method, "method"), vars(cfg))


def complain(text: str):
    """Says what the person must settle. Of several processes that meet it, one says it.

    The others wait: their launcher ends them once the first has failed. torchrun shows what stands in the file below
    its own report, so at the end.
    """
    if int(os.environ.get("RANK", 0)):
        time.sleep(5)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": text, "extraInfo": {"timestamp": int(time.time())}}
        Path(file).write_text(json.dumps({"message": about}))
    else:
        print(text, file=sys.stderr)


def leave():
    """Takes leave of the other processes; one that just goes may be aborted by a thread that still listens to them."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The name behind --cfg, and the key=value words."""
    from be.config import ConfigError

    given, words = {}, list(words)
    while words:
        word = words.pop(0)
        if word == "--cfg":
            if not words:
                raise ConfigError("--cfg needs a name behind it: run.py list shows them")
            word = f"--cfg={words.pop(0)}"
        key = word.partition("=")[0]
        if key.startswith("-") and key != "--cfg":
            raise ConfigError(f"unknown option {word!r}; options are --cfg NAME and --help, all else is key=value")
        if key in given:
            raise ConfigError(f"{key} is given twice, {given[key]} and {word}")
        given[key] = word
    cfg = given.pop("--cfg", None)
    return cfg and cfg.removeprefix("--cfg="), [*given.values()]


def help_text(verb: str) -> str:
    first, rest, signature = docstring(verb)
    _, _, stage, example = VERBS[verb]
    keys = f"[key=value ...]\n\n{keys_text() if stage and stage != 'dataset' else ''}"
    own = f"[key=value ...]\n\narguments: {signature}"
    keys = {None: own, "dataset": f"--cfg DATASET {own}", "runs": f"--cfg RUN[,RUN ...] {keys}"}.get(
        stage, f"--cfg NAME_OR_FILE {keys}; names: run.py list")
    return f"{first}\n{rest}\n\nexample:\n  {example}\n\nrun.py {verb} {keys}"


def key_groups() -> dict[str, list[tuple[str, str, str]]]:
    """{group: [(key, default, choices and meaning)]} of `Config`, read from its source, where each stands once."""
    import yaml

    from be.config import DEFAULTS, TYPES, Config

    groups: dict[str, list] = {}
    for line in inspect.getsource(Config).splitlines():
        if title := re.fullmatch(r"    # (\S.*)", line):
            rows = groups.setdefault(title[1], [])
        elif key := re.match(r"    (\w+): .*?(?:  # (.*))?$", line):
            kind, meaning = TYPES[key[1]], key[2] or ""
            choices = " | ".join(typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else ""
            default = yaml.safe_dump(DEFAULTS.get(key[1]), default_flow_style=True).split("\n")[0]
            rows.append((key[1], default, f"{choices}; {meaning}" if choices and meaning else choices or meaning))
        elif more := re.fullmatch(r"    #\s{9,}(.*)", line):
            rows[-1] = (*rows[-1][:2], f"{rows[-1][2]} {more[1].strip()}")
    return groups


def keys_text() -> str:
    """All keys of the configuration, a group after the other, with default, choices and meaning."""
    text = []
    for title, rows in key_groups().items():
        text.append(f"{title}\n")
        for key, default, meaning in rows:
            text.append(textwrap.fill(meaning or "", 118, initial_indent=f"  {f'{key}={default}':34} ",
                                      subsequent_indent=" " * 37) + "\n")
    return "".join(text)


def docstring(verb: str) -> tuple[str, str, str]:
    """First line, rest and arguments of the verb's function, read from its source without importing it."""
    module, function, *_ = VERBS[verb]
    source = (Path(__file__).parent / (module.replace(".", "/") + ".py")).read_text()
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == function)
    first, _, rest = ast.get_docstring(node).partition("\n")
    return re.sub(r"^(Verb `[a-z ]+`|[a-z0-9 -]+): ", "", first), rest.strip(), ast.unparse(node.args)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        if (error.name or "be").split(".")[0] == "be":
            raise
        if error.name == "fcntl":
            sys.exit("run.py: Linux or macOS is needed; on Windows this runs in WSL, the Linux inside it")
        sys.exit(f"run.py: {sys.executable} has no package {error.name!r}. `make demo` and `make test` install what is "
                 f"needed into .venv: source .venv/bin/activate")
