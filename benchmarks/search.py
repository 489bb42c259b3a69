"""The search of `retrieve` beside a plain matrix product of the same size, on random features.

    python benchmarks/search.py queries=8500 gallery=20000 memory_gb=2.5 rounds=1    HMDB51 in the paper's protocol

The plain product has its operands in memory, in float32, and does nothing but multiply.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from be.config import UserError, arguments
from be.retrieve import KS, Features, block_sizes, search


def random_features(path: Path, rows: int, D: int, seed: int) -> Features:
    """In a file, a row at a time."""
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        for _ in range(rows):
            file.write(rng.standard_normal(D, np.float32).tobytes())
    return Features(path, "", D, [*range(rows)], [])


def measure(queries: int = 850, gallery: int = 2000, numbers: int = 100352, memory_gb: float = 2.0, rounds: int = 3,
            device: str = "cpu"):
    """Prints GFLOP/s of both, by the clock and by CPU time, and the peak memory.

    queries, gallery, numbers: rows of both, and their width.
    memory_gb: as in the config.
    rounds: both are timed in turns, so many times; the medians are compared.

    Peak memory is that of this process after its first search. On a machine that others use, too, look at the CPU
    time, with OMP_NUM_THREADS=1.
    """
    done, rates = 2e-9 * queries * gallery * numbers, []
    rows_q, rows_g = block_sizes(queries, gallery, numbers, max(KS), memory_gb)
    products = max(1, round(queries * gallery / (rows_q * rows_g)))

    def plain():
        for _ in range(products):
            product = q @ g.T
        product.sum().item()  # waits for the device

    def rate(work, gflop):
        clock, cpu = time.perf_counter(), time.process_time()
        work()
        return gflop / (time.perf_counter() - clock), gflop / (time.process_time() - cpu)

    with tempfile.TemporaryDirectory() as folder:
        asked = random_features(Path(folder) / "queries", queries, numbers, 0)
        shown = random_features(Path(folder) / "gallery", gallery, numbers, 1)
        print(f"{queries} x {gallery} x {numbers}: {done / 1e3:.3g} TFLOP; blocks of {rows_q} and {rows_g} rows, "
              f"{torch.get_num_threads()} threads, {device}")
        for turn in range(rounds):
            ours = rate(lambda: search(asked, shown, max(KS), memory_gb, device), done)
            if turn == 0:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
                q, g = (torch.randn(rows, numbers, device=device) for rows in (rows_q, rows_g))
            rates.append([ours, rate(plain, 2e-9 * rows_q * rows_g * numbers * products)])
    for what, (ours, most) in zip(("the clock", "CPU time"), np.median(rates, 0).T, strict=True):
        print(f"GFLOP/s by {what}: search {ours:.1f}, plain product {most:.1f}, ratio {ours / most:.2f}")
    print(f"peak memory {peak:.2f} GiB with memory_gb={memory_gb}")


if __name__ == "__main__":
    try:
        measure(**arguments(measure, sys.argv[1:]))
    except UserError as problem:
        sys.exit(f"benchmarks/search.py: {problem}")
