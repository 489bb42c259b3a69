"""One, two and four processes on gloo: the batch is global, so all of them compute the same."""

import json
import os
import signal
import socket
import sys
import time

import pytest
import torch
from conftest import FORKS, TINY
from safetensors.torch import load_file

from be import config, evaluate, retrieve, runs, train

STAGES = {"pretrain": train.pretrain, "finetune": train.finetune, "evaluate": evaluate.evaluate,
          "retrieve": retrieve.retrieve, "linear": retrieve.linear}

# With BE. What is different of the others is in tests/test_objectives.py and tests/test_tasks.py, on two processes, too
FIRST = {"moco": "demo-moco-be", "rotnet": "table1-rotnet-be", "puzzles": "table1-puzzles-be",
         "clip_order": "table1-clip-order-be"}  # fmt: skip


def member(rank, world, port, work):
    """One of `world` processes, all of which do the `work`: a list of (stage, config)."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    train.HELD_OUT = 0.2  # of 4 videos of a class, a tenth is none
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    for stage, cfg in work:
        STAGES[stage](cfg)


def start(world, work):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [FORKS.Process(target=member, args=(rank, world, port, work)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def end(processes):
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def load(tiny, out, name, stage="pretrain", *words):
    """32 videos in batches of 12, so that 8 are left over; 12, 6 or 3 clips a process, in BatchNorm groups of 3."""
    return config.load(name, [*TINY, "synthetic=true", f"data={tiny}", f"out={out}", "batch_size=12", "bn_group=3",
                              "backbone=c3d", *words], stage)


@pytest.fixture(scope="module")
def spread(tiny, tmp_path_factory):
    """{number of processes: folder of runs}: all of FIRST pre-trained, on four MoCo alone, and a network fine-tuned."""
    out = {world: tmp_path_factory.mktemp(f"on{world}") for world in (1, 2, 4)}
    for world, folder in out.items():
        work = [("pretrain", load(tiny, folder, name)) for name in FIRST.values() if world < 4 or name == FIRST["moco"]]
        tuned = load(tiny, folder, "demo-random", "finetune", "dropout=0.5")
        assert end(start(world, [*work, ("finetune", tuned)])) == [0] * world
    return out


@pytest.mark.parametrize("name", [*FIRST.values(), "demo-random"])
def test_the_same_losses(spread, name):
    stage = "finetune-ucf101-split1-seed0" if name == "demo-random" else "pretrain-seed0"
    logs = {world: runs.read_metrics(folder / name / stage) for world, folder in spread.items()}
    own = [key for key in logs[1][0] if key not in ("clips_per_s", "data_wait", "seconds", "feature_std")]
    for world in (2, 4) if logs[4] else (2,):
        for one, many in zip(logs[1], logs[world], strict=True):
            # Sums in another order, which a small network at this learning rate makes ten times as much of every step;
            # then decisions (top1) differ, too
            late = one["step"] > 2
            keys, close = ([key for key in own if not (late and "top1" in key)],
                           {"rel": 3e-2, "abs": 5e-3} if late else {"rel": 2e-4, "abs": 2e-5})
            assert [many[key] for key in keys] == pytest.approx([one[key] for key in keys], **close), one
    assert len(logs[1]) == 4 and logs[1][0]["loss"] != logs[1][1]["loss"]
    assert logs[4] or name not in (FIRST["moco"], "demo-random")


def test_the_same_queue_and_weights(spread):
    states = {world: runs.Run(folder / FIRST["moco"] / "pretrain-seed0", None, write=False).latest()["objective"]
              for world, folder in spread.items()}
    for world in (2, 4):
        assert torch.equal(states[world]["queue_index"], states[1]["queue_index"])
        for key, value in states[1].items():
            if "running_" not in key and "num_batches" not in key:  # statistics are each device's own
                off, size = (states[world][key] - value).float().norm(), value.float().norm()
                # Of the whole, as single weights near 0 are off by more; BatchNorm's biases, once 0, are all change
                assert off <= (0.1 if "bias" in key else 0.01) * size + 1e-6, key


def test_exactly_the_same_result(spread, tiny):
    """One model, 16 videos, which do not divide by 3."""
    cfg = load(tiny, spread[1], "demo-random", "finetune")
    path, results = runs.run_dir(cfg, "finetune"), {}
    for world in (1, 3):
        assert end(start(world, [("evaluate", cfg)])) == [0] * world
        result = json.loads((path / "result-test.json").read_text())
        results[world] = [result[key] for key in ("top1", "top5", "mean_class", "n_scored", "n_expected")]
        results[world].append(load_file(path / "probabilities-test.safetensors"))
        (path / "result-test.json").unlink()  # or it would stand
    assert results[1][3:5] == [16, 16]
    torch.testing.assert_close(results[3], results[1], rtol=0, atol=0)


def test_exactly_the_same_retrieval(tiny, tmp_path):
    """The features, in the order of the list, and the recall and the linear classifier that follow from them."""
    found = []
    for world in (1, 3):
        cfg = load(tiny, tmp_path / f"on{world}", "demo-random", "retrieve")
        frozen = load(tiny, cfg.out, "demo-random", "finetune")
        assert end(start(world, [("retrieve", cfg), ("linear", frozen)])) == [0] * world
        path, probe = (runs.run_dir(cfg, verb) for verb in ("retrieve", "linear"))
        result = json.loads((path / "recall-paper-test.json").read_text())
        found.append([{key: value for key, value in result.items() if "@" in key}, path / "paper-test.json",
                      *((path / f"paper-{subset}.f32").read_bytes() for subset in ("train", "test")),
                      (probe / "probabilities-test.safetensors").read_bytes()])
    assert found[0][1].read_text() == found[1][1].read_text()
    assert len(found[0][0]) == 5 and found[0][0] == found[1][0] and found[0][2:] == found[1][2:]


def watched(cfg):
    """Pre-trains; each process writes down the numbers that it is asked to probe."""
    def make_probe(objective, samples, cfg, accelerator):
        def at_epoch(epoch):
            torch.save(objective.state_dict(), f"{cfg.out}/epoch{epoch}-{accelerator.process_index}.pt")
        return at_epoch

    train.make_probe = make_probe
    train.pretrain(cfg)


def test_all_processes_probe_the_model_that_is_kept(tiny, tmp_path):
    """BatchNorm's statistics are each process's own, and the first one's are saved."""
    cfg = load(tiny, tmp_path, "demo-moco-be", "pretrain", "probe_every=1")
    assert end(start(2, [("watched", cfg)])) == [0, 0]
    for epoch in (1, 2):
        one, two = (torch.load(tmp_path / f"epoch{epoch}-{rank}.pt") for rank in (0, 1))
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    kept = runs.Run(tmp_path / "demo-moco-be/pretrain-seed0", None, write=False).latest()["objective"]
    torch.testing.assert_close(one, kept, rtol=0, atol=0)


