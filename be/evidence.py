"""Verb `evidence`: when does BE help, by how much, and why? Questions put to the benchmark `scenebias`.

A question is a list of arms. An arm pre-trains a backbone (or does not), fine-tunes it on labelled videos whose scenes
betray the class to a known degree, and is measured where they do not; the same for every seed. What an arm changes
stands here as keys of the config, all else in evidence/SIZE.yaml. What is measured of each run, in %:

    test, swapped       top-1 with scenes as in pre-training, and with any scene: the twins of the same videos
    reliance            test - swapped: what is lost when the scene stops telling the class
    static, background  top-1 on one frame repeated, and without actors: what looks alone are good for
    knn_, linear_       (motion, scene) what the frozen backbone knows before fine-tuning: nearest neighbours and a
                        linear layer taught on `bias0`, where motion and scene are independent, asked on `swapped`
    actor_              (frozen, tuned) share of the last feature map on the true actors, over their share of the
                        area: 1 is a map that does not care. At tiny's size that map is 2 x 2: see EVIDENCE.md

and `curve`: (step, test, swapped) along fine-tuning, one clip a video. All runs of a question lie below
OUT/scenebias-VERSION-SIZE, pre-trainings are shared between questions; killed and called again, it goes on.
"""

import copy
import dataclasses
import json
import time
from collections import defaultdict
from contextlib import closing, redirect_stderr, redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch

from be import datasets, objectives, synthetic
from be.analysis import activation, share
from be.bias import masks, specs
from be.config import Config, ConfigError, choose, load
from be.evaluate import accuracy, classify, load_backbone, over_videos
from be.objectives import global_pool
from be.prepare import parallel
from be.probe import knn, linear
from be.report import COLOURS, markdown, paired, pyplot, save
from be.runs import Run, RunError, git_sha, make_accelerator, progress, run_dir, write_text
from be.train import fit, pretrain
from be.video import even_clips

TESTS = ("test", "swapped", "static", "background")
MEASURES = (*TESTS, "reliance", "knn_motion", "knn_scene", "linear_motion", "linear_scene", "actor_frozen",
            "actor_tuned")
TUNES = {"tiny": 1, "small": 2, "full": 3}  # fine-tuning seeds per pre-trained network
BIAS = 0.5  # of the fine-tuning set, where the question does not say otherwise
TESTED = 0.9  # of the test lists, always


class Arm(NamedTuple):
    label: str
    pretrain: dict[str, Any] | None  # keys in which pre-training differs from MoCo + BE; None: random init
    bias: float = BIAS  # of the fine-tuning set
    fraction: float = 1.0  # of its labels, the number of steps stays
    drift: float = synthetic.LOOK["drift"]  # of the camera, in all sets
    pretrain_bias: float = TESTED


class Question(NamedTuple):
    about: str
    baselines: tuple[str, ...]  # labels of the arms that the others are compared with
    arms: list[Arm]
    effects: dict[str, dict[str, dict[str, float]]] = {}  # {title of a table: {row: {label of an arm: weight}}}
    sweep: str = ""  # the field of Arm that is swept: the figure has curves over it


MOCO = {"erase": "none", "hard_negative": False}
METHODS = {"random init": None, "MoCo": MOCO, "MoCo + hard negative": {"erase": "none"},
           "BE without hard negative": {"hard_negative": False}, "MoCo + BE": {},
           "supervised": {"method": "classify", "erase": "none", "lr": 0.05}}
# MoCo with and without each of the two: an effect is to be seen twice, in two pairs of arms
FACTORS = {"hard negative": {"MoCo + hard negative": 0.5, "MoCo": -0.5, "MoCo + BE": 0.5,
                             "BE without hard negative": -0.5},
           "BE": {"BE without hard negative": 0.5, "MoCo": -0.5, "MoCo + BE": 0.5, "MoCo + hard negative": -0.5}}
