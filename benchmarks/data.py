"""What decoding costs, beside decord2 and torchcodec; workers or threads, and how many; whether their memory grows.

    pip install -e '.[bench]'             the peers; those that are absent are left out
    python benchmarks/data.py rounds=9    every argument of `measure` is a key

The videos are made here: two like Kinetics-400 as it is mostly kept (`raw`: 340 x 256, H.264 as x264 makes it by
default: key frames 250 apart, three of five pictures B), two like UCF101 (`xvid`: 320 x 240, MPEG-4 in AVI), the
copies of the former that `prepare transcode=true` makes (`copy`), and their frames in JPEG files, a folder a video
(`jpeg`; the peer is Pillow). Files of your own in a folder are `yours`, with yours=FOLDER.
"""

import gc
import math
import multiprocessing
import os
import sys
import tempfile
import time
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from shutil import copy

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image

from be import datasets, video
from be.config import ConfigError, UserError, arguments
from be.prepare import prepare


def moco(n, rng):
    """Query, key and hard negative, 16 frames of stride 4 each; query and key are two views of the same frames."""
    return video.random_clips(n, rng, K=2, T=16, stride=4)[[0, 0, 1]]


WORKLOADS = {  # what the experiments of the paper ask of a video, (n, rng) -> (K, T)
    "MoCo+BE": moco,
    "Clip Order": partial(video.ordered_clips, K=3, T=16, stride=1, interval=8),
    "fine-tuning": partial(video.random_clips, K=1, T=16, stride=4),
    "ten test clips": partial(video.even_clips, K=10, T=16, stride=4),
}


# ---- the readers: (samples, place in the list, clips (K, T), size (H, W)) -> uint8 (K, T, H, W, 3), on one thread


def ours(samples, i, clips, size):
    with video.Reader(samples.path(i), samples.index(i)) as reader:
        return reader.decode(clips, min(size))


def each_clip(read, samples, i, clips, size):
    """A read per clip, as the authors' code does it."""
    return np.stack([read(samples.path(i), clip, size) for clip in clips])


def one_pass(read, samples, i, clips, size):
    """Every frame once and in order, which suits a decoder best."""
    needed, place = np.unique(clips, return_inverse=True)
    return read(samples.path(i), needed, size)[place.reshape(clips.shape)]


def read_pictures(path, indices, size):
    """As code that reads folders of frames does it: Pillow opens a file for each frame."""
    files = sorted(Path(path).iterdir())
    pictures = (Image.open(files[n]).convert("RGB") for n in indices)
    return np.stack([picture.resize(size[::-1], Image.Resampling.BILINEAR) for picture in pictures])


def readers(folders: bool) -> dict:
    """{name: reader}: ours and those of the peers that are installed, of videos or of folders of frames."""
    found = {"be": ours}
    if folders:
        return found | {"Pillow": partial(one_pass, read_pictures)}
    try:
        import decord

        def read(path, indices, size):
            return decord.VideoReader(path, width=size[1], height=size[0], num_threads=1).get_batch(indices).asnumpy()

        decord.logging.set_level(decord.logging.QUIET)
        found |= {"decord2, a read per clip": partial(each_clip, read), "decord2": partial(one_pass, read)}
    except (ImportError, OSError) as error:
        print(f"decord2 is not installed ({error})")
    try:
        import torchcodec.decoders
        import torchcodec.transforms

        def read_torchcodec(path, indices, size):
            resize = torchcodec.transforms.Resize(size)
            decoder = torchcodec.decoders.VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC",
                                                       transforms=[resize])
            return decoder.get_frames_at(indices.tolist()).data.numpy()

        found["torchcodec"] = partial(one_pass, read_torchcodec)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: FFmpeg's libraries are absent
        print(f"torchcodec is not installed ({str(error).strip().splitlines()[0]})")
    return found


# ---- the videos


def film(frames: int, height: int, width: int, seed: int):
    """Frames (H, W, 3) of a textured world: a camera pans, three things move about, the sensor is noisy."""
    rng = np.random.default_rng(seed)

    def texture(h, w):
        """Grey levels of mean 0 and deviation 1; as in photographs, there is the less of a detail the finer it is."""
        detail = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)) ** 1.3
        detail[0, 0] = math.inf
        z = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((h, w))) / detail, s=(h, w))
        return (z / z.std())[..., None]

    world = 110 + texture(height + 130, width + 260) * rng.uniform(20, 40, 3)
    things = [(texture(64, 64) * 50 + rng.uniform(60, 200, 3), rng.uniform(0, 6, 4)) for _ in range(3)]
    for t in range(frames):
        y, x = 64 + 60 * math.sin(t / 40), 128 + 120 * math.sin(t / 70)
        shot = world[int(y) :][: height + 1, int(x) :][:, : width + 1]
        shot = shot[:-1] + y % 1 * (shot[1:] - shot[:-1])  # cameras do not move by whole pixels
        shot = shot[:, :-1] + x % 1 * (shot[:, 1:] - shot[:, :-1])
        for thing, (a, b, c, d) in things:
            top = int((height - 64) * (0.5 + 0.5 * math.sin(a + t / (8 + 3 * b))))
            left = int((width - 64) * (0.5 + 0.5 * math.sin(c + t / (10 + 3 * d))))
            shot[top : top + 64, left : left + 64] = thing
        yield (shot + 2 * rng.standard_normal((height, width, 1))).clip(0, 255).astype(np.uint8)


