"""Many jobs, one per file: in several processes, behind one progress bar, and no file can stop the others.

    with closing(run(job, paths)) as work:
        for path, result, problem in watch(work, len(paths), "probing"): ...

FFmpeg is given files from everywhere, and some may make it crash or never return. That must cost one file, so
the processes are our own: a pool of concurrent.futures is broken for good when one of its processes dies.
"""

import math
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import wait

from tqdm import tqdm


def run(job, items, workers=None, limit=lambda item: 600):
    """`job(item)` of every item, in `workers` processes (None: one per core), in the order they finish.

    Yields (item, result, None) or, if the process died in it or took over `limit(item)` seconds and was killed,
    (item, None, what happened); a new process goes on with the rest. An exception in a job is a bug, not a bad
    file: its traceback is printed and RuntimeError raised. Who leaves early closes it, to have the processes killed.

    They are spawned, for the caller may hold threads or a GPU that do not survive a fork. So `job` is a function
    of a module, or a partial of one, and a script that calls this does so under `if __name__ == "__main__":`.
    """
    context, left, crew = multiprocessing.get_context("spawn"), list(items)[::-1], {}

    def employ(pipe=None, process=None):
        if pipe is None:
            pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the pipe ends when the process does
        item = left.pop()
        pipe.send(item)
        crew[pipe] = process, item, time.monotonic() + limit(item)

    try:
        for _ in range(min(workers or os.cpu_count() or 1, len(left))):
            employ()
        while crew:
            asked = time.monotonic()
            ready = wait(crew, timeout=1)
            if (asleep := time.monotonic() - asked - 1) > 5:  # Ctrl-Z, a lid that was shut: all of them were stopped
                crew.update({pipe: (process, item, until + asleep) for pipe, (process, item, until) in crew.items()})
            for pipe, (process, item, deadline) in list(crew.items()):
                result = problem = None
                if pipe in ready:
                    try:
                        result = pipe.recv()
                    except (EOFError, ConnectionError):
                        problem = _death(process, item)
                elif time.monotonic() > deadline:
                    process.kill()
                    problem = f"makes no progress, given up after {limit(item):.0f} s"
                else:
                    continue
                del crew[pipe]
                if problem or not left:
                    pipe.close()  # which a process takes for the end
                    pipe = process = None
                if left:
                    employ(pipe, process)
                yield item, result, problem
    finally:
        for process, *_ in crew.values():
            process.kill()
            process.join()


def _serve(job, pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionError):  # no more work, or the parent is dead
            return
        result = job(item)
        with suppress(ConnectionError):
            pipe.send(result)


def _death(process, item):
    process.join()
    if process.exitcode >= 0:
        raise RuntimeError(f"the job failed on {item}; its traceback is above")
    return f"crashes the process that reads it ({signal.Signals(-process.exitcode).name})"


def watch(work, total, what):
    """What `work` yields, behind a progress bar; or, where stderr is a log, a line for every tenth or ten minutes."""
    log = not sys.stderr.isatty()
    start = said = time.monotonic()
    for done, result in enumerate(tqdm(work, what, total, disable=log), 1):
        now = time.monotonic()
        if log and (done == total or done % math.ceil(total / 10) == 0 or now - said > 600):
            left, said = (now - start) / done * (total - done), now
            print(f"{what}: {done}/{total}, {now - start:.0f} s, about {left:.0f} s left", file=sys.stderr)
        yield result
