"""What a clip can be turned into, to ask what a network looks at: its motion taken away, or its scene exchanged.

    shot = apart(x, other, draws)                  x (K, 3, T, S, S), as it enters the network; other: another video
    y = MANIPULATIONS["actor elsewhere"](shot)     of the same shape

What stands still is the scene, what does not is the actor: the scene is the median of every pixel over the frames of
the clip, the actor all that differs from it. This needs no labels, but a camera that stands: a pan of the clip's own
length smears the scene and takes its edges for actors. An actor who stays in place becomes part of the scene, in part.
Of synthetic videos the truth is known, and `true_shot` takes it instead; tests/test_manipulate.py holds one against
the other. With a still camera the median scene is 1.5 levels of 255 from the true one, on average; the actor found
and the true one overlap by 0.7 (intersection over union), 0.8 to 0.9 where he moves about, 0.3 where he pulses in
place. With the demo's camera, which pans by up to a third of the picture during a clip: 12 levels and 0.4. An actor
before another scene is 4 levels from a video filmed like that with a still camera, 0.5 with the true ones.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object

from be import synthetic
from be.augment import crop, denormalise, normalise
from be.config import ConfigError
from be.evaluate import views
from be.runs import RunError
from be.video import even_clips

THRESHOLD = 0.15  # of the difference in any colour, of pixels in [0, 1], from which on a pixel is taken for moving
DONORS = 256  # videos of a list, drawn at random, whose scenes and actors are pasted into all videos of it


class Still(NamedTuple):
    """What a video lends to others: the frame in the middle of its central clip, taken apart."""

    frame: torch.Tensor  # (3, S, S)
    scene: torch.Tensor  # (3, S, S)
    actor: torch.Tensor  # (1, S, S) bool


class Shot(NamedTuple):
    """A clip and what it is made of; pictures are normalised, as they enter the network."""

    x: torch.Tensor  # (K, 3, T, S, S) the clip
    scene: torch.Tensor  # (K, 3, T, S, S) without the actor
    actor: torch.Tensor  # (K, 1, T, S, S) bool, where he is
    other: Still | None  # of a video of another class
    draws: object  # augment.Draws


def apart(x, other, draws) -> Shot:
    """The clips x (K, 3, T, S, S) taken apart by the median over time."""
    scene = median(x)
    return Shot(x, scene, moving(x, scene), other, draws)


def median(x):
    """The median over time of every pixel and colour, on every frame: (K, 3, T, S, S) -> like x, a view."""
    # Contiguous: of a tensor with strides of 0, a frozen clip, torch 2.15 computes a wrong median
    return x.contiguous().median(2, keepdim=True).values.expand_as(x)  # of an even number of frames: the lower one


def moving(x, scene, threshold: float = THRESHOLD):
    """Where any colour of x is off the scene by more than `threshold`, (K, 3, T, S, S) -> bool (K, 1, T, S, S)."""
    return (denormalise(x) - denormalise(scene)).abs().amax(1, keepdim=True) > threshold


# ---- manipulations


def frozen(shot: Shot):
    """The frame in the middle, repeated: no motion at all."""
    return shot.x[:, :, shot.x.shape[2] // 2].unsqueeze(2).expand_as(shot.x)


def shuffled(shot: Shot):
    """The frames in random order: things move, but not as they do."""
    K, _, T = shot.x.shape[:3]
    order = shot.draws.rand(K, T).argsort(1)  # (K, T)
    return shot.x[torch.arange(K, device=shot.x.device)[:, None], :, order].transpose(1, 2)  # (K, T, 3, ..) -> like x


def elsewhere(shot: Shot):
    """The actor, as he moves, before the still scene of another video."""
    return torch.where(shot.actor, shot.x, shot.other.scene[:, None])


def body(shot: Shot):
    """The actor of another video stands in the picture, cut out of one frame: a body, but no motion."""
    return torch.where(shot.other.actor[:, None], shot.other.frame[:, None], shot.x)


def foreign(shot: Shot, lam: float = 0.3):
    """A still frame of another video lies over all frames, as noise."""
    return mixed(shot.x, shot.other.frame[:, None], lam)


MANIPULATIONS: dict[str, Callable[[Shot], torch.Tensor]] = {
    "original": lambda shot: shot.x,
    "one frame": frozen,
    "shuffled": shuffled,
    "scene only": lambda shot: shot.scene,
    "actor elsewhere": elsewhere,
}

ADVERSARIAL: dict[str, Callable[[Shot], torch.Tensor]] = {  # paper 4.7, Figure 7
    "original": lambda shot: shot.x,
    "static video": frozen,
    "static body": body,
    "foreign frame": foreign,
}


def mixed(x, still, lam: float):
    """Eq. 1 with lam given, not drawn: (1 - lam) x + lam still, `still` one frame for all, (K, 3, 1, S, S)."""
    return torch.lerp(x, still.expand_as(x), lam)


# ---- other videos


def donors(samples, cfg, accelerator) -> dict[int, Still]:
    """What up to DONORS readable videos of the list lend, in half precision on the CPU, by their place in the list."""
    some = np.sort(np.random.default_rng((cfg.seed, 0)).permutation(len(samples))[:DONORS])
    sampler = partial(even_clips, K=1, T=cfg.frames, stride=cfg.stride)
    chosen, found = samples.take(some), {}
    take = taker(chosen, sampler, cfg, cfg.scene == "rendered")
    for i, x in views(chosen, sampler, cfg, accelerator, "other videos"):
        if x is not None:
            shot = take(x, i, None, None)
            frame, scene, actor = (part[0, :, cfg.frames // 2].cpu() for part in (x, shot.scene, shot.actor))
            found[int(some[i])] = Still(frame.half(), scene.half(), actor)
    found = {i: still for part in gather_object([found]) for i, still in part.items()}
    return dict(sorted(found.items()))


def partners(labels, lend: list[int], seed: int) -> list[int]:
    """For every video one of another class among `lend`, drawn from (seed, i). RunError if there is none."""
    lend = np.array(lend, np.int64)
    if len(np.unique(labels[lend])) < 2:
        raise RunError(f"{len(lend)} readable videos of one class: there is none of another one to paste from")
    return [int(np.random.default_rng((seed, i)).choice(lend[labels[lend] != label])) for i, label in enumerate(labels)]


def lent(still: Still, like) -> Still:
    """As `like` is: its type and device."""
    return Still(still.frame.to(like), still.scene.to(like), still.actor.to(like.device))


# ---- the truth of synthetic videos


def scenes(samples):
    """The number of the class whose own family of scenes each synthetic video has, int64 (N,)."""
    known, family = specs(samples.root), list(synthetic.SCENES)
    return torch.tensor([family.index(known[path].scene) for path in samples.paths])


def taker(samples, sampler, cfg, rendered: bool):
    """(x, i, other, draws) -> Shot of video i, whose clips x `sampler` chose: by the median, or as it was `rendered`.

    Raises ConfigError if the truth is asked for of videos that are not synthetic.
    """
    known = specs(samples.root)
    if not rendered:
        return lambda x, i, other, draws: apart(x, other, draws)
    if not known:
        raise ConfigError(f"scene=rendered is for synthetic videos, which those in {samples.root} are not")

    def take(x, i, other, draws):
        spec = known[samples.paths[i]]
        rng = np.random.default_rng((cfg.seed, 0, i))  # as datasets.Clips has it
        return true_shot(x, other, draws, spec, sampler(spec.frames, rng), cfg.short_side)

    return take


def true_shot(x, other, draws, spec: synthetic.Spec, frames, short_side: int) -> Shot:
    """Like `apart`, from what the video was made of.

    spec: the video. frames (K, T): the numbers of the frames of x. short_side: of the pictures x was cut from, px.
    """
    _, mask, background = synthetic.render(spec)
    actor = torch.from_numpy(mask[frames][..., None].repeat(3, -1).astype(np.uint8) * 255)  # (K, T, H, W, 3)
    scene = torch.from_numpy(background[frames])
    actor, scene = (central(part, spec.short / short_side, x.shape[-1]).to(x.device) for part in (actor, scene))
    return Shot(x, normalise(scene), actor[:, :1] > 0.5, other, draws)


def central(clips, scale: float, S: int):
    """What `eval_view` shows, not normalised, of clips stored `scale` times as large: (K, 3, T, S, S) in [0, 1]."""
    one = torch.ones(len(clips))
    size = torch.tensor(clips.shape[2:4]).expand(len(clips), 2)
    return crop(clips, size, torch.full((len(clips), 2), 0.5), scale * S * one, 0 * one, S)


@cache
def specs(root: str) -> dict[bytes, synthetic.Spec]:
    """Path below root -> what the video is made of; empty where the videos are not synthetic."""
    if not os.path.exists(os.path.join(root, "synthetic.jsonl")):
        return {}
    return {os.fsencode(video.path): video.spec for video in synthetic.load(root)}
