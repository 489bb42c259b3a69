"""What docs/ says was measured, against its records: numbers of tables are computed again, the text has no others."""

import json
import math
import re
from itertools import combinations
from statistics import mean, stdev

import pytest
from conftest import ROOT
from scipy.stats import linregress, t, ttest_rel

from be import train

PAGES = [ROOT / "docs/EVIDENCE.md", *(ROOT / "docs/evidence" / name for name in (
    "real-methods.md", "real-erase.md", "drawn.md", "previous-default.md"))]
PAGE = "\n".join(page.read_text() for page in PAGES)
README = (ROOT / "README.md").read_text().split("## Numbers")[1].split("\n## ")[0]
TABLES = [(page.parent, *found) for page in PAGES  # folder, files, header, rows
          for found in re.findall(r"^Records?: (.+)\n\n\|(.+)\|\n\|.+\n((?:\|.*\n)+)", page.read_text(), re.M)]
PAIRS = {  # what two arms of each pair differ in, alike
    "hard negative, mean of two pairs": [("MoCo + hard negative", "MoCo"), ("MoCo + BE", "BE without hard negative")],
    "BE on the key, mean of two pairs": [("BE without hard negative", "MoCo"), ("MoCo + BE", "MoCo + hard negative")],
    "BE, with and without the hard negative": [
        ("MoCo + BE on the query", "MoCo with the hard negative"),
        ("BE on the query without the hard negative", "plain MoCo")],
    "hard negative, with and without BE": [
        ("MoCo with the hard negative", "plain MoCo"),
        ("MoCo + BE on the query", "BE on the query without the hard negative")],
    "BE, mean of three tasks": [(f"{task} + BE", task) for task in ("rotnet", "puzzles", "clip_order")],
}


def numbers(runs, arm, measure):
    """Of one measure, {seed: number}, of the seeds that have it. `ucf101 frozen loss` is original less frozen."""
    if measure.endswith(" loss"):
        low = numbers(runs, arm, measure.removesuffix(" loss"))
        high = numbers(runs, arm, f"{measure.split()[0]} original")
        return {seed: high[seed] - low[seed] for seed in low}
    key = {"gap": "reliance"}.get(measure, measure.replace(" ", "_"))
    found = {run["seed"]: run.get(measure, run.get(key)) for run in runs[arm]}
    return {seed: found[seed] for seed in sorted(found) if found[seed] is not None}


def values(runs, corner, row, column):
    """What a cell is the mean of, a number a seed, and if it is a difference. A corner such as `swapped at bias` says
    that the columns are values of the bias."""
    measure, _, x = corner.partition(" at ")
    measure = measure or column
    at = sorted({arm.split(f", {x} ")[1] for arm in runs}) if column == "mean" else [column]
    if row == "slope for 1 of gamma":
        gammas = [float(arm.split()[1]) for arm in runs]
        columns = (numbers(runs, arm, measure).values() for arm in runs)
        return [linregress(gammas, y).slope for y in zip(*columns, strict=True)], True
    if pairs := PAIRS.get(row) or [row.split(" minus ")] * (" minus " in row):
        arms = [[f"{arm}, {x} {value}" if x else arm for arm in pair] for pair in pairs for value in at]
        paired = [(numbers(runs, a, measure), numbers(runs, b, measure)) for a, b in arms]
        shared = sorted(set.intersection(*(p.keys() & q.keys() for p, q in paired)))  # the seeds that all have
        return [mean(p[seed] - q[seed] for p, q in paired) for seed in shared], True
    return [*numbers(runs, f"{row}, {x} {column}" if x else row, measure).values()], False


def cell(runs, corner, row, column):
    """A cell as it must read."""
    found, difference = values(runs, corner, row, column)
    if not found:
        return "-"
    if not difference:
        return f"{mean(found):.1f} ± {stdev(found):.1f}"
    return f"{mean(found):+.1f} ± {half(found):.1f}"


def half(found):
    """Of the 95 % t interval."""
    return t.ppf(0.975, len(found) - 1) * stdev(found) / len(found) ** 0.5


