"""Background bias: test-time manipulations (verb `robustness`), masks of actors, Actor-HMDB51 (verb `actors`).

    shot, partner = shots(samples, sampler, cfg, accelerator)
    y = MANIPULATIONS["actor elsewhere"](shot(x, i))  # clips x (K, 3, T, S, S) of video i -> y, like x

The config key `scene` chooses one of MASKS. `rendered` is the truth of synthetic videos. `median` needs a still camera
and an actor who leaves his place: its scene is then 1.5 levels of 255 from the true one, and the actors overlap by 0.8
to 0.9 (intersection over union), by 0.3 where he pulses in place. With the demo's camera, which pans, it is 12 levels
and 0.4.
"""

import json
import os
import shutil
from collections import Counter
from datetime import timedelta
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor
from torchvision.models import detection, get_model, list_models
from torchvision.ops import masks_to_boxes

from be import datasets, synthetic
from be.augment import Draws, crop, denormalise, normalise
from be.config import Config, ConfigError, choose
from be.erase import draw_frame
from be.evaluate import load_classifier, load_list, over_videos, spread_clips
from be.report import page, plot_differences
from be.runs import RunError, make_accelerator, place, progress, provenance, write_text
from be.video import Reader, VideoError, encode, even_clips
from be.weights import find, load

THRESHOLD = 0.15  # difference in any colour, of pixels in [0, 1], above which a pixel counts as moving
DONORS = 256  # videos of a list, drawn at random, whose scenes and actors are pasted into all videos of it
LISTS, SMALLEST, BATCH = "testTrainMulti_7030_splits", 32, 16  # of `actors`: px; frames that the detector gets at once

# ---- masks


def median_masks(x, _=None) -> tuple[Tensor, Tensor]:
    """The median over time of every pixel and colour is the scene, what differs by more than THRESHOLD the actor."""
    # Contiguous: of a tensor with strides of 0, a frozen clip, torch 2.15 computes a wrong median
    scene = x.contiguous().median(2, keepdim=True).values.expand_as(x)  # of an even number of frames: the lower one
    return scene, (denormalise(x) - denormalise(scene)).abs().amax(1, keepdim=True) > THRESHOLD


def rendered_masks(samples, sampler, cfg: Config):
    """The true masks of synthetic videos. Raises ConfigError of others."""
    known = specs(samples.root)

    def masks_of(x, i):
        spec = known[samples.paths[i]]
        rng = np.random.default_rng((cfg.seed, 0, i))  # as datasets.Clips has it
        return true_masks(x, spec, sampler(spec.frames, rng), cfg.short_side)

    return masks_of


def true_masks(x, spec: synthetic.Spec, frames, short_side: int) -> tuple[Tensor, Tensor]:
    """Of a video made of `spec`: clips x of its frames (K, T), cut at `short_side` px. -> scene, actor, see MASKS"""
    _, mask, background = synthetic.render(spec)
    mask = np.broadcast_to(255 * mask[frames, ..., None].view(np.uint8), background[frames].shape)
    both = torch.from_numpy(np.concatenate([background[frames], mask]))  # (2K, T, H, W, 3)
    one, size = torch.ones(len(both), 1), torch.tensor([spec.height, spec.width])
    side = x.shape[-1] * spec.short / short_side  # px, of the square `eval_view` shows
    scene, actor = crop(both, size * one, one / 2, side * one[:, 0], 0 * one[:, 0], x.shape[-1]).to(x.device).chunk(2)
    return normalise(scene), actor[:, :1] > 0.5


# Key `scene` -> (samples, sampler, cfg) -> (clips x (K, 3, T, S, S) of video i, of the frames that `sampler` chose, i)
# -> scene, like x, without the actor; actor, bool (K, 1, T, S, S), true where he is.
MASKS = {"median": lambda *_: median_masks, "rendered": rendered_masks}


@cache
def specs(root: str) -> dict[bytes, synthetic.Spec]:
    """Path below root -> what the video is made of. Raises ConfigError of videos that are not synthetic."""
    if not Path(root, datasets.DRAWN).exists():
        raise ConfigError(f"`rendered` actors are of synthetic videos, which those in {root} are not")
    return {os.fsencode(video.path): video.spec for video in synthetic.load(root)}


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


def shuffled(shot: Shot):
    order = Draws(*shot.key, device=shot.x.device).rand(len(shot.x), shot.x.shape[2]).argsort(1)  # (K, T)
    return shot.x.take_along_dim(order[:, None, :, None, None], 2)


def erased(shot: Shot, lam: float):
    """Eq. 1 with `lam` given. The frame is drawn, the same for all lam."""
    return torch.lerp(shot.x, draw_frame(shot.x, Draws(*shot.key, device=shot.x.device)), lam)


