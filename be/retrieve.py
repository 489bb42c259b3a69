"""Are the nearest training clips of a test clip of its own class? Nothing is trained (paper 4.3, Table 3).

    extract    videos -> unit vectors in half precision, appended to a file as they are made
    search     for each query the k rows of the gallery of the largest cosine: exact, by blocks
    recall     R@k, the share of queries that have their class among the k nearest

The paper's features are 100,352 numbers a clip, and HMDB51 has about 20,000 gallery clips and 8,500 queries: 6 GB,
of which the search holds no more at a time than it was allowed.
"""

import json
import os
import resource
import tempfile
import time
import zipfile
import zlib
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

from be import datasets
from be.config import Config, ConfigError
from be.evaluate import hash_videos, load_backbone, views
from be.report import COLOURS, markdown, paper_recalls, pyplot
from be.runs import RunError, make_accelerator, progress, provenance, run_dir, write_aside, write_text
from be.video import Reader, even_clips

KS = (1, 5, 10, 20, 50)


# ---- protocols: which clips of a video, what of the feature map, and is a row a clip or a video?


class Protocol(NamedTuple):
    sampler: Callable  # (n, rng, T=, stride=) -> frames (K, T)
    pool: Callable  # feature map (K, C, T', H', W') -> (K, D)
    mean: bool  # a row is the mean over the clips of a video; else every clip is one


