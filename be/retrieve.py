"""The frozen network: are the nearest training clips of a test clip of its class (paper 4.3), and a linear classifier.

    extract    videos -> unit vectors, appended to a file as they are made; both verbs read it
    search     for each query the k rows of the gallery of the largest cosine: exact, by blocks
    recall     R@k, the share of queries that have their class among the k nearest
    linear     logistic regression on the features of clips, kNN on their means

The paper's features of HMDB51 take 6 GB, which stay on disk; the search holds `memory_gb` of them at a time.
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
from be.evaluate import about_result, clip_features, each_video, hash_inputs, load_backbone
from be.objectives import global_pool
from be.runs import RunError, make_accelerator, place, progress, provenance, run_dir, write_aside, write_text, writing
from be.video import even_clips, static_clips

KS = (1, 5, 10, 20, 50)
# Of the linear classifier: what its weight decay is chosen from, on a part of the training list, before all is fitted
DECAYS, HELD_OUT = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), 0.2


class Protocol(NamedTuple):
    sampler: Callable  # (n, rng, T=, stride=) -> frames (K, T)
    pool: Callable  # feature map (K, C, T', H', W') -> (K, D)
    mean: bool  # a row is the mean over the clips of a video; else every clip is one
    bits: int = 16  # of a float on disk


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
    # The clips and the pooling of the test, which `linear` reads: whole, as features may differ by little
    "clips": lambda c: Protocol(partial(even_clips, K=c.test_clips), partial(global_pool, pool=c.pool), False, bits=32),
}


COLUMNS = ("video", "clip", "norm", "damaged")  # of Features, that go to its .json


@dataclass(frozen=True)
class Features:
    """Unit vectors (D,) of float16 or float32 in a file, in the order of the list."""

    file: Path
    D: int
    video: np.ndarray  # (R,) int64, the place in the list of the video that a row comes from
    clip: np.ndarray  # (R,) int64, which clip of it; 0 if a row is the mean over its clips
    norm: np.ndarray  # (R,) float, the lengths that the vectors had
    damaged: np.ndarray  # (n,) int64, the places in the list of the videos that are damaged

    def __len__(self):
        return len(self.video)

    @property
    def kind(self):  # of a file X.f16 or X.f32
        return np.dtype(f"float{self.file.suffix[2:]}")

    def read(self, start: int, stop: int, out: torch.Tensor) -> torch.Tensor:
        """Fills `out` (rows, D) with rows from start on, before stop, in float32 -> its rows that are filled."""
        out = out[: stop - start]
        for row, block in enumerate(out.split(step := max(1, 2**20 // self.D))):  # 2 to 4 MiB at a time
            first = (start + row * step) * self.D * self.kind.itemsize
            block.copy_(torch.from_numpy(np.fromfile(self.file, self.kind, block.numel(), offset=first)).view_as(block))
        return out

    def clips(self, device) -> tuple[np.ndarray, torch.Tensor]:
        """Of n videos with K rows each: their places in the list (n,), and the rows as long as they were (n, K, D)."""
        videos, norm = np.unique(self.video), torch.tensor(self.norm, dtype=torch.float32, device=device)
        rows = self.read(0, len(self), torch.empty(len(self), self.D, device=device))
        return videos, (rows * norm[:, None]).unflatten(0, (len(videos), -1))


def stored(path: Path, inputs: str) -> Features | None:
    """What `extract` left in the file `path`, if it is whole and of the same `inputs`."""
    try:
        index = json.loads(path.with_suffix(".json").read_text())
        found = Features(path, index["D"], *(np.array(index[column]) for column in COLUMNS))
        whole = path.stat().st_size == found.kind.itemsize * len(found) * found.D
        return found if whole and index["inputs"] == inputs else None
    except (OSError, KeyError, ValueError):  # none, or damaged
        return None


def extract(subset: str, backbone, cfg: Config, accelerator: Accelerator, classes=None):
    """The list, Samples, and Features of all its readable videos under `protocol`, in OUT/NAME/retrieve-.../, file
    PROTOCOL-SUBSET.f16 or .f32; PROTOCOL-SUBSET.json says what each row is of. classes: of the train list, for others.

    Those of the same weights, videos and settings are used again. RunError where a feature is not finite, or there is
    none; ConfigError where the list has other classes.
    """
    samples = evaluate.load_list(cfg, subset, classes) if classes else datasets.load_for(cfg, subset)
    protocol = PROTOCOLS[cfg.protocol](cfg)
    file = run_dir(cfg, "retrieve") / f"{cfg.protocol}-{subset}.f{protocol.bits}"
    state = b"".join(tensor.cpu().numpy().tobytes() for tensor in backbone.state_dict().values())
    settings = ("frames", "stride", "short_side", "size", "protocol", "strict")
    settings += ("test_clips", "pool") * (cfg.protocol == "clips") + ("static", "seed") * cfg.static
    inputs = hash_inputs(cfg, samples, state + accelerator.mixed_precision.encode(), settings)
    if known := broadcast_object_list([stored(file, inputs)])[0]:  # elsewhere files may have other times
        accelerator.print(f"{file.stem}: taken from {file.parent}")
        samples.damaged.update(known.damaged.tolist())
        return samples, known
    if accelerator.is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)
        with writing(file):
            file.write_bytes(b"")

    def compute(clips, i):
        z = clip_features(backbone, protocol.pool, clips)  # (K, D)
        return z.mean(0, keepdim=True) if protocol.mean else z

    rows, D, sampler = [], 0, partial(protocol.sampler, T=cfg.frames, stride=cfg.stride)
    sampler = partial(static_clips, like=sampler) if cfg.static else sampler
    for i, z in enumerate(each_video(compute, samples, sampler, cfg, accelerator, file.stem)):
        if z is None:
            continue
        if not z.isfinite().all():
            raise RunError(f"the features of {samples.path(i)} are not finite in precision={cfg.precision}")
        if accelerator.is_main_process:
            with writing(file), open(file, "ab") as end:  # closed each time: a full disk may show only then
                end.write(F.normalize(z).numpy().astype(f"float{protocol.bits}").tobytes())
        rows += [(i, k, norm) for k, norm in enumerate(z.norm(dim=1).tolist())]
        D = z.shape[1]
    if not rows:
        raise RunError(f"{file.stem}: not one of {len(samples)} videos in {samples.root} can be read; run.py prepare "
                       f"says why")
    video, clip, norm = np.array(rows).T
    found = Features(file, D, video.astype(int), clip.astype(int), norm, np.array(sorted(samples.damaged), int))
    if accelerator.is_main_process:
        columns = {name: getattr(found, name).tolist() for name in COLUMNS}
        write_text(file.with_suffix(".json"), json.dumps({"inputs": inputs, "D": D, **columns}))
    accelerator.wait_for_everyone()
    return samples, found


@torch.no_grad()
def search(queries: Features, gallery: Features, k: int, memory_gb: float, device="cpu", rank: int = 0, world: int = 1):
    """The k rows of the gallery of the largest inner product with each query: scores, rows, both (Q, k).

    k is cut to the size of the gallery. Exact up to the rounding of float32 sums; of equal scores the first in the
    gallery wins. memory_gb: GiB for a block of each and what is computed from them; ConfigError if it is too little for
    one row of each. rank, world: searches for the rank-th of `world` equal parts of the queries alone.
    """
    begin, end = (part * len(queries) // world for part in (rank, rank + 1))
    G, k = len(gallery), min(k, len(gallery))
    rows_q, rows_g = block_sizes(end - begin, G, queries.D, k, memory_gb)
    q_block, g_block = (torch.empty(rows, queries.D, device=device) for rows in (rows_q, rows_g))
    blocks, scores, rows = range(0, G, rows_g), torch.empty(end - begin, k), torch.empty(end - begin, k).long()
    for start in range(begin, end, rows_q):
        q = queries.read(start, end, q_block)
        score, row = q.new_empty(len(q), 0), q.new_empty(len(q), 0).long()
        for first in progress(blocks, len(blocks), f"search, queries from {start} of {end}") if rank == 0 else blocks:
            g = gallery.read(first, G, g_block)
            here = torch.arange(first, first + len(g), device=device).expand(len(q), -1)
            # Stable, and those found so far stand first: so does the earlier of equals
            score, order = torch.cat([score, q @ g.T], 1).sort(dim=1, descending=True, stable=True)
            score, row = score[:, :k].clone(), torch.cat([row, here], 1).gather(1, order[:, :k])
        scores[start - begin :][: len(q)], rows[start - begin :][: len(q)] = score, row
    return scores, rows


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
                                               accelerator.process_index, accelerator.num_processes)[1]]))
        if accelerator.is_main_process:
            missed = len(asked) - len(np.unique(queries.video))
            result = {**recall(rows.numpy(), asked.labels[queries.video], shown.labels[gallery.video], missed),
                      "n_scored": len(queries), "n_expected": len(queries) + missed, "gallery": len(gallery),
                      "numbers": gallery.D, "protocol": cfg.protocol,
                      **about_result(cfg, subset, asked, accelerator, began)}
            write_text(path / "config.yaml", as_text(cfg))
            write_text(path / f"recall-{cfg.protocol}-{subset}.json", json.dumps(result, indent=1) + "\n")
            print(("{experiment} on {dataset} {subset}, split {split}, protocol {protocol}: R@1 {R@1:.1f}, "
                   "R@10 {R@10:.1f}, R@50 {R@50:.1f}; {n_scored} of {n_expected} queries").format(**result))


def linear(cfg: Config):
    """linear: train a linear classifier on the frozen backbone, and test it and nearest neighbours (linear probe)

    The backbone is that of `pretrained`; keys count as in finetune and evaluate. The features of `test_clips` clips a
    video stay on disk, where `retrieve protocol=clips` of the same settings finds them. The classifier is fitted to the
    clips of the train list by L-BFGS; its weight decay is the one that is best on a fifth of that list (whole source
    videos), which it then learns from, too. A test video gets its mean softmax. kNN compares means over clips.

    To OUT/NAME/linear-... go model.safetensors, as a fine-tuning leaves it, so that robustness, errors and cam take
    that directory, too; and for each list of `subset` the result and probabilities. A video that cannot be read is
    left out of the train list, and counts as wrong in the others.
    """
    accelerator, path, began = make_accelerator(cfg), run_dir(cfg, "linear"), time.perf_counter()
    cfg, device = dataclasses.replace(cfg, protocol="clips"), accelerator.device
    backbone = place(load_backbone(cfg), device, cfg.precision).eval()
    samples, known = extract("train", backbone, cfg, accelerator)
    lists = [extract(subset, backbone, cfg, accelerator, samples.classes) for subset in cfg.subset.split(",")]
    if not accelerator.is_main_process:
        return
    model = objectives.build("classify", backbone, {**dataclasses.asdict(cfg), "classes": len(samples.classes)})
    head = model.head.requires_grad_(False)
    videos, x = known.clips(device)
    label = torch.from_numpy(samples.labels[videos]).to(device)
    held = evaluate.holdout(samples, HELD_OUT, cfg.seed)[1].paths
    held = torch.from_numpy(np.isin(samples.paths[videos], held)).to(device)  # (n,) bool

    def learn(x, label, decay):
        fitted = evaluate.fit(x.flatten(0, 1), label.repeat_interleave(x.shape[1]), decay, len(samples.classes))
        head.weight.data, head.bias.data = fitted

    def right(decay):
        learn(x[~held], label[~held], decay)
        return (head(x[held]).softmax(2).mean(1).argmax(1) == label[held]).sum().item(), decay  # of equals the largest

    learn(x, label, decay := max(map(right, DECAYS))[1])
    about = {"experiment": cfg.name, "classes": samples.classes, "decay": decay, **provenance(samples, accelerator)}
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "config.yaml", as_text(cfg))
    write_aside(path / "model.safetensors", lambda aside: weights.write(aside, model, about))
    for subset, (asked, found) in zip(cfg.subset.split(","), lists, strict=True):
        videos, y = found.clips(device)
        probabilities, ok = torch.zeros(len(asked), len(samples.classes)), torch.zeros(len(asked), dtype=torch.bool)
        probabilities[videos], ok[videos] = head(y).softmax(2).mean(1).cpu(), True
        near = torch.cat([evaluate.knn(x.mean(1), label, part) for part in y.mean(1).split(1024)]).cpu().numpy()
        told = {"knn": 100 * (near == asked.labels[videos]).sum().item() / len(asked), "decay": decay,
                "test_clips": cfg.test_clips, **about_result(cfg, subset, asked, accelerator, began)}
        result = evaluate.write_result(path, "linear", probabilities, ok, asked, **told)
        print(("{experiment} on {dataset} {subset}, split {split}, frozen: linear {top1:.1f}, kNN {knn:.1f}; "
               "{n_scored} of {n_expected} videos, {n_damaged} damaged").format(**result))