MANIPULATIONS = {  # Shot -> like Shot.x
    "original": lambda shot: shot.x,
    "one frame": lambda shot: shot.x[:, :, shot.x.shape[2] // 2, None].expand_as(shot.x),
    "shuffled": shuffled,
    "scene only": lambda shot: shot.scene,
    "actor elsewhere": lambda shot: torch.where(shot.actor, shot.x, shot.other_scene),
    "static body": lambda shot: torch.where(shot.other_actor, shot.other_frame, shot.x),
    "foreign frame": lambda shot: torch.lerp(shot.x, shot.other_frame, 0.3),
    **{f"BE, {lam}": partial(erased, lam=lam) for lam in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)},
}


def shots(samples, sampler, cfg: Config, accelerator):
    """Takes the clips of a list apart by `cfg.scene`. -> shot, partner

    shot(x, i): the Shot of video i, whose clips x `sampler` chose. partner[i]: the place of the video of another class
    that lends it its scene and actor. Decodes up to DONORS videos. Raises RunError if they are all of one class.
    """
    some = np.sort(np.random.default_rng((cfg.seed, 0)).permutation(len(samples))[:DONORS])
    chosen, sampler_of_one = samples.take(some), partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    masks_of, masks_of_chosen = (MASKS[cfg.scene](*of, cfg) for of in ((samples, sampler), (chosen, sampler_of_one)))

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

# What is asked: which answer, beside a model of scenes, speaks for a model of motion (neither: no arrow), who asks it
QUESTIONS = dict.fromkeys(MANIPULATIONS, "↑ paper, Eq. 1") | {
    "original": "↑", "one frame": "↓ paper 4.7: static video", "shuffled": "",
    "scene only": "↓ HAT (NeurIPS 2022): Scene-Only", "actor elsewhere": "↑ HAT: Action-Swap", "fooled": "↓ HAT: SBErr",
    "static body": "↑ paper 4.7", "foreign frame": "↑ paper 4.7", "conflict: motion": "↑", "conflict: scene": "↓",
}


def robustness(*runs: tuple[Path, Config]):
    """robustness: test fine-tuned models on videos without motion, without actors, before other scenes

    The lists are `subset`, such as test,swapped. Every video is shown whole and manipulated, the same `test_clips`
    clips each time; `scene` says how scene and actor are told apart. Runs of one experiment (seeds, splits) are
    averaged. To OUT go robustness-DATASET-SUBSET.json, .md and .png, in % of all videos, the unreadable being wrong:

        original           the accuracy as `evaluate` has it (with `static`: of one frame)
        one frame          the frame in the middle of each clip, repeated: what looks alone are good for
        shuffled           all frames of each clip, in random order
        scene only         without the actor: at best chance, for a model of actions
        actor elsewhere    the actor, as he moves, before the still scene of a video of another class
        fooled             share of the answers to that which name the class of the other video: chance is 1 / classes
        static body        the actor of the other video stands in the picture, cut out of one frame
        foreign frame      a frame of the other video lies over all frames with weight 0.3
        BE, lam            Eq. 1 at test time: a random frame of the clip is mixed into all of it with weight lam
        conflict           of synthetic videos with scenes of another class: answers that name the motion's, the scene's
    """
    for out, about, rows in compare("robustness", runs, measure):
        lines, drawn = table(rows)
        publish(out, f"Top-1 in %, {about['test_clips']} clips a video, scene: {about['scene']}", about, rows, lines)
        drawn["chance"] = np.array([100 / about["classes"]])
        plot_differences(out.with_suffix(".png"), drawn, f"{out.name}: top-1 or share of answers, in %")