# What is swept over: all that is pre-trained has the hard negative, so that pairs differ in BE alone, or in its side
SWEPT = {"random init": None, "MoCo + hard negative": {"erase": "none"}, "MoCo + BE": {},
         "BE on the query": {"erase_side": "query"}}
PAIRS = (("MoCo + hard negative", "random init"), ("MoCo + BE", "MoCo + hard negative"),
         ("BE on the query", "MoCo + hard negative"), ("BE on the query", "MoCo + BE"))
LABELLED = ("bias", "fraction")  # fields of Arm that say which videos are labelled: frozen features are as they were
TASKS = {"rotnet": {}, "puzzles": {"frames": 48, "stride": 1}, "clip_order": {"frames": 16, "stride": 1}}
RELEASED = {"erase": "intra-video-frame-batch-lam", "erase_side": "query", "hard_negative_encoder": "query",
            "jitter_ops": "one", "bn_group": 0, "weight_decay": 1e-4}  # what does not depend on the size
GAMMAS = (0, 0.1, 0.3, 0.5, 0.7, 1)


def slope(gammas) -> dict[str, float]:
    """Weights that make of the values of the arms the slope of the line of least squares."""
    x = np.array(gammas) - np.mean(gammas)
    return dict(zip((f"gamma {g:g}" for g in gammas), (x / (x @ x)).tolist(), strict=True))


def sweep(key: str, about: str, values: tuple[float, ...]) -> Question:
    """The methods of SWEPT at each value of the field `key` of Arm; PAIRS of them, over all values and at each."""
    arms = [Arm(f"{name}, {key} {value:g}", settings, **{key: value})
            for value, (name, settings) in product(values, SWEPT.items())]

    def pair(a, b, *at):
        return {f"{name}, {key} {value:g}": sign / len(at) for value in at for name, sign in ((a, 1), (b, -1))}

    over_all = {f"{a} minus {b}": pair(a, b, *values) for a, b in PAIRS}
    at_each = {f"{a} minus {b}, {key} {value:g}": pair(a, b, value) for a, b in PAIRS for value in values}
    return Question(about, (), arms, {f"mean over the values of {key}": over_all, f"at each {key}": at_each}, key)


QUESTIONS = {
    "methods": Question("which part of MoCo + BE does what?", ("random init", "MoCo"),
                        [Arm(name, settings) for name, settings in METHODS.items()],
                        {"with minus without, mean of both pairs of arms": FACTORS}),
    "erase": Question("what distracts (Table 4)", ("none",),
                      [Arm(name, {"erase": name} if name != "intra-video-frame" else {}) for name in
                       ("none", "gaussian-noise", "video-mixup", "video-cutmix", "inter-video-frame",
                        "intra-video-frame")],
                      {"a frame of the same video minus one of another":
                       {"intra-video-frame": {"intra-video-frame": 1, "inter-video-frame": -1}}}),
    "gamma": Question("how strongly to distract: lam ~ U[0, gamma]", ("gamma 0",),
                      [Arm(f"gamma {g:g}", {"erase": "none"} if g == 0 else {"gamma": g} if g != 0.3 else {})
                       for g in GAMMAS],
                      {"slope of a straight line": {"for 1 of gamma": slope(GAMMAS)}}),
    "gamma-query": Question("how strongly to distract the query", ("gamma 0",),
                            [Arm(f"gamma {g:g}", {"erase": "none"} if g == 0 else
                                 {"erase_side": "query"} | ({"gamma": g} if g != 0.3 else {})) for g in GAMMAS],
                            {"slope of a straight line": {"for 1 of gamma": slope(GAMMAS)}}),
    "pretext": Question("BE as a regulariser of pretext tasks (Eq. 3-5)", ("random init",),
                        [Arm("random init", None)]
                        + [Arm(task + " + BE" * be, {"method": task, **shape, **({} if be else {"erase": "none"})})
                           for task, shape in TASKS.items() for be in (False, True)],
                        {"with BE minus without": {task: {f"{task} + BE": 1, task: -1} for task in TASKS} | {
                            "mean of the tasks": {task + " + BE" * be: (1 if be else -1) / len(TASKS)
                                                  for task in TASKS for be in (False, True)}}}),
    "scene-bias": sweep("bias", "scene bias of the fine-tuning set, pre-training on 0.9", (0, 0.25, 0.5, 0.75, 0.9, 1)),
    "pretrain-bias": sweep("pretrain_bias", "scene bias of the pre-training set", (0, 0.5, 0.9, 1)),
    "camera": sweep("drift", "the camera's longest pan, in short sides of the picture", (0, 0.3, 0.6, 1.2)),
    "labels": sweep("fraction", "how many labels to fine-tune on", (0.125, 0.25, 0.5, 1)),
    "recipe": Question("the paper's values or the released code's", ("paper",),
                       [Arm("paper", {}), *(Arm(f"{key}: {RELEASED[key]}", {key: RELEASED[key]}) for key in
                                            ("erase_side", "hard_negative_encoder", "jitter_ops", "bn_group")),
                        Arm("released", RELEASED)]),
    "erase-side": Question("which side of the positive pair is distracted", ("key",),
                           [Arm("key", {}), Arm("query", {"erase_side": "query"})]),
    "hard-negative": Question("which encoder embeds the hard negative", ("momentum",),
                              [Arm("momentum", {}), Arm("query", {"hard_negative_encoder": "query"})]),
}


