"""Evidence: the benchmark is what it says it is, the statistics are right, and a question runs, stops and goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from be import evidence, synthetic
from be.config import ConfigError
from be.evidence import QUESTIONS, Arm, Bench, Question, pretrain_name, tune_name

ROOT = Path(__file__).parents[1]


def test_arms_of_one_pretraining_share_it_and_others_do_not(tmp_path):
    settings, tuned = {}, {}
    for question in QUESTIONS.values():
        assert {arm.label for arm in question.arms} >= set(question.baselines)
        assert len({arm.label for arm in question.arms}) == len(question.arms)
        for arm in question.arms:
            bench = Bench("tiny", "data", tmp_path, True)
            for stage, name, known in ("pretrain", pretrain_name(arm), settings), ("finetune", tune_name(arm), tuned):
                if stage == "finetune" or arm.pretrain is not None:
                    cfg = bench.config(stage, arm, 0, 0)
                    assert known.setdefault(name, cfg) == cfg, name
    assert len(settings) == len({str(replace(cfg, name="")) for cfg in settings.values()})


def test_fewer_labels_are_parts_of_more_and_the_steps_stay():
    labels = np.repeat(np.arange(8), 16)
    samples = synthetic_samples(labels)
    kept = [set(evidence.fewer(samples, f, 3).paths.tolist()) for f in (0.125, 0.5, 1.0)]
    assert kept[0] < kept[1] < kept[2] and [len(k) for k in kept] == [16, 64, 128]
    assert np.bincount(evidence.fewer(samples, 0.125, 3).labels).tolist() == [2] * 8
    assert set(evidence.fewer(samples, 0.5, 4).paths.tolist()) != kept[1]
    bench, arm = Bench("tiny", "data", None, True), Arm("x", None)
    all_of_it, part = (bench.config("finetune", arm._replace(fraction=f), 0, 0) for f in (1.0, 0.25))
    assert part.epochs == 4 * all_of_it.epochs and part.lr_steps == [4 * e for e in all_of_it.lr_steps]


def synthetic_samples(labels):
    from be.datasets import Samples

    n = len(labels)
    return Samples("/", np.array([b"%d" % i for i in range(n)]), labels, np.arange(n), [str(i) for i in range(8)])


def test_the_page_says_what_the_records_say():
    records = list((ROOT / "evidence").rglob("*.json"))
    page = (ROOT / "EVIDENCE.md").read_text()
    assert records
    for path in records:
        lines = evidence.tables(json.loads(path.read_text()))
        assert path.with_suffix(".md").read_text().splitlines() == lines
        for table in "\n".join(lines[2:]).split("\n\n"):
            assert table in page, path


def test_the_page_says_what_both_rounds_of_seeds_say_together():
    """The column `all ten` of *Confirmed?*: what stands in no record, for it takes two."""
    page = (ROOT / "EVIDENCE.md").read_text()
    first, second = ({path.stem: json.loads(path.read_text())["runs"] for path in (ROOT / folder).glob("*.json")}
                     for folder in ("evidence", "evidence/confirm"))
    side = {"query": 1, "key": -1}
    for question, weights, measure, said in [
            ("methods-tiny", evidence.FACTORS["hard negative"], "swapped", "+3.0 ± 3.1"),
            ("methods-tiny", evidence.FACTORS["BE"], "linear_scene", "+2.6 ± 1.8"),
            ("methods-tiny", evidence.FACTORS["BE"], "swapped", "-10.7 ± 8.6"),
            ("erase-side-tiny", side, "swapped", "+15.1 ± 7.0"),
            ("erase-side-tiny", side, "linear_scene", "-6.2 ± 2.7")]:
        ten = [sum(weight * np.array(evidence.by_seed(runs[question][label], measure))
                   for label, weight in weights.items()) for runs in (first, second)]
        d = evidence.paired(np.concatenate(ten).tolist(), [0.0] * 10)
        assert f"{d['mean']:+.1f} ± {d['half']:.1f}" == said and said in page


def test_tables_of_several_seeds():
    def runs(*swapped):
        return [{**dict.fromkeys(evidence.MEASURES, 1.0), "seed": n // 2, "tune": n % 2, "swapped": value, "curve": []}
                for n, value in enumerate(swapped)]

    record = {"question": "recipe", "size": "tiny", "version": "v1", "about": "?", "baselines": ["a"],
              "runs": {"a": runs(10.0, 20.0, 30.0, 40.0), "b": runs(20.0, 20.0, 50.0, 60.0)}}  # means 15, 35; 20, 55
    text = "\n".join(evidence.tables(record))
    assert "| a | 1.0 ± 0.0 | 25.0 ± 14.1 |" in text and "mean ± sd of 2 seeds" in text
    assert "+12.5 ± 95.3" in text and "0.344 / 0.500" in text  # 5, 20: t = 12.5 / 7.5, df 1
    four = {"MoCo": runs(1, 1, 2, 2), "MoCo + hard negative": runs(2, 4, 3, 5),  # +2, +2
            "BE without hard negative": runs(0, 0, 1, 1), "MoCo + BE": runs(5, 5, 4, 4)}  # +5, +3: mean 3.5, 2.5
    text = "\n".join(evidence.tables({**record, "question": "methods", "baselines": [], "runs": four}))
    assert "| hard negative " in text and "+3.0 ± 6.4" in text  # 12.706 x 0.5
    weights = evidence.slope([0, 0.1, 1])
    assert list(weights) == ["gamma 0", "gamma 0.1", "gamma 1"]
    line = np.polyfit([0, 0.1, 1], [4.0, 1.0, 7.0], 1)
    assert np.dot(list(weights.values()), [4.0, 1.0, 7.0]) == pytest.approx(line[0])
    assert "+0.0 ± 6.4" in text  # BE: -1 and +2, -1 and 0: mean 0.5, -0.5


def test_a_sweep_is_compared_pair_by_pair_and_drawn_as_curves(tmp_path, monkeypatch):
    asked, base = QUESTIONS["labels"], {"random init": 20.0, "MoCo + hard negative": 30.0, "MoCo + BE": 24.0,
                                        "BE on the query": 31.0}
    runs = {}
    for arm in asked.arms:
        name = arm.label.split(",")[0]
        value = base[name] + 8 * arm.fraction * (name == "BE on the query")
        runs[arm.label] = [{**dict.fromkeys(evidence.MEASURES, 1.0), "seed": seed, "tune": 0, "swapped": value + seed}
                           for seed in (0, 4)]
    record = {"question": "labels", "size": "tiny", "version": "v1", "about": "?", "baselines": [], "runs": runs}
    lines = evidence.tables(record)
    told = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines if line.startswith("| ")}
    assert told["BE on the query, fraction 0.25"] == "35.0 ± 2.8"
    assert not any("linear" in line for line in lines)  # frozen features are those of `methods`
    swapped = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in lines if " minus " in line}
    assert swapped["MoCo + hard negative minus random init"] == "+10.0 ± 0.0"
    assert swapped["BE on the query minus MoCo + hard negative"] == "+4.8 ± 0.0"  # 1 + 8 x 15 / 32
    assert swapped["BE on the query minus MoCo + BE, fraction 0.5"] == "+11.0 ± 0.0"
    assert [arm.fraction for arm in asked.arms[::4]] == [0.125, 0.25, 0.5, 1]

    figures = []
    monkeypatch.setattr(evidence, "save", lambda figure, path: figures.append(figure))
    evidence.plot_sweep(tmp_path / "x.png", record)
    curve = figures[0].axes[1].containers[3].lines[0]  # swapped, BE on the query
    assert curve.get_xydata().tolist() == [[f, 33 + 8 * f] for f in (0.125, 0.25, 0.5, 1)]
    assert len(figures[0].axes) == 3
    for question in QUESTIONS.values():
        labels = {arm.label for arm in question.arms}
        assert all(set(weights) <= labels and abs(sum(weights.values())) < 1e-9
                   for rows in question.effects.values() for weights in rows.values())


def test_a_question_from_videos_to_table_and_again(tmp_path, capsys, monkeypatch):
    """And the benchmark's reason to be: who fine-tunes on biased videos loses before other scenes.

    With seeds 0, 1 and 2 it lost 44, 34 and 31 points here, random init 56, 34 and 41. On 32 videos a list.
    """
    monkeypatch.setattr(synthetic.os, "cpu_count", lambda: 1)
    shape = dict(pretrain=4, train=16, test=4, frames=32, height=40, width=48)  # per class
    monkeypatch.setitem(synthetic.SIZES, "tiny", shape)
    monkeypatch.setitem(QUESTIONS, "one", Question("Does it run?", (), [Arm("BE", {"K": 32}, bias=0.9)]))
    where = dict(data=str(tmp_path / "data"), out=str(tmp_path / "runs"), to=str(tmp_path / "to"))
    evidence.evidence("one", seeds=[0], **where)
    record = json.loads((tmp_path / "to" / "one-tiny.json").read_text())
    (run,) = record["runs"]["BE"]
    assert run["reliance"] == pytest.approx(run["test"] - run["swapped"]) and run["reliance"] > 15
    assert all(0 <= run[m] <= 100 for m in evidence.MEASURES[:4] + evidence.MEASURES[5:9])
    assert 0 < run["actor_frozen"] < 20 and len(run["curve"]) == 6 and run["n_expected"] == 32
    assert (tmp_path / "to" / "one-tiny.png").stat().st_size > 10_000

    monkeypatch.setattr(evidence, "pretrain", None)  # nothing is done twice
    monkeypatch.setattr(evidence, "measure", None)
    capsys.readouterr()
    evidence.evidence("one", seeds=[0], **where)
    assert "pre-training of 0 networks, 1 are done" in capsys.readouterr().out

    monkeypatch.setitem(QUESTIONS, "two", QUESTIONS["one"]._replace(arms=[Arm("again", {"K": 32}, bias=0.9)]))
    elsewhere = dict(where, out=str(tmp_path / "elsewhere"))  # nor where the runs are not, but their record is
    evidence.evidence("two", seeds=[0], known=where["to"], **elsewhere)
    assert json.loads((tmp_path / "to" / "two-tiny.json").read_text())["runs"] == {"again": [run]}
    with pytest.raises(ConfigError, match="there is no record QUESTION-tiny.json"):
        evidence.evidence("two", seeds=[0], known=str(tmp_path), **elsewhere)
    with pytest.raises(TypeError):  # another version's count for nothing
        monkeypatch.setattr(synthetic, "VERSION", "v0")
        evidence.evidence("two", seeds=[0], known=where["to"], **elsewhere)
