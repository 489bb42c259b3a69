"""The README keeps its word: its diffs apply, train and leave the tests green, and what it names exists."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY
from test_rooms import ROWS

from be import config, datasets

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOUCHED = ["tests/test_config.py", "tests/test_registry.py", "tests/test_erase.py", "tests/test_objectives.py", "-k",
           "not at_112 and not two_processes and not learns"]  # those are slow, and name the methods they try


def diffs():
    """Of each block of the page: [(file, its lines), ...]"""
    for block in re.findall(r"```diff\n(.*?)```", README, re.S):
        parts = re.split(r"^# (\S+)\n", block, flags=re.M)
        yield [(file, lines.splitlines()) for file, lines in zip(parts[1::2], parts[2::2], strict=True)]


def apply(lines, text):
    """Puts the added lines where the context lines say, or at the end where there are none."""
    added, out, rest = [], [], text.splitlines()
    for line in lines:
        if line.startswith("+"):
            added.append(line[1:])
        else:
            place = rest.index(line[1:])
            out += rest[:place] + added + [line[1:]] * (line[0] == " ")
            rest, added = rest[place + 1 :], []
    return "\n".join(out + added + rest if out else rest + added) + "\n"


def test_a_fork_trains_and_stays_green(tiny, tmp_path):
    """All diffs of the page in a copy of the project: the training commands, then the tests that they touch."""
    fork, out, names = tmp_path / "fork", tmp_path / "runs", []
    fork.mkdir()
    for part in ("be", "tests", "run.py", "experiments.yaml", "pyproject.toml"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, fork / part)
    for block in diffs():
        for file, lines in block:
            (fork / file).write_text(apply(lines, (fork / file).read_text()))
            names += re.findall(r"^\+(demo-[\w-]+):", "\n".join(lines), re.M)
    assert len(names) == 6
    data = {"demo-mine": own_videos(tiny, tmp_path / "mine")}
    typed = [["pretrain", "--cfg", name, f"data={data.get(name, tiny)}", f"out={out}", *TINY] for name in names]
    script = f"""import pytest, sys, run
for words in {typed!r}:
    assert run.main(words) == 0
sys.exit(pytest.main(["-x", *{TOUCHED!r}]))"""  # one process: torch takes seconds to load
    done = subprocess.run([sys.executable, "-c", script], cwd=fork, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert all((out / name / "pretrain-seed0/backbone.safetensors").exists() for name in names)


def own_videos(tiny, root):
    """The videos of a drawn UCF101 as a user's own, in his own list of `PATH LABEL`."""
    (root / "plain").mkdir(parents=True)
    samples = datasets.load("ucf101", tiny, "train", 1)
    listed = [f"{samples.path(i)} {label}\n" for i, label in enumerate(samples.labels)]
    (root / "plain/train.txt").write_text("".join(listed))
    return root


def test_make_targets_and_experiments_exist():
    pages = "\n".join(page.read_text() for page in PAGES)
    targets = sorted({*re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", pages, re.M)})
    command = ["make", "-n", f"PYTHON={sys.executable}", *targets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "run.py pretrain --cfg table1-moco-be" in done.stdout, done.stderr
    known = config.experiments().keys() | {"NAME"}
    assert set(re.findall(r"--cfg ([\w-]+)", README)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_table_and_the_drawing_of_rooms_are_what_is_tested():
    table = README.split("| layer | module | holds |\n|---|---|---|\n")[1].split("\n\n")[0]
    expected = [("" if i else str(n), room) for n, row in enumerate(ROWS, 1) for i, room in enumerate(row)]
    assert re.findall(r"^\| (\d?) ?\| `(\w+)`", table, re.M) == expected
    drawn = re.findall(r"^ (\d)   ((?:\w+  ?)+) {3}", (ROOT / "docs/HOUSE.md").read_text(), re.M)
    assert [(int(n), rooms.split()) for n, rooms in drawn] == [*enumerate(ROWS, 1)][::-1]
