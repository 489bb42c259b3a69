"""The README keeps its word: its diffs apply and run, and the commands it names exist."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY

from be import config

README = (ROOT / "README.md").read_text()


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


@pytest.mark.parametrize("number, file, name", [(0, "be/erase.py", "demo-moco-mean-frame"),
                                                (2, "be/objectives.py", "demo-simsiam-be")])  # fmt: skip
def test_the_diffs_apply_and_train(number, file, name, tiny, tmp_path):
    """The code block and the YAML block behind it, in a copy of the project, through the command line."""
    code, entry = diffs()[number : number + 2]
    assert len(code) + len(entry) < 30
    for part in ("be", "run.py", "experiments.yaml"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    for path, lines in ((tmp_path / file, code), (tmp_path / "experiments.yaml", entry)):
        path.write_text(apply(lines, path.read_text()))
    words = ["pretrain", "--cfg", name, f"data={tiny}", f"out={tmp_path}", *TINY, "epochs=1"]
    done = subprocess.run([sys.executable, "run.py", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name / "pretrain-seed0/backbone.safetensors").exists()


def test_make_targets_and_experiments_exist():
    targets = re.findall(r"^make ([a-z0-9-]+)", README, re.M)
    command = ["make", "-n", f"PYTHON={sys.executable}", *targets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "run.py pretrain --cfg table1-moco-be" in done.stdout, done.stderr
    known = config.experiments().keys() | {"demo-moco-mean-frame"}
    assert set(re.findall(r"--cfg ([\w-]+)", README)) <= known


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_every_room_has_a_line():
    modules = {path.stem for path in (ROOT / "be").glob("*.py")} - {"__init__"}
    rooms = README.split("| room | holds |")[1].split("\n\n")[0]
    named = {name for line in rooms.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == modules
