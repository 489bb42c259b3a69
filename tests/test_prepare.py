import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from videos import probe

from be import datasets, video
from be.config import ConfigError
from be.datasets import DATASETS, Clips, DatasetMissing, load
from be.prepare import JOURNAL, REPORT, cut_short, examine, prepare

ROOT = Path(__file__).parents[1]


def noise(path, frames=20, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    video.encode(path, rng.integers(0, 256, (frames, 16, 24, 3), dtype=np.uint8), 25, options={"g": "6"})


def make(data, classes=2, train=2, test=1):
    """A data set in UCF101's layout with all videos in order: classes x (train + test), all of one split."""
    root, lists = data / "ucf101", {"trainlist01.txt": "", "testlist01.txt": "", "classInd.txt": ""}
    for c in range(classes):
        lists["classInd.txt"] += f"{c + 1} C{c}\n"
        for i in range(train + test):
            path = f"C{c}/v_C{c}_g{i:02d}_c01.avi"
            noise(root / "UCF-101" / (path[:-3] + "mp4"), seed=10 * c + i)
            (root / "UCF-101" / (path[:-3] + "mp4")).rename(root / "UCF-101" / path)
            lists["trainlist01.txt" if i < train else "testlist01.txt"] += f"{path} {c + 1}\n"
    for name, text in lists.items():
        (root / "ucfTrainTestlist").mkdir(exist_ok=True)
        (root / "ucfTrainTestlist" / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    data = tmp_path_factory.mktemp("whole")
    make(data)
    return data


@pytest.fixture
def data(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "data")


def report(data):
    return (data / "ucf101" / REPORT).read_text().splitlines()


def test_all_in_order(data, capsys):
    prepare("ucf101", str(data))
    assert capsys.readouterr().out.splitlines() == report(data) and report(data)[-1] == "nothing is amiss"
    with np.load(data / "ucf101" / datasets.MANIFEST, allow_pickle=False) as table:
        paths = [os.fsdecode(path) for path in table["path"]]
        assert paths == sorted(paths) and len(paths) == 6
        for i, path in enumerate(paths):
            file = data / "ucf101" / path
            assert table["size"][i] == file.stat().st_size and table["mtime"][i] == file.stat().st_mtime_ns
            info = probe(file)
            for name in "frames", "fps", "width", "height", "codec":
                assert table[name][i] == getattr(info, name)
        assert len(np.unique(table["digest"], axis=0)) == 6 and not any(table["problem"])
        samples = load("ucf101", data, "train")
        assert table["path"][table["train-1-rows"]].tolist() == samples.paths.tolist()
        assert table["train-1-labels"].tolist() == samples.labels.tolist() == [0, 0, 1, 1]
        assert table["classes"].tolist() == samples.classes
    assert any(line == f"  train 1: 4 videos, manifest_hash {samples.manifest_hash}" for line in report(data))


def test_training_reads_the_manifest(data, monkeypatch):
    before = load("ucf101", data, "train")
    assert before.manifest_hash is None and before.index(0) is None
    prepare("ucf101", str(data), check="packets")
    samples = load("ucf101", data, "train")
    handed = []

    class Spy(video.Reader):
        def __init__(self, path, index):
            handed.append(index)
            super().__init__(path, index)

    monkeypatch.setattr(datasets, "Reader", Spy)
    for i in range(4):
        items = [Clips(s, lambda n, rng: np.arange(n)[None], 16, 0, train=True)[0, i] for s in (before, samples)]
        assert np.array_equal(items[0].clips, items[1].clips)
        with video.Reader(samples.path(i)) as reader:
            want = reader.index
        assert handed[-2] is None
        assert all(np.array_equal(a, b) for a, b in zip(vars(handed[-1]).values(), vars(want).values(), strict=True))

    some = samples.take([2, 0])
    assert some.index(1) is not None and some.manifest_hash not in (None, samples.manifest_hash)
    os.utime(samples.path(0))
    assert some.index(1) is None and some.index(0) is not None  # what has changed is read anew
    copy = shutil.copytree(data, data.with_name("copy"))
    assert load("ucf101", copy, "train").manifest_hash == samples.manifest_hash
    noise(copy / "new.mp4", seed=99)
    os.replace(copy / "new.mp4", load("ucf101", copy, "train").path(1))
    prepare("ucf101", str(copy), check="packets")
    assert load("ucf101", copy, "train").manifest_hash != samples.manifest_hash
    assert load("ucf101", copy, "test").manifest_hash == load("ucf101", data, "test").manifest_hash


def test_what_is_amiss(data, capsys):
    folder = data / "ucf101" / "UCF-101"
    (folder / "C0/v_C0_g00_c01.avi").unlink()
    (folder / "C0/v_C0_g01_c01.avi").write_bytes(b"text")
    shutil.copy(folder / "C1/v_C1_g00_c01.avi", folder / "C1/v_C1_g02_c01.avi")  # train, and test
    noise(folder / "C0/short.mp4", frames=15)
    shutil.copy(folder / "C0/v_C0_g02_c01.avi", folder / "C0/again.avi")  # both in the test list
    with open(data / "ucf101/ucfTrainTestlist/testlist01.txt", "a") as file:
        file.write("C0/short.mp4\nC0/again.avi\nC0/again.avi\n")
    (data / "ucf101/ucfTrainTestlist/trainlist02.txt").write_text("C0/short.mp4 1\nC0/short.mp4 2\n")
    with pytest.raises(SystemExit) as stop:
        prepare("ucf101", str(data), workers=2)
    assert stop.value.code == 1
    lines, list2 = report(data), data / "ucf101/ucfTrainTestlist/trainlist02.txt"
    assert lines[lines.index("wrong lists: 2"):] == [
        "wrong lists: 2",
        "  test 1: UCF-101/C0/again.avi stands there 2 times",
        f"  {list2}:2: label 2 is not that of 'C0' in classInd.txt",
        "missing: 1",
        "  UCF-101/C0/v_C0_g00_c01.avi: No such file or directory",
        "unreadable: 1",
        "  UCF-101/C0/v_C0_g01_c01.avi: cannot be opened as a video: Invalid data found when processing input",
        "too short: 1",
        "  UCF-101/C0/short.mp4: 15 frames, 16 are wanted",
        "both trained and tested on: 1",
        "  UCF-101/C1/v_C1_g02_c01.avi of test 1 is UCF-101/C1/v_C1_g00_c01.avi of train 1",
        "duplicates: 1",
        "  UCF-101/C0/again.avi = UCF-101/C0/v_C0_g02_c01.avi",
        "7 amiss; to go on with that: accept_missing=7",
    ]
    assert any(line.startswith("  test 2: not there, for want of ") for line in lines)
    prepare("ucf101", str(data), shortest=15, accept_missing=6)
    with pytest.raises(SystemExit):
        prepare("ucf101", str(data), accept_missing=6)


@pytest.mark.parametrize("classes", [101, 100])
def test_official_counts(tmp_path, classes, capsys):
    root = make(tmp_path, classes=1)
    (root / "ucfTrainTestlist/classInd.txt").write_text("".join(f"{i + 1} C{i}\n" for i in range(classes)))
    prepare("ucf101", str(tmp_path), accept_missing=2)
    wrong = ["train 1: 2 videos, the official list has 9537", "test 1: 1 videos, the official list has 3783"]
    assert [f"  {line}" in report(tmp_path) for line in wrong] == [classes == 101] * 2
    assert (report(tmp_path)[-1] == "nothing is amiss") == (classes == 100)


def test_damage_inside_needs_decoding(data):
    file = data / "ucf101/UCF-101/C1/v_C1_g01_c01.avi"
    content = bytearray(file.read_bytes())
    middle = content.index(b"mdat") + (len(content) - 2000) // 2
    content[middle : middle + 300] = bytes(300)
    file.write_bytes(content)
    prepare("ucf101", str(data), check="packets")
    with pytest.raises(SystemExit):  # the journal's packets are not enough for that
        prepare("ucf101", str(data))
    lines = report(data)
    assert lines[lines.index("unreadable: 1") + 1].startswith("  UCF-101/C1/v_C1_g01_c01.avi: ")
    with pytest.raises(SystemExit):  # but its decoding is for this
        prepare("ucf101", str(data), check="packets")


def test_only_what_is_new_is_looked_at(data, capsys):
    prepare("ucf101", str(data), workers=1)  # the journal is in the order of the paths, then
    capsys.readouterr()
    journal = data / "ucf101" / JOURNAL
    before = journal.read_text()
    os.utime(data / "ucf101/UCF-101/C0/v_C0_g00_c01.avi")
    journal.write_text(before[:-30] + '\n{"path": 1}\nnull')  # the last line cut by a kill, and other strange ones
    prepare("ucf101", str(data))
    assert "looking at ucf101: 2/2" in capsys.readouterr().err
    assert report(data)[-1] == "nothing is amiss"


def examine_or_die(root, check, path):
    if "v_C0_g00" in path:
        os.kill(os.getpid(), signal.SIGSEGV)  # as a bug of FFmpeg might
    return examine(root, check, path)


def test_a_file_that_kills_its_reader_is_not_read_in_training(data, monkeypatch, capfd):
    monkeypatch.setattr("be.prepare.examine", examine_or_die)
    for _ in range(2):  # it is tried again, lest something else was at fault
        prepare("ucf101", str(data), check="packets", accept_missing=1, workers=2)
        lines = report(data)
        assert lines[lines.index("unreadable: 1") + 1].startswith("  UCF-101/C0/v_C0_g00_c01.avi: crashes the process")
    samples, opened = load("ucf101", data, "train"), []
    reader = datasets.Reader
    monkeypatch.setattr(datasets, "Reader", lambda path, index: opened.append(path) or reader(path, index))
    item = Clips(samples, lambda n, rng: np.arange(n)[None], 16, 0, train=True)[0, 0]
    assert (item.skipped, item.index, opened) == (1, 1, [samples.path(1)])
    assert not Clips(samples, lambda n, rng: np.arange(n)[None], 16, 0, train=False)[0, 0].ok and len(opened) == 1
    assert "`prepare` found that it crashes" in capfd.readouterr().err
    os.utime(samples.path(0))  # another file may be better
    assert Clips(samples, lambda n, rng: np.arange(n)[None], 16, 0, train=True)[0, 0].skipped == 0


KILLED = """
import os, signal
from be import prepare, transcode
def watch(work, total, what):
    for n, result in enumerate(work):
        if n == {after} and what.startswith({what!r}):
            os.kill(os.getpid(), signal.SIGKILL)
        yield result
prepare.watch = transcode.watch = watch
prepare.prepare("ucf101", {data!r}, transcode=True, short_side=16, workers=2)
"""


def run_killed(data, what, after):
    code = KILLED.format(data=str(data), what=what, after=after)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_in_the_middle_it_goes_on(data, capsys):
    run_killed(data, "looking", 3)
    lines = [json.loads(line) for line in (data / "ucf101" / JOURNAL).read_text().splitlines() if line]
    assert len(lines) == 3 and not (data / "ucf101" / datasets.MANIFEST).exists()
    prepare("ucf101", str(data))
    assert "looking at ucf101: 3/3" in capsys.readouterr().err and report(data)[-1] == "nothing is amiss"


def test_wrong_words_and_places(data, tmp_path):
    with pytest.raises(ConfigError, match="nearest: ucf101"):
        prepare("ucf11")
    with pytest.raises(DatasetMissing, match="It should stand like this"):
        prepare("hmdb51", str(data))
    shutil.rmtree(data / "ucf101/UCF-101")
    with pytest.raises(DatasetMissing, match="v_C0_g00_c01.avi does not exist"):
        prepare("ucf101", str(data))
    (data / "ucf101/ucfTrainTestlist/trainlist01.txt").write_text("/etc/x.avi 1\n")
    (data / "ucf101/ucfTrainTestlist/testlist01.txt").unlink()
    with pytest.raises(DatasetMissing, match="trainlist01.txt:1: "):
        prepare("ucf101", str(data))


def test_as_it_is_typed(data):
    def typed(limit):
        command = [sys.executable, "run.py", "prepare", "--cfg", "ucf101", f"data={data}", "check=packets"]
        command = f"ulimit -f {limit}; exec {shlex.join(command)}"
        return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)

    (data / "ucf101/UCF-101/C0/v_C0_g00_c01.avi").unlink()
    full = typed(limit=0)  # no file may grow
    assert full.returncode == 2 and "File too large" in full.stderr and "Traceback" not in full.stderr
    done = typed(limit="unlimited")
    assert done.returncode == 1 and "missing: 1" in done.stdout


def test_kinetics400_is_partly_there(tmp_path):
    root = tmp_path / "kinetics400"
    (root / "annotations").mkdir(parents=True)
    rows = "".join(f"label {i % 2},abcdefghij{i},{i},{i + 10},train\n" for i in range(5))
    (root / "annotations/train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + rows)
    (root / "annotations/test.csv").write_text("youtube_id,time_start,time_end,split\nx,0,10,test\n")
    for i, folder in enumerate(["", "label 1/", "label_0/"]):
        noise(root / f"train/{folder}abcdefghij{i}_{i:06d}_{i + 10:06d}.mp4", seed=i)
    (root / "train/loop").symlink_to(root / "train")
    prepare("kinetics400", str(tmp_path), accept_missing=2)
    lines = (root / REPORT).read_text().splitlines()
    assert "  train/abcdefghij3_000003_000013.mp4: No such file or directory" in lines
    assert lines[-1].startswith("2 amiss")
    assert any(line.startswith("  test 1: not there, for want of") for line in lines)
    samples = load("kinetics400", tmp_path, "train")
    assert len(samples) == 3 and samples.index(2) is not None
    assert f"  train 1: 5 videos, manifest_hash {samples.manifest_hash}" in lines


@pytest.mark.parametrize("head, end", [
    (b"RIFF\x10\0\0\0AVI ", 0), (b"RIFF\x19\0\0\0AVI ", 0), (b"RIFF\x1a\0\0\0AVI ", 33),
    (b"RIFF\xff\0\0\0AVI ", 262),
    (b"\x1a\x45\xdf\xa3\x81!\x18\x53\x80\x67\x95", 0),
    (b"\x1a\x45\xdf\xa3\x81!\x18\x53\x80\x67\x96", 33), (b"\x1a\x45\xdf\xa3\x81!\x18\x53\x80\x67\xff", 0),
    (b"\x1a\x45\xdf\xa3\x81!\x18\x53\x80\x67\x01\0\0\0\0\0\1\0", 274),
    (b"\x1a\x45\xdf\xa3\x81!\x18\x53\x80\x67\x01" + b"\xff" * 7, 0),
    (b"\0\0\0\x0cftypabcd\0\0\0\0mdat", 0), (b"\0\0\0\x0cftypabcd\0\0\0\x14mdat", 0),
    (b"\0\0\0\x0cftypabcd\0\0\0\x15mdat", 33), (b"\0\0\0\x0cftypabcd\0\0\0\1mdat\0\0\0\0\0\1\0\0", 65548),
    (b"\0\0\0\x0cftypabcd\0\0\0\x0cfree" + bytes(4) + b"\xff\xff\xff\xff\xff\xff\xff\xff", 0),
])
def test_cut_short(tmp_path, head, end):
    (tmp_path / "x").write_bytes(head.ljust(32, b"\0"))
    assert cut_short(tmp_path / "x") == (f"breaks off after 32 of {end} bytes" if end else "")


def test_every_dataset_knows_its_lists(tmp_path):
    names = {"ucf101": "ucfTrainTestlist/swappedlist02.txt", "plain": "mine.txt", "diving48": "Diving48_V2_mine.json",
             "hmdb51": "testTrainMulti_7030_splits/a_b_swapped_split3.txt", "kinetics400": "annotations/mine.csv",
             "actor_hmdb51": "testTrainMulti_7030_splits/b_swapped_split3.txt"}
    assert names.keys() == DATASETS.keys()
    for dataset, name in names.items():
        (tmp_path / dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / dataset / name).touch()
        (tmp_path / dataset / REPORT).touch()
        found = set(DATASETS[dataset].subsets(tmp_path / dataset)) - DATASETS[dataset].expected.keys()
        assert found == {("mine", 1) if "mine" in name else ("swapped", 2 if dataset == "ucf101" else 3)}
        assert list(DATASETS[dataset].list_files(tmp_path / dataset)) == [name]