def compare(verb: str, runs, one):
    """Calls one(model, samples, cfg, accelerator, path, subset) -> dict of numbers for each finished run and each list.

    For each list of the first run's `subset` the main process then gets where results go (no suffix), a dict of what
    they are of, and a row for each run. ConfigError where data sets differ; RunError or it where a run does not fit.
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
            numbers = one(place(model, accelerator.device, cfg.precision), samples, cfg, accelerator, path,
                          subset)
            rows.append({"experiment": name, "run": str(path), "split": cfg.split, "seed": cfg.seed, **numbers})
        if accelerator.is_main_process:
            about = {"dataset": first.dataset, "subset": subset, "test_clips": first.test_clips, "scene": first.scene,
                     "classes": len(classes), **provenance(samples, accelerator)}
            about |= {key: sum(row[key] for row in rows) for key in ("n_scored", "n_expected")}
            yield Path(first.out) / f"{verb}-{first.dataset}-{subset}", about, rows


def short(paths: list[Path]) -> list[str]:
    """The paths without the folders that all of them lie in."""
    return [os.path.relpath(path, os.path.commonpath([other.parent for other in paths])) for path in paths]


def publish(out: Path, what: str, about: dict, rows: list[dict], shown: list[dict] | None = None):
    """Writes OUT.json, with all rows, and OUT.md, a table of those `shown` or of all; prints that."""
    head = "{}, {dataset} {subset}, {n_scored} of {n_expected} videos scored".format(what, **about)
    text = page([{"about": head, "rows": shown or rows}], out.parent)
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]  # NaN: null
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out.with_suffix(".json"), json.dumps({**about, "rows": rows}, indent=1) + "\n")
    write_text(out.with_suffix(".md"), text)
    print(f"{text}\nwritten to {out}.*")


def measure(model, samples, cfg: Config, accelerator, *_) -> dict[str, float]:
    """All numbers of one model on one list, in %; NaN where there is no video to ask about."""
    model.eval()
    sampler = spread_clips(cfg, cfg.test_clips)
    shot, partner = shots(samples, sampler, cfg, accelerator)

    def compute(x, i):
        whole = shot(x, i)
        return torch.stack([model.logits(y(whole)).float().softmax(1).mean(0) for y in MANIPULATIONS.values()])

    probabilities, ok = over_videos(compute, samples, sampler, cfg, accelerator, "robustness")  # (N, M, classes)
    answers = probabilities.argmax(2).masked_fill(~ok[:, None], -1)
    label, answer = torch.from_numpy(samples.labels), dict(zip(MANIPULATIONS, answers.T, strict=True))
    right = {name: of == label for name, of in answer.items()}
    right["fooled"] = answer["actor elsewhere"] == label[partner]
    if samples.scenes:
        family = torch.tensor([list(synthetic.SCENES).index(name) for name in samples.scenes])
        scene = family[samples.scene]  # (N,), the class whose own family it is
        conflict = ok & (scene != label)
        right["conflict: motion"] = right["original"][conflict]
        right["conflict: scene"] = (answer["original"] == scene)[conflict]
    percent = {name: 100 * of.float().mean().item() for name, of in right.items()}
    return {**percent, "n_scored": int(ok.sum()), "n_expected": len(samples)}


def table(rows) -> tuple[list[dict], dict[str, np.ndarray]]:
    """A line for each question: of each experiment the numbers of its runs, None where one lacks it; the numbers."""
    lines, found = [], {}
    for what, told in QUESTIONS.items():
        lines.append({"": f"{what} {told}"})
        for name in dict.fromkeys(row["experiment"] for row in rows):
            values = np.array([row.get(what, np.nan) for row in rows if row["experiment"] == name])
            lines[-1][name] = None if np.isnan(values).any() else values.tolist()
            if lines[-1][name]:
                found[f"{what}, {name}"] = values
    return lines, found


# ---- Actor-HMDB51 (paper 4.6, Figure 5)

def actors(data: str = "data", detector: str = "fasterrcnn_resnet50_fpn_v2", weights: str | None = None,
           score: float = 0.8):
    """actors: make Actor-HMDB51, which is HMDB51 cropped to its persons: DATA/actor_hmdb51 from DATA/hmdb51 (Figure 5)

    detector   one of torchvision's for COCO, by name; or `rendered`: the true actors of synthetic videos
    weights    a file of its weights; default: torchvision's own, downloaded once
    score      the least confidence, 0 to 1, of what is taken for a person

    The authors did not publish theirs. As they say (paper 4.6), the detector looks at every frame, and the video is
    cropped to the smallest box that holds all persons of all its frames, with even sides of at least 32 px, as far as
    the picture goes. Use it as dataset=actor_hmdb51, with HMDB51's lists and names. Beside each video, NAME.json says
    its size, frames, box, how often a person was seen, and what was done: `cropped`; `kept whole`, as no person was
    seen; or `unreadable`: there is no copy, and a test counts the video as wrong, here as in HMDB51. After a crash the
    same command goes on where it stopped. Under `accelerate launch` each process takes its share.
    """
    # Who has done his share waits for the others, as long as it takes
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))])
    root, target = Path(data) / "hmdb51", Path(data) / "actor_hmdb51"
    lists = [datasets.load("hmdb51", data, *which) for which in datasets.DATASETS["hmdb51"].subsets(root)]
    paths = sorted({path for samples in lists for path in samples.paths.tolist()})
    detect = (rendered_boxes(lists[0].root) if detector == "rendered"
              else torchvision_detector(detector, weights, score, accelerator.device))
    how = {"detector": detector, "weights": weights, "score": score}
    if accelerator.is_main_process:
        shutil.copytree(root / LISTS, target / LISTS, dirs_exist_ok=True)
        note = target / "actors-how.json"
        if note.exists() and (held := json.loads(note.read_text())) != how:
            raise RunError(f"{target} was made with {held}, not {how}: ask for the same, or remove it")
        write_text(note, json.dumps(how))
    accelerator.wait_for_everyone()
    copies = [Path(target, "actor-hmdb51", *os.fsdecode(path).split("/")[-2:]) for path in paths]  # CLASS/NAME
    mine = list(zip(paths, copies, strict=True))[accelerator.process_index :: accelerator.num_processes]
    for path, copy in progress(mine, len(mine), "cropping") if accelerator.is_main_process else mine:
        if not (log := copy.with_suffix(".json")).exists():
            write_text(log, json.dumps(crop_video(root / os.fsdecode(path), copy, partial(detect, path))))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        lines = [json.loads(copy.with_suffix(".json").read_text()) for copy in copies]
        summary = {**how, "videos": len(lines), **Counter(line["done"] for line in lines)}
        write_text(target / "actors.json", json.dumps(summary, indent=1) + "\n")
        print(", ".join(f"{key} {value}" for key, value in summary.items()) + f"; logs beside the videos in {target}")


def crop_video(source: Path, copy: Path, detect) -> dict:
    """Makes the copy of one video. -> its log. Raises RunError if the copy cannot be written."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Reader(source) as video:
            boxes, info = detect(batches(video)), video.info
    except VideoError as error:
        return {"done": "unreadable", "problem": str(error)}
    persons, aside = np.concatenate(boxes), copy.with_name(f".{copy.name}")
    line = {"done": "kept whole", "width": info.width, "height": info.height, "frames": len(boxes),
            "frames_with_persons": sum(len(found) > 0 for found in boxes), "persons": len(persons)}
    try:
        if len(persons):
            left, top, right, bottom = box = smallest_box(persons, (info.width, info.height))
            line |= {"done": "cropped", "box": box,
                     "area_kept": 100 * (right - left) * (bottom - top) / (info.width * info.height)}
            with Reader(source) as video:
                pictures = (frame[top:bottom, left:right] for frames in batches(video) for frame in frames)
                # The codec of HMDB51 at a fixed fine quantiser: what it loses once more cannot be seen
                encode(aside, pictures, info.fps, codec="mpeg4", options={"qmin": "2", "qmax": "2"})
        else:
            shutil.copyfile(source, aside)
        aside.replace(copy)
    except (VideoError, OSError) as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"{copy} could not be written ({error}); make room and give the same command again") from None
    return line