def evidence(question: str = "methods", size: str = "tiny", seeds: list[int] = (0, 1, 2, 3, 4), data: str = "data",
             out: str = "runs", to: str = "runs/evidence", abreast: int = 1, known: str = ""):
    """evidence: put a question to the benchmark scenebias: tables, a figure, and all numbers

    question   methods, erase, gamma, gamma-query, pretext, scene-bias, pretrain-bias, camera, labels, recipe,
               erase-side or hard-negative
    size       tiny, small or full: evidence/SIZE.yaml
    seeds      of everything that is random, except the videos
    data, out  the folders of videos and of runs
    to         the folder for QUESTION-SIZE.json, .md and .png
    abreast    runs side by side, on a CPU; 1: one after the other
    known      a folder of such .json, of any machine: what they measured is not measured again, of any question

    Called again, it goes on where it was stopped.
    """
    asked = choose(QUESTIONS, question, "question")
    choose(synthetic.SIZES, size, "size")
    bench = Bench(size, data, Path(out) / f"scenebias-{synthetic.VERSION}-{size}", abreast > 1)
    for bias, pretrain_bias, drift in sorted({(arm.bias, b, arm.drift) for arm in asked.arms
                                              for b in (arm.pretrain_bias, TESTED)}):
        synthetic.scenebias(data, size, sorted({0.0, bias}), pretrain_bias, drift)
    tunes = [(seed, tune) for seed in seeds for tune in range(TUNES[size])]
    found = recorded(known, size) if known else {}
    tuned = [("finetune", arm, *tune) for tune in tunes for arm in asked.arms if (tune_name(arm), *tune) not in found]
    first = {(pretrain_name(arm), seed): ("pretrain", arm, seed, 0) for _, arm, seed, _ in tuned
             if arm.pretrain is not None}
    for what, work in ("pre-training", list(first.values())), ("fine-tuning", tuned):
        missing = [item for item in work if not bench.end(*item).exists()]
        print(f"{question}, {size}: {what} of {len(missing)} networks, {len(work) - len(missing)} are done", flush=True)
        run_all(bench, missing, what, abreast)
    found |= {(tune_name(arm), seed, tune): {"seed": seed, "tune": tune, **bench.measured(arm, seed, tune)}
              for _, arm, seed, tune in tuned}

    record = {"question": question, "about": asked.about, "size": size, "version": synthetic.VERSION,
              "baselines": asked.baselines, "git_sha": git_sha(), "torch": torch.__version__,
              "runs": {arm.label: [found[(tune_name(arm), *tune)] for tune in tunes] for arm in asked.arms}}
    path = Path(to) / f"{question}-{size}"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(tables(record))
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_text(path.with_suffix(".md"), text + "\n")
    (plot_sweep if asked.sweep else plot)(path.with_suffix(".png"), record)
    print(f"{text}\n\nwritten to {path}.json, .md, .png")


