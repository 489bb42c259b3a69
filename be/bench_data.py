"""What decoding costs, beside the decoders that others use: samples per second and core, workers, memory.

    pip install -e .[bench]      the peers, decord and torchcodec; those that are absent are left out
    run.py bench data            three minutes

The videos are made here: two like Kinetics-400 as it is mostly kept (340 x 256, H.264 as x264 makes it by default: key
frames 250 apart, three of five pictures B), two like UCF101 (320 x 240, XviD in AVI) and copies of the former by
`prepare transcode=true`. `be` finds its frames as in training, by the manifest that `prepare` left.
"""

import contextlib
import gc
import io
import math
import os
import platform
import shutil
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from be import datasets, prepare, video
from be.config import ConfigError
from be.prepare import write_copy
from be.report import markdown


def moco(n, rng):
    """Query, key and hard negative, 16 frames of stride 4 each; query and key are two views of the same frames."""
    return video.random_clips(n, rng, K=2, T=16, stride=4)[[0, 0, 1]]


WORKLOADS = {  # what the experiments of the paper ask of a video, (n, rng) -> (K, T)
    "MoCo+BE": moco,
    "Clip Order": partial(video.ordered_clips, K=3, T=16, stride=1, interval=8),
    "fine-tuning": partial(video.random_clips, K=1, T=16, stride=4),
    "ten test clips": partial(video.even_clips, K=10, T=16, stride=4),
}
FILES = {"raw": "{}.mp4", "xvid": "{}.avi", "copy": "copy-{}.mp4"}  # lists, and the names of their two videos
PER_CLIP = "decord, a read per clip"
RATIOS = [  # (what, its file, readers, our file, what there is to reach): the fastest of the readers over be
    ("raw: the faster peer, in one pass", "raw", ("decord", "torchcodec"), "raw", 1.6),
    ("raw: a read per clip", "raw", (PER_CLIP,), "raw", 3),
    ("a read per clip of raw, over be on copy", "raw", (PER_CLIP,), "copy", 15),
    ("copy: torchcodec", "copy", ("torchcodec",), "copy", 1.2),
]


# ---- the readers: samples, place in it, clips (K, T), size (H, W) -> uint8 (K, T, H, W, 3), decoding on one thread


def ours(samples, i, clips, size):
    with video.Reader(samples.path(i), samples.index(i)) as reader:
        return reader.decode(clips, min(size))


def readers() -> dict:
    """{name: reader}: ours, then those of the peers that are here. Says which they are."""
    found, said = {"be": ours}, []

    def each_clip(read, samples, i, clips, size):  # as the authors' code does
        return np.stack([read(samples.path(i), clip, size) for clip in clips])

    def one_pass(read, samples, i, clips, size):  # every frame once, in order, as suits a decoder best
        needed, place = np.unique(clips, return_inverse=True)
        return read(samples.path(i), needed, size)[place.reshape(clips.shape)]

    try:
        import decord

        def read(path, indices, size):
            return decord.VideoReader(path, width=size[1], height=size[0], num_threads=1).get_batch(indices).asnumpy()

        decord.logging.set_level(decord.logging.QUIET)
        found |= {PER_CLIP: partial(each_clip, read), "decord": partial(one_pass, read)}
        said.append(f"decord {decord.__version__}")
    except (ImportError, OSError) as error:
        said.append(f"decord not installed ({error})")
    try:
        import torchcodec.decoders
        import torchcodec.transforms

        def read(path, indices, size):
            resize = torchcodec.transforms.Resize(size)
            decoder = torchcodec.decoders.VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC",
                                                       transforms=[resize])
            return decoder.get_frames_at(indices.tolist()).data.numpy()

        found["torchcodec"] = partial(one_pass, read)
        said.append(f"torchcodec {torchcodec.__version__}")
    except (ImportError, OSError, RuntimeError) as error:  # the last is what it raises without FFmpeg's libraries
        said.append(f"torchcodec not installed ({str(error).strip().partition(chr(10))[0]})")
    print(", ".join(said))
    return found


# ---- the videos


