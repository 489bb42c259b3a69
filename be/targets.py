"""What stands behind `make NAME`: the commands that a person would type, in order, and what they cost.

An entry of experiments.yaml says it all. The backbone is pre-trained by the entry itself, or by the one `pretrained`
names; then it is fine-tuned and tested on each data set that `paper` names, or, if `paper` holds R@k, retrieved with.
A target is an entry, or a group of them: `table1` is every entry that starts with `table1-`. What two rows need is done
once, and what is finished is left out. No torch in here: make asks for every target.
"""

import fnmatch
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from be.config import Config, ConfigError, changes, choose, experiments, load, paper_numbers, run_dir

GROUPS = {
    "table1": "all rows of Table 1, shared stages once",
    "table2": "all rows of Table 2",
    "table3": "all rows of Table 3",
    "table4": "all rows of Table 4",
    "figure4": "what BE gains in each class, against what a network without motion knows  [paper: r -0.48, p 0.0004]",
    "figure5": "HMDB51 cropped to its persons: what is left without the background",
    "figure6": "what supervised, MoCo and MoCo + BE networks trained on UCF101 look at",
    "figure7": "what such networks trained on Kinetics-400 look at in videos that were tampered with",
    "sweep-gamma": "the supplement's sweep of gamma",
    "sweep-stride": "the supplement's sweep of the temporal stride",
    "analyses": "robustness and errors of MoCo and MoCo + BE on HMDB51",
    "more": "methods beyond the paper",
}
# The networks of the two: those that know UCF101, and those that know Kinetics-400 (paper 4.7)
PRETRAINED = {"figure6": ("table2-moco-i3d-ucf101", "table1-moco-be-i3d-ucf101"),
              "figure7": ("table1-k400", "table1-moco", "table1-moco-be")}
TRAIN, SPREAD = ("pretrain", "finetune", "evaluate", "retrieve"), ("actors", "cam", "robustness", "errors")
ONE_SPLIT = ("diving48", "kinetics400", "plain")

# SYNTH=1: the demo's networks on stand-ins for all data sets, 48 videos to train on and 16 to test on
STAND_IN = ("train=6", "test=2", "frames=48")
REHEARSAL = ("synthetic=true", "epochs=2", "lr_steps=[1]", "K=32", "log_every=1", "test_clips=3")


@dataclass(frozen=True)
class Step:
    """A command: the words behind run.py, the file that is there once it is done, and what it costs."""

    words: tuple[str, ...]
    end: Path
    dataset: str = ""
    hours: float = 0.0  # of one GPU; NaN: not known

    @property
    def verb(self):
        return self.words[0]

    @property
    def picture(self):
        return self.verb not in (*TRAIN, "synth", "actors")


def steps(target: str, words: str = "", splits: list[int] = (1, 2, 3), seeds: list[int] = (0,), synth: bool = False,
          force: float = 0, run: str = "python run.py", launch: str = "python run.py"):
    """steps: print the commands behind a target of the Makefile, without those whose work is done

    target         an experiment, or a group of them such as table1
    words          key=value words for each command, such as "data=/datasets accumulate=8"
    splits, seeds  of the test, and of everything
    synth          a small rehearsal on synthetic stand-ins for the data
    force          runs that were begun before this time (seconds since 1970) are removed, to be done again
    run, launch    what a command starts with, the second on as many devices as there are
    """
    try:
        typed = shlex.split(words)
    except ValueError as error:
        raise ConfigError(f"words={words!r}: {error}") from None
    for word in typed:
        if word.startswith(("seed=", "split=")):
            raise ConfigError(f"{word} cannot be one of the words, a target says it for each command; give make "
                              f"SEED=... and SPLIT=...")
    for split in splits:  # not found out after the pre-training
        choose(dict.fromkeys((1, 2, 3)), split, "split")
    removed, again = set(), False
    for step in collect(target, typed, splits, seeds, synth):
        folder = step.end.parent
        if force and step.verb in TRAIN and folder.exists() and begun(folder) < force:
            removed.add(folder)
            print(f"rm -r {shlex.quote(str(folder))}")
        done = step.end.exists() and not differs(step)  # if it does, the verb says in what, and refuses
        if folder in removed or not done or (step.picture and (again or force)):
            again = True
            print(launch if step.verb in TRAIN + SPREAD else run, shlex.join(step.words))
    out = [word for word in typed if word.startswith("out=")]
    rows = target if target in experiments() else f"{target}-*"
    names = [f"names={word.removeprefix('name=')}" for word in typed if word.startswith("name=")][-1:]
    names = names or ([f"names={rows}"] if fnmatch.filter(experiments(), rows) else [])
    print(run, shlex.join(["report", *names, *out]))


