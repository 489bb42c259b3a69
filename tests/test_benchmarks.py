"""The benchmarks run, small; and they compare what they say: the same frames, the same loss, the same product."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from be import backbones, objectives, video
from be.augment import Draws


@pytest.fixture
def script(monkeypatch, capsys):
    """name, words -> what the benchmark prints, run as a program in this process."""
    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(ROOT / f"benchmarks/{name}.py"), run_name="__main__")
        return capsys.readouterr().out
    return run


def test_data(tmp_path, capsys):
    """Whoever gives other frames is named, and whoever takes twice the time is said to."""
    data = runpy.run_path(str(ROOT / "benchmarks/data.py"))
    (tmp_path / "yours").mkdir()
    video.encode(tmp_path / "yours/own.avi", data["film"](40, 64, 80, 7), 25)
    lists, ours = data["make"](tmp_path, 32, 40, str(tmp_path / "yours")), data["ours"]
    assert list(lists) == ["raw", "xvid", "jpeg", "yours", "copy"] and len(lists["yours"]) == 1
    found = {"be": ours, "twice": lambda *job: (ours(*job), ours(*job))[1],
             "other": lambda samples, i, clips, size: ours(samples, i, np.maximum(clips - 1, 0), size)}
    pictures, data["compare"].__globals__["readers"] = data["readers"](True), lambda folders: found
    assert data["right_frames"](pictures["Pillow"], lists["jpeg"], (32, 42)) == 1
    seconds = data["compare"](lists, 32, rounds=1, draws=2)
    said = capsys.readouterr().out
    assert "other gives other frames than it is asked for" in said and "twice gives" not in said
    assert 1.4 < np.median([seconds[name, what, "twice"] / spent for (name, what, reader), spent in seconds.items()
                            if reader == "be"]) < 2.8
    for way in ("by_workers", "by_threads"):
        rate, mib = data[way](lists["copy"], 32, [1])[1]
        assert rate > 1 and mib < 2000, way
    assert abs(data["memory_slope"](lists["copy"], 32, 100)) < 20


def test_step(script):
    """`released` has the loss of MoCo + BE with the same options, at the price of three passes with gradient."""
    step, cost, losses = runpy.run_path(str(ROOT / "benchmarks/step.py")), {}, {}
    views = [torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for name, make in (("released", step["Released"]), ("ours", objectives.MoCo)):
        torch.manual_seed(0)
        model = objectives.build(make, backbones.build("c3d", 4), dict(frames=8, stride=1, K=6, **step["RELEASED"]))
        losses[name], _ = model(views, None, torch.arange(2), Draws(0, 0))
        with FlopCounterMode(display=False) as flops:
            losses[name].backward()
        cost[name] = flops.get_total_flops()
    torch.testing.assert_close(losses["released"], losses["ours"], rtol=1e-4, atol=0)
    assert cost["released"] == pytest.approx(1.5 * cost["ours"], rel=0.02)
    said = script("step", "backbones=[c3d]", "size=28", "frames=8", "width=2", "rounds=1", "device=cpu")
    assert re.search(r"MoCo\+BE over MoCo \d+\.\d\d; released over MoCo\+BE \d+\.\d\d; ceiling \d", said)
    large = step["Convolution"](torch.device("cpu"), "fp32")  # 64 channels on 2 x 8 x 14 x 14 places, by hand:
    assert large.flop == pytest.approx(3 * 2 * 27 * 64 * 64 * 2 * 8 * 14 * 14) and large() > 0


def test_search(script):
    said = script("search", "queries=30", "gallery=50", "numbers=300", "memory_gb=1e-3", "rounds=2")
    assert "30 x 50 x 300" in said and len(re.findall(r"ratio \d+\.\d\d", said)) == 2 and "peak memory" in said


SMALL = ("clips=2", "frames=4", "size=16", "width=2", "device=cpu")


def test_gpu_by_the_page(script):
    """docs/GPU.md has the commands that the script has."""
    page, commands = (ROOT / "docs/GPU.md").read_text(), runpy.run_path(str(ROOT / "benchmarks/gpu.py"))["COMMANDS"]
    _, shown = re.findall(r"^```\n(.*?)^```", page, re.S | re.M)
    assert shown.splitlines() == [command for command, *_ in commands.values()]
    assert len(commands) == 10 and re.findall(r"^\| `(\w+)` \|", page, re.M) == [*commands]


@pytest.mark.parametrize("words, said", [
    ("device", r"bf16 in hardware: \d"), ("memory backbones=[c3d]", r"c3d: planned \d.\d+ GiB, measured over planned"),
    ("agree methods=[moco,pace]", r"moco +loss differs by 0.0e\+00, gradient by 0.0e\+00\npace"),
    ("sync methods=[classify,moco]", "methods whose host waits for the device: 0")])
def test_gpu_tries_itself_on_a_cpu(script, words, said):
    assert re.search(said, script("gpu", *words.split(), *(SMALL if "=" in words else ())))


def test_gpu_writes_what_was_found(monkeypatch, tmp_path, capsys):
    """Of commands that say a number within its limits, beyond them, none, and one that fails or never ends."""
    gpu, goal = runpy.run_path(str(ROOT / "benchmarks/gpu.py")), {r"ratio (\S+);": (1, 2)}
    texts = {"good": "print('ratio 1.5; ratio 2;')", "slow": "print('ratio 1.5; ratio 2.1;')", "mute": "pass",
             "bad": "print('ratio 1.5;'); exit(3)", "late": "import time; time.sleep(60)"}
    commands = {name: (f'python -c "{text}"', "", goal) for name, text in texts.items()}
    monkeypatch.setitem(gpu["run_all"].__globals__, "COMMANDS", commands)
    gpu["run_all"](to=str(tmp_path / "gpu.json"), limit=2)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [(one["name"], one["reached"]) for one in found] == [(name, name == "good") for name in texts]
    assert [list(one["found"].values())[0] for one in found] == [[1.5, 2.0], [1.5, 2.1], [], [1.5], []]
    assert [one["code"] for one in found] == [0, 0, 0, 3, -1] and "not done after 2 s" in found[-1]["said"]
    assert "1 of 5 as they should be" in capsys.readouterr().out


def test_lists(script):
    said = script("lists", "number=900")
    assert said.count(": 900 videos") == 4 and len(re.findall(r"with a manifest: .* \d+ MiB\n", said)) == 2


@pytest.mark.parametrize("name, word, problem", [("data", "rounds=0", "rounds=0"), ("step", "clips=1", "clips=1"),
                                                 ("gpu", "only=[stp]", "nearest: step"),
                                                 ("search", "galery=2", "nearest: gallery")])
def test_a_mistake_is_one_line(script, name, word, problem):
    with pytest.raises(SystemExit, match=problem) as error:
        script(name, word)
    assert len(str(error.value).splitlines()) == 1


def test_a_record_holds_what_runs_left(tmp_path, script):
    """Of two seeds; a swapped list has its name, another split and other experiments do not count."""
    def leave(name, kind, seed=0, subset="test", split=1, **numbers):
        folder = tmp_path / "runs" / name / f"{kind}-{seed}-{split}-{subset}"
        folder.mkdir(parents=True, exist_ok=True)
        result = {"experiment": name, "dataset": "hmdb51", "subset": subset, "split": split, "seed": seed,
                  "test_clips": 10, "n_scored": 7, "n_expected": 7, "git_sha": "abc", **numbers}
        (folder / f"{kind}-{subset}.json").write_text(json.dumps(result))

    for seed in (0, 1):
        for arm, top1 in (("random", 10.0), ("moco", 20.0)):
            leave(f"real-methods-{arm}", "result", seed, top1=top1 + seed)
    leave("real-methods-moco", "result", 1, subset="swapped", top1=99.0)
    leave("real-methods-moco", "result", 2, split=2, top1=99.0)
    leave("real-methods-moco", "linear", top1=30.0, knn=40.0)
    leave("real-methods-moco", "recall", protocol="gap", **{"R@1": 50.0, "R@20": 99.0})
    leave("table1-moco", "result", top1=99.0)
    row = {"experiment": "real-methods-moco", "run": "THIS", "seed": 0, "SHAcc": 60.0, "shuffled": None}
    asked = {"dataset": "hmdb51", "rows": [row]}
    (tmp_path / "runs/suite").mkdir()
    (tmp_path / "runs/suite/robustness-hmdb51-test.json").write_text(json.dumps(asked))
    log = [json.dumps({"step": step, "rankme": step, "contrast_top1": step / 100}) for step in range(10)]
    (tmp_path / "runs/real-methods-moco/pretrain-seed0").mkdir()
    log = "\n".join([*log, '{"step": 9, "probe_linear": 62.5}', '{"step": 9, "loss'])  # cut short
    (tmp_path / "runs/real-methods-moco/pretrain-seed0/metrics.jsonl").write_text(log)
    said = script("record", "question=real-methods", f"out={tmp_path / 'runs'}", f"to={tmp_path}")
    assert "no pre-training: 2, plain MoCo: 2" in said and (tmp_path / "real-methods.png").stat().st_size
    kept = json.loads((tmp_path / "real-methods.json").read_text())
    assert kept["code"] == ["abc"] and [row["hmdb51"] for row in kept["runs"]["no pre-training"]] == [10, 11]
    row = {key: number for key, number in kept["runs"]["plain MoCo"][0].items() if "videos" not in key}
    assert row == {"seed": 0, "hmdb51": 20, "hmdb51 linear": 30, "hmdb51 knn": 40, "hmdb51 R@1": 50, "hmdb51 SHAcc": 60,
                   "pretrain contrast_top1": 8.5, "pretrain rankme": 8.5, "pretrain probe_linear": 62.5}
    assert kept["runs"]["plain MoCo"][1]["hmdb51 swapped"] == 99
    with pytest.raises(SystemExit, match="no test of split 1 of real-gamma-...; entries: real-gamma-0, "):
        script("record", "question=real-gamma", f"out={tmp_path / 'suite'}", f"to={tmp_path}")
    (tmp_path / "runs/robustness-hmdb51-test.json").write_text(json.dumps(asked))
    with pytest.raises(SystemExit, match="another robustness-.*has THIS, too: keep one"):
        script("record", "question=real-methods", f"out={tmp_path / 'runs'}", f"to={tmp_path}")
