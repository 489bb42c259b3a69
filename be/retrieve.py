"""The frozen network: are the nearest training clips of a test clip of its class (paper 4.3), and a linear classifier.

`extract` appends features to a file as they are made; both verbs read it. The paper's of HMDB51 take 12 GB, which stay
on disk; the search holds `memory_gb` of them at a time.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from be import datasets, evaluate, objectives, weights
from be.config import Config, ConfigError, as_text
from be.evaluate import TEST_SETTINGS, clips_as_set, each_video, hash_inputs, load_backbone, write_result
from be.objectives import global_pool
from be.runs import RunError, make_accelerator, place, progress, provenance, run_dir, write_aside, write_text, writing
from be.video import even_clips

KS = (1, 5, 10, 20, 50)
# Of the linear classifier: what its weight decay is chosen from, on a part of the training list, before all is fitted
DECAYS, HELD_OUT = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), 0.2


class Protocol(NamedTuple):
    sampler: Callable  # (n, rng, T=, stride=) -> frames (K, T)
    pool: Callable  # feature map (K, C, T', H', W') -> (K, D)
    mean: bool  # a row is the mean over the clips of a video; else every clip is one


def consecutive_clips(n, rng=None, *, T, stride):
    """A video of n frames cut into clips one after the other, without the rest at its end. -> int64 (K, T)

        n = 11, T = 3, stride = 1      o o o x x x o o o . .       0 1 2   3 4 5   6 7 8

    In a video shorter than a clip the only one wraps around.
    """
    starts = np.arange(max(1, n // (T * stride))) * T * stride
    return (starts[:, None] + stride * np.arange(T)) % n


def max_cells(x, most):
    """Adaptive max pooling to at most `most` cells (t, h, w): (K, C, T', H', W') -> (K, C * cells)."""
    return F.adaptive_max_pool3d(x, [min(sides) for sides in zip(x.shape[2:], most, strict=True)]).flatten(1)


PROTOCOLS = {  # name -> config -> Protocol
    # Paper 4.3: "clips in units of 16 frames", pooled "to a fixed scale of 1024 x 2 x 7 x 7"
    "paper": lambda _: Protocol(consecutive_clips, partial(max_cells, most=(2, 7, 7)), mean=False),
    # Xu et al. 2019 (VCOP): 10 clips a video, 512 x 2 x 3 x 3, averaged
    "vcop": lambda _: Protocol(partial(even_clips, K=10), partial(max_cells, most=(2, 3, 3)), mean=True),
    # The centre clip under global average pooling, which is what many report as nearest neighbours
    "gap": lambda _: Protocol(partial(even_clips, K=1), lambda x: x.mean((2, 3, 4)), mean=True),
    # The clips and the pooling of the test, which `linear` reads
    "clips": lambda c: Protocol(partial(even_clips, K=c.test_clips), partial(global_pool, pool=c.pool), mean=False),
}


@dataclass(frozen=True)
class Features:
    """Vectors (D,) of float32 in a file, in the order of the list. A .json beside it says of what."""

    file: Path
    inputs: str  # the hash of what they follow from
    D: int
    video: list[int]  # the place in the list of the video that a row comes from
    damaged: list[int]  # the places in the list of the videos that are damaged

    def __len__(self):
        return len(self.video)

    def read(self, start: int, stop: int, device) -> torch.Tensor:
        """The rows from start on, before stop: (rows, D)."""
        rows = min(stop, len(self)) - start
        block = np.fromfile(self.file, np.float32, rows * self.D, offset=4 * start * self.D)
        return torch.from_numpy(block).view(rows, self.D).to(device)

    def unit(self, start: int, stop: int, device) -> torch.Tensor:
        """These rows, of length 1."""
        rows = self.read(start, stop, device)
        return F.normalize(rows, out=rows)

    def clips(self, device) -> tuple[np.ndarray, torch.Tensor]:
        """Of n videos with K rows each: their places in the list (n,), and the rows (n, K, D)."""
        videos = np.unique(self.video)
        return videos, self.read(0, len(self), device).view(len(videos), -1, self.D)


def stored(file: Path, inputs: str) -> Features | None:
    """What `extract` left in a file, if it is whole and of the same `inputs`."""
    try:
        found = Features(**{**json.loads(file.with_suffix(".json").read_text()), "file": file})
        return found if found.inputs == inputs and file.stat().st_size == 4 * len(found) * found.D else None
    except (OSError, TypeError, ValueError):  # none, or damaged, or of older code
        return None


def extract(subset: str, backbone, cfg: Config, accelerator: Accelerator, classes=None):
    """The list, Samples, and Features of all its readable videos under `protocol`, in OUT/NAME/retrieve-.../, file
    PROTOCOL-SUBSET.f32. Those of the same weights, videos and settings are used again. classes: of the train list, for
    others. RunError where a feature is not finite, or there is none; ConfigError where the list has other classes."""
    samples = evaluate.load_list(cfg, subset, classes) if classes else datasets.load_for(cfg, subset)
    protocol = PROTOCOLS[cfg.protocol](cfg)
    file = run_dir(cfg, "retrieve") / f"{cfg.protocol}-{subset}.f32"
    state = b"".join(tensor.cpu().numpy().tobytes() for tensor in backbone.state_dict().values())
    inputs = hash_inputs(cfg, samples, state + accelerator.mixed_precision.encode(), (*TEST_SETTINGS, "protocol"))
    if known := broadcast_object_list([stored(file, inputs)])[0]:  # elsewhere files may have other times
        accelerator.print(f"{file.stem}: taken from {file.parent}")
        samples.damaged.update(known.damaged)
        return samples, known

    def compute(clips, i):
        z = torch.cat([protocol.pool(backbone(part)).float() for part in clips.split(8)])  # (K, D)
        return z.mean(0, keepdim=True) if protocol.mean else z

    file.parent.mkdir(parents=True, exist_ok=True)
    found, sampler = Features(file, inputs, 0, [], []), clips_as_set(cfg, protocol.sampler)
    for i, z in enumerate(each_video(compute, samples, sampler, cfg, accelerator, file.stem)):
        if z is None:
            continue
        if not z.isfinite().all():
            raise RunError(f"the features of {samples.path(i)} are not finite in precision={cfg.precision}")
        if accelerator.is_main_process:  # closed each time: a full disk may show only then
            with writing(file), open(file, "ab" if found.video else "wb") as end:
                end.write(z.numpy().tobytes())
        found.video.extend([i] * len(z))
        D = z.shape[1]
    found = dataclasses.replace(found, D=D, damaged=sorted(samples.damaged))
    if accelerator.is_main_process:
        write_text(file.with_suffix(".json"), json.dumps({**vars(found), "file": file.name}))
    accelerator.wait_for_everyone()
    return samples, found


@torch.no_grad()
def search(queries: Features, gallery: Features, k: int, memory_gb: float, device="cpu", rank: int = 0, world: int = 1):
    """The k rows of the gallery (all, if fewer) of the largest cosine with each query: int64 (Q, k), on the CPU.

    Exact up to the rounding of float32 sums; of equal scores the first in the gallery wins. memory_gb: GiB for a block
    of each and what is computed from them; ConfigError if it is too little for one row of each. rank, world: searches
    for the rank-th of `world` equal parts of the queries alone.
    """
    begin, end = (part * len(queries) // world for part in (rank, rank + 1))
    G, k = len(gallery), min(k, len(gallery))
    rows_q, rows_g = block_sizes(end - begin, G, queries.D, k, memory_gb)

    def nearest(q):
        """Of a block of queries (Q, D): rows (Q, k)."""
        score, row = q.new_empty(len(q), 0), q.new_empty(len(q), 0).long()
        for first in range(0, G, rows_g):
            cosine = q @ gallery.unit(first, first + rows_g, device).T
            here = torch.arange(first, first + cosine.shape[1], device=device).expand_as(cosine)
            # Stable, and those found so far stand first: so does the earlier of equals
            score, order = torch.cat([score, cosine], 1).sort(dim=1, descending=True, stable=True)
            score, row = score[:, :k].clone(), torch.cat([row, here], 1).gather(1, order[:, :k])
        return row.cpu()

    starts = range(begin, max(end, begin + 1), rows_q)  # one block at least, if it is empty
    return torch.cat([nearest(queries.unit(start, min(start + rows_q, end), device))
                      for start in (progress(starts, len(starts), "search") if rank == 0 else starts)])


def block_sizes(Q, G, D, k, memory_gb) -> tuple[int, int]:
    """Rows of a block of queries and of a block of the gallery that fit into memory_gb GiB. A row takes 4 D bytes, a
    pair of both takes 36: cosines and row numbers, side by side with the best, and sorted."""
    room = memory_gb * 2**30
    rows_g = min(G, 1024, int(room / 16 / D))
    rows_q = int((room - 4 * D * rows_g) / (4 * D + 36 * (rows_g + k)))
    if min(rows_q, rows_g) < 1:
        raise ConfigError(f"memory_gb={memory_gb} does not hold one row of {D} numbers of each; {D / 2**23:.2g} would")
    return max(1, min(Q, rows_q)), rows_g


def recall(rows, label_q, label_g, missed: int = 0) -> dict[str, float]:
    """R@k in %: queries with their own class among the k nearest. rows (Q, k), label_q (Q,), label_g (G,).
    missed: so many more queries could not be asked. In a gallery of less than k rows all of them count."""
    hit = label_g[rows] == label_q[:, None]  # (Q, k)
    return {f"R@{k}": 100 * hit[:, :k].any(1).sum().item() / max(1, len(hit) + missed) for k in KS}


def retrieve(cfg: Config):
    """retrieve: find the nearest training clips of every test clip, without any training (Table 3)

    The backbone is that of `pretrained`, the gallery the train list, the queries the list `subset`; several are asked
    one after the other with subset=test,swapped. `protocol` says what a row is. A test video that cannot be read is
    one query missed, a train video is left out. Features and recall go to OUT/NAME/retrieve-...
    """
    accelerator, path = make_accelerator(cfg), run_dir(cfg, "retrieve")
    backbone = place(load_backbone(cfg), accelerator.device, cfg.precision).eval()
    shown, gallery = extract("train", backbone, cfg, accelerator)
    for subset in cfg.subset.split(","):
        asked, queries = extract(subset, backbone, cfg, accelerator, shown.classes)
        began = time.perf_counter()
        rows = torch.cat(gather_object([search(queries, gallery, max(KS), cfg.memory_gb, accelerator.device,
                                               accelerator.process_index, accelerator.num_processes)]))
        if accelerator.is_main_process:
            missed = len(asked) - len({*queries.video})
            write_text(path / "config.yaml", as_text(cfg))
            write_result(f"recall-{cfg.protocol}", cfg, asked, accelerator, began, path, subset,
                         **recall(rows.numpy(), asked.labels[queries.video], shown.labels[gallery.video], missed),
                         n_scored=len(queries), n_expected=len(queries) + missed, gallery=len(gallery),
                         numbers=gallery.D, protocol=cfg.protocol)


def linear(cfg: Config):
    """linear: train a linear classifier on the frozen backbone, and test it and nearest neighbours (linear probe)

    The backbone is that of `pretrained`; keys count as in finetune and evaluate. The features of `test_clips` clips a
    video stay on disk, where `retrieve protocol=clips` of the same settings finds them. The classifier is fitted to the
    clips of the train list by L-BFGS; its weight decay is the one that is best on a fifth of that list (whole source
    videos), which it then learns from, too. A test video gets its mean softmax. kNN compares means over clips.

    To OUT/NAME/linear-... go model.safetensors, as a fine-tuning leaves it, so that robustness and cam take
    that directory, too; and for each list of `subset` the result and probabilities. A video that cannot be read is
    left out of the train list, and counts as wrong in the others.
    """
    accelerator, path, began = make_accelerator(cfg), run_dir(cfg, "linear"), time.perf_counter()
    cfg, device = dataclasses.replace(cfg, protocol="clips"), accelerator.device
    backbone = place(load_backbone(cfg), device, cfg.precision).eval()
    samples, gallery = extract("train", backbone, cfg, accelerator)
    lists = [extract(subset, backbone, cfg, accelerator, samples.classes) for subset in cfg.subset.split(",")]
    if not accelerator.is_main_process:
        return
    model = objectives.build("classify", backbone, {**dataclasses.asdict(cfg), "classes": len(samples.classes)})
    head, (videos, x) = model.head.requires_grad_(False), gallery.clips(device)
    label, K = torch.from_numpy(samples.labels[videos]).to(device), x.shape[1]
    held = np.isin(samples.paths[videos], evaluate.holdout(samples, HELD_OUT, cfg.seed)[1].paths)  # (n,) bool

    def learn(which, decay):
        head.weight.data, head.bias.data = evaluate.fit(
            x[which].flatten(0, 1), label[which].repeat_interleave(K), len(samples.classes), decay)

    def right(decay):
        learn(~held, decay)
        return (head(x[held]).softmax(2).mean(1).argmax(1) == label[held]).sum().item(), decay  # of equals the largest

    learn(..., decay := max(map(right, DECAYS))[1])
    about = {"experiment": cfg.name, "classes": samples.classes, "decay": decay, **provenance(samples, accelerator)}
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "config.yaml", as_text(cfg))
    write_aside(path / "model.safetensors", lambda aside: weights.write(aside, model, about))
    for subset, (asked, found) in zip(cfg.subset.split(","), lists, strict=True):
        videos, y = found.clips(device)
        probabilities, ok = torch.zeros(len(asked), len(samples.classes)), torch.zeros(len(asked)).bool()
        probabilities[videos], ok[videos] = head(y).softmax(2).mean(1).cpu(), True
        near = torch.cat([evaluate.knn(x.mean(1), label, part) for part in y.mean(1).split(1024)]).cpu().numpy()
        write_result("linear", cfg, asked, accelerator, began, path, subset, (probabilities, ok), decay=decay,
                     knn=100 * (near == asked.labels[videos]).sum().item() / len(asked))