def differs(step: Step) -> bool:
    """Is what lies there a training with other settings than this one's?"""
    saved = step.end.parent / "config.yaml"
    return (step.verb in ("pretrain", "finetune") and saved.exists()
            and bool(changes(saved, load(step.words[2], step.words[3:], step.verb))))


def show_list(names: str = "*"):
    """list: show the experiments, the paper's numbers, and what `make NAME` costs

    names   a pattern such as table1-* (default: all)

    GPU-hours are those of an A100 at 15 % of its peak, for all that the target needs, on three splits where there are
    so many; ? where nobody has counted. `run.py plan --cfg NAME` counts, and measures on the machine at hand.
    """
    for name, entry in experiments().items():
        if fnmatch.fnmatch(name, names):
            numbers = ", ".join(f"{key} {value}" for key, value in paper_numbers(name).items() if value is not None)
            cost = "" if name.startswith("demo") else hours(name)
            print(f"{name:30}{cost:>13}  {entry.get('about', '')}{f'  [paper: {numbers}]' if numbers else ''}")
    for group, about in GROUPS.items():
        if fnmatch.fnmatch(group, names):
            print(f"{group:30}{hours(group):>13}  {about}")


def hours(target: str) -> str:
    """What all steps of a target cost, "3.14 GPU-h"; or "? GPU-h", if one of them is not known."""
    total = sum(step.hours for step in collect(target))
    return "? GPU-h" if math.isnan(total) else f"{total:.3g} GPU-h"


def collect(target: str, typed=(), splits=(1, 2, 3), seeds=(0,), synth: bool = False) -> list[Step]:
    """All steps of a target, each once. Raises ConfigError for a target that does not exist."""
    known = [name for name in experiments() if not name.startswith("demo")]
    choose(dict.fromkeys([*known, *GROUPS]), target, "target")
    typed, todo = [*(REHEARSAL if synth else ()), *typed], []
    for seed in seeds:
        words = [*typed, f"seed={seed}"]
        for name in [target] if target in known else [name for name in known if name.startswith(f"{target}-")]:
            todo += row(name, words, splits, synth)
        todo += figure(target, words, splits, synth)
    if synth:
        todo = [*stand_ins(todo, load("table1-random", typed).data), *todo]
    once = {}
    for one in sorted(todo, key=lambda one: one.picture):  # pictures come last: they show the runs of all seeds
        once.setdefault((one.verb, one.end), one)
    return list(once.values())


def row(name: str, typed: list[str], splits, synth: bool, datasets: tuple[str, ...] = ()) -> Iterator[Step]:
    """An entry: pre-training, then fine-tuning and test on each of `datasets` (by default those of `paper`)."""
    paper = paper_numbers(name)
    datasets = datasets or tuple(key for key in paper if key in VIDEOS) or ("ucf101", "hmdb51")
    name = experiments()[name].get("same_runs_as", name)
    yield from pretraining(name, typed, synth)
    if synth and ":" in load(name, typed).pretrained:
        typed = [*typed, "pretrained=random"]  # published weights fit no small network, and may have to be fetched
    if "R@1" in paper:
        words = [*typed, f"dataset={load(name, stage='retrieve').dataset}", "split=1"]
        yield step("retrieve", name, words, "recall-{cfg.protocol}-test.json")
        return
    for dataset in datasets:
        if dataset == "actor_hmdb51":
            data = load(name, typed).data
            words = ("actors", f"data={data}", *(["detector=rendered"] if synth else ()))
            yield Step(words, Path(data) / "actor_hmdb51/actors.json", "hmdb51", ACTORS)
        for split in splits if dataset not in ONE_SPLIT else (1,):
            words = [*typed, f"dataset={dataset}", f"split={split}"]
            yield step("finetune", name, words, "model.safetensors")
            yield step("evaluate", name, words, "result-test.json")


def pretraining(name: str, typed: list[str], synth: bool) -> Iterator[Step]:
    """The pre-training that an entry stands on: its own, another's, or none."""
    source = load(name, typed).pretrained
    if source == "self":
        dataset = load(name).dataset
        yield step("pretrain", name, [*typed, f"dataset={dataset}"] if synth else typed, "backbone.safetensors")
    elif source in experiments():
        yield from pretraining(source, typed, synth)