def batches(video: Reader):
    """All frames of a video, BATCH at a time: an iterator of uint8 (N, H, W, 3)."""
    return map(video.decode, np.split(np.arange(video.frames), range(BATCH, video.frames, BATCH)))


def smallest_box(boxes, size: tuple[int, int]) -> list[int]:
    """The smallest box of whole pixels that holds all boxes (n, 4), then made even: [left, top, right, bottom]. size:
    of the picture. No side is less than SMALLEST, where the picture has that."""
    size = np.array(size)
    low = np.floor(boxes[:, :2].min(0)).clip(0, size).astype(int)
    high = np.ceil(boxes[:, 2:].max(0)).clip(0, size).astype(int)
    side = ((high - low + 1) // 2 * 2).clip(SMALLEST).clip(max=size // 2 * 2)
    low = ((low + high - side + 1) // 2).clip(0, size - side)
    return [*low.tolist(), *(low + side).tolist()]


def torchvision_detector(name: str, weights: str | None, score: float, device):
    """One of torchvision's for COCO. Raises ConfigError for an unknown name, WeightsError for the file. -> detect(path,
    batches of frames, uint8 (N, H, W, 3)): the boxes of the persons of each frame, float (n, 4) in px"""
    choose(dict.fromkeys([*list_models(module=detection), "rendered"]), name, "detector")
    model = get_model(name, weights=None, weights_backbone=None)
    load(find(weights or f"torchvision:{name}") or weights, model, strict=True)
    if name.endswith(("rcnn_resnet50_fpn", "retinanet_resnet50_fpn")):  # as torchvision does for its weights of these
        for module in filter(lambda module: isinstance(module, torch.nn.BatchNorm2d), model.modules()):
            module.eps = 0.0
    model.to(device).eval()

    @torch.inference_mode()
    def detect(path, batches):
        pictures = (list(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2) / 255) for frames in batches)
        return [one["boxes"][(one["labels"] == 1) & (one["scores"] >= score)].cpu().numpy()
                for batch in pictures for one in model(batch)]  # of all of them, label 1 is a person

    return detect


def rendered_boxes(root: str):
    """A detector of the true actors of the synthetic videos below ROOT. Raises ConfigError of others."""
    known = specs(root)

    def detect(path, batches):
        outer = torch.tensor([0, 0, 1, 1])  # masks_to_boxes ends at the last pixel, not behind it
        masks = torch.from_numpy(synthetic.render(known[path])[1])  # bool (T, H, W)
        return [(masks_to_boxes(mask[None][mask.any()[None]]) + outer).numpy()
                for mask, _ in zip(masks, chain.from_iterable(batches), strict=True)]

    return detect
