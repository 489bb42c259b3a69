"""The README keeps its word: its diffs apply, train and leave the tests green, and what it names exists."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY
from test_rooms import ROWS

from be import config

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHARED = ["tests/test_config.py", "tests/test_registry.py"]  # read experiments.yaml


def diffs():
    return [block.splitlines() for block in re.findall(r"```diff\n(.*?)```", README, re.S)]


def apply(lines, text):
    """Puts the added lines where the context lines say, or at the end where there are none."""
    added, out, rest = [], [], text.splitlines()
    for line in lines:
        if line.startswith("+"):
            added.append(line[1:])
        else:
            place = rest.index(line[1:])
            out += rest[:place] + added + [line[1:]]
            rest, added = rest[place + 1 :], []
    return "\n".join(out + added + rest if out else rest + added) + "\n"


@pytest.mark.parametrize("number, file, name, tests", [
    (0, "be/erase.py", "demo-moco-mean-frame", ["tests/test_erase.py"]),
    (2, "be/objectives.py", "demo-simsiam-be", ["tests/test_objectives.py", "-k", "not at_112 and not two_processes"]),
])  # fmt: skip
def test_a_fork_trains_and_stays_green(number, file, name, tests, tiny, tmp_path):
    """A code block and the YAML block behind it, in a copy of the project: the training command, then its tests."""
    code, entry = diffs()[number : number + 2]
    assert len(code) + len(entry) < 30
    fork, out = tmp_path / "fork", tmp_path / "runs"
    fork.mkdir()
    for part in ("be", "tests", "run.py", "experiments.yaml", "pyproject.toml"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, fork / part)
    for path, lines in ((fork / file, code), (fork / "experiments.yaml", entry)):
        path.write_text(apply(lines, path.read_text()))
    words = ["pretrain", "--cfg", name, f"data={tiny}", f"out={out}", *TINY]
    for command in (["run.py", *words], ["-m", "pytest", "-x", *SHARED, *tests]):
        done = subprocess.run([sys.executable, *command], cwd=fork, env={**os.environ, "OMP_NUM_THREADS": "1"},
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (out / name / "pretrain-seed0/backbone.safetensors").exists()


def test_make_targets_and_experiments_exist():
    pages = "\n".join(page.read_text() for page in PAGES)
    targets = sorted({*re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", pages, re.M)})
    command = ["make", "-n", f"PYTHON={sys.executable}", *targets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "run.py pretrain --cfg table1-moco-be" in done.stdout, done.stderr
    known = config.experiments().keys() | {"demo-moco-mean-frame"}
    assert set(re.findall(r"--cfg ([\w-]+)", README)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_table_and_the_drawing_of_rooms_are_what_is_tested():
    table = README.split("| row | room | holds |\n|---|---|---|\n")[1].split("\n\n")[0]
    expected = [("" if i else str(n), room) for n, row in enumerate(ROWS, 1) for i, room in enumerate(row)]
    assert re.findall(r"^\| (\d?) ?\| `(\w+)`", table, re.M) == expected
    drawn = re.findall(r"^ (\d)   ((?:\w+  ?)+) {3}", (ROOT / "docs/HOUSE.md").read_text(), re.M)
    assert [(int(n), rooms.split()) for n, rooms in drawn] == [*enumerate(ROWS, 1)][::-1]