def film(frames, height, width, seed):
    """Frames (H, W, 3) of a textured world: a camera pans, three things move about, the sensor is noisy."""
    rng = np.random.default_rng(seed)

    def texture(h, w):  # grey levels, 0 +- 1; as in photographs there is the less of a detail the finer it is
        detail = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)) ** 1.3
        detail[0, 0] = math.inf
        z = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((h, w))) / detail, s=(h, w))
        return (z / z.std())[..., None]

    world = 110 + texture(height + 130, width + 260) * rng.uniform(20, 40, 3)
    things = [(texture(96, 64) * 50 + rng.uniform(60, 200, 3), rng.uniform(0, 6, 4)) for _ in range(3)]
    outline = np.hypot(np.linspace(-1, 1, 96)[:, None], np.linspace(-1, 1, 64))[..., None] < 1
    for t in range(frames):
        y, x = 64 + 60 * math.sin(t / 40), 128 + 120 * math.sin(t / 70)
        shot = world[int(y) :][: height + 1, int(x) :][:, : width + 1]
        shot = shot[:-1] + y % 1 * (shot[1:] - shot[:-1])  # cameras do not move by whole pixels
        shot = shot[:, :-1] + x % 1 * (shot[:, 1:] - shot[:, :-1])
        for thing, (a, b, c, d) in things:
            top = int((height - 96) * (0.5 + 0.5 * math.sin(a + t / (8 + 3 * b))))
            left = int((width - 64) * (0.5 + 0.5 * math.sin(c + t / (10 + 3 * d))))
            place = shot[top : top + 96, left : left + 64]
            np.copyto(place, thing, where=outline)
        yield (shot + 2 * rng.standard_normal((height, width, 1))).clip(0, 255).astype(np.uint8)


def make(data: Path, short_side: int, gop: int):
    """DATA/plain with two videos for each list of FILES, and the manifest."""
    root = data / "plain"
    root.mkdir()
    for i in range(2):
        raw, xvid, copy = (root / name.format(i) for name in FILES.values())
        video.encode(raw, film(300, 256, 340, i), 30)
        video.encode(xvid, film(180, 240, 320, i), 25, codec="mpeg4", options={"g": "250", "b": "400k"})
        xvid.write_bytes(xvid.read_bytes().replace(b"FMP4", b"XVID"))
        write_copy(raw, copy, short_side, gop)
    (root / "classes.txt").write_text("one\n")
    for name, pattern in FILES.items():
        (root / f"{name}.txt").write_text("".join(f"{pattern.format(i)} 0\n" for i in range(2)))
    with contextlib.redirect_stdout(said := io.StringIO()), contextlib.redirect_stderr(said):
        _, amiss = prepare.survey(datasets.DATASETS["plain"], root, "packets", 16, 1)
    if amiss:
        raise RuntimeError(said.getvalue())


# ---- measuring


def same_frames(read, samples, size) -> float:
    """The share of the frames asked for in all workloads to which that frame of `be` is nearer than its others are."""
    hits = []
    for i in range(len(samples)):
        with video.Reader(samples.path(i), samples.index(i)) as reader:
            whole = reader.decode(np.arange(reader.frames), min(size))
        whole = whole[:, ::4, ::4].reshape(len(whole), -1).astype(np.float32)
        for sampler in WORKLOADS.values():
            clips = sampler(len(whole), np.random.default_rng(i))
            got = read(samples, i, clips, size)[:, :, ::4, ::4].reshape(clips.size, -1).astype(np.float32)
            distance = np.square(whole).sum(1) - 2 * got @ whole.T  # (asked for, frames): squared, less a constant
            hits += (distance.argmin(1) == clips.ravel()).tolist()
    return float(np.mean(hits))


def in_turns(found, samples, sampler, size, rounds, draws) -> dict[str, np.ndarray]:
    """{reader: (rounds, 2)}: seconds of CPU and of wall-clock time a sample. In a round all readers get the same."""
    spent = {name: np.zeros((rounds, 2)) for name in found}
    frames = samples.manifest.frames[samples.rows].tolist()
    for turn in range(-1, rounds):  # the first is to warm up
        jobs = [(i, sampler(frames[i], np.random.default_rng((turn + 1, draw, i))))
                for i in range(len(samples)) for draw in range(draws)]
        for name in np.roll(list(found), turn).tolist():
            cpu, wall = time.process_time(), time.perf_counter()
            for i, clips in jobs:
                found[name](samples, i, clips, size)
            if turn >= 0:
                spent[name][turn] = time.process_time() - cpu, time.perf_counter() - wall
    return {name: seconds / (len(samples) * draws) for name, seconds in spent.items()}


def compare(data, short_side, rounds, draws) -> dict[str, list[float]]:
    """Prints both tables. Returns the second: {what is compared: a ratio for each workload}."""
    found, spent, rows = readers(), {}, []
    for name in FILES:
        samples = datasets.load("plain", data, name)
        size = ours(samples, 0, np.zeros((1, 1), int), (short_side, short_side)).shape[2:4]
        for reader, read in found.items():
            if (share := same_frames(read, samples, size)) < 1:
                print(f"{reader} gives other frames than it is asked for: {1 - share:.1%} of those of {name}")
        for workload, sampler in WORKLOADS.items():
            times = in_turns(found, samples, sampler, size, rounds, draws)
            spent |= {(name, workload, reader): seconds[:, 0] for reader, seconds in times.items()}
            rates = [1 / np.median(seconds, 0) for seconds in times.values()]
            rows.append([name, workload, *(f"{cpu:.1f} ({wall:.1f})" for cpu, wall in rates)])
    print("\nSamples per second and core, by CPU time (by wall-clock time):\n")
    print("\n".join(markdown(["file", "workload", *found], rows)))

    ratios = {}
    for what, file, names, our_file, _ in RATIOS:
        if names := [name for name in names if name in found]:
            ratios[what] = [float(np.median(np.min([spent[file, workload, name] for name in names], 0)
                                            / spent[our_file, workload, "be"])) for workload in WORKLOADS]
    rows = [[what, *(f"{ratio:.2f}" for ratio in ratios[what]), f"{goal}"] for what, *_, goal in RATIOS
            if what in ratios]
    print("\nCPU time over that of be, medians of the rounds:\n")
    print("\n".join(markdown(["", *WORKLOADS, "to reach"], rows)))
    return ratios


