"""The record and the figure of a question of docs/EVIDENCE.md, from finished runs.

    python benchmarks/record.py question=real-methods out=runs      -> docs/evidence/real-methods.json and .png

A number a measure and seed, for each entry QUESTION-... of experiments.yaml that has been tested; an arm is called by
the `about` of its entry. `ucf101` is top-1 after fine-tuning; `ucf101 linear`, `ucf101 knn` and `ucf101 R@1` are of the
frozen backbone; what `robustness` has asked bears its name, such as `hmdb51 frozen`. All in %, of the list `test`.
`ucf101 swapped` and its like are of the other lists of drawn videos.
`pretrain contrast_top1` and its like are of the batches of pre-training, the mean of the last fifth of the log's lines:
how often the positive is nearest; the similarity (x 100) of positive and hard negative to the query; RankMe of a batch.
`pretrain probe_linear` and `probe_linear_scene` are of the last probe: class and scene, read by a linear layer.
"""

import json
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

import av
import torch

from be.bias import QUESTIONS
from be.config import UserError, arguments, experiments
from be.report import COLOURS, index, panels, runs_of, save
from be.runs import RunError, read_metrics, read_results, write_text

ROOT = Path(__file__).parents[1]
NAMES = {"linear": {"top1": " linear", "knn": " knn"}, "recall": {f"R@{k}": f" R@{k}" for k in (1, 5, 10)},
         "result": {"top1": ""}}
PRETRAINED = {"contrast_top1": 100, "positive": 100, "hard_negative": 100, "rankme": 1, "probe_linear": 1,
              "probe_linear_scene": 1}
DRAWN = 6  # measures in the figure, at most


def measures(out: Path, split: int) -> dict[tuple, dict[str, float]]:
    """{(experiment, seed): {measure: number}}"""
    found = {}
    for kind, names in NAMES.items():
        for (experiment, what, metric), results in index(read_results(out, kind)).items():
            for (of, seed), result in results.items():
                if metric in names and of == split:
                    name = what.split(",")[0].removesuffix(" test") + names[metric]
                    found.setdefault((experiment, seed), {})[name] = round(result[metric], 3)
                    found[experiment, seed][f"{name}, videos"] = result["n_scored"]
    for file in sorted(out.rglob("robustness-*-test.json")):
        about = json.loads(file.read_text())
        for row in about["rows"]:
            numbers = {f"{about['dataset']} {what}": round(row[what], 3) for what in QUESTIONS
                       if row.get(what) is not None}
            known = found.setdefault((row["experiment"], row["seed"]), {})
            if known.keys() & numbers:
                raise RunError(f"{file}: another robustness-*.json below {out} has {row['run']}, too: keep one")
            known.update(numbers)
    for (experiment, seed), known in found.items():
        lines = read_metrics(out / experiment / f"pretrain-seed{seed}")
        for name, scale in PRETRAINED.items():
            if values := [line[name] for line in lines if name in line]:
                known[f"pretrain {name}"] = round(scale * mean(values[-(len(values) // 5 or 1):]), 3)
    return found


def record(question: str, out: str = "runs", to: str = str(ROOT / "docs/evidence"), split: int = 1):
    """Writes TO/QUESTION.json, and TO/QUESTION.png: a dot a seed, a line at the mean."""
    names = [name for name in experiments() if name.startswith(f"{question}-")]
    found, runs = measures(Path(out), split), {}
    for name in names:
        rows = [{"seed": seed, **numbers} for (of, seed), numbers in sorted(found.items()) if of == runs_of(name)]
        if rows:
            runs[experiments()[name]["about"]] = rows
    if not runs:
        raise RunError(f"{out} has no test of split {split} of {question}-...; entries: {', '.join(names) or 'none'}")
    codes = {r["git_sha"] for r in read_results(Path(out)) if any(r["experiment"] == runs_of(name) for name in names)}
    about = {"question": question, "split": split, "code": sorted(codes), "torch": torch.__version__,
             "av": av.__version__}
    path = Path(to) / f"{question}.json"
    lines = [f"  {json.dumps(arm)}: [\n   " + ",\n   ".join(map(json.dumps, rows)) + "]" for arm, rows in runs.items()]
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
    write_text(path, f"{{\n{head} \"runs\": {{\n" + ",\n".join(lines) + "\n }\n}\n")
    draw(runs, path.with_suffix(".png"))
    print(f"written to {path} and .png: " + ", ".join(f"{arm}: {len(rows)}" for arm, rows in runs.items()))


def draw(runs: dict[str, list[dict]], path: Path):
    told = dict.fromkeys(name for rows in runs.values() for row in rows for name in row)
    shared = [name for name in told if name != "seed" and not name.endswith(", videos")
              and (len(runs) == 1 or sum(any(name in row for row in rows) for rows in runs.values()) > 1)]
    shared = sorted(shared, key=lambda name: " " in name)[:DRAWN]  # fine-tuned networks first
    figure, axes = panels(1, len(shared), 2.2 + 1.2 / len(shared), 0.4 + 0.3 * len(runs), f"{path.stem}, %")
    for name, axis in zip(shared, axes, strict=True):
        for place, rows in enumerate(runs.values()):
            if values := [row[name] for row in rows if name in row]:
                axis.plot(values, [-place] * len(values), "o", ms=3, color=COLOURS[place % len(COLOURS)])
                axis.plot([sum(values) / len(values)] * 2, [-place - 0.3, 0.3 - place], color="black")
        axis.set(title=name, yticks=[-place for place in range(len(runs))], yticklabels=[*runs])
        axis.tick_params(labelleft=axis is axes[0])
    save(figure, path)


if __name__ == "__main__":
    try:
        record(**arguments(record, sys.argv[1:]))
    except UserError as problem:
        sys.exit(f"benchmarks/record.py: {problem}")
