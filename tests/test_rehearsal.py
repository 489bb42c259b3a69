"""`synthetic=true`: any experiment of the registry runs on a laptop, from pre-training to the 10-clip test."""

import json
import math

import pytest
from conftest import TINY

from be import config, evaluate, train
from be.objectives import OBJECTIVES
from be.runs import read_metrics

# One experiment per method, the first of the file that BE is part of
FIRST = {cfg.method: cfg.name for cfg in map(config.load, reversed(config.experiments()))
         if cfg.erase != "none" and cfg.pretrained == "self"}


def load(name, tiny, out, stage="pretrain"):
    return config.load(name, [*TINY, "synthetic=true", f"data={tiny}", f"out={out}", "epochs=1"], stage)


def test_every_method_has_an_experiment():
    assert FIRST.keys() == OBJECTIVES.keys() - {"classify"}


@pytest.mark.parametrize("name", FIRST.values())
def test_all_stages(tiny, tmp_path, name):
    """Every method: pretrain -> finetune -> 10-clip test."""
    train.pretrain(load(name, tiny, tmp_path))
    lines = read_metrics(tmp_path / name / "pretrain-seed0")
    assert len(lines) == 4 and all(math.isfinite(line["loss"]) for line in lines)
    assert {"be", "positive"} & lines[0].keys()  # the stats of the method, with BE in it

    train.finetune(load(name, tiny, tmp_path, "finetune"))
    evaluate.evaluate(load(name, tiny, tmp_path, "finetune"))
    path = tmp_path / name / "finetune-ucf101-split1-seed0"
    result = json.loads((path / "result-test.json").read_text())
    assert result["n_scored"] == result["n_expected"] == 16 and 0 <= result["top1"] <= 100
