"""experiments.yaml holds every row of the paper once, as an experiment that does what the row says, with its number."""

from pathlib import Path

import pytest
import yaml

from be import config
from be.config import experiments, load, paper_numbers

PAPER = yaml.safe_load((Path(__file__).parent / "paper_numbers.yaml").read_text())
SUPERVISED = {"random-init": "random", "imagenet-supervised": "torchvision:googlenet"}
METHODS = {"classify": "k400-supervised", "rotnet": "3d-rotnet", "puzzles": "st-puzzles", "clip_order": "clip-order",
           "moco": "moco"}
BACKBONES = {"c3d": "C3D-10", "i3d": "I3D-22", "r3d18": "R3D-18", "r3d34": "R3D-34"}
DATASETS = {"ucf101": "UCF101", "kinetics400": "K400", "diving48": "Diving48"}


def source(name):
    """The config of the pre-training that an experiment starts from, by way of `pretrained`."""
    cfg = load(name)
    return source(cfg.pretrained) if cfg.pretrained in experiments() else cfg


def said(name):
    """(method, BE, backbone, pre-trained on, frames, pixels) as the config has it, in the words of the tables."""
    cfg = source(name)
    for method, pretrained in SUPERVISED.items():
        if cfg.pretrained == pretrained:
            return method, False, BACKBONES[cfg.backbone], {"random": None}.get(pretrained, "ImageNet"), None, cfg.size
    assert cfg.pretrained == "self" and (load(name).backbone, load(name).size) == (cfg.backbone, cfg.size)
    if cfg.method == "moco":  # the diamond rows of the paper are without both
        assert cfg.hard_negative == (cfg.erase != "none")
    assert cfg.erase in ("none", "intra-video-frame") and cfg.gamma == 0.3 and cfg.erase_side == "query"
    frames = {"classify": None, "clip_order": 3 * cfg.frames + 2 * 8}.get(cfg.method, cfg.frames)
    return METHODS[cfg.method], cfg.erase != "none", BACKBONES[cfg.backbone], DATASETS[cfg.dataset], frames, cfg.size


def rows(table):
    return [name for name, entry in experiments().items() if name.startswith(f"{table}-") and "paper" in entry]


def test_table_1():
    ours = [(*said(name), *(paper_numbers(name)[d] for d in ("ucf101", "hmdb51"))) for name in rows("table1")]
    assert sorted(ours, key=str) == sorted(map(tuple, PAPER["table1"]), key=str)


def test_table_2():
    assert paper_numbers("table2-random") == {"diving48": None}  # of the authors' README, not of the paper
    ours = [(*said(name)[:4], paper_numbers(name)["diving48"]) for name in rows("table2") if name != "table2-random"]
    theirs = [(m, be, {"I3D": "I3D-22"}.get(net, net), *rest) for m, be, net, *rest in PAPER["table2"]]
    assert sorted(ours) == sorted(theirs)
    assert {load(name, stage="finetune").dataset for name in rows("table2")} == {"diving48"}


def test_table_3():
    ours = [(*said(name)[:3], *(paper_numbers(name)[f"R@{k}"] for k in (1, 5, 10, 20, 50))) for name in rows("table3")]
    ours = [(method, be, net.split("-")[0], *recall) for method, be, net, *recall in ours]
    assert sorted(ours) == sorted(map(tuple, PAPER["table3"]))
    for name in rows("table3"):
        cfg = load(name, stage="retrieve")
        assert (cfg.dataset, cfg.split, cfg.protocol) == ("hmdb51", 1, "paper") and source(name).dataset == "ucf101"


def test_table_4():
    ours = []
    for name in rows("table4"):
        cfg = load(name)
        assert (cfg.method, cfg.hard_negative, cfg.backbone, cfg.dataset) == ("moco", True, "i3d", "ucf101")
        ours.append(({"none": "baseline"}.get(cfg.erase, cfg.erase), *paper_numbers(name).values()))
    assert sorted(ours) == sorted(map(tuple, PAPER["table4"]))


def test_figures_with_numbers():
    assert PAPER["figure4"].items() <= paper_numbers("figure4-static").items()
    ours = [tuple(paper_numbers(name).values()) for name in ("figure5-k400", "figure5-moco", "figure5-moco-be")]
    assert ours == [tuple(numbers) for _, *numbers in PAPER["figure5"]]
    # where Figure 5 repeats Table 1, it is the same run
    for name in ("k400", "moco", "moco-be"):
        assert load(f"figure5-{name}").name == f"table1-{name}"
        if (number := paper_numbers(f"figure5-{name}")["hmdb51"]) is not None:
            assert number == paper_numbers(f"table1-{name}")["hmdb51"]


@pytest.mark.parametrize("key, values", [("gamma", [0.1, 0.2, 0.3, 0.5, 0.7, 1]), ("stride", [1, 2, 4, 8])])
def test_sweeps_change_one_key_of_pre_training(key, values):
    parent = load("table1-moco-be-i3d-ucf101")
    for value, name in zip(values, rows(f"sweep-{key}"), strict=True):
        cfg = load(name)
        assert name == f"sweep-{key}-{value:g}" and getattr(cfg, key) == value
        assert {k for k in vars(cfg) if k != "name" and getattr(cfg, k) != getattr(parent, k)} <= {key}
        tuned = load(name, stage="finetune")
        assert tuned == load(parent.name, [f"name={cfg.name}"], "finetune")


def test_a_name_is_an_entry_of_the_same_config():
    """A row that stands for another entry's runs must ask for nothing else."""
    found = {name: entry["same_runs_as"] for name, entry in experiments().items() if "same_runs_as" in entry}
    assert found
    for name, other in found.items():
        for stage in config.STAGES:
            assert load(name, stage=stage) == load(other, stage=stage)