def test_an_interrupted_choice_of_an_epoch_is_the_uninterrupted_one(tiny, tmp_path):
    """On two processes, of which both had the first one's statistics after a resume."""
    words = ["select=holdout", "test_clips=2", "lr=0.1", "epochs=4", "dropout=0.5"]
    cfgs = [load(tiny, tmp_path / out, "demo-random", "finetune", *words) for out in ("whole", "cut")]
    assert end(start(2, [("chosen", cfgs[0])])) == [0, 0]
    assert end(start(2, [("stopped", cfgs[1])])) == [143, 143]
    assert end(start(2, [("chosen", cfgs[1])])) == [0, 0]
    logs, weights = [], []
    for cfg in cfgs:
        logs.append([line for line in runs.read_metrics(runs.run_dir(cfg, "finetune")) if "holdout_top1" in line])
        weights.append(load_file(runs.run_dir(cfg, "finetune") / "model.safetensors"))
    assert len(logs[0]) == 4 and logs[0] == logs[1]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def chosen(cfg):
    """Fine-tunes; the held-out list is scored by its probabilities, which tell more than who is right."""
    train.accuracy = lambda p, label, ok: {"top1": 100 * p.gather(1, label[:, None]).mean().item()}
    train.finetune(cfg)


def stopped(cfg):
    """Of that, five steps."""
    asked = []
    train.Interrupt.agreed = lambda self, accelerator: signal.SIGTERM if asked.append(0) or len(asked) == 5 else None
    chosen(cfg)


STAGES |= {"watched": watched, "chosen": chosen, "stopped": stopped}


def test_a_signal_to_one_process_stops_all_at_the_same_step(tiny, tmp_path):
    """Within ten steps, also where lines of the log and checkpoints are rare; it is the probe's lines that are seen."""
    cfg = load(tiny, tmp_path, "demo-moco-be", "pretrain", "epochs=1000", "save_every=100000", "log_every=100000",
               "probe_every=1")
    processes = start(2, [("pretrain", cfg)])
    path, deadline = tmp_path / "demo-moco-be/pretrain-seed0", time.monotonic() + 60
    while not runs.read_metrics(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert end(processes) == [143, 143]
    run = runs.Run(path, None, write=False)
    assert [runs.read_metrics(path)[-1]["step"]] == [int(p.name.split("-")[1]) for p in run.checkpoints()]
