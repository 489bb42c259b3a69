"""What it takes to load a list as long as Kinetics-400's, or longer: before training starts, every process does it.

    python benchmarks/lists.py number=2000000      every argument of `measure` is a key

The files are empty, in 400 folders of classes. Without a manifest the folders are looked through, here from the memory
of the system, on a network far slower; with one, no folder is.
"""

import multiprocessing
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from be import datasets, video
from be.config import Count, UserError, arguments


def make(data: Path, number: int):
    """Kinetics-400's layout with so many videos, and the same videos as a `plain` list."""
    kinetics, plain = data / "kinetics400", data / "plain"
    (kinetics / "annotations").mkdir(parents=True)
    plain.mkdir()
    for c in range(400):
        (kinetics / f"train/class {c}").mkdir(parents=True)
    (plain / "videos").symlink_to(kinetics / "train")
    with open(kinetics / "annotations/train.csv", "w") as csv, open(plain / "train.txt", "w") as txt:
        csv.write("label,youtube_id,time_start,time_end,split\n")
        for i in range(number):
            path = f"class {i % 400}/{i:011d}_000010_000020.mp4"
            csv.write(f"class {i % 400},{i:011d},10,20,train\n")
            txt.write(f"videos/{path} {i % 400}\n")
            open(f"{kinetics}/train/{path}", "w").close()


def write_manifest(root: str, samples: datasets.Samples):
    """As `prepare` leaves it for videos of one frame."""
    index = video.Index(np.zeros(1, np.int32), np.array([7]), np.array([True])).pack()
    n, paths = len(samples), np.sort(samples.paths)
    columns = dict(path=paths, size=np.zeros(n, int), mtime=np.zeros(n, int), digest=np.zeros((n, 16), np.uint8),
                   frames=np.ones(n, np.int32), deadly=np.zeros(n, bool), packed=np.frombuffer(index * n, np.uint8),
                   end=np.arange(1, n + 1) * len(index))
    np.savez(Path(root, datasets.MANIFEST), **columns)


def load(dataset: str, data: str):
    """-> videos, seconds of the processor, MiB at the peak above what the process had before"""
    before, began = peak(), time.process_time()
    samples = datasets.load(dataset, data, "train")
    return len(samples), time.process_time() - began, peak() - before


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(number: Count = 246_534):
    """number: of videos"""
    with tempfile.TemporaryDirectory() as data, multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as new:
        make(Path(data), number)
        for manifest in False, True:
            for dataset in "kinetics400", "plain":
                samples = datasets.load(dataset, data, "train")
                if manifest:
                    write_manifest(samples.root, samples)
                found, seconds, mib = new.apply(load, (dataset, data))
                what = "with a manifest" if manifest else "folders looked through"
                print(f"{dataset}, {what}: {found:,} videos, {seconds:.2f} s of a processor, {mib:.0f} MiB")


if __name__ == "__main__":
    try:
        measure(**arguments(measure, sys.argv[1:]))
    except UserError as problem:
        sys.exit(f"benchmarks/lists.py: {problem}")