def consecutive_clips(n, rng=None, *, T, stride):
    """A video of n frames cut into clips one after the other; what is left at its end is left out.

        n = 11, T = 3, stride = 1      o o o x x x o o o . .       0 1 2   3 4 5   6 7 8

    In a video shorter than a clip the only one wraps around. -> int64 (K, T)
    """
    starts = np.arange(max(1, n // (T * stride))) * T * stride
    return (starts[:, None] + stride * np.arange(T)) % n


def max_cells(x, most):
    """Adaptive max pooling to at most `most` cells (t, h, w): (K, C, T', H', W') -> (K, C * cells). A map that
    is smaller stays as it is: to repeat its cells would not change what is near."""
    return F.adaptive_max_pool3d(x, [min(sides) for sides in zip(x.shape[2:], most, strict=True)]).flatten(1)


PROTOCOLS = {
    # Paper 4.3: "clips in units of 16 frames", pooled "to a fixed scale of 1024 x 2 x 7 x 7"
    "paper": Protocol(consecutive_clips, partial(max_cells, most=(2, 7, 7)), mean=False),
    # Xu et al. 2019 (VCOP): 10 clips a video, 512 x 2 x 3 x 3, averaged
    "vcop": Protocol(partial(even_clips, K=10), partial(max_cells, most=(2, 3, 3)), mean=True),
    # The centre clip under global average pooling, which is what many report as nearest neighbours
    "gap": Protocol(partial(even_clips, K=1), lambda x: x.mean((2, 3, 4)), mean=True),
}


# ---- features


@dataclass(frozen=True)
class Features:
    """Rows of float16 (D,) in one file or several, as many as there were processes, in the order of the list."""

    files: list[Path]
    rows: list[int]  # of each file
    D: int
    video: np.ndarray  # (R,) int64, the place in the list of the video that a row comes from
    clip: np.ndarray  # (R,) int64, which clip of it; 0 if a row is a video

    def __len__(self):
        return sum(self.rows)

    def blocks(self, buffer, start=0, stop=None):
        """Rows start..stop, as many at a time as `buffer`, half (rows, D), holds: yields (number of the first, part of
        the buffer). The system is told to fetch the next ones from the disk meanwhile. No memory map: its pages would
        count as ours, and touching them takes longer than reading. No thread: it would take a core from the product.

        Raises RunError if a file ends before its last row.
        """
        first, stop, width = 0, len(self) if stop is None else stop, 2 * self.D
        for file, n in zip(self.files, self.rows, strict=True):
            with open(file, "rb") as data:
                for row in range(max(0, start - first), min(n, stop - first), len(buffer)):
                    part = buffer[: min(n, stop - first) - row]
                    data.seek(width * row)
                    if data.readinto(part.numpy()) < width * len(part):
                        raise RunError(f"{file} ends before its last row, number {n - 1}; remove it and run the same "
                                       f"command again")
                    if hasattr(os, "posix_fadvise"):
                        os.posix_fadvise(data.fileno(), data.tell(), width * len(buffer), os.POSIX_FADV_WILLNEED)
                    yield first + row, part
            first += n


@torch.no_grad()
def extract(path: Path, backbone, samples, protocol: Protocol, cfg: Config, accelerator: Accelerator) -> Features:
    """Features of all readable videos of a list, written to PATH.0.f16, ... (a file per process) and PATH.npz.

    What a finished run of the same weights, videos and settings left there is taken as it is. Raises RunError where a
    file cannot be written, or a feature is not finite: it would be near to everything or to nothing.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    file, about, known = path.with_name(f"{path.name}.{rank}.f16"), {}, None
    if accelerator.is_main_process:  # alone: other machines may keep the videos under other times
        keys = ("frames", "stride", "short_side", "size", "protocol")
        about = {**{key: getattr(cfg, key) for key in keys}, "precision": accelerator.mixed_precision,
                 "weights": checksum(backbone), "videos": hash_videos(samples)}
        known = stored(path, about)
    known = broadcast_object_list([known])[0]  # so nobody writes before that has been looked for
    if known is not None:
        accelerator.print(f"{path.name}: taken from {path.parent}")
        return known

    put(file, b"", "wb")
    index_of(path).unlink(missing_ok=True)
    rows, D = [], 0
    mine = range(rank * len(samples) // world, (rank + 1) * len(samples) // world)  # files in order = videos in order
    sampler = partial(protocol.sampler, T=cfg.frames, stride=cfg.stride)
    for i, clips in views(samples, sampler, cfg, accelerator, path.name, mine):
        if clips is None:
            continue
        with accelerator.autocast():  # a few clips at a time: a long video has many
            z = torch.cat([protocol.pool(backbone(part)).float() for part in clips.split(8)])  # (K, D)
        z = F.normalize(z.mean(0, keepdim=True) if protocol.mean else z)
        if not z.isfinite().all():
            raise RunError(f"the features of {samples.path(i)} are not finite: the weights are not, or the "
                           f"precision {cfg.precision} does not hold them")
        put(file, z.half().cpu().numpy().tobytes())
        rows += [(i, k) for k in range(len(z))]
        D = z.shape[1]
    parts = gather_object([(rows, D)])
    video, clip = np.array([row for part, _ in parts for row in part], np.int64).reshape(-1, 2).T
    known = dict(video=video, clip=clip, rows=[len(part) for part, _ in parts], D=max(D for _, D in parts))

    def write(aside):
        with open(aside, "wb") as index:
            np.savez(index, **known, about=json.dumps(about))

    if accelerator.is_main_process:
        write_aside(index_of(path), write)
    accelerator.wait_for_everyone()
    return features_at(path, known)


def put(file: Path, data: bytes, mode: str = "ab"):
    """Appends to a file, or writes it anew. It is closed each time: a full disk may show only then."""
    try:
        with open(file, mode) as end:
            end.write(data)
    except OSError as error:
        raise RunError(f"{file} could not be written ({error.strerror}): a clip takes up to 200 KB; make room, or "
                       f"choose another out=..., and run the same command again") from None


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.npz")


def features_at(path: Path, known) -> Features:
    rows = [int(n) for n in known["rows"]]
    files = [path.with_name(f"{path.name}.{rank}.f16") for rank in range(len(rows))]
    return Features(files, rows, int(known["D"]), known["video"], known["clip"])


def stored(path: Path, about: dict) -> Features | None:
    """What `extract` left at `path`, if it is `about` the same and whole."""
    try:
        with np.load(index_of(path)) as known:
            found = features_at(path, known)
            sizes = zip(found.files, found.rows, strict=True)
            whole = all(file.stat().st_size == 2 * found.D * n for file, n in sizes)
            return found if whole and json.loads(str(known["about"])) == about else None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):  # none, or damaged
        return None


def checksum(module) -> str:
    """CRC-32 of all its weights."""
    crc = 0
    for tensor in module.state_dict().values():
        crc = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), crc)
    return f"{crc:08x}"


# ---- search


@torch.no_grad()
def search(queries: Features, gallery: Features, k: int, memory_gb: float, device="cpu", mine=None, quiet=True):
    """The k rows of the gallery of the largest inner product with each query: scores, rows, both (Q, k).

    Rows of unit vectors make it the cosine. k is cut to the size of the gallery. Exact up to the rounding of
    float32 sums; among equal scores the row that comes first in the gallery wins, however the blocks are cut.

    memory_gb: GiB for the blocks and all that is computed from them. A block of queries stays while all blocks of
        the gallery pass by; more memory means fewer passes over the gallery's files.
    mine: the rows of the queries to search for, a range; by default all.

    Raises ConfigError if memory_gb is too little for one row of each.
    """
    mine, k = range(len(queries)) if mine is None else mine, min(k, len(gallery))
    rows_q, rows_g = block_sizes(len(mine), len(gallery), queries.D, k, memory_gb)
    total = sum(-(-n // rows_g) for n in gallery.rows)
    # Half precision is for the disk: products of halves are exact in float32, and their sums nearly so. All large
    # blocks are allocated once, for it takes longer to get fresh memory than to fill it.
    q_block, g_block = (torch.empty(rows, queries.D, device=device) for rows in (rows_q, rows_g))
    half = torch.empty(rows_g, queries.D, dtype=torch.half)
    found = [(torch.empty(0, k), torch.empty(0, k, dtype=torch.long))]
    for start in range(mine.start, mine.stop, rows_q):
        stop = min(start + rows_q, mine.stop)
        q = q_block[: stop - start]
        for first, part in queries.blocks(half, start, stop):
            q[first - start : first - start + len(part)] = part
        score = q.new_empty(len(q), 0)
        row = torch.empty(len(q), 0, dtype=torch.long, device=device)
        blocks = gallery.blocks(half)
        what = f"search, queries {start}..{stop - 1} of {mine.stop}"
        for first, part in blocks if quiet else progress(blocks, total, what):
            g = g_block[: len(part)].copy_(part)
            cosine = q @ g.T  # (Q, G)
            here = torch.arange(first, first + len(g), device=device).expand_as(cosine)
            # Stable, and those found so far stand first: so does the earlier of equals
            score, order = torch.cat([score, cosine], 1).sort(dim=1, descending=True, stable=True)
            score, order = score[:, :k].clone(), order[:, :k]
            row = torch.cat([row, here], 1).gather(1, order)
        found.append((score.cpu(), row.cpu()))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def block_sizes(Q, G, D, k, memory_gb) -> tuple[int, int]:
    """Rows of a block of queries and of a block of the gallery that fit into memory_gb GiB.

    A row of queries takes 4 D bytes, one of the gallery 6 D, as half and as float32. A pair of both takes 36: cosines
    and row numbers, side by side with the best, and sorted.
    """
    room, Q = memory_gb * 2**30, max(Q, 1)  # a process may have no query
    rows_g = min(G, 1024, int(room / 4 / (6 * D)))
    rows_q = int((room - 6 * D * rows_g) / (4 * D + 36 * (rows_g + k)))
    if min(rows_q, rows_g) < 1:
        raise ConfigError(f"memory_gb={memory_gb} does not hold one row of {D} numbers of each; {D / 2**23:.2g} would")
    return -(-Q // -(-Q // rows_q)), rows_g  # no fewer passes, but equal ones


def recall(rows, label_q, label_g, ks=KS, missed: int = 0) -> dict[str, float]:
    """R@k in %: queries with their own class among the k nearest. rows (Q, k), label_q (Q,), label_g (G,).

    `missed`: queries that could not be asked, a miss each. In a gallery of less than k rows all of them count.
    """
    hit = label_g[rows] == label_q[:, None]  # (Q, k)
    return {f"R@{k}": 100 * hit[:, :k].any(1).sum().item() / max(1, len(hit) + missed) for k in ks}


# ---- the verb


def retrieve(cfg: Config):
    """retrieve: find the nearest training clips of every test clip, without any training (Table 3)

    The backbone is that of `pretrained`, the gallery the train list, the queries the list `subset`; several are asked
    one after the other with subset=test,swapped. `protocol` says what a row is. A test video that cannot be read is
    one query missed, a train video that cannot be read is left out. Recall and a sheet of examples go to
    OUT/NAME/retrieve-...; the features stay there too and are used again.
    """
    accelerator = make_accelerator(cfg)
    world, rank = accelerator.num_processes, accelerator.process_index
    path, protocol = run_dir(cfg, "retrieve"), PROTOCOLS[cfg.protocol]
    path.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(cfg).to(accelerator.device).eval()
    shown = datasets.load(cfg.dataset, cfg.data, "train", cfg.split)
    gallery = extract(path / f"{cfg.protocol}-train", backbone, shown, protocol, cfg, accelerator)
    for subset in cfg.subset.split(","):
        asked = datasets.load(cfg.dataset, cfg.data, subset, cfg.split)
        queries = extract(path / f"{cfg.protocol}-{subset}", backbone, asked, protocol, cfg, accelerator)
        if not len(queries) or not len(gallery):
            raise RunError(f"{cfg.dataset}: {len(queries)} rows of {subset}, {len(gallery)} of train: no search")
        began = time.perf_counter()
        mine = range(rank * len(queries) // world, (rank + 1) * len(queries) // world)
        _, rows = search(queries, gallery, max(KS), cfg.memory_gb, accelerator.device, mine, quiet=rank > 0)
        rows = torch.cat(gather_object([rows]))
        if accelerator.is_main_process:
            label_q = torch.from_numpy(asked.labels[queries.video])
            label_g = torch.from_numpy(shown.labels[gallery.video])
            missed = len(asked) - len(np.unique(queries.video))
            result = recall(rows, label_q, label_g, missed=missed)
            about = {"experiment": cfg.name, "dataset": cfg.dataset, "subset": subset, "split": cfg.split,
                     "seed": cfg.seed, "protocol": cfg.protocol, "synthetic": cfg.synthetic, "n_scored": len(queries),
                     "n_expected": len(queries) + missed, "gallery": len(gallery), "numbers": gallery.D,
                     **provenance(asked, accelerator),
                     "seconds": round(time.perf_counter() - began, 1)}
            write_text(path / f"recall-{cfg.protocol}-{subset}.json", json.dumps({**result, **about}, indent=1) + "\n")
            sheet(path / f"nearest-{cfg.protocol}-{subset}.png", queries, gallery, rows, asked, shown, cfg)
            tell(result, about)


def tell(result: dict, about: dict):
    """The row of Table 3, beside the paper's if it has one."""
    paper = paper_recalls(about)
    rows = [["ours", *(f"{value:.1f}" for value in result.values())]]
    if paper:
        rows += [["paper", *(f"{paper[k]:.1f}" if k in paper else "-" for k in result)]]
    print(f"{about['experiment']} on {about['dataset']} {about['subset']}, split {about['split']}, protocol "
          f"{about['protocol']}: {about['n_scored']}/{about['n_expected']} queries, {about['gallery']} rows of "
          f"{about['numbers']} numbers in the gallery")
    print("\n".join(markdown(["recall %", *result], rows)))


def sheet(path, queries, gallery, rows, asked, shown, cfg, count=6, nearest=5):
    """A picture: for `count` queries of different classes the `nearest` rows; the frame in the middle of each clip.

    Hits have a green frame and a tick, misses a thin grey one and the name of their class.
    """
    plt = pyplot()
    sampler = PROTOCOLS[cfg.protocol].sampler
    _, firsts = np.unique(asked.labels[queries.video], return_index=True)  # the first query of every class
    chosen = firsts[np.linspace(0, len(firsts) - 1, min(count, len(firsts))).astype(int)]

    def draw(axis, samples, features, row):
        with Reader(samples.path(features.video[row]), samples.index(features.video[row])) as video:
            clips = sampler(video.frames, None, T=cfg.frames, stride=cfg.stride)  # (K, T)
            clip = features.clip[row] if not PROTOCOLS[cfg.protocol].mean else len(clips) // 2
            axis.imshow(video.decode(clips[clip, cfg.frames // 2], max(cfg.short_side, 16)))
        axis.set(xticks=[], yticks=[])
        return samples.classes[samples.labels[features.video[row]]]

    columns = min(nearest, rows.shape[1])
    figure, axes = plt.subplots(len(chosen), columns + 1, squeeze=False, layout="constrained",
                                figsize=(1.5 * columns + 1.8, 1.45 * len(chosen) + 0.5))
    for line, query in zip(axes, chosen, strict=True):
        name = draw(line[0], asked, queries, query)
        line[0].set_title(name, fontsize=8, fontweight="bold")
        for axis, row in zip(line[1:], rows[query].tolist(), strict=False):
            other = draw(axis, shown, gallery, row)
            axis.set_title("\N{CHECK MARK}" if other == name else other, fontsize=8,
                           color=COLOURS[2] if other == name else "0.3")
            for spine in axis.spines.values():
                spine.set(color=COLOURS[2] if other == name else "0.7", linewidth=4 if other == name else 1)
    figure.suptitle(f"{cfg.name}: a query (left) and the {columns} nearest of the gallery", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"examples in {path}")


# ---- benchmark


def bench(queries: int = 850, gallery: int = 2000, numbers: int = 100352, memory_gb: float = 2.0, rounds: int = 3,
          device: str = "cpu"):
    """bench: time the search on random features against a plain matrix product of the same size

    queries, gallery, numbers   rows and width; HMDB51 in the paper's protocol: 8500, 20000, 100352
    memory_gb                   as in the config
    rounds                      both are timed in turns, so many times; the medians are compared

    The plain product has its operands in memory, in float32, and does nothing but multiply. Peak memory is that of
    this process after its first search, before the first plain product. On a machine that others use, too, look at the
    CPU seconds, with one thread (OMP_NUM_THREADS=1): they do not count the time that others had.
    """
    rng, done = np.random.default_rng(0), 2 * queries * gallery * numbers
    rows_q, rows_g = block_sizes(queries, gallery, numbers, max(KS), memory_gb)
    with tempfile.TemporaryDirectory() as folder:
        def write(name, rows):
            with open(Path(folder) / name, "wb") as file:
                for start in range(0, rows, 256):
                    z = rng.standard_normal((min(256, rows - start), numbers), np.float32)
                    file.write((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float16).tobytes())
            return Features([Path(folder) / name], [rows], numbers, np.arange(rows), np.zeros(rows, np.int64))

        asked, shown = write("queries", queries), write("gallery", gallery)
        print(f"{queries} x {gallery} x {numbers}: {done / 1e12:.3g} TFLOP, "
              f"{done / (2 * 8500 * 20000 * 100352):.1%} of the paper's; blocks of {rows_q} and {rows_g} rows, "
              f"{torch.get_num_threads()} threads, {device}")
        products = max(1, round(queries * gallery / (rows_q * rows_g)))

        def plain():
            for _ in range(products):
                product = q @ g.T
            product.sum().item()  # waits for the device

        def rate(work, operations):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            return [operations / 1e9 / (now - then) for now, then in ((time.perf_counter(), wall),
                                                                      (time.process_time(), cpu))]  # fmt: skip

        rates = []  # GFLOP/s of (search, plain) by (the clock, CPU seconds)
        for turn in range(rounds):
            one = rate(lambda: search(asked, shown, max(KS), memory_gb, device), done)
            if turn == 0:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
                q, g = (torch.randn(rows, numbers, device=device) for rows in (rows_q, rows_g))
            rates.append([one, rate(plain, 2 * rows_q * rows_g * numbers * products)])
    for n, what in enumerate(("of the clock", "of CPU time")):
        found, most = np.median(rates, 0)[:, n]
        print(f"GFLOP in a second {what}: search {found:.1f}, plain product {most:.1f}, ratio {found / most:.2f}; in "
              f"{rounds} rounds {', '.join(f'{r[0][n] / r[1][n]:.2f}' for r in rates)}")
    print(f"peak memory {peak:.2f} GiB with memory_gb={memory_gb}")
