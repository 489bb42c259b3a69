"""A job that crashes or hangs, as with a bad file. In a module of its own, so its processes start without torch."""

import os
import signal
import time


def deadly(offset, item):
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "bug":
        raise ValueError("a bug")
    for _ in range({"slow": 20, "hang": 10_000, "wait": 10_000}.get(item, 0)):
        time.sleep(0.05)
    return len(str(item)) + offset, os.getpid()


def full_disk(*_):
    return OSError(28, "No space left on device")


def limit(item):
    return {"hang": 1, "slow": 3}.get(item, 60)
