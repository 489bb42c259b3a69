"""Background bias: masks of actors, manipulations at test time, and the verbs `robustness` and `actors`.

    shot, partner = shots(samples, sampler, cfg, accelerator)
    y = MANIPULATIONS["actor elsewhere"].change(shot(x, i))  # x: clips (K, 3, T, S, S) of video i; y: of the same shape

A manipulation is an entry of MANIPULATIONS. Masks, which tell the actor from the scene, come from an entry of MASKS,
the config key `scene`:

    median      The scene is the median of every pixel over the frames of a clip, the actor all that differs from it. It
                needs no labels, but a still camera: a pan of the clip's own length smears the scene and takes its edges
                for actors. An actor who stays in place becomes part of the scene, in part.
    rendered    The truth of synthetic videos.

tests/test_bias.py compares them. With a still camera the median scene is 1.5 levels of 255 from the true one, on
average, and the actors overlap by 0.7 (intersection over union), 0.8 to 0.9 where he moves about, 0.3 where he pulses
in place. With the demo's camera, which pans by up to a third of the picture during a clip: 12 levels and 0.4.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from torchvision.models import detection, get_model, get_model_weights, list_models
from torchvision.ops import masks_to_boxes

from be import datasets, synthetic
from be.augment import Draws, crop, denormalise, normalise
from be.config import Config, ConfigError, choose
from be.erase import draw_frame
from be.evaluate import features, linear, load_classifier, load_list, over_videos, spread_clips
from be.report import COLOURS, markdown, number, pyplot, save, spread
from be.runs import RunError, make_accelerator, progress, provenance, write_text
from be.video import Reader, VideoError, encode, even_clips
from be.weights import find, read

THRESHOLD = 0.15  # difference in any colour, of pixels in [0, 1], above which a pixel counts as moving
DONORS = 256  # videos of a list, drawn at random, whose scenes and actors are pasted into all videos of it
LAMBDAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)

# ---- masks


def masks(samples, sampler, cfg: Config, source: str | None = None) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """The masks of a list of videos: a function (x, i) -> scene, actor.

    x: clips (K, 3, T, S, S) of video i, normalised, of the frames that `sampler` chose. scene: like x, the clips
    without the actor. actor: bool (K, 1, T, S, S), true where he is. source: a key of MASKS, by default `cfg.scene`.
    Raises ConfigError if that is unknown, or does not know these videos.
    """
    return choose(MASKS, source or cfg.scene, "scene")(samples, sampler, cfg)


def median_masks(x) -> tuple[Tensor, Tensor]:
    """The median over time of every pixel and colour is the scene, what differs by THRESHOLD or more is the actor."""
    # Contiguous: of a tensor with strides of 0, a frozen clip, torch 2.15 computes a wrong median
    scene = x.contiguous().median(2, keepdim=True).values.expand_as(x)  # of an even number of frames: the lower one
    return scene, (denormalise(x) - denormalise(scene)).abs().amax(1, keepdim=True) > THRESHOLD


def rendered_masks(samples, sampler, cfg: Config):
    known = specs(samples.root, "scene=rendered")

    def masks_of(x, i):
        spec = known[samples.paths[i]]
        rng = np.random.default_rng((cfg.seed, 0, i))  # as datasets.Clips has it
        return true_masks(x, spec, sampler(spec.frames, rng), cfg.short_side)

    return masks_of


def true_masks(x, spec: synthetic.Spec, frames, short_side: int) -> tuple[Tensor, Tensor]:
    """Scene and actor of the clips x (K, 3, T, S, S) of a video rendered from `spec`.

    frames (K, T): the numbers of the frames of x. short_side: of the pictures x was cut from, px.
    """
    _, mask, background = synthetic.render(spec)
    mask = np.uint8(255) * mask[frames, ..., None].repeat(3, -1)  # (K, T, H, W, 3)
    both = torch.from_numpy(np.concatenate([background[frames], mask]))  # (2K, T, H, W, 3)
    size, half = torch.tensor([[spec.height, spec.width]]), torch.full((len(both), 2), 0.5)
    side = half[:, 0] * 2 * x.shape[-1] * spec.short / short_side  # px, of the square that `eval_view` shows
    both = crop(both, size.expand(half.shape), half, side, 0 * side, x.shape[-1]).to(x.device)
    scene, actor = both.chunk(2)
    return normalise(scene), actor[:, :1] > 0.5


MASKS = {"median": lambda samples, sampler, cfg: lambda x, i: median_masks(x), "rendered": rendered_masks}


@cache
def specs(root: str, asked: str = "") -> dict[bytes, synthetic.Spec]:
    """Path below root -> what the video is made of; empty where the videos are not synthetic.

    Raises ConfigError in place of that if somebody `asked` for the truth: the words he did it with.
    """
    if os.path.exists(os.path.join(root, "synthetic.jsonl")):
        return {os.fsencode(video.path): video.spec for video in synthetic.load(root)}
    if asked:
        raise ConfigError(f"{asked} is for synthetic videos, which those in {root} are not")
    return {}


def scenes(samples) -> Tensor | None:
    """The number of the class whose own family of scenes each video has, int64 (N,); None if they are not synthetic."""
    known, family = specs(samples.root), list(synthetic.SCENES)
    return torch.tensor([family.index(known[path].scene) for path in samples.paths]) if known else None


# ---- manipulations


class Shot(NamedTuple):
    """Clips of a video, what they are made of, and what a video of another class lends; pictures are normalised."""

    x: Tensor  # (K, 3, T, S, S) the clips
    scene: Tensor  # (K, 3, T, S, S) without the actor
    actor: Tensor  # (K, 1, T, S, S) bool, where he is
    other_frame: Tensor  # (3, 1, S, S), the frame in the middle of the other video's central clip
    other_scene: Tensor  # (3, 1, S, S)
    other_actor: Tensor  # (1, 1, S, S) bool
    key: tuple[int, int]  # seed, place of the video in the list

    def draws(self) -> Draws:
        """Random numbers, for every manipulation from the beginning: none depends on which others there are."""
        return Draws(*self.key, device=self.x.device)


def shuffled(shot: Shot):
    K, _, T = shot.x.shape[:3]
    order = shot.draws().rand(K, T).argsort(1)  # (K, T)
    return shot.x[torch.arange(K, device=shot.x.device)[:, None], :, order].transpose(1, 2)  # (K, T, 3, ..) -> like x


def erased(shot: Shot, lam: float):
    """Eq. 1 with `lam` given, not drawn. The frame is drawn, the same for all lam."""
    return torch.lerp(shot.x, draw_frame(shot.x, shot.draws()), lam)


class Manipulation(NamedTuple):
    """One way to change a clip."""

    change: Callable[[Shot], Tensor]  # -> like Shot.x
    source: str  # who asks this
    better: str  # where the top-1 of a model of motion goes, beside that of a model of scenes: ↑ | ↓ | "", neither


MANIPULATIONS = {
    "original": Manipulation(lambda shot: shot.x, "", "↑"),
    "one frame": Manipulation(lambda shot: shot.x[:, :, shot.x.shape[2] // 2, None].expand_as(shot.x),
                              "paper 4.7: static video", "↓"),
    "shuffled": Manipulation(shuffled, "", ""),
    "scene only": Manipulation(lambda shot: shot.scene, "HAT (NeurIPS 2022): Scene-Only", "↓"),
    "actor elsewhere": Manipulation(lambda shot: torch.where(shot.actor, shot.x, shot.other_scene),
                                    "HAT: Action-Swap", "↑"),
    "static body": Manipulation(lambda shot: torch.where(shot.other_actor, shot.other_frame, shot.x),
                                "paper 4.7", "↑"),
    "foreign frame": Manipulation(lambda shot: torch.lerp(shot.x, shot.other_frame, 0.3), "paper 4.7", "↑"),
    **{f"BE, {lam}": Manipulation(partial(erased, lam=lam), "paper, Eq. 1", "↑") for lam in LAMBDAS},
}


def shots(samples, sampler, cfg: Config, accelerator) -> tuple[Callable[[Tensor, int], Shot], np.ndarray]:
    """Takes the clips of a list apart by `cfg.scene`. -> shot, partner

    shot(x, i): the Shot of video i, whose clips x `sampler` chose. partner[i]: the place of the video of another class
    that lends it its scene and actor. Decodes up to DONORS videos. Raises RunError if they are all of one class.
    """
    sampler_of_one = partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    some = np.sort(np.random.default_rng((cfg.seed, 0)).permutation(len(samples))[:DONORS])
    chosen = samples.take(some)
    masks_of, masks_of_chosen = masks(samples, sampler, cfg), masks(chosen, sampler_of_one, cfg)

    def still(x, i):
        return torch.cat([part[0, :, cfg.frames // 2] for part in (x, *masks_of_chosen(x, i))])

    stills, ok = over_videos(still, chosen, sampler_of_one, cfg, accelerator, "other videos")  # (n, 7, S, S)
    readable = np.flatnonzero(ok)
    if len(set(chosen.labels[readable])) < 2:
        raise RunError(f"{len(readable)} readable videos of one class: there is none of another one to paste from")
    lender = [np.random.default_rng((cfg.seed, i)).choice(readable[chosen.labels[readable] != label])
              for i, label in enumerate(samples.labels)]

    def shot(x, i):
        frame, scene, actor = stills[lender[i], :, None].to(x.device).split((3, 3, 1))
        return Shot(x, *masks_of(x, i), frame, scene, actor > 0, (cfg.seed, i))

    return shot, some[lender]


# ---- robustness

QUESTIONS = {  # what is asked: who asks so, and which answer speaks for motion
    **{name: one[1:] for name, one in MANIPULATIONS.items()},
    "fooled": ("HAT: SBErr", "↓"),
    "conflict: motion": ("", "↑"), "conflict: scene": ("", "↓"), "probe: motion": ("", "↑"), "probe: scene": ("", ""),
}  # fmt: skip


def robustness(*runs: tuple[Path, Config]):
    """robustness: test fine-tuned models on videos without motion, without actors, before other scenes

    The list is `subset`; several are tested one after the other with subset=test,swapped. Every video is shown whole
    and manipulated, with the same `test_clips` clips each time; `scene` says how scene and actor are told apart. Runs
    of one experiment (seeds, splits) are averaged. To OUT go robustness-DATASET-SUBSET.json, .md and .png:

        original           the accuracy as `evaluate` has it (with `static`: of one frame)
        one frame          the frame in the middle of each clip, repeated: what looks alone are good for
        shuffled           all frames of each clip, in random order
        scene only         without the actor: at best chance, for a model of actions
        actor elsewhere    the actor, as he moves, before the still scene of a video of another class
        fooled             share of the answers to that which name the class of the other video: chance is 1 / classes
        static body        the actor of the other video stands in the picture, cut out of one frame
        foreign frame      a frame of the other video lies over all frames with weight 0.3
        BE, lam            Eq. 1 at test time: a random frame of the clip is mixed into all of it with weight lam

    All in % of the videos of the list; one that cannot be read is wrong everywhere. For synthetic videos there are also

        conflict           where the scene is of the family of another class, as all over the list `swapped`: share of
                           the answers that name the class of the motion, and of the scene
        probe              accuracy of a linear classifier of the frozen features, taught motion or family of scenes on
                           the training list; what can be read off need not be what is answered
    """
    for out, head, about, rows in compare("robustness", runs, lambda *run: measure(*run[:4])):
        head = f"Top-1 in %, {head}, {about['test_clips']} clips a video, scene: {about['scene']}"
        publish(out, head, about, rows, table(rows))
        plot(out.with_suffix(".png"), rows, head, about["classes"])


def compare(verb: str, runs, one: Callable[..., dict]) -> Iterator[tuple[Path, str, dict, list[dict]]]:
    """Calls one(model, samples, cfg, accelerator, path, subset) -> numbers for each finished run and each list.

    For each list of the first run's `subset` the main process then gets where results go (no suffix), of what they are
    in words and as a dict, and a row for each run. Runs of one experiment have one name. Raises ConfigError where the
    data sets differ, RunError and ConfigError where a run or its list does not fit.
    """
    first = runs[0][1]
    if len({cfg.dataset for _, cfg in runs}) > 1:
        raise ConfigError(f"runs on different data sets cannot stand side by side: {[c.dataset for _, c in runs]}")
    accelerator, names = make_accelerator(first), short([path.parent for path, _ in runs])
    for subset in first.subset.split(","):
        rows = []
        for name, (path, cfg) in zip(names, runs, strict=True):
            model, classes = load_classifier(cfg, path)
            samples = load_list(cfg, subset, classes)
            numbers = one(model.to(accelerator.device), samples, cfg, accelerator, path, subset)
            rows.append({"experiment": name, "run": str(path), "split": cfg.split, "seed": cfg.seed, **numbers})
        if accelerator.is_main_process:
            scored, expected = (sum(row[key] for row in rows) for key in ("n_scored", "n_expected"))
            about = {"dataset": first.dataset, "subset": subset, "test_clips": first.test_clips, "scene": first.scene,
                     "classes": len(classes), **provenance(samples, accelerator)}
            yield (Path(first.out) / f"{verb}-{first.dataset}-{subset}",
                   f"{first.dataset} {subset}, {scored} of {expected} videos scored", about, rows)


def short(paths: list[Path]) -> list[str]:
    """The paths without the folders that all of them lie in."""
    root = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def publish(out: Path, head: str, about: dict, rows: list[dict], shown: list[dict] | None = None):
    """Writes OUT.json, with all rows, and OUT.md, a table of those `shown` or of all; prints that. NaN becomes null."""
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    shown = shown or rows
    cells = [["-" if v is None else f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
             for row in shown]
    text = "\n".join([head, "", *markdown(list(shown[0]), cells)])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out.with_suffix(".json"), json.dumps({**about, "rows": rows}, indent=1) + "\n")
    write_text(out.with_suffix(".md"), text + "\n")
    print(f"{text}\n\nwritten to {out}.*")


def measure(model, samples, cfg: Config, accelerator) -> dict[str, float]:
    """All numbers of one model on one list, in %; NaN where there is no video to ask about."""
    model.eval()
    sampler = spread_clips(cfg, cfg.test_clips)
    shot, partner = shots(samples, sampler, cfg, accelerator)

    def compute(x, i):
        whole = shot(x, i)
        answers = [model.logits(one.change(whole)).float().softmax(1).mean(0) for one in MANIPULATIONS.values()]
        return torch.stack(answers)  # (M, classes)

    probabilities, ok = over_videos(compute, samples, sampler, cfg, accelerator, "robustness")  # (N, M, classes)
    label, answer = torch.from_numpy(samples.labels), dict(zip(MANIPULATIONS, probabilities.argmax(2).T, strict=True))
    result = {name: percent((of == label) & ok) for name, of in answer.items()}
    result["fooled"] = percent((answer["actor elsewhere"] == label[partner]) & ok)
    if (scene := scenes(samples)) is not None:
        plain, conflict = answer["original"], ok & (scene != label)
        result["conflict: motion"] = percent((plain == label)[conflict])
        result["conflict: scene"] = percent((plain == scene)[conflict])
        train = datasets.load_for(cfg, "train")
        (x, known), (y, there) = (features(model.backbone, model.pool, part, cfg, accelerator, "probe")
                                  for part in (train, samples))
        for what, of, true in (("motion", torch.from_numpy(train.labels), label), ("scene", scenes(train), scene)):
            result[f"probe: {what}"] = percent((linear(x[known], of[known], y) == true) & there)
    return {**result, "n_scored": int(ok.sum()), "n_expected": len(samples)}


def percent(true) -> float:
    """NaN of none."""
    return 100 * true.float().mean().item()


def grouped(rows) -> dict[str, np.ndarray]:
    """experiment -> the numbers of its runs in the order of QUESTIONS (runs, questions), NaN where there is none."""
    numbers = {row["experiment"]: [] for row in rows}
    for row in rows:
        numbers[row["experiment"]].append([row.get(what, np.nan) for what in QUESTIONS])
    return {name: np.array(values) for name, values in numbers.items()}


def table(rows) -> list[dict]:
    """Models side by side, a line for each question."""
    cells = {name: [None if np.isnan(column).any() else number(spread(column.tolist())) for column in values.T]
             for name, values in grouped(rows).items()}
    return [{"": f"{what} {better}", **{name: cells[name][n] for name in cells}, "source": source}
            for n, (what, (source, better)) in enumerate(QUESTIONS.items())]


def plot(path: Path, rows, head: str, classes: int):
    """A line for each question, a dot for each experiment, with the sd over its runs."""
    plt, groups, places = pyplot(), grouped(rows), np.arange(len(QUESTIONS))
    figure, axis = plt.subplots(figsize=(7, 5 + 1.4 * len(groups)), layout="constrained")
    for n, (name, values) in enumerate(groups.items()):
        sd = values.std(0, ddof=1) if len(values) > 1 else None
        axis.errorbar(values.mean(0), places + 0.6 * n / len(groups), xerr=sd, fmt="o", label=name,
                      color=COLOURS[n % len(COLOURS)])
    axis.axvline(100 / classes, color="0.4", lw=1, ls="--", label="chance")
    axis.set_yticks(places, QUESTIONS, fontsize=8)
    axis.set(xlim=(0, 100), xlabel="top-1, or share of answers, %")
    axis.invert_yaxis()
    axis.grid(alpha=0.25)
    axis.set_title(head, fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    save(figure, path)


# ---- Actor-HMDB51 (paper 4.6, Figure 5)

LISTS, SMALLEST = "testTrainMulti_7030_splits", 32
BATCH = 16  # frames that the detector gets at once

# (path of a video below its root, numbers of frames (N,), these frames uint8 (N, H, W, 3)) -> for each frame the boxes
# of its persons, float (n, 4): left, top, right, bottom in px
Detector = Callable[[bytes, np.ndarray, np.ndarray], list[np.ndarray]]


def actors(data: str = "data", detector: str = "fasterrcnn_resnet50_fpn_v2", weights: str | None = None,
           score: float = 0.8):
    """actors: make Actor-HMDB51, which is HMDB51 cropped to its persons: DATA/actor_hmdb51 from DATA/hmdb51 (Figure 5)

    detector   one of torchvision's for COCO, by name; or `rendered`: the true actors of synthetic videos
    weights    a file of its weights; default: torchvision's own, downloaded once
    score      the least confidence, 0 to 1, of what is taken for a person

    The authors did not publish theirs. It is made as they say (paper 4.6): the detector looks at every frame, and the
    video is cropped to the smallest box that holds all persons of all its frames. DATA/actor_hmdb51 then has HMDB51's
    lists and, under the same names, the cropped videos; use it as dataset=actor_hmdb51. Beside each, NAME.json says its
    size, frames, box, in how many frames a person was seen, how many persons in all, and what was done:

        cropped        to the box, with even sides of at least 32 px, as far as the picture goes
        kept whole     no person was seen in any frame: the video stays as it is
        unreadable     there is no copy: a test counts the video as wrong, here as in HMDB51

    After a crash the same command goes on where it stopped. Under `accelerate launch` each process takes its share.
    """
    # Who has done his share waits for the others, as long as it takes
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))])
    root = Path(data) / "hmdb51"
    lists = [datasets.load("hmdb51", data, *which) for which in datasets.DATASETS["hmdb51"].subsets(root)]
    paths = sorted({path for samples in lists for path in samples.paths.tolist()})
    detect = (rendered_boxes(lists[0].root) if detector == "rendered"
              else torchvision_detector(detector, weights, score, accelerator.device))
    how = {"detector": detector, "weights": weights, "score": score}
    crop_all(root, Path(data) / "actor_hmdb51", paths, detect, how, accelerator)


def crop_all(root: Path, target: Path, paths: list[bytes], detect: Detector, how: dict, accelerator: Accelerator):
    """Crops the videos PATHS below ROOT into TARGET. RunError if TARGET was made in another way than `how`."""
    if accelerator.is_main_process:
        shutil.copytree(root / LISTS, target / LISTS, dirs_exist_ok=True)
        note = target / "actors-how.json"
        if note.exists() and (held := json.loads(note.read_text())) != how:
            raise RunError(f"{target} was made with {held}, not {how}: ask for the same, or remove it")
        write_text(note, json.dumps(how))
    accelerator.wait_for_everyone()
    copies = {path: Path(target, "actor-hmdb51", *os.fsdecode(path).split("/")[-2:]) for path in paths}  # CLASS/NAME
    logs = {path: copy.with_suffix(".json") for path, copy in copies.items()}
    mine = paths[accelerator.process_index :: accelerator.num_processes]
    for path in progress(mine, len(mine), "cropping") if accelerator.is_main_process else mine:
        if not logs[path].exists():
            line = crop_video(root / os.fsdecode(path), copies[path], partial(detect, path))
            write_text(logs[path], json.dumps(line))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        lines = [json.loads(log.read_text()) for log in logs.values()]
        kept = [line["area_kept"] for line in lines if line["done"] == "cropped"]
        summary = {**how, "videos": len(lines), **Counter(line["done"] for line in lines),
                   "area_kept": float(np.mean(kept)) if kept else None}
        write_text(target / "actors.json", json.dumps(summary, indent=1) + "\n")
        print(", ".join(f"{key} {value}" for key, value in summary.items()) + f"; logs beside the videos in {target}")


def crop_video(source: Path, copy: Path, detect) -> dict:
    """Makes the copy of one video. -> what there is to say of it in the log. RunError if it cannot be written."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Reader(source) as video:
            boxes = [found for numbers in batches(video) for found in detect(numbers, video.decode(numbers))]
            width, height = video.info.width, video.info.height
    except VideoError as error:
        return {"done": "unreadable", "problem": str(error)}
    persons = [len(found) for found in boxes]
    line = {"done": "kept whole", "width": width, "height": height, "frames": len(boxes),
            "frames_with_persons": sum(n > 0 for n in persons), "persons": sum(persons)}
    aside = copy.with_name(f".{copy.name}")
    try:
        if any(persons):
            left, top, right, bottom = box = smallest_box(np.concatenate(boxes), (width, height))
            area = 100 * (right - left) * (bottom - top) / (width * height)
            line |= {"done": "cropped", "box": box, "area_kept": area}
            with Reader(source) as video:
                frames = (frame[top:bottom, left:right] for n in batches(video) for frame in video.decode(n))
                # The codec of HMDB51 at a fixed fine quantiser: what it loses once more cannot be seen
                encode(aside, frames, video.info.fps, codec="mpeg4", options={"qmin": "2", "qmax": "2"})
        else:
            shutil.copyfile(source, aside)
        aside.replace(copy)
    except (VideoError, OSError) as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"{copy} could not be written ({error}); make room and give the same command again") from None
    return line