def recorded(folder: str, size: str) -> dict[tuple, dict]:
    """What the records of this version and size in a folder have measured: by tune_name, seed, number of the tune."""
    found, paths = {}, sorted(Path(folder).glob(f"*-{size}.json"))
    if not paths:
        raise ConfigError(f"known={folder}: there is no record QUESTION-{size}.json")
    for path in paths:
        record = json.loads(path.read_text())
        if record["version"] == synthetic.VERSION:
            names = {arm.label: tune_name(arm) for arm in QUESTIONS[record["question"]].arms}
            found |= {(names[label], run["seed"], run["tune"]): run for label, runs in record["runs"].items()
                      for run in runs}
    return found


# ---- running


def run_all(bench: "Bench", items: list, what: str, abreast: int):
    if abreast == 1:
        for _ in progress(map(bench, items), len(items), what):
            pass
    elif items:
        with closing(parallel(bench, items, what, abreast, lambda item: 86400)) as work:
            for item, _, problem in work:
                if problem:
                    raise RunError(f"{item[1].label}, seed {item[2]}: {problem}")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Called with (stage, arm, seed, tune), it runs that; what is said goes to a log beside the run."""

    size: str
    data: str
    out: Path
    abreast: bool  # others run beside this one: take one thread, decode in this process

    def __call__(self, item):
        if self.abreast:
            torch.set_num_threads(1)
        stage, arm, seed, _ = item
        end, began = self.end(*item), time.process_time()
        end.parent.mkdir(parents=True, exist_ok=True)
        with open(end.parent / "log.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
            if stage == "pretrain":
                pretrain(self.config(*item))
                found = {}
            else:
                tests, bias0 = self.root(arm, "pretrain", TESTED), self.root(arm, "bias", 0.0)
                found = measure(self.config(*item), arm, tests, bias0, seed)
            found["cpu_s"] = round(time.process_time() - began, 1)
            write_text(end, json.dumps(found) + "\n")

    def root(self, arm: Arm, part: str, bias: float | None = None) -> str:
        """Where the videos lie: part `pretrain`, or `bias`, the arm's own or another."""
        bias = bias if bias is not None else arm.pretrain_bias if part == "pretrain" else arm.bias
        name = synthetic.part_name(part, bias, arm.drift)
        return str(Path(self.data) / f"scenebias-{synthetic.VERSION}-{self.size}" / name)

    def end(self, *item) -> Path:
        """The file that is there when the work is done."""
        name = "cost.json" if item[0] == "pretrain" else "measured.json"
        return run_dir(self.config(*item), item[0]) / name

    def measured(self, arm: Arm, seed: int, tune: int) -> dict:
        return json.loads(self.end("finetune", arm, seed, tune).read_text())

    def config(self, stage: str, arm: Arm, seed: int, tune: int) -> Config:
        words = {"out": str(self.out), "name": pretrain_name(arm), "seed": seed, "data": self.root(arm, "pretrain")}
        if self.abreast:
            words["workers"] = 0
        if stage == "pretrain":
            words |= arm.pretrain or {}
        else:
            words |= {"name": tune_name(arm), "seed": seed + 1000 * tune,
                      "pretrained": "random" if arm.pretrain is None else pretrain_name(arm),
                      "data": self.root(arm, "bias")}
        where = Path(__file__).parent.parent / "evidence" / f"{self.size}.yaml"
        cfg = load(str(where), [f"{key}={json.dumps(value)}" for key, value in words.items()], stage)
        if stage == "finetune" and arm.fraction != 1:  # as many steps as with all labels
            more = 1 / arm.fraction
            cfg = dataclasses.replace(cfg, epochs=round(cfg.epochs * more), lr_steps=[e * more for e in cfg.lr_steps])
        return cfg


