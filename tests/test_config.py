"""The registry: what wins over what, and how a typing mistake is answered."""

import dataclasses
import importlib
import os
import sys
import typing

import pytest
from conftest import ROOT

from be import config, datasets
from be.config import Config, ConfigError, load

sys.path.insert(0, str(ROOT))
run = importlib.import_module("run")


def test_every_experiment_resolves_in_every_stage():
    for name, entry in config.experiments().items():
        for stage in config.STAGES:
            for preset in ([], ["recipe=released"], ["recipe=strong"], ["synthetic=true"]):
                assert load(name, preset, stage).name == entry.get("same_runs_as", name)


def test_a_name_is_not_inherited(tmp_path):
    """Else a variant of a row that stands for another's runs would write into them."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("from: table4-intra-video-frame\ngamma: 0.5\n")
    assert load("table4-intra-video-frame").name == "table1-moco-be-i3d-ucf101"
    assert load(str(mine)).name == "mine" and load("table4-intra-video-frame", ["name=other"]).name == "other"


def test_help_has_every_key_once_with_its_group_default_and_meaning():
    rows = [row for group in run.key_groups().values() for row in group]
    assert [key for key, *_ in rows] == [field.name for field in dataclasses.fields(Config)]
    said = {key: (default, meaning) for key, default, meaning in rows}
    assert said["gamma"] == ("0.3", "lam ~ U[0, gamma] (Eq. 1); larger blurs")
    assert said["erase_side"][1] == "query | key | both; the distracted one; both costs MoCo + BE 1.8 times as much"
    assert said["pretrained"][1].endswith("hf:USER/REPO (be/weights.py)")  # a meaning of two lines
    assert all(meaning for _, meaning in said.values())
    assert said["lr_steps"][0] == "[10, 20, 30, 40]"


def test_precedence():
    """defaults <- recipe <- parent <- entry <- synthetic <- typed, and a stage's block counts in that stage only."""
    assert load("table1-moco-be").K == 65536  # the entry over the defaults' 3569
    assert load("table1-moco-be-r3d34-k400").K == 65536  # inherited
    assert load("table1-moco-be").dataset == "kinetics400"
    assert load("table1-moco-be", stage="finetune").dataset == "ucf101"
    assert load("table1-moco-be", stage="finetune").lr == 0.05 and load("table1-moco-be").lr == 0.01
    assert load("table1-moco-be", ["recipe=released"]).lr == 0.003
    assert load("table1-moco-be", ["recipe=released", "lr=1e-4"]).lr == 1e-4
    assert load("table1-moco", ["recipe=released"]).erase == "none"  # a preset does not turn the baseline into BE
    assert load("table1-moco-be", ["synthetic=true"]).data == "data/demo"