def leaves_0_out(runs, a, b, measure):
    found, _ = values(runs, "", f"{a} minus {b}", measure)
    return abs(mean(found)) > half(found)  # not rounded, as the tables are


@pytest.mark.parametrize("folder, files, header, rows", TABLES, ids=range(len(TABLES)))
def test_a_table_follows_from_its_records(folder, files, header, rows):
    runs, (corner, *columns) = {}, map(str.strip, header.split("|"))
    for file in re.findall(r"\]\((\S+\.json)\)", files):
        for arm, found in json.loads((folder / file).read_text())["runs"].items():
            runs.setdefault(arm, []).extend(found)
    for row, *cells in (map(str.strip, line.strip("|").split("|")) for line in rows.splitlines()):
        if corner.endswith(" of seed"):  # 0, 1, ...
            found, _ = values(runs, "", row, corner.removesuffix(" of seed"))
            assert (columns, cells) == ([*map(str, range(len(found)))], [f"{x:+.1f}" for x in found]), row
            continue
        if columns[0] == "seeds":
            seeds = {len(values(runs, corner, row, column)[0]) for column in columns[1:]} - {0}
            assert {cells.pop(0)} == {*map(str, seeds)}, row
        assert cells == [cell(runs, corner, row, column) for column in columns if column != "seeds"], row


def test_the_text_has_no_other_numbers():
    told, held = (set(re.findall(r"[+-]?\d+\.\d ± \d+\.\d", " ".join(text.split())))
                  for text in (PAGE + README, "".join(rows for *_, rows in TABLES)))  # fmt: skip
    assert len(TABLES) > 9 and told <= held


def told_apart(runs, measures, but=()):
    """(differences of all pairs of arms, how many of them leave 0 out)."""
    found = [leaves_0_out(runs, a, b, measure) for measure in measures
             for a, b in combinations([arm for arm in runs if arm not in but], 2)]
    return len(found), sum(found)


def p_value(runs, measure, a, b):
    return ttest_rel(*([*numbers(runs, arm, measure).values()] for arm in (a, b))).pvalue


def test_how_many_of_all_pairs_are_told_apart():
    """After fine-tuning: as many as the page says, and the p that it gives."""
    real, drawn = (json.loads((ROOT / f"docs/evidence/{name}.json").read_text())["runs"]
                   for name in ("real-methods", "evidence"))
    page = " ".join(PAGE.split())
    pairs, told = told_apart(real, ("ucf101", "hmdb51"))
    assert f"Of the {pairs} pairs of arms {told} are told apart" in page
    p = p_value(real, "ucf101", "BE on the query without the hard negative", "plain MoCo")
    assert f"p is {p:.4f}, times thirty" in page
    lists = [f"ucf101{name}" for name in ("", " swapped", " static", " background")]
    pairs, told = told_apart(drawn, lists, but=("no pre-training", "pre-trained with labels"))
    assert f"Of {pairs} differences between the twelve contrastive arms, on four lists, {told} leave 0 out" in page
    p = p_value(drawn, "ucf101 swapped", "BE on the key", "MoCo + BE on the query")
    assert page.count(f"in each of five seeds (p {p:.2f})") == 2
    scene = [mean(numbers(drawn, arm, "pretrain probe_linear_scene").values()) for arm in drawn
             if arm not in ("no pre-training", "pre-trained with labels")]
    assert f"of every contrastive arm at {int(min(scene))} to {math.ceil(max(scene))} %" in page


