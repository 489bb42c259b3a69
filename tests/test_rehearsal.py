"""`synthetic=true`: any experiment of the registry runs on a laptop, from pre-training to the 10-clip test."""

import json
import math

import pytest
from conftest import TINY

from be import config, evaluate, train
from be.runs import read_metrics

METHODS = {
    "moco": "demo-moco-be",
    "rotnet": "table1-rotnet-be",
    "puzzles": "table1-puzzles-be",
    "clip_order": "table1-clip-order-be",
    "simclr": "more-simclr-be",
    "byol": "more-byol-be",
    "triplet": "more-triplet-be",
    "pace": "more-pace-be",
    "arrow_of_time": "more-arrow-of-time-be",
    "order_verification": "more-order-verification-be",
}


def load(name, tiny, out, stage="pretrain"):
    return config.load(name, [*TINY, "synthetic=true", f"data={tiny}", f"out={out}", "epochs=1"], stage)


@pytest.mark.parametrize("method, name", METHODS.items())
def test_all_stages(tiny, tmp_path, method, name):
    """Every method: pretrain -> finetune -> 10-clip test."""
    cfg = load(name, tiny, tmp_path)
    assert cfg.method == method and cfg.erase != "none"
    train.pretrain(cfg)
    lines = read_metrics(tmp_path / name / "pretrain-seed0")
    assert len(lines) == 4 and all(math.isfinite(line["loss"]) for line in lines)
    assert {"be", "positive"} & lines[0].keys()  # the stats of the method, with BE in it

    train.finetune(load(name, tiny, tmp_path, "finetune"))
    evaluate.evaluate(load(name, tiny, tmp_path, "finetune"))
    path = tmp_path / name / "finetune-ucf101-split1-seed0"
    result = json.loads((path / "result-test.json").read_text())
    assert result["n_scored"] == result["n_expected"] == 16 and 0 <= result["top1"] <= 100