def figure(target: str, typed: list[str], splits, synth: bool) -> Iterator[Step]:
    """What a group needs besides its own rows, and the command that draws it."""
    cfg = load("table1-moco-be", typed)
    where, out = [word for word in typed if word.startswith(("data=", "out="))], Path(cfg.out)
    rendered = ["scene=rendered"] if synth else []
    if target in ("figure4", "analyses"):
        for name in ("table1-moco", "table1-moco-be"):
            yield from row(name, typed, splits, synth, ("hmdb51",))
    if target == "figure4":
        yield Step(("gain", f"out={out}", "dataset=hmdb51"), out / "gain-hmdb51-test.json")
    if target == "figure5":
        yield Step(("bars", f"out={out}", "names=figure5-*"), out / "bars-figure5.png")
    if target == "analyses":
        names = ("table1-moco", "table1-moco-be")
        tests = (list(row(name, typed, splits[:1], synth, ("hmdb51",)))[-1] for name in names)
        runs = ",".join(str(test.end.parent) for test in tests)
        yield Step(("robustness", "--cfg", runs, *where, *rendered), out / "robustness-hmdb51-test.json", "hmdb51")
        yield Step(("errors", "--cfg", runs, *where), out / "errors-hmdb51-test.json", "hmdb51")
    if target in PRETRAINED:  # both are shown HMDB51
        trained = [one for name in PRETRAINED[target] for one in pretraining(name, typed, synth)]
        if target == "figure6":
            words = [*typed, "dataset=ucf101", "split=1"]
            trained = [step("finetune", "table1-random", words, "model.safetensors"), *trained]
        yield from trained
        runs, folder = ",".join(str(one.end.parent) for one in trained), out / target
        larger = ("size=96", "short_side=120") if synth else ()  # at the demo's 32 pixels I3D's map has but one place
        data = [word for word in where if word.startswith("data=")]
        words = ("cam", "--cfg", runs, *data, f"out={folder}", "dataset=hmdb51", "split=1", *rendered, *larger)
        yield Step(words, folder / "cam-hmdb51-test.json", "hmdb51")


def step(verb: str, name: str, words: list[str], end: str) -> Step:
    cfg = load(name, words, "finetune" if verb == "evaluate" else verb)
    folder = run_dir(cfg, "finetune" if verb == "evaluate" else verb)
    return Step((verb, "--cfg", name, *words), folder / end.format(cfg=cfg), cfg.dataset, cost(verb, cfg))


def stand_ins(todo: list[Step], data: str) -> Iterator[Step]:
    """Synthetic videos for every data set that is read; Actor-HMDB51 is made from HMDB51's."""
    for name in dict.fromkeys(step.dataset for step in todo):
        if name not in ("", "actor_hmdb51"):
            root = Path(data) / name
            seed = choose({known: place for place, known in enumerate(VIDEOS)}, name, "stand-in for dataset")
            yield Step(("synth", f"root={root}", f"layout={name}", *STAND_IN, f"seed={seed}"), root / "synthetic.jsonl")


def begun(folder: Path) -> float:
    """When the oldest file of a run was written, in seconds since 1970."""
    return min((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)


# ---- cost: stated, so that a list of all takes no time; tests hold it to what be/plan.py counts

ACTORS = 7.0  # GPU-hours of the detector on HMDB51's 640,000 frames
FLOPS = 0.15 * 312e12  # of an A100: the share of its peak that be/plan.py assumes, too
VIDEOS = {"ucf101": (9537, 3783), "hmdb51": (3570, 1530), "actor_hmdb51": (3570, 1530), "diving48": (15027, 1970),
          "kinetics400": (246534, 19906)}  # to train on, to test on
CLIPS = 5.6  # times 16 frames in a video of HMDB51, in the mean
FORWARD = {"c3d": 77e9, "i3d": 55.6e9, "r3d18": 65.7e9, "r3d34": 100.4e9, "r3d18tv": 325.6e9, "r2plus1d18": 324.2e9,
           "s3d": 36e9}  # FLOP of 16 frames at the size below
SIDE = {"c3d": 112}  # pixels; 224 for the others
# Forward passes a clip in a step of training, a backward pass being two: (of the method, added by BE, by Eq. 7)
PASSES = {"classify": (3, 0, 0), "moco": (4, 0, 1), "simclr": (6, 0, 3), "triplet": (6, 0, 3), "byol": (8, 0, 0),
          "rotnet": (12, 6, 0), "puzzles": (0.4, 6, 0), "clip_order": (9, 6, 0), "pace": (12, 6, 0),
          "arrow_of_time": (6, 6, 0), "order_verification": (12, 6, 0)}


def cost(verb: str, cfg: Config) -> float:
    """GPU-hours of a step on the official lists, at FLOPS; NaN where the tables above lack what it needs."""
    train, test = VIDEOS.get(cfg.dataset, (math.nan, math.nan))
    forward = FORWARD.get(cfg.backbone, math.nan) * cfg.frames / 16 * (cfg.size / SIDE.get(cfg.backbone, 224)) ** 2
    if verb == "evaluate":
        return test * cfg.test_clips * forward / FLOPS / 3600
    if verb == "retrieve":
        return (train + test) * CLIPS * forward / FLOPS / 3600
    own, be, negative = PASSES.get(cfg.method, (math.nan, 0, 0))
    passes = own + (be if cfg.erase != "none" else 0) + (negative if cfg.hard_negative else 0)
    return cfg.epochs * train * passes * forward / FLOPS / 3600
