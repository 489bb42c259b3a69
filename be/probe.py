"""A probe to choose by while pre-training: what can be read off the frozen features, every `probe_every` epochs.

Of the training list (of at most VIDEOS of it, drawn at random) a part is held out, by whole source videos. The rest
teaches two classifiers of one central clip per video, and the held-out part is asked:

    probe_knn      weighted votes of the nearest neighbours (Wu et al. 2018, Sec. 3.4)
    probe_linear   a linear layer on the frozen features

Both in % of the held-out videos, an unreadable one is wrong. On synthetic videos there are two more, `..._scene`: how
well can the family of the scene be told? A network that learns motion goes up in the first and need not in the second.

Pre-training sees the held-out videos, too, without any label: the probe changes nothing of it, not one random number.
The test list plays no part, so one may choose by these numbers among methods, settings and epochs.
"""

import os

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from be import datasets, synthetic
from be.config import Config
from be.evaluate import features
from be.objectives import Objective

VIDEOS, HELD_OUT = 10_000, 0.2  # at most so many videos in all, and the share of them that is asked


class Probe:
    """Called with the number of an epoch; answers with what to log, nothing in between. See the head of this file."""

    def __init__(self, objective: Objective, samples: datasets.Samples, cfg: Config, accelerator: Accelerator):
        self.backbone, self.cfg, self.accelerator = objective.backbone, cfg, accelerator
        some = np.random.default_rng((cfg.seed, len(samples))).permutation(len(samples))[:VIDEOS]
        rest, held = datasets.holdout(samples.take(np.sort(some)), HELD_OUT, cfg.seed)
        self.lists = rest, held
        self.labels = {"": [torch.from_numpy(part.labels) for part in self.lists]}
        if os.path.exists(os.path.join(samples.root, "synthetic.jsonl")):
            specs = {os.fsencode(video.path): video.spec for video in synthetic.load(samples.root)}
            family = list(synthetic.SCENES)
            self.labels["_scene"] = [torch.tensor([family.index(specs[path].scene) for path in part.paths])
                                     for part in self.lists]

    def __call__(self, epoch: int) -> dict[str, float]:
        if epoch % self.cfg.probe_every:
            return {}
        (x, known), (y, ok) = map(self.features, self.lists)  # (N, C), (N,); (M, C), (M,)
        x, y, found = x[known].to(self.accelerator.device), y.to(self.accelerator.device), {}
        for what, (label, answer) in self.labels.items():
            for name, classify in (("probe_knn", knn), ("probe_linear", linear)):
                right = (classify(x, label[known].to(x.device), y).cpu() == answer) & ok
                found[name + what] = 100 * right.float().mean().item()
        return found

    def features(self, samples) -> tuple[Tensor, Tensor]:
        return features(self.backbone, self.cfg.pool, samples, self.cfg, self.accelerator, "probe")


def knn(x: Tensor, label: Tensor, y: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    """The class with the most votes among the k nearest rows of x (N, C) for each row of y (M, C) -> (M,).

    A vote weighs exp(cosine / temperature). k and temperature: DINO's (Caron et al. 2021) and Wu et al.'s.
    """
    cosine = F.normalize(y) @ F.normalize(x).T  # (M, N)
    near = cosine.topk(min(k, len(x)), dim=1)
    votes = cosine.new_zeros(len(y), int(label.max()) + 1)
    return votes.scatter_add(1, label[near.indices], (near.values / temperature).exp()).argmax(1)


def linear(x: Tensor, label: Tensor, y: Tensor, decay: float = 1e-3) -> Tensor:
    """The class of each row of y (M, C) under logistic regression on x (N, C) -> (M,). See `regress`."""
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias = regress((x - mean) / scale, label, decay)
    return ((y - mean) / scale @ weight.T + bias).argmax(1)


@torch.enable_grad()
def regress(x: Tensor, label: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Weight (classes, C) and bias (classes,) with the least mean cross entropy + decay |weight|^2 / 2, by L-BFGS."""
    weight = x.new_zeros(int(label.max()) + 1, x.shape[1], requires_grad=True)
    bias = x.new_zeros(len(weight), requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, label) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    search.step(loss)
    return weight.detach(), bias.detach()