# FingerRec/BE's scripts, as the method page of this project has them: batch, epochs, lr, its steps, weight decay, queue
SCRIPTS = {"table1-moco-be": ("kinetics400", 64, 50, 0.003, [], 1e-4, 65536),
           "table1-moco-be-i3d-ucf101": ("ucf101", 4, 200, 0.003, [120, 160], 1e-4, 3569),
           "table2-moco-be-i3d-diving48": ("diving48", 8, 10, 0.003, [], 1e-4, 3569)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_released_recipe_is_that_of_the_data_set(name):
    cfg = load(name, ["recipe=released"])
    assert (cfg.dataset, cfg.batch_size, cfg.epochs, cfg.lr, [*cfg.lr_steps], cfg.weight_decay, cfg.K) == SCRIPTS[name]
    assert (cfg.erase, cfg.erase_side) == ("intra-video-frame-batch-lam", "query")
    assert (cfg.hard_negative_view, cfg.hard_negative_encoder) == ("own", "query")
    assert (cfg.pool, cfg.shuffle_bn) == ("avg", False)
    assert (list(cfg.jitter), cfg.jitter_ops, cfg.m, cfg.temperature) == ([0.5, 0.5, 0.25, 0.5], "one", 0.999, 0.07)
    assert cfg.batch_size // (8 if cfg.dataset == "kinetics400" else 1) == (cfg.bn_group or cfg.batch_size)  # GPUS=8
    steps = {"kinetics400": 50 * (246534 // 64), "ucf101": 476_800, "diving48": 10 * (15027 // 8)}[cfg.dataset]
    assert cfg.epochs * (datasets.DATASETS[cfg.dataset].expected["train", 1] // cfg.batch_size) == steps
    tuned = load(name, ["recipe=released"], "finetune")
    assert (tuned.frames, tuned.stride, tuned.lr, tuned.lr_factor, tuned.batch_size) == (64, 1, 0.001, 0.3, 4)
    assert (list(tuned.lr_steps), tuned.dropout, tuned.weight_decay) == ([10, 20, 25, 30, 35, 40], 0.5, 1e-8)
    assert load(name, ["recipe=released"], "retrieve").protocol == "gap"


def test_the_released_recipe_on_another_data_set():
    """The part of a data set follows what is typed, and what is typed wins over it."""
    cfg = load("table1-moco-be-i3d-ucf101", ["recipe=released", "dataset=hmdb51"])
    assert (cfg.batch_size, cfg.epochs, cfg.lr_steps) == (4, 10, ())
    assert load("table1-moco-be", ["recipe=released", "epochs=7"]).epochs == 7


def test_a_part_for_a_data_set_counts_where_it_is_read(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("from: table1-moco\nfinetune: {stride: 8}\nfor: {hmdb51: {finetune: {stride: 2}}}\n")
    strides = [load(str(mine), words, "finetune").stride for words in ([], ["dataset=hmdb51"],
                                                                      ["dataset=hmdb51", "stride=1"])]
    assert strides == [8, 2, 1] and load(str(mine), ["dataset=hmdb51"]).stride == 4
    mine.write_text("from: table1-moco\nfor: {hmdb51: {strid: 2}}\n")
    with pytest.raises(ConfigError, match="unknown key in .*for hmdb51: 'strid'; nearest: stride"):
        load(str(mine))


def test_what_is_said_of_the_pre_training_does_not_reach_fine_tuning(tmp_path):
    """method, erase and erase_side, typed for all stages of a row, or at the top of an entry."""
    words = ["method=byol", "erase=video-mixup", "erase_side=both"]
    cfg, tuned = load("table1-moco", words), load("table1-moco", words, "finetune")
    assert (cfg.method, cfg.erase, cfg.erase_side) == ("byol", "video-mixup", "both")
    assert (tuned.method, tuned.erase, tuned.erase_side) == ("classify", "none", "query")
    mine = tmp_path / "mine.yaml"
    mine.write_text("from: table1-moco\nerase: video-mixup\n")
    assert load(str(mine), stage="finetune").erase == "none"
    assert load("more-classify-be", stage="finetune").erase == "intra-video-frame"


def test_what_rows_are_compared_with_exists():
    for name, entry in config.experiments().items():
        others = entry.get("against", [])
        for other in [others] if isinstance(others, str) else others:
            assert other in config.experiments() and other != name


def test_the_strong_recipe():
    cfg, tuned = (load("table1-moco-be", ["recipe=strong"], stage) for stage in ("pretrain", "finetune"))
    assert (cfg.epochs, cfg.schedule, cfg.warmup, cfg.temperature, cfg.weight_decay) == (200, "cosine", 10, 0.1, 1e-4)
    assert (tuned.epochs, tuned.batch_size, tuned.lr, tuned.dropout, tuned.schedule) == (150, 128, 0.025, 0.5, "step")
    assert all((c.scale, c.flip) == ((0.2, 1), 0.5) for c in (cfg, tuned))
    assert load("demo-moco-be", ["recipe=strong"]).flip == 0  # left and right are classes of the drawn videos


def test_a_file_is_an_experiment(tmp_path):
    """A diff of one's own, and the config saved with a run, which reads back as itself."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("from: table1-moco-be\ngamma: 0.5\n")
    got = load(str(mine))
    assert (got.name, got.gamma, got.K) == ("mine", 0.5, 65536)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.as_text(got))
    assert load(str(saved)) == got


def test_a_saved_config_that_lacks_a_key_has_its_default(tmp_path):
    """Of an older code: what it did not know stands for the default, what it called otherwise is understood."""
    cfg = load("table1-moco-be")
    saved = tmp_path / "config.yaml"
    lost = ("flip", "scale", "warmup")
    old = [line for line in config.as_text(cfg).splitlines(True) if line.split(":")[0] not in lost]
    saved.write_text("".join(old).replace("pretrained: self", "pretrained: null"))
    assert "flip" not in saved.read_text() and load(str(saved)) == cfg and config.changes(saved, cfg) == ""
    assert config.changes(saved, load("table1-moco-be", ["flip=0.5"])) == "flip: 0.0 -> 0.5"
    assert load("demo-random", ["pretrained=none"]).pretrained == "random"
    saved.write_text(config.as_text(load("table1-moco", ["erase_side=key", "hard_negative_view=a1"])))
    assert config.changes(saved, load("table1-moco")) == ""  # plain MoCo has no distracted side
    assert "erase: none -> intra-video-frame, erase_side: key" in config.changes(saved, load("table1-moco-be"))


@pytest.mark.parametrize("name, overrides, message", [
    ("table1-moko", [], "unknown experiment 'table1-moko'; nearest: table1-moco"),
    ("table1-moco", ["gama=0.1"], "unknown key 'gama'; nearest: gamma"),
    ("table1-moco", ["compile=true", "checkpointing=true"], "compile=true and checkpointing=true do not go together"),
    ("table1-moco", ["epochs=-1"], "epochs=-1 is too small, expected at least 1"),
    ("table1-moco", ["workers=-1"], "workers=-1 is too small, expected at least 0"),
    ("table1-moco", ["log_every=0"], "log_every=0 is too small, expected at least 1"),
    ("table1-moco", ["save_every=0"], "save_every=0 is too small, expected at least 1"),
    ("table1-moco", ["batch_size=-64"], "batch_size=-64 is too small, expected at least 1"),
    ("table1-moco", ["accumulate=0"], "accumulate=0 is too small, expected at least 1"),
    ("table1-moco", ["bn_group=-1"], "bn_group=-1 is too small, expected at least 0"),
    ("table1-moco", ["gamma"], "'gamma' is not of the form key=value"),
    ("table1-moco", ["gamma=much"], "gamma='much' is a text, expected a number"),
    ("table1-moco", ["epochs=1.5"], "epochs=1.5 is a number, expected a whole number"),
    ("table1-moco", ["hard_negative=1"], "hard_negative=1 is a whole number, expected true or false"),
    ("table1-moco", ["seed=true"], "seed=True is true or false, expected a whole number"),
    ("table1-moco", ["erase_side=all"], "erase_side='all' is not one of query, key, both"),
    ("table1-moco", ["scale=[0, 1]"], "scale=[0.0, 1.0] must be null or a range [low, high] of areas in (0, 1]"),
    ("table1-moco", ["scale=[0.5, 1.5]"], "scale=[0.5, 1.5] must be null"),
    ("table1-moco", ["scale=[0.5]"], "scale=[0.5] must be null"),
    ("table1-moco", ["flip=1.5"], "flip=1.5 is too large, expected at most 1"),
    ("table1-moco", ["gamma=1.5"], "gamma=1.5 is too large, expected at most 1"),
    ("table1-moco", ["lr=.nan"], "lr=nan is not finite, expected a number"),
    ("table1-moco", ["hard_negative_gap=.inf"], "hard_negative_gap=inf is not finite, expected a number"),
    ("table1-moco", ["lr_steps=[-1]"], "lr_steps=-1.0 is too small"),
    ("table1-moco", ["temperature=0"], "temperature=0.0 is too small"),
    ("table1-moco", ["jitter=[0.4, 0.4, 0.4]"], "jitter=[0.4, 0.4, 0.4] must be 4 strengths"),
    ("table1-moco", ["flip=-0.5"], "flip=-0.5 is too small, expected at least 0"),
    ("table1-moco", ["warmup=50"], "warmup=50 takes the whole run of epochs=50"),
    ("table1-moco", ["hard_negative_gap=-1"], "hard_negative_gap=-1.0 is too small"),
    ("table1-moco", ["jitter=[0.1"], "the value is not YAML"),
    ("table1-moco", ["jitter=0.1"], "expected a list"),
    ("table1-moco", ["lr_steps=[.inf]"], "lr_steps=inf is not finite, expected a number"),
    ("table1-moco", ["seed=99999999999999999999"], "is too large, expected at most 2147483647"),
    ("table1-moco", ["epochs=2026-02-31"], "the value is not YAML"),
    ("table1-moco", ["classes=[[a]]"], "classes=['a'] is a list, expected a text"),
    ("table1-moco", ["out="], "out= is empty, expected a text"),
    *(("table1-moco", [f"name={name}"], f"name={name} is no name of a folder")
      for name in ("../x", "/x", "a/b", "..", ".")),
    *(("table1-moco", [f"{other}=1"], f"unknown key '{other}'; nearest: {key}") for other, key in (
        ("learning_rate", "lr"), ("bs", "batch_size"), ("arch", "backbone"), ("queue", "K"), ("tau", "temperature"),
        ("wd", "weight_decay"), ("Model", "backbone"), ("optim.weight-decay", "weight_decay"),
        ("finetune.bs", "batch_size"))),
    ("no/such.yaml", [], "cannot read"),
])  # fmt: skip
def test_mistakes_are_answered_with_choices(name, overrides, message):
    with pytest.raises(ConfigError) as error:
        load(name, overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_mistakes_in_a_file(tmp_path):
    for text, message in [("gama: 1", "unknown key in .*: 'gama'"), ("pretrain: {gama: 1}", "key in .*: 'gama'"),
                          ("[1, 2]", "expected keys and values"), ("a: [", "is not YAML"),
                          ("from: nothing", "unknown experiment 'nothing'"), ("from: [a]", "unknown experiment"),
                          ("pretrain: 3", "bad.yaml, pretrain holds 3, expected keys and values"),
                          ("for: [ucf101]", "bad.yaml: for cannot be .'ucf101'."),
                          ("for: {ucf101: }", "for ucf101 holds None"),
                          ("pretrain: {from: a}", "unknown key in .*: 'from'"),
                          ("pretrained: {a: 1}", "is keys and values, expected"),
                          ("finetune: {lr: fast}", "bad.yaml, finetune: lr='fast' is a text, expected a number"),
                          ("retrieve: {memory_gb: -1}", "retrieve: memory_gb=-1.0 is too small"),
                          ("for: {hmdb51: {finetune: {dropout: 1.5}}}", "dropout=1.5 is too large"),
                          ("a: 2026-02-31", "is not YAML"), ("[" * 5000, "is not YAML"),
                          ("a: {lr: 1}\na: {lr: 2}", "a is given twice"),
                          ("a: {lr: 1, lr: 1}", "lr is given twice")]:  # fmt: skip
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message.replace("'", ".")):
            load(str(path))


def test_arguments_follow_the_signature():
    def verb(root: str, count: int = 3, bias: float = 0.5): ...

    assert config.arguments(verb, ["root=x", "count=4", "bias=1"]) == {"root": "x", "count": 4, "bias": 1.0}
    with pytest.raises(ConfigError, match="unknown key 'cont'; nearest: count"):
        config.arguments(verb, ["cont=4"])
    with pytest.raises(ConfigError, match="expected a whole number"):
        config.arguments(verb, ["count=many"])

    def several(names: list[str] = ()): ...

    assert config.arguments(several, ["names=[a, b]"]) == {"names": ["a", "b"]}

    def another(workers: int | None = None): ...

    for hint in int | None, typing.Union[int, None]:  # noqa: UP007  the second is what Python 3.10 makes of the first
        another.__annotations__["workers"] = hint
        assert config.arguments(another, ["workers=16"]) == {"workers": 16}
        assert config.arguments(another, ["workers=null"]) == {"workers": None}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
@pytest.mark.parametrize("quota, count", [(None, 1), ("max 100000", 1), ("50000 100000", 1)])
def test_cores_are_the_jobs_not_the_nodes(tmp_path, monkeypatch, quota, count):
    """SLURM gives a job of one core on a node of many its affinity, Docker a quota."""
    all_of_them = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(config, "CPU_MAX", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    os.sched_setaffinity(0, [min(all_of_them)])
    try:
        assert config.cores() == count
    finally:
        os.sched_setaffinity(0, all_of_them)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert config.cores() == {None: 64, "max 100000": 64, "50000 100000": 1}[quota]
    (tmp_path / "cpu.max").write_text("150000 100000")
    assert config.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    (tmp_path / "cpu.max").unlink()
    assert config.cores() == 128


def test_text_stays_as_typed(tmp_path, monkeypatch):
    """YAML would make a date, a number, a bool or null of it; quotes and null keep their meaning where there is one."""
    for text in ("2026-09-30", "007", "yes", "1e3", "null", "a: b", "[x", "2026-02-31", "x #1"):
        assert load("demo-moco", [f"name={text}"]).name == text
    cfg = load("demo-moco", ["name='a b'", "test_data=null", "classes=[No, 007, 'x']", "pretrained=null"])
    assert (cfg.name, cfg.test_data, cfg.classes, cfg.pretrained) == ("a b", None, ("No", "007", "x"), "self")

    def verb(target: str, words: str | None = None): ...

    assert config.arguments(verb, ["target=1", "words=2"]) == {"target": "1", "words": "2"}
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "mine.yaml").write_text("from: demo-moco\ntest_data: ~/there")
    cfg = load(str(tmp_path / "mine.yaml"), ["out=~/runs", "data=~", "pretrained=~/x.pth"])
    assert (cfg.out, cfg.data, cfg.pretrained, cfg.test_data) == (
        "/home/me/runs", "/home/me", "/home/me/x.pth", "/home/me/there")
    assert config.arguments(verb, ["target=~/x"]) == {"target": "/home/me/x"}