def pretrain_name(arm: Arm) -> str:
    """Of the run: arms of any question that pre-train alike share it."""
    if arm.pretrain is None:
        return "random-init" + changed(arm, "drift")
    known = next((name for name, settings in METHODS.items() if settings == arm.pretrain), None)
    name = known or "-".join(f"{key}-{value}" for key, value in sorted(arm.pretrain.items()))
    return name.replace(" + ", "-").replace(" ", "-").lower() + changed(arm, "drift", "pretrain_bias")


def tune_name(arm: Arm) -> str:
    return f"{pretrain_name(arm)}-on-bias{arm.bias:g}{changed(arm, 'fraction')}"


def changed(arm: Arm, *keys: str) -> str:
    return "".join(f"-{key}{getattr(arm, key):g}" for key in keys if getattr(arm, key) != Arm._field_defaults[key])


def measure(cfg, arm: Arm, tests: str, bias0: str, seed: int) -> dict:
    """Fine-tunes the backbone of `arm` and takes all MEASURES.

    tests, bias0: the folders of the test lists, and of the list that the probes are taught on.
    seed: of the pre-training, that of `cfg` is of the fine-tuning.
    """
    accelerator = make_accelerator(cfg)
    lists = {name: datasets.load(cfg.dataset, tests, name, cfg.split) for name in TESTS}
    samples = datasets.load(cfg.dataset, cfg.data, "train", cfg.split)
    samples = fewer(samples, arm.fraction, cfg.seed)
    backbone = load_backbone(cfg if arm.pretrain is None else dataclasses.replace(cfg, seed=seed))
    torch.manual_seed(cfg.seed)  # of the head: the same for all arms
    frozen = copy.deepcopy(backbone).to(accelerator.device).eval()
    options = {**dataclasses.asdict(cfg), "classes": len(samples.classes)}
    objective = objectives.build("classify", backbone, options)
    run, one = Run(run_dir(cfg, "finetune"), cfg), dataclasses.replace(cfg, test_clips=1)

    def top1(name, cfg):
        probabilities, ok = classify(objective, lists[name], cfg, accelerator)
        return accuracy(probabilities, torch.from_numpy(lists[name].labels), ok)["top1"]

    def at_epoch(epoch):
        if epoch % max(1, cfg.epochs // 6) == 0:
            return {f"{name}_top1": top1(name, one) for name in ("test", "swapped")}
        return {}

    fit(objective, samples, cfg, run, accelerator, at_epoch)
    run.save_weights("model", objective, classes=samples.classes, backbone=cfg.backbone, width=cfg.width)
    curve = [(line["step"], line["test_top1"], line["swapped_top1"]) for line in run.metrics() if "test_top1" in line]
    found = {name: top1(name, cfg) for name in TESTS}
    found["reliance"] = found["test"] - found["swapped"]
    taught = datasets.load(cfg.dataset, bias0, "train", cfg.split)
    found |= probe(frozen, taught, lists["swapped"], one, accelerator)
    found |= looks({"frozen": frozen, "tuned": objective.backbone.eval()}, lists["swapped"], one, accelerator)
    run.close()
    return {**found, "curve": curve, "n_expected": len(lists["test"])}


def fewer(samples, fraction: float, seed: int):
    """The first part of each class in a random order: smaller fractions are parts of larger ones."""
    if fraction == 1:
        return samples
    order = np.random.default_rng((seed, len(samples))).permutation(len(samples))
    kept = [order[samples.labels[order] == label] for label in range(len(samples.classes))]
    return samples.take(np.sort(np.concatenate([part[: round(fraction * len(part))] for part in kept])))


def probe(backbone, taught, asked, cfg, accelerator) -> dict[str, float]:
    """What frozen features of one central clip tell of motion and of scene, in % of `asked`; unreadable is wrong."""
    sampler = partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    (x, known), (y, ok) = (over_videos(lambda clip, i: global_pool(backbone(clip), cfg.pool)[0], samples, sampler, cfg,
                                       accelerator, "probe") for samples in (taught, asked))
    found, families = {}, list(synthetic.SCENES)
    for what in ("motion", "scene"):
        label, answer = (torch.from_numpy(samples.labels) if what == "motion" else torch.tensor(
            [families.index(specs(samples.root)[path].scene) for path in samples.paths])
            for samples in (taught, asked))
        for name, guess in ("knn", knn), ("linear", linear):
            right = (guess(x[known], label[known], y) == answer) & ok
            found[f"{name}_{what}"] = 100 * right.float().mean().item()
    return found


def looks(networks: dict, samples, cfg, accelerator) -> dict[str, float]:
    """Share of each network's last feature map on the true actors, over that of the area; mean over videos."""
    sampler = partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    truth = masks(samples, sampler, cfg, "rendered")

    def compute(x, i):
        mask = truth(x, i)[1][:, 0]  # (1, T, S, S)
        area = mask.float().mean().clamp(min=1e-6)
        return torch.stack([share(activation(net(x), *x.shape[2:4]), mask) / area for net in networks.values()])

    found, ok = over_videos(compute, samples, sampler, cfg, accelerator, "actor")
    return {f"actor_{name}": value for name, value in zip(networks, found[ok].mean(0).tolist(), strict=True)}


# ---- what is shown


def by_seed(runs: list[dict], measure: str) -> list[float]:
    """Mean over fine-tunings for each seed, in the order of the seeds."""
    values = defaultdict(list)
    for run in runs:
        values[run["seed"]].append(run[measure])
    return [mean(v) for _, v in sorted(values.items())]


def tables(record: dict) -> list[str]:
    """What came out of a question, mean and sd over seeds, and what each arm changes against the baselines."""
    runs = record["runs"]
    seeds = len({run["seed"] for run in next(iter(runs.values()))})
    def cell(label, measure):
        values = by_seed(runs[label], measure)
        digits = 2 if measure.startswith("actor") else 1
        return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if seeds > 1 else "")
    spread = f"mean ± sd of {seeds} seeds" if seeds > 1 else "one seed"
    text = [f"scenebias {record['version']} {record['size']}: {record['about']} (in %, {spread}; chance is 12.5, "
            f"for the map on actors 1)", ""]
    asked = QUESTIONS[record["question"]]
    shown = [("test", "swapped", "reliance", "static", "background"), MEASURES[5:]]
    tested = ("swapped", "reliance", "linear_motion", "linear_scene", "knn_scene")
    if asked.sweep in LABELLED:
        shown, tested = shown[:1], ("test", "swapped", "reliance")
    for columns in shown:
        head = ["", *(name.replace("_", " ") for name in columns)]
        text += [*markdown(head, [[label, *(cell(label, m) for m in columns)] for label in runs]), ""]
    for baseline in record["baselines"] if seeds > 1 else ():
        rows = {label: {label: 1, baseline: -1} for label in runs if label != baseline}
        text += [*contrasts(f"minus {baseline}, paired by seed: mean ± 95 %", runs, rows, tested), ""]
    for title, rows in asked.effects.items() if seeds > 1 else ():
        text += [*contrasts(f"{title}: mean ± 95 %", runs, rows, tested), ""]
    return text[:-1]


