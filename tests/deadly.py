"""A job that crashes or hangs, as with a bad file. In a module of its own, so its processes start without torch."""

import os
import signal
import time


def deadly(offset, item):
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        time.sleep(1000)
    if item == "bug":
        raise ValueError("a bug")
    for _ in range(20 if item == "slow" else 0):
        time.sleep(0.05)
    return len(str(item)) + offset, os.getpid()


def limit(item):
    return 1 if item == "hang" else 60
