"""What metrics.jsonl holds goes to the tracker too, number by number; one that is not installed is named at once."""

import contextlib
import importlib.util
import shutil

import pytest
from conftest import TINY

from be import config, probe, runs, train
from be.runs import RunError, read_metrics

WORDS = [*TINY, "epochs=1", "log_every=2", "probe_every=1"]


def load(tiny, out, *words):
    return config.load("demo-moco-be", [*WORDS, f"data={tiny}", f"out={out}", *words])


class Notes:
    """Takes part in Accelerate as its trackers do."""

    name, requires_logging_directory = "notes", False

    def __init__(self):
        self.said, self.finished = [], False

    def log(self, values, step):
        self.said.append({"step": step, **values})

    def finish(self):
        self.finished = True


def test_a_tracker_is_told_what_the_log_is(tiny, tmp_path, monkeypatch):
    notes, make = Notes(), runs.make_accelerator
    def accelerator(cfg):
        made = make(cfg)
        made.trackers = [notes]
        return made
    monkeypatch.setattr(train, "make_accelerator", accelerator)
    train.pretrain(load(tiny, tmp_path))
    lines = read_metrics(tmp_path / "demo-moco-be/pretrain-seed0")
    assert len(lines) == 3 and notes.finished  # at steps 2 and 4, and the probe's
    assert [{k: round(v, 6) for k, v in said.items()} for said in notes.said] == lines


def test_a_run_of_wandb_is_one_directory_and_one_beginning(tiny, tmp_path, monkeypatch):
    """Its id comes back when a run goes on; a run of the same name elsewhere, or begun anew, has another."""
    told = []

    class Told(runs.Accelerator):
        def __init__(self, log_with, **how):
            super().__init__(**how)

        def init_trackers(self, project, config, how):
            told.append(how["wandb"])

    monkeypatch.setattr(runs, "Accelerator", Told)
    monkeypatch.setattr(runs, "get_available_trackers", lambda: ["wandb"])

    def pretrain(out, *words):
        monkeypatch.setattr(train, "Probe", Stop if "stop" in words else probe.Probe)
        with contextlib.suppress(KeyboardInterrupt):
            train.pretrain(load(tiny, tmp_path / out, "tracker=wandb", "epochs=2", "save_every=1"))
        return told[-1]["id"]

    class Stop(probe.Probe):
        def __call__(self, epoch):
            raise KeyboardInterrupt

    first = pretrain("a", "stop")
    assert pretrain("a") == first and len(told) == 2
    assert pretrain("b") != first
    shutil.rmtree(tmp_path / "a")
    assert pretrain("a") != first
    assert {(one["name"], one["resume"]) for one in told} == {("demo-moco-be-pretrain-seed0", "allow")}


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_package_that_is_missing(tiny, tmp_path, tracker, monkeypatch):
    monkeypatch.setattr(runs, "get_available_trackers", lambda: [])
    with pytest.raises(RunError, match=f"tracker={tracker} needs .*pip install {tracker}"):
        train.pretrain(load(tiny, tmp_path, f"tracker={tracker}"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.pretrain(load(tiny, tmp_path, "tracker=tensorboard"))
    path = tmp_path / "demo-moco-be/pretrain-seed0"
    (events,) = path.glob("be/events*")
    found = EventAccumulator(str(events)).Reload()
    for key in ("loss", "positive", "lr"):
        ours = [(line["step"], line[key]) for line in read_metrics(path) if key in line]
        theirs = [(point.step, point.value) for point in found.Scalars(key)]
        assert theirs == [(step, pytest.approx(value, abs=1e-5)) for step, value in ours]