def test_what_single_seeds_of_real_erase_had():
    def of(file, arm, measure, seeds):
        runs = json.loads((ROOT / f"docs/evidence/{file}.json").read_text())["runs"]
        return [f"{numbers(runs, arm, measure)[seed]:.1f}" for seed in seeds]

    page, hn, be = " ".join(PAGE.split()), "MoCo with the hard negative", "MoCo + BE on the query"
    both = ["{}, {} and {}".format(*of(file, hn, "hmdb51", (0, 1)), *of(file, be, "hmdb51", (0,)))
            for file in ("gpu/real-methods", "real-methods")]
    assert f"on HMDB51's part {both[0]}, where the CPU has {both[1]}" in page
    cut, none = (of("real-erase", arm, "ucf101", (0, 1)) for arm in (
        "a region of another video's frame", "nothing distracts; the hard negative stays, as in Table 4"))
    assert page.count(f"({' and '.join(cut)}; none has {' and '.join(none)} there)") == 1
    assert f"({', '.join(cut)}; none: {', '.join(none)})" in page
    gamma = [of("real-gamma", f"BE, lam ~ U[0, {gamma}]", "hmdb51", (0,))[0] for gamma in (0.1, 0.5, 0.7)]
    assert "part: {}, {} and {} for gamma 0.1, 0.5 and 0.7".format(*gamma) in page


def test_what_a_gpu_said():
    """Rows of docs/GPU.md against the record; C3D's share of the peak against what `plan` takes."""
    record = {one["name"]: one for one in json.loads((ROOT / "docs/evidence/gpu-h100.json").read_text())}
    rows = {row[0]: row[-1] for row in re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", (ROOT / "docs/GPU.md").read_text(),
                                                re.M)}
    assert [*rows] == [*record]
    for name, row in rows.items():
        assert ("missed" in row) is not record[name]["reached"], name
        said = [number for numbers in record[name]["found"].values() for number in numbers]
        if name in ("step", "compile", "memory"):
            assert [float(x) for x in re.findall(r"\d+\.\d+|\d+(?=[, ]+\d+, 5|, 5 %| %)", row)] == said, name
    rate = float(re.search(r"c3d.*?MoCo\+BE +\d+ +[\d.]+ +(\S+)", record["step"]["said"], re.S)[1])  # GFLOP/s
    assert round(rate / 1e3 / train.GPUS["H100"], 2) == train.SHARE["c3d"]


def test_what_the_tests_of_bias_said_follows_from_the_record():
    runs = json.loads((ROOT / "docs/evidence/real-methods.json").read_text())["runs"]
    table = (ROOT / "docs/BIAS.md").read_text().split("Record: [real-methods]")[1].split("\n\n")[1]
    (_, *arms), _, *rows = ([part.strip() for part in line.strip("|").split("|")] for line in table.splitlines())
    assert len(arms) == 4 and len(rows) > 15
    told_apart = {arm: {} for arm in arms[2:]}
    for question, *cells in rows:
        measure = f"hmdb51 {question.rstrip(' ↑↓')}"
        assert cells == [cell(runs, "", arm, measure) for arm in arms], question
        for arm, found in told_apart.items():
            if leaves_0_out(runs, arm, "plain MoCo", measure):
                found[question.rstrip(" ↑↓")] = cell(runs, "", f"{arm} minus plain MoCo", measure)
    assert [*told_apart.values()] == [  # as the page says
        {"static body": "+2.6 ± 1.7"},
        {"shuffled": "-1.2 ± 1.2", "SBErr": "-1.3 ± 1.0", "static body": "+3.9 ± 3.7"}]


def test_what_is_said_of_decoding_was_printed():
    """Rows of docs/BENCHMARKS.md against evidence/decoding.txt, and its ratios against its rates."""
    record = (ROOT / "docs/evidence/decoding.txt").read_text().replace("\nyours ", "\nucf101 ")
    rows = re.findall(r"^\| (raw|xvid|jpeg|ucf101|copy) +\| (\w.+?) +\| ([\d.]+) +\|(.+)\|$",
                      (ROOT / "docs/BENCHMARKS.md").read_text(), re.M)
    assert len(rows) == 20
    for file, workload, rate, others in rows:
        cells = [cell for cell in map(str.strip, others.split("|")) if cell]
        line = r" +".join(map(re.escape, [file, workload, f"{rate} (1.00)", *cells]))
        assert re.search(f"^{line}$", record, re.M), (file, workload)
        for other, ratio in (cell.strip(")").split(" (") for cell in cells):
            assert float(rate) / float(other) == pytest.approx(float(ratio), rel=0.05)