def batches(video: Reader) -> list[np.ndarray]:
    """The numbers of all frames of a video, BATCH at a time."""
    return np.split(np.arange(video.frames), range(BATCH, video.frames, BATCH))


def smallest_box(boxes, size: tuple[int, int]) -> list[int]:
    """The smallest box of whole pixels that holds all boxes (n, 4), then made even: [left, top, right, bottom].

    size: width and height of the picture. No side is less than SMALLEST, where the picture has that.
    """
    size = np.array(size)
    low = np.floor(boxes[:, :2].min(0)).clip(0, size).astype(int)
    high = np.ceil(boxes[:, 2:].max(0)).clip(0, size).astype(int)
    side = (high - low + (high - low) % 2).clip(SMALLEST).clip(max=size // 2 * 2)
    low = (low - (side - (high - low)) // 2).clip(0, size - side)
    return [*low.tolist(), *(low + side).tolist()]


def torchvision_detector(name: str, weights: str | None, score: float, device) -> Detector:
    """One of torchvision's detectors for COCO. Raises ConfigError for an unknown name or weights that do not fit."""
    choose(dict.fromkeys([*list_models(module=detection), "rendered"]), name, "detector")
    categories = get_model_weights(name).DEFAULT.meta["categories"]
    person = categories.index("person")
    model = get_model(name, weights=None, weights_backbone=None, num_classes=len(categories))
    file = find(weights or f"torchvision:{name}") or weights
    try:
        model.load_state_dict(read(file))
    except RuntimeError as error:
        raise ConfigError(f"{file} does not fit {name}: {str(error)[:400]} ...") from None
    if name.endswith(("rcnn_resnet50_fpn", "retinanet_resnet50_fpn")):  # as torchvision does for its weights of these
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
    model.to(device).eval()

    @torch.inference_mode()
    def detect(path, numbers, frames):
        found = model(list(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2) / 255))  # of (3, H, W)
        return [one["boxes"][(one["labels"] == person) & (one["scores"] >= score)].cpu().numpy() for one in found]

    return detect


def rendered_boxes(root: str) -> Detector:
    """The true actors of the synthetic videos below ROOT. Raises ConfigError where those are not synthetic."""
    known = specs(root, "detector=rendered")
    masks_of = lru_cache(1)(lambda path: torch.from_numpy(synthetic.render(known[path])[1]))  # bool (T, H, W)

    def detect(path, numbers, frames):
        outer = torch.tensor([0, 0, 1, 1])  # masks_to_boxes ends at the last pixel, not behind it
        return [(masks_to_boxes(mask[None][mask.any()[None]]) + outer).numpy() for mask in masks_of(path)[numbers]]

    return detect
