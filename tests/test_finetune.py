"""Which epoch is kept: the last one, or the best one on a part of the training list that is not trained on."""

import pytest
import torch
from conftest import TINY

from be import config, datasets, runs, train, weights


def stub(monkeypatch, tops):
    """Training in which epoch e sets every weight to e; of the held-out list tops[e - 1] is then answered right."""
    seen = {}

    def fit(objective, samples, cfg, run, accelerator, at_epoch):
        seen["trained"] = {*samples.paths.tolist()}
        for epoch in range(1, 1 + len(tops)):
            for p in objective.parameters():
                torch.nn.init.constant_(p, epoch)
            seen["epoch"] = epoch
            if at_epoch:
                run.log(step=epoch, epoch=epoch, **at_epoch(epoch))

    def classify(model, samples, cfg, accelerator):
        seen["held"] = {*samples.paths.tolist()}
        label, right = torch.from_numpy(samples.labels), round(len(samples) * tops[seen["epoch"] - 1])
        answer = torch.where(torch.arange(len(samples)) < right, label, (label + 1) % 8)
        return torch.eye(8)[answer], torch.ones(len(samples), dtype=torch.bool)

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "classify", classify)
    monkeypatch.setattr(train, "HELD_OUT", 0.25)
    return seen


@pytest.mark.parametrize("select, epoch", [("last", 4), ("holdout", 2)])
def test_the_epoch_that_is_kept(tiny, tmp_path, monkeypatch, select, epoch):
    seen = stub(monkeypatch, [0.25, 0.75, 0.75, 0.5])  # of equals, the first
    train.finetune(config.load("demo-random", [*TINY, f"data={tiny}", f"out={tmp_path}", f"select={select}"],
                                  "finetune"))
    path = tmp_path / "demo-random/finetune-ucf101-split1-seed0"
    about = weights.read_about(path / "model.safetensors")
    model = train.objectives.build("classify", train.load_backbone(config.load(
        "demo-random", TINY, "finetune")), {"frames": 8, "stride": 2, "classes": 8})
    weights.load_weights(path / "model.safetensors", model)
    assert all((p == epoch).all() for p in model.parameters())
    assert not (path / "best.safetensors").exists()
    every = {*datasets.load("ucf101", tiny, "train").paths.tolist()}
    if select == "last":
        assert seen["trained"] == every and "held" not in seen and "epoch" not in about
        return
    assert (about["epoch"], about["holdout_top1"]) == (2, 75)
    assert seen["trained"] | seen["held"] == every and not seen["trained"] & seen["held"]
    assert [line["holdout_top1"] for line in runs.read_metrics(path)] == [25, 75, 75, 50]


def test_a_backbone_that_is_not_there(tmp_path):
    cfg = config.load("demo-moco", [*TINY, f"out={tmp_path}", "pretrained=demo-moko"], "finetune")
    with pytest.raises(runs.RunError, match="demo-moko/pretrain-seed0/backbone.safetensors does not exist: .*: none"):
        train.load_backbone(cfg)
    for name in "demo-moco/pretrain-seed0", "mine/pretrain-seed0", "other/pretrain-seed1", "half/pretrain-seed0":
        (tmp_path / name).mkdir(parents=True)
        if not name.startswith("half"):
            (tmp_path / name / "backbone.safetensors").touch()
    with pytest.raises(runs.RunError, match="pre-training of demo-moko .*: demo-moco, mine$"):
        train.load_backbone(cfg)