def make(folder: Path, short_side: int, length: int = 300, yours: str | None = None) -> dict[str, datasets.Samples]:
    """Writes the videos, of `length` frames, and their manifests. -> {"raw", "xvid", "copy", "jpeg": two videos each}
    and, of what lies in the folder `yours`, "yours"."""
    data = folder / "films"
    (data / "plain").mkdir(parents=True)
    (data / "plain/classes.txt").write_text("one\n")
    for i in range(2):
        video.encode(data / f"plain/{i}.mp4", film(length, 256, 340, i), 30)
        video.encode(data / f"plain/{i}.avi", film(length * 3 // 5, 240, 320, i), 25, codec="mpeg4",
                     options={"g": "250", "b": "400k"})
        (data / f"plain/{i}").mkdir()
        with video.Reader(data / f"plain/{i}.mp4") as reader:
            for n, frame in enumerate(reader.decode(np.arange(length)), 1):
                Image.fromarray(frame).save(data / f"plain/{i}/{n:05d}.jpg", quality=90)
    lists = {"raw": ["0.mp4", "1.mp4"], "xvid": ["0.avi", "1.avi"], "jpeg": ["0", "1"]}
    if yours:
        lists["yours"] = [Path(copy(file, data / "plain")).name for file in sorted(Path(yours).iterdir())]
    for name, files in lists.items():
        (data / f"plain/{name}.txt").write_text("".join(f"{file} 0\n" for file in files))
    prepare("plain", str(data), "packets", transcode=True, short_side=short_side, workers=1)
    return {**{name: datasets.load("plain", data, name) for name in lists},
            "copy": datasets.load("plain", f"{data}-{short_side}", "raw")}


# ---- what is measured


def right_frames(read, samples, size) -> float:
    """The share of the frames asked for in all workloads to which no frame of `be` is nearer than that one."""
    hits = []
    for i in range(len(samples)):
        whole = ours(samples, i, np.arange(samples.manifest.frames[samples.rows[i]])[None], size)[0, :, ::4, ::4]
        whole = whole.reshape(len(whole), -1).astype(float)
        for sampler in WORKLOADS.values():
            clips = sampler(len(whole), np.random.default_rng(i))
            got = read(samples, i, clips, size)[:, :, ::4, ::4].reshape(clips.size, -1).astype(float)
            distance = np.square(whole).sum(1) - 2 * got @ whole.T  # squared, less a constant of each row
            asked = np.take_along_axis(distance, clips.reshape(-1, 1), 1)
            hits += (asked <= distance.min(1, keepdims=True) + 1).ravel().tolist()  # some videos stand still
    return float(np.mean(hits))


def in_turns(found: dict, samples, sampler, size, rounds: int, draws: int) -> dict[str, float]:
    """{reader: median of the rounds of the CPU seconds of a sample}. In a round all readers decode the same clips."""
    spent = {name: [] for name in found}
    for turn in range(rounds + 1):  # the first is to warm up
        jobs = [(i, sampler(samples.manifest.frames[samples.rows[i]], np.random.default_rng((turn, draw, i))))
                for i in range(len(samples)) for draw in range(draws)]
        for name in np.roll(list(found), turn).tolist():
            began = time.process_time()
            for i, clips in jobs:
                found[name](samples, i, clips, size)
            spent[name].append((time.process_time() - began) / len(jobs))
    return {name: float(np.median(seconds[1:])) for name, seconds in spent.items()}


def compare(lists: dict, short_side: int, rounds: int, draws: int) -> dict:
    """Prints samples per second, and their ratio to those of be. -> {(list, workload, reader): seconds of a sample}"""
    seconds = {}
    print("\nsamples per second and core, by CPU time (be over this reader)")
    for name, samples in lists.items():
        found = readers(name == "jpeg")
        print(f"{'file':6}{'workload':16}" + "".join(f"{reader:>26}" for reader in found))
        size = ours(samples, 0, np.zeros((1, 1), int), (short_side, short_side)).shape[2:4]
        for reader, read in found.items():
            if (share := right_frames(read, samples, size)) < 1:
                print(f"{reader} gives other frames than it is asked for: {1 - share:.1%} of those of {name}")
        for workload, sampler in WORKLOADS.items():
            times = in_turns(found, samples, sampler, size, rounds, draws)
            seconds |= {(name, workload, reader): spent for reader, spent in times.items()}
            cells = (f"{1 / spent:.1f} ({spent / times['be']:.2f})" for spent in times.values())
            print(f"{name:6}{workload:16}" + "".join(f"{cell:>26}" for cell in cells))
    return seconds


def stream(samples, short_side: int, count: int, workers: int):
    """An iterator over the loader's batches of 8, of `count` samples in all, as MoCo + BE takes them."""
    clips = datasets.Clips(samples, moco, short_side, 0, train=True)
    batches = [[(0, (start + i) % len(samples)) for i in range(8)] for start in range(0, count, 8)]
    return iter(datasets.loader(clips, batches, workers))


def by_workers(samples, short_side: int, counts) -> dict[int, tuple[float, float]]:
    """{workers: samples per second of the loader, by the clock; MiB of the workers' memory, shared pages in parts}"""
    rates = {}
    for workers in counts:
        batches = stream(samples, short_side, 128 * workers, workers)
        next(batches)  # by now the workers have started
        began = time.perf_counter()
        count = 8 * sum(1 for _ in batches)
        seconds = time.perf_counter() - began
        rates[workers] = count / seconds, sum(memory(child.pid) for child in multiprocessing.active_children())
        del batches
    return rates


def by_threads(samples, short_side: int, counts) -> dict[int, tuple[float, float]]:
    """As `by_workers`, of threads of this process that make a batch each; the memory is what it grows by. PyAV lets
    other threads run while it decodes and scales."""
    clips, rates = datasets.Clips(samples, moco, short_side, 0, train=True), {}

    def batch(start):
        return datasets.collate([clips[0, (start + i) % len(samples)] for i in range(8)])

    for threads in counts:
        before = memory(os.getpid())
        with ThreadPool(threads) as pool:
            pool.map(batch, range(threads))
            began, todo = time.perf_counter(), range(0, 128 * threads, 8)
            for _ in pool.imap(batch, todo):
                pass
            rates[threads] = 8 * len(todo) / (time.perf_counter() - began), memory(os.getpid()) - before
    return rates


def memory(pid: int) -> float:
    """MiB of a process; of pages that it shares with n - 1 others an nth."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def memory_slope(samples, short_side: int, count: int) -> float:
    """MiB by which a worker grows in 1,000 samples: a line through `count` of them, after as many to warm up."""
    seen = []  # pages of memory, after each batch
    batches = stream(samples, short_side, 2 * count, 1)
    (worker,) = multiprocessing.active_children()
    for _ in batches:
        seen.append(int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]))
    later = np.array(seen[len(seen) // 2 :]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return float(np.polyfit(8 * np.arange(len(later)) / 1000, later, 1)[0])


def measure(rounds: int = 5, draws: int = 2, short_side: int = 128, samples: int = 2000, yours: str | None = None):
    """Prints all tables.

    rounds: in each, every reader in turn decodes the same clips, in this process, on one thread, to the same size.
        CPU time counts, which other programs that run meanwhile change little.
    draws: clips drawn of each of the two videos of a kind, in each round.
    short_side: px, of the frames that all readers give out, and of the copies.
    samples: while so many pass through the loader its memory is watched, after as many to warm up.
    yours: a folder of videos, which are measured, too.
    """
    if min(rounds, draws) < 1 or samples < 100:
        raise ConfigError(f"rounds={rounds} and draws={draws} must be at least 1, samples={samples} at least 100")
    torch.set_num_threads(1)
    gc.freeze()  # as a worker of the loader does
    with tempfile.TemporaryDirectory() as folder:
        lists = make(Path(folder), short_side, yours=yours)
        compare(lists, short_side, rounds, draws)
        print("\nsamples per second of the loader, MoCo+BE, by the clock (MiB)")
        for name in ("raw", "copy"):
            counts = range(1, (os.cpu_count() or 1) + 1)
            found = {"workers": by_workers(lists[name], short_side, counts),
                     "threads": by_threads(lists[name], short_side, counts)}
            for what, rates in found.items():
                print(f"{name}: " + ", ".join(f"{rate:.1f} ({mib:.0f}) by {n}" for n, (rate, mib) in rates.items())
                      + f" {what}")
            rates = {n: rate for n, (rate, _) in found["workers"].items()}
            enough = next(n for n, rate in rates.items() if rate >= 0.95 * max(rates.values()))
            print(f"{name}: {enough} workers are enough here, or one for every {rates[1]:.0f} samples a second that "
                  f"training takes")
        slope = memory_slope(lists["copy"], short_side, samples)
        print(f"a worker's memory grows by {slope:+.2f} MiB per 1,000 samples, over {samples:,}")


if __name__ == "__main__":
    try:
        measure(**arguments(measure, sys.argv[1:]))
    except UserError as problem:
        sys.exit(f"benchmarks/data.py: {problem}")