# ---- the loader


def batches(samples, count, size=8):
    return [[(0, (start + i) % len(samples)) for i in range(size)] for start in range(0, count, size)]


def recommend_workers(data, short_side):
    """Prints samples per second of the loader by the number of workers, and how many are enough."""
    rates, counts = {}, range(1, (os.cpu_count() or 1) + 1)
    for name in "raw", "copy":
        samples = datasets.load("plain", data, name)
        clips = datasets.Clips(samples, moco, short_side, 0, train=True)
        for workers in counts:
            stream = iter(datasets.loader(clips, batches(samples, 64 * workers), workers))
            next(stream)  # the workers have started
            began = time.perf_counter()
            rates[name, workers] = 8 * sum(1 for _ in stream) / (time.perf_counter() - began)
    print("\nSamples per second of the loader, MoCo+BE, by wall-clock time:\n")
    print("\n".join(markdown(["workers", *map(str, counts)],
                             [[name, *(f"{rates[name, n]:.1f}" for n in counts)] for name in ("raw", "copy")])))
    enough = next(n for n in counts if rates["copy", n] >= 0.95 * max(rates["copy", m] for m in counts))
    print(f"\nrecommended: workers={enough}, from which on this machine gives no more; or, where training takes less, "
          f"one for every {rates['copy', 1]:.0f} samples a second that it takes ({rates['raw', 1]:.0f} of raw files)")


class Measured(datasets.Clips):
    """Tells, in place of the label, how many KiB of memory the process that decodes has."""

    def item(self, *args, **named):
        return super().item(*args, **named)._replace(label=resident())


def resident() -> int:
    """KiB of memory of this process, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def memory_slope(samples, short_side, count, clips=Measured) -> list[float]:
    """MiB that [a worker, this process] grow by in 1,000 samples: lines through `count`, after as many to warm up.

    Of a batch's samples the one at which the worker holds least counts: batches under way come and go.
    """
    seen = []  # (thousands of samples, KiB of the worker, KiB of this process)
    clips = clips(samples, moco, short_side, 0, train=True)
    for batch in datasets.loader(clips, batches(samples, 2 * count), workers=1):
        seen.append((len(batch.label) * len(seen) / 1000, batch.label.min().item(), resident()))
    done, *both = np.array(seen[len(seen) // 2 :]).T
    return [float(np.polyfit(done, kib / 1024, 1)[0]) for kib in both]


# ---- the verb


def bench(rounds: int = 5, draws: int = 2, short_side: int = 128, gop: int = 16, samples: int = 2000):
    """bench: time decoding beside decord and torchcodec, say how many workers are enough, watch the memory

    rounds       in each, every reader in turn decodes the same clips; medians of the rounds count
    draws        clips drawn for each of the two videos of a kind, in each round
    short_side   px, of the frames that all readers give out and of the copies
    gop          frames from one key frame of a copy to the next
    samples      while so many pass through the loader its memory is watched, after as many to warm up

    Everybody decodes on one thread, in this process, to the same size. CPU time is what counts, as other programs that
    run meanwhile change it little. The frames of each reader are checked to be the ones asked for.
    """
    if min(rounds, draws) < 1 or samples < 100:
        raise ConfigError(f"rounds={rounds} and draws={draws} must be at least 1, samples={samples} at least 100")
    threads, data = torch.get_num_threads(), Path(tempfile.mkdtemp(prefix="bench-data-"))
    torch.set_num_threads(1)
    gc.freeze()  # as a worker of the loader does
    try:
        print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, PyAV {version('av')}")
        make(data, short_side, gop)
        compare(data, short_side, rounds, draws)
        recommend_workers(data, short_side)
        worker, process = memory_slope(datasets.load("plain", data, "copy"), short_side, samples)
        print(f"memory over {samples:,} samples: {worker:+.2f} MiB for every 1,000 in a worker, {process:+.2f} MiB in "
              "this process")
    finally:
        shutil.rmtree(data)
        torch.set_num_threads(threads)
        gc.unfreeze()


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()
