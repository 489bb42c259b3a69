import multiprocessing
import os
import signal
import time
from functools import partial

import pytest

from be import jobs
from be.jobs import run, watch


def job(offset, item):
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        time.sleep(1000)
    if item == "bug":
        raise ValueError("a bug")
    return item + offset, os.getpid()


def limit(item):
    return 0.2 if item == "hang" else 60


@pytest.mark.parametrize("workers, items", [(1, [1, "crash", 2, "hang", 3]), (2, ["crash", "hang"]), (2, range(50))])
def test_a_crash_or_a_hang_costs_one_item(workers, items):
    seen = {item: (result, problem) for item, result, problem in run(partial(job, 10), items, workers, limit)}
    assert seen.keys() == set(items)
    problems = {item: problem for item, (_, problem) in seen.items() if problem}
    assert problems == {item: problem for item, problem in {
        "crash": "crashes the process that reads it (SIGSEGV)", "hang": "makes no progress, given up after 0 s",
    }.items() if item in seen}
    good = {item: result for item, (result, _) in seen.items() if result}
    assert all(value == item + 10 for item, (value, _) in good.items()) and len(good) + len(problems) == len(items)
    assert os.getpid() not in [pid for _, pid in good.values()]


def nap(item):
    time.sleep(2)
    return item


def test_time_in_which_all_were_stopped_does_not_count(monkeypatch):
    """Ctrl-Z, a laptop's lid, a scheduler that suspends: the clock runs on, the processes did not."""
    slept, wait = [0.0], jobs.wait
    monkeypatch.setattr(jobs.time, "monotonic", lambda clock=time.monotonic: clock() + slept[0])

    def wakes_late(crew, timeout):
        ready = wait(crew, timeout)
        slept[0] += 1000.0
        return ready

    monkeypatch.setattr(jobs, "wait", wakes_late)
    assert list(run(nap, [7], 1, lambda item: 60)) == [(7, 7, None)]


def test_a_bug_stops_everything(capfd):
    with pytest.raises(RuntimeError, match="failed on bug"):
        list(run(partial(job, 1), [1, "bug", *range(2, 100)], workers=1))
    assert "ValueError: a bug" in capfd.readouterr().err


def test_whoever_leaves_early_leaves_no_process():
    others = set(multiprocessing.active_children())
    work = run(partial(job, 1), ["hang", 1, 2, 3], workers=2)
    assert next(work)[1][0] == 2
    work.close()
    deadline = time.monotonic() + 20
    while set(multiprocessing.active_children()) - others and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - others


def test_nothing_to_do():
    assert list(watch(run(job, []), 0, "nothing")) == []


def test_watch_in_a_log(capsys):
    assert list(watch(iter("abcdefghijklmnopqrstuvwxyz"), 26, "letters")) == [*"abcdefghijklmnopqrstuvwxyz"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"letters: {n}/26" for n in (3, 6, 9, 12, 15, 18, 21, 24, 26)]
    assert lines[-1].endswith("about 0 s left")