def contrasts(title: str, runs: dict, rows: dict[str, dict[str, float]], measures: tuple[str, ...]) -> list[str]:
    """A line for each of `rows`, {row: {label: weight}}: the weighted sum of the arms, seed by seed, against 0."""
    head = [title, *(word for m in measures for word in (m.replace("_", " "), "p: t / flip"))]
    lines = []
    for row, weights in rows.items():
        lines.append([row])
        for measure in measures:
            of_seed = sum(weight * np.array(by_seed(runs[label], measure)) for label, weight in weights.items())
            d = paired(of_seed.tolist(), [0.0] * len(of_seed))
            lines[-1] += [f"{d['mean']:+.1f} ± {d['half']:.1f}", f"{d['p']:.3f} / {d['p_flip']:.3f}"]
    return markdown(head, lines)


def plot(path: Path, record: dict):
    """A panel for each measure, a row for each arm: a dot per seed, a bar at the mean; and fine-tuning's course."""
    plt, runs = pyplot(), record["runs"]
    panels = {"swapped": "top-1, swapped scenes", "reliance": "reliance: test - swapped",
              "linear_motion": "linear probe: motion", "linear_scene": "linear probe: scene",
              "actor_frozen": "map on actors, over their area"}
    figure, axes = plt.subplots(1, len(panels) + 1, figsize=(16, 1.6 + 0.32 * len(runs)), layout="constrained",
                                width_ratios=[1] * len(panels) + [1.5])
    for axis, (name, title) in zip(axes, panels.items(), strict=False):
        for row, of_arm in enumerate(runs.values()):
            values = by_seed(of_arm, name)
            colour = COLOURS[row % len(COLOURS)]
            axis.plot(values, [row] * len(values), "o", ms=4, alpha=0.55, color=colour, mew=0)
            axis.plot([mean(values)] * 2, [row - 0.3, row + 0.3], color=colour, lw=2.5)
        axis.axvline({"reliance": 0, "actor_frozen": 1}.get(name, 12.5), color="0.4", lw=1, ls="--", zorder=0)
        axis.set_yticks(range(len(runs)), list(runs) if axis is axes[0] else [""] * len(runs), fontsize=8)
        axis.set_ylim(len(runs) - 0.5, -0.5)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("times as much" if name == "actor_frozen" else "%", fontsize=8)
    for row, of_arm in enumerate(runs.values()):
        points = np.array([run["curve"] for run in of_arm], float)  # (runs, points, 3)
        axes[-1].plot(*points.mean(0)[:, [0, 2]].T, color=COLOURS[row % len(COLOURS)], lw=1.5,
                      ls=("-", "--", ":")[row // len(COLOURS) % 3])
    axes[-1].set_title("top-1, swapped scenes, along fine-tuning", fontsize=9)
    axes[-1].set_xlabel("steps; mean of the seeds, one clip a video, %", fontsize=8)
    finish(figure, path, record, "dots: seeds")


def plot_sweep(path: Path, record: dict):
    """A panel for each measure, a curve for each method over what is swept: the mean, and a bar of one sd of seeds."""
    plt, runs = pyplot(), record["runs"]
    asked = QUESTIONS[record["question"]]
    panels = {"test": "top-1, scenes as in pre-training", "swapped": "top-1, swapped scenes",
              "reliance": "reliance: test - swapped"}
    if asked.sweep not in LABELLED:
        panels |= {"linear_motion": "linear probe: motion", "linear_scene": "linear probe: scene"}
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.6), layout="constrained")
    for axis, (measure, title) in zip(axes, panels.items(), strict=True):
        for n, name in enumerate(SWEPT):
            points = [(getattr(arm, asked.sweep), by_seed(runs[arm.label], measure)) for arm in asked.arms
                      if arm.label.startswith(f"{name}, ")]
            axis.errorbar([x for x, _ in points], [mean(y) for _, y in points], color=COLOURS[n], marker="o", ms=4,
                          yerr=[stdev(y) if len(y) > 1 else 0 for _, y in points], lw=1.5, elinewidth=0.8, capsize=2,
                          label=name if axis is axes[0] else None)
        axis.axhline(0 if measure == "reliance" else 12.5, color="0.4", lw=1, ls="--", zorder=0)
        if asked.sweep == "fraction":
            axis.set_xscale("log", base=2)
        values = sorted({getattr(arm, asked.sweep) for arm in asked.arms})
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(asked.sweep.replace("_", " "), fontsize=8)
    figure.legend(loc="outside lower center", ncols=len(SWEPT), fontsize=8, frameon=False)
    finish(figure, path, record, "mean and sd of seeds, in %")


def finish(figure, path: Path, record: dict, shown: str):
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"scenebias {record['version']} {record['size']}: {record['about']} ({shown}; dashed: chance)",
                    fontsize=10)
    save(figure, path)
