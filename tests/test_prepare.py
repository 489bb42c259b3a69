import hashlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from deadly import deadly, full_disk, limit
from PIL import Image

from be import datasets, synthetic, video
from be import prepare as prepared
from be.config import ConfigError, UserError
from be.datasets import DATASETS, Clips, DatasetMissing, load
from be.prepare import JOURNAL, REPORT, copy_dataset, inspect_file, parallel, prepare

ROOT = Path(__file__).parents[1]


def info(path):
    with video.Reader(path) as reader:
        return reader.info


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
    assert capsys.readouterr().out.splitlines() == report(data) and report(data)[-1] == "no problems"
    with np.load(data / "ucf101" / datasets.MANIFEST, allow_pickle=False) as table:
        paths = [os.fsdecode(path) for path in table["path"]]
        assert paths == sorted(paths) and len(paths) == 6
        for i, path in enumerate(paths):
            file = data / "ucf101" / path
            assert table["size"][i] == file.stat().st_size and table["mtime"][i] == file.stat().st_mtime_ns
            assert table["frames"][i] == info(file).frames and bytes(table["digest"][i]).hex() == hashlib.blake2b(
                file.read_bytes(), digest_size=16).hexdigest()
        assert not any(table["deadly"])
        samples = load("ucf101", data, "train")
        assert samples.labels.tolist() == [0, 0, 1, 1]
    assert any(line == f"  train 1: 4 videos, manifest_hash {samples.manifest_hash}" for line in report(data))


def test_training_reads_the_manifest(data, monkeypatch):
    before = load("ucf101", data, "train")
    assert before.manifest_hash is None and before.index(0) is None
    prepare("ucf101", str(data), check="packets")
    samples = load("ucf101", data, "train")
    handed = []

    class Spy(video.Reader):
        def __init__(self, path, index, strict):
            handed.append(index)
            super().__init__(path, index, strict)

    monkeypatch.setattr(datasets, "Reader", Spy)
    for i in range(4):
        items = [Clips(s, lambda n, rng: np.arange(n)[None], 16, 0, train=True)[0, i] for s in (before, samples)]
        assert np.array_equal(items[0].clips, items[1].clips)
        with video.Reader(samples.path(i)) as reader:
            want = reader.index
        assert handed[-2] is None
        assert all(np.array_equal(a, b) for a, b in zip(vars(handed[-1]).values(), vars(want).values(), strict=True))
    copy = shutil.copytree(data, data.with_name("copy"))
    assert load("ucf101", copy, "train").manifest_hash == samples.manifest_hash
    noise(copy / "new.mp4", seed=99)
    os.replace(copy / "new.mp4", load("ucf101", copy, "train").path(1))
    prepare("ucf101", str(copy), check="packets")
    assert load("ucf101", copy, "train").manifest_hash != samples.manifest_hash
    assert load("ucf101", copy, "test").manifest_hash == load("ucf101", data, "test").manifest_hash


def test_problems(data, capsys):
    folder = data / "ucf101" / "UCF-101"
    (folder / "C0/v_C0_g00_c01.avi").unlink()
    (folder / "C0/v_C0_g01_c01.avi").write_bytes(b"text")
    shutil.copy(folder / "C1/v_C1_g00_c01.avi", folder / "C1/v_C1_g02_c01.avi")  # train, and test
    noise(folder / "C0/short.mp4", frames=15)
    noise(folder / "C0/again.avi.mp4", seed=99)
    (folder / "C0/again.avi.mp4").rename(folder / "C0/again.avi")
    with open(data / "ucf101/ucfTrainTestlist/testlist01.txt", "a") as file:
        file.write("C0/short.mp4\nC0/again.avi\nC0/again.avi\n")
    (data / "ucf101/ucfTrainTestlist/trainlist02.txt").write_text("C0/short.mp4 1\nC9999/short.mp4 2\n")
    (data / "ucf101/ucfTrainTestlist/classInd.txt").write_text("".join(f"{i + 1} C{i}\n" for i in range(101)))
    with pytest.raises(SystemExit) as stop:
        prepare("ucf101", str(data), workers=2)
    assert stop.value.code == 1
    lines, list2 = report(data), data / "ucf101/ucfTrainTestlist/trainlist02.txt"
    assert lines[lines.index("wrong lists: 4"):] == [
        "wrong lists: 4",
        "  train 1: 4 videos, the official list has 9537",
        "  test 1: 5 videos, the official list has 3783",
        "  test 1: UCF-101/C0/again.avi is listed 2 times",
        f"  {list2}:2: 'C9999' is none of the 101 classes",
        "missing: 1",
        "  UCF-101/C0/v_C0_g00_c01.avi: No such file or directory",
        "unreadable: 1",
        "  UCF-101/C0/v_C0_g01_c01.avi: cannot be opened as a video: Invalid data found when processing input",
        "too short: 1",
        "  UCF-101/C0/short.mp4: 15 frames, fewer than 16",
        "both trained and tested on: 1",
        "  UCF-101/C1/v_C1_g02_c01.avi of test 1 is UCF-101/C1/v_C1_g00_c01.avi of train 1",
        "8 problems; to go on with them: accept_missing=8",
    ]
    assert any(line.startswith("  test 2: no list, ") for line in lines)
    prepare("ucf101", str(data), shortest=15, accept_missing=7)
    with pytest.raises(SystemExit):
        prepare("ucf101", str(data), accept_missing=7)


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


def test_only_what_is_new_is_read(data, capsys):
    prepare("ucf101", str(data), workers=1)  # the journal is in the order of the paths, then
    capsys.readouterr()
    journal = data / "ucf101" / JOURNAL.format("")
    before = journal.read_text()
    os.utime(data / "ucf101/UCF-101/C0/v_C0_g00_c01.avi")
    journal.write_text(before[:-30] + '\n{"path": 1}\nnull')  # the last line cut by a kill, and other strange ones
    prepare("ucf101", str(data))
    assert "inspecting ucf101: 2/2" in capsys.readouterr().err
    assert report(data)[-1] == "no problems"


def inspect_or_die(root, check, record):
    if "v_C0_g00" in record.path:
        os.kill(os.getpid(), signal.SIGSEGV)  # as a bug of FFmpeg might
    return inspect_file(root, check, record)


def test_a_file_that_kills_its_reader_is_not_read_in_training(data, monkeypatch, capfd):
    monkeypatch.setattr(prepared, "inspect_file", inspect_or_die)
    for _ in range(2):  # it is tried again, lest something else was at fault
        prepare("ucf101", str(data), check="packets", accept_missing=1, workers=2)
        lines = report(data)
        assert lines[lines.index("unreadable: 1") + 1].startswith("  UCF-101/C0/v_C0_g00_c01.avi: crashes the process")
    samples, opened = load("ucf101", data, "train"), []
    reader = datasets.Reader
    monkeypatch.setattr(datasets, "Reader", lambda path, *how: opened.append(path) or reader(path, *how))
    item = Clips(samples, lambda n, rng: np.arange(n)[None], 16, 0, train=True)[0, 0]
    assert (item.skipped, item.index, opened) == (1, 1, [samples.path(1)])
    assert not Clips(samples, lambda n, rng: np.arange(n)[None], 16, 0, train=False)[0, 0].ok and len(opened) == 1
    assert "`prepare` found that it crashes" in capfd.readouterr().err
    os.utime(samples.path(0))  # another file may be better
    assert Clips(samples, lambda n, rng: np.arange(n)[None], 16, 0, train=True)[0, 0].skipped == 0


# Of be.runs only the progress bar is needed, and torch takes seconds
BARE = "import sys, types; sys.modules['be.runs'] = types.SimpleNamespace(progress=lambda work, total, what: work)"
KILLED = BARE + """
import os, signal
from be import prepare
parallel = prepare.parallel
def killed(job, paths, what, workers, limit):
    for n, result in enumerate(parallel(job, paths, what, workers, limit)):
        if n == {after} and what.startswith({what!r}):
            os.kill(os.getpid(), signal.SIGKILL)
        yield result
prepare.parallel = killed
prepare.prepare("ucf101", {data!r}, transcode=True, short_side=16, gop=4, workers=1, shard={shard!r}, accept_missing=9)
"""


def run_killed(data, what, after):
    code = KILLED.format(data=str(data), what=what, after=after, shard="1/1")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_in_the_middle_it_goes_on(data, capsys):
    run_killed(data, "inspecting", 3)
    lines = [json.loads(line) for line in (data / "ucf101" / JOURNAL.format("")).read_text().splitlines() if line]
    assert len(lines) == 3 and not (data / "ucf101" / datasets.MANIFEST).exists()
    prepare("ucf101", str(data))
    assert "inspecting ucf101: 3/3" in capsys.readouterr().err and report(data)[-1] == "no problems"


def test_wrong_words_and_places(data, tmp_path):
    with pytest.raises(ConfigError, match="nearest: ucf101"):
        prepare("ucf11")
    with pytest.raises(DatasetMissing, match="in which layouts it is found"):
        prepare("hmdb51", str(data))
    shutil.rmtree(data / "ucf101/UCF-101")
    with pytest.raises(DatasetMissing, match="v_C0_g00_c01.avi does not exist"):
        prepare("ucf101", str(data))
    (data / "ucf101/ucfTrainTestlist/trainlist01.txt").write_text("/etc/x.avi 1\n")
    (data / "ucf101/ucfTrainTestlist/testlist01.txt").unlink()
    with pytest.raises(ConfigError, match="trainlist01.txt:1: "):
        prepare("ucf101", str(data))


def test_a_full_disk_leaves_no_process(data, tmp_path, monkeypatch):
    """Not even while somebody holds the error, and with it all that was at work; and none is left in the books because
    two threads wait for it at once, one of which is told that there is no such process."""
    waitpid = os.waitpid

    def slow(*process):  # the others come first, and take their time to write down what they were told
        main = threading.current_thread() is threading.main_thread()
        time.sleep(0.1 if main else 0)
        ended = waitpid(*process)
        time.sleep(0 if main or not ended[0] else 0.5)
        return ended

    monkeypatch.setattr("os.waitpid", slow)
    monkeypatch.setattr("be.prepare.transcode", full_disk)
    others = set(multiprocessing.active_children())
    with pytest.raises(OSError, match="No space left") as kept:
        copy_dataset(data, tmp_path / "copy", [], [f"{i}.avi" for i in range(9)], 2, short_side=16, gop=1)
    assert not set(multiprocessing.active_children()) - others and kept.tb


def test_as_it_is_typed_where_files_may_not_grow(data):
    """As on a full disk: inspection has room, the copies have not."""
    command = [sys.executable, "run.py", "prepare", "--cfg", "ucf101", f"data={data}", "check=packets", "workers=2",
               "transcode=true", "short_side=16", "gop=1"]
    done = subprocess.run(["bash", "-c", f"ulimit -f 8; exec {shlex.join(command)}"], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)  # KiB
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"_c01.avi: File too large; the same command goes on from here", done.stderr)
    copy = data.with_name("data-16") / "ucf101"
    assert (data / "ucf101" / datasets.MANIFEST).exists()
    assert not [path for path in copy.rglob("*.*") if path.suffix in (".avi", ".mp4") and path.name[0] != "."]
    prepare("ucf101", str(data), transcode=True, short_side=16, gop=1)
    assert len([*copy.rglob("*.avi")]) == 6


def test_reading_files_needs_no_torch():
    code = "import sys, be.prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


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
    assert lines[-1].startswith("2 problems")
    assert any(line.startswith("  test 1: no list, ") for line in lines)
    samples = load("kinetics400", tmp_path, "train")
    assert len(samples) == 3 and samples.index(2) is not None
    assert f"  train 1: 5 videos, manifest_hash {samples.manifest_hash}" in lines


def test_every_dataset_knows_its_lists(tmp_path):
    names = {"ucf101": "ucfTrainTestlist/swappedlist02.txt", "plain": "mine.txt", "diving48": "Diving48_V2_mine.json",
             "hmdb51": "testTrainMulti_7030_splits/a_b_swapped_split3.txt", "kinetics400": "annotations/mine.csv",
             "actor_hmdb51": "testTrainMulti_7030_splits/b_swapped_split3.txt"}
    assert names.keys() == DATASETS.keys()
    for dataset, name in names.items():
        (tmp_path / dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / dataset / name).touch()
        (tmp_path / dataset / REPORT).touch()
        root, lists = DATASETS[dataset].find(tmp_path)
        assert root == tmp_path / dataset
        found = set(DATASETS[dataset].subsets(lists)) - DATASETS[dataset].expected.keys()
        assert found == {("mine", 1) if "mine" in name else ("swapped", 2 if dataset == "ucf101" else 3)}
        assert list(DATASETS[dataset].list_files(lists)) == [tmp_path / dataset / name]


# ---- copies


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """DATA with 12 videos of 24 frames in UCF101's layout, and the number of frames of each."""
    data = tmp_path_factory.mktemp("source") / "data"
    synthetic.synth(data / "ucf101", train=1, test=1, frames=24, height=32, width=48, workers=1)
    for extra in (data / "ucf101" / "UCF-101").glob("*/*_g02_*"):  # half of them are enough
        extra.unlink()
    for file in (data / "ucf101" / "ucfTrainTestlist").glob("*list*.txt"):
        text = [line for line in file.read_text().splitlines() if "_g02_" not in line]
        file.write_text("\n".join(text)) if text else file.unlink()
    return data


def videos(data):
    return {str(path.relative_to(data)): 24 for path in sorted(data.glob("UCF-101/*/*.avi"))}


def test_a_copy_of_absolute_paths_stands_alone(tmp_path):
    for i in range(3):
        noise(tmp_path / f"disk/films/{i}.mp4", seed=i)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.csv").write_text("".join(f"{tmp_path}/disk/films/{i}.mp4,{i % 2}\n" for i in range(3)))
    with pytest.raises(UserError, match=f"they cannot be copied; give videos={tmp_path}/disk/films"):
        prepare("plain", str(tmp_path / "lists"), transcode=True, short_side=8)
    words = dict(transcode=True, short_side=8, workers=1, videos=str(tmp_path / "disk/films"))
    prepare("plain", str(tmp_path / "lists"), **words)
    shutil.rmtree(tmp_path / "disk")
    samples = load("plain", tmp_path / "lists-8", "train")
    assert samples.labels.tolist() == [0, 1, 0] and [info(samples.path(i)).height for i in range(3)] == [8] * 3
    assert samples.path(1) == f"{tmp_path}/lists-8/plain/1.mp4" and samples.manifest_hash


def test_a_copy_keeps_the_layout(tmp_path):
    """HMDB51 as it is unpacked, with lists in a folder of their own, one video in another container, one as frames."""
    home, names = tmp_path / "HMDB51/hmdb51_org/wave", [f"{i}_wave_u_cm_np1_fr_goo_{i}.avi" for i in range(3)]
    noise(home / names[0].replace(".avi", ".mkv"))
    noise(home / "wave" / names[1].replace(".avi", ".mp4"))
    with video.Reader(home / "wave" / names[1].replace(".avi", ".mp4")) as one:
        folder = home / names[2].removesuffix(".avi")
        folder.mkdir()
        for i, frame in enumerate(one.decode(np.arange(20))):
            Image.fromarray(frame).save(folder / f"img_{i + 1:05d}.jpg")
    lists = tmp_path / "HMDB51/test_train_splits/testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    (lists / "wave_test_split1.txt").write_text("".join(f"{name} 1 \n" for name in names))
    prepare("hmdb51", str(tmp_path / "HMDB51"), accept_missing=1, transcode=True, short_side=8, workers=1)
    theirs, ours = load("hmdb51", tmp_path, "train"), load("hmdb51", tmp_path / "HMDB51-8", "train")
    assert ours.paths.tolist() == theirs.paths.tolist() and ours.root == f"{tmp_path}/HMDB51-8/hmdb51"
    assert [(info(ours.path(i)).frames, info(ours.path(i)).height) for i in range(3)] == [(20, 8)] * 3


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_a_copy_is_used_like_its_source(source):
    prepare("ucf101", str(source), transcode=True, short_side=20, gop=6)
    copy = source.with_name("data-20")
    for path in videos(source / "ucf101"):
        with video.Reader(source / "ucf101" / path) as a, video.Reader(copy / "ucf101" / path) as b:
            assert a.frames == b.frames == 24 and (b.info.codec, b.info.height, b.info.fps) == ("h264", 20, a.info.fps)
            assert np.flatnonzero(b.index.key).tolist() == [0, 6, 12, 18]
            every = np.arange(24)
            frames, copied = a.decode(every, 20), b.decode(every, 20)
            assert min(map(psnr, frames, copied)) > 23
    split = next(split for split in (1, 2, 3) if (source / f"ucf101/ucfTrainTestlist/trainlist0{split}.txt").exists())
    ours, theirs = (load("ucf101", data, "train", split) for data in (copy, source))
    assert ours.paths.tolist() == theirs.paths.tolist() and ours.labels.tolist() == theirs.labels.tolist()
    assert ours.index(0) is not None and ours.manifest_hash not in (None, theirs.manifest_hash)
    item = Clips(ours, partial(video.even_clips, K=2, T=4, stride=2), 20, 0, train=False)[0, 0]
    assert item.ok and item.clips.shape == (2, 4, 20, 30, 3)

    times = {path: (copy / "ucf101" / path).stat().st_mtime_ns for path in videos(copy / "ucf101")}
    first, *_ = times
    (copy / "ucf101" / first).unlink()
    half = (copy / "ucf101" / first).with_name(f".{zlib.crc32(Path(first).name.encode()):08x}.part.mp4")
    half.write_bytes(b"half")  # of a run that was killed
    prepare("ucf101", str(source), transcode=True, short_side=20, gop=6)
    again = {path: (copy / "ucf101" / path).stat().st_mtime_ns for path in videos(copy / "ucf101")}
    assert again.keys() == times.keys() and [path for path in times if times[path] != again[path]] == [first]
    assert not [*copy.rglob(".*.part.mp4")]
    with pytest.raises(UserError, match='was made with .*"gop": 6.* not .*"gop": 1'):
        prepare("ucf101", str(source), transcode=True, short_side=20, gop=1)


def test_what_cannot_be_copied_is_told(source, tmp_path, capsys):
    root = tmp_path / "data/ucf101"
    shutil.copytree(source / "ucf101", root)
    first, second, *_ = videos(root)
    (root / first).write_bytes(b"text")  # found out since it was looked at
    copy_dataset(root, tmp_path / "copy", [], {first: 24, second: 24}, 1, short_side=16, gop=4)
    assert videos(tmp_path / "copy").keys() == {second}
    assert f"not copied: {first}: {root / first}: cannot be opened" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare("ucf101", str(tmp_path / "data"), transcode=True, short_side=16)


@pytest.mark.parametrize("shape, short_side, gop", [((7, 33, 47), 128, 2), ((1, 20, 80), 10, 8), ((40, 18, 16), 16, 1)])
def test_write_copy(tmp_path, monkeypatch, shape, short_side, gop):
    monkeypatch.setattr(prepared, "BUFFER", 16 * 3 * 32 * 32 * 2)  # some frames at a time
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    video.encode(tmp_path / "a.avi", frames, 30000 / 1001, codec="ffv1", pix_fmt="bgr0")
    prepared.write_copy(tmp_path / "a.avi", tmp_path / "b.mp4", short_side, gop)
    got = info(tmp_path / "b.mp4")
    side = min(short_side, min(shape[1:]) // 2 * 2)
    assert got.frames == shape[0] and min(got.height, got.width) == side and abs(got.fps - 29.97) < 0.01
    assert max(got.height, got.width) <= 2 * side


def test_a_clip_with_a_stride_leaves_most_pictures_of_a_copy_undecoded(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    video.encode(tmp_path / "a.avi", frames, 25, codec="ffv1", pix_fmt="bgr0")
    prepared.write_copy(tmp_path / "a.avi", tmp_path / "b.mp4", 32, 16)
    given, feed = [], video.Reader._feed
    monkeypatch.setattr(video.Reader, "_feed", lambda *args: given.extend((out := feed(*args))[0]) or out)
    for first, pictures in (0, 4), (1, 9), (2, 9):  # of the 16 of a group: I, P, P, P and, elsewhere, a B for each
        given.clear()
        with video.Reader(tmp_path / "b.mp4") as reader:
            reader.decode(np.arange(first, first + 16, 4)[:4])
        assert len(given) <= pictures


def test_a_copy_that_lacks_a_frame_is_refused(tmp_path, monkeypatch):
    noise(tmp_path / "a.mp4", frames=12)
    monkeypatch.setattr(prepared, "encode", lambda path, frames, *args, **how: video.encode(path, [*frames][1:], *args,
                                                                                            **how))
    with pytest.raises(video.VideoError, match="11 frames instead of 12"):
        prepared.write_copy(tmp_path / "a.mp4", tmp_path / "b.mp4", 32, 4)


# ---- many jobs


def forget(root):
    """Removes what was found out; returns the manifest and the report."""
    found = [(root / name).read_bytes() for name in (datasets.MANIFEST, REPORT)]
    for file in (root / datasets.MANIFEST, root / REPORT, *root.glob("prepare-journal*")):
        file.unlink()
    return found


def test_four_jobs_make_what_one_makes(source, tmp_path):
    """At the same time; one is killed among the copies and started again."""
    data = shutil.copytree(source, tmp_path / "data")
    root, copy = data / "ucf101", tmp_path / "data-16/ucf101"
    gone, broken, *_ = videos(root)
    (root / gone).unlink()
    (root / broken).write_bytes(b"text")
    shards = [f"{part}/4" for part in (1, 2, 3, 4)]
    victim = next(shard for shard in shards if sum(map(prepared.part_of(shard), videos(root))) > 2)

    def start(shard):
        code = KILLED.format(data=str(data), what="transcoding", after=1 if shard == victim else -1, shard=shard)
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    jobs = [start(shard) for shard in shards]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [-signal.SIGKILL if shard == victim else 0 for shard in shards], said
    assert (root / datasets.MANIFEST).exists() and not (copy / datasets.MANIFEST).exists()
    made = {path: (copy / path).stat().st_mtime_ns for path in videos(copy)}
    victim, shard = None, victim
    assert start(shard).wait(60) == 0 and videos(copy).keys() == videos(root).keys() - {broken}
    assert made and all((copy / path).stat().st_mtime_ns == time for path, time in made.items())
    assert all(info(copy / path).frames == 24 for path in videos(copy))
    assert len([*root.glob("prepare-journal-*-of-4.jsonl")]) == 4 and not [*copy.rglob(".*")][1:]  # [COPIED]
    found = forget(root) + forget(copy)
    prepare("ucf101", str(data), transcode=True, short_side=16, gop=4, accept_missing=9)
    assert forget(root) + forget(copy) == found


def test_parts_of_a_data_set_whose_folders_are_not_known(tmp_path):
    """Kinetics-400: where a video lies is found out when it is there, in a copy as well."""
    root = tmp_path / "data/kinetics400"
    (root / "annotations").mkdir(parents=True)
    rows = "".join(f"label {i % 2},abcdefghij{i},{i},{i + 10},train\n" for i in range(6))
    (root / "annotations/train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + rows)
    for i, folder in enumerate(["", "label 1/", "label_0/", "label 1/"]):
        noise(root / f"train/{folder}abcdefghij{i}_{i:06d}_{i + 10:06d}.mp4", seed=i)
    (root / "train/label 1/abcdefghij3_000003_000013.mp4").write_bytes(b"text")
    for shard in ("1/2", "2/2"):
        assert not (root / datasets.MANIFEST).exists()
        prepare("kinetics400", str(tmp_path / "data"), "packets", 9, 16, True, 16, workers=1, shard=shard)
    found = [text for folder in (root, tmp_path / "data-16/kinetics400") for text in forget(folder)]
    prepare("kinetics400", str(tmp_path / "data"), "packets", 9, 16, True, 16, workers=1)
    assert found == [text for folder in (root, tmp_path / "data-16/kinetics400") for text in forget(folder)]


def test_each_file_is_of_one_part():
    paths = [f"UCF-101/C{i % 7}/v_{i}.avi" for i in range(1000)]
    for parts in (1, 3, 16):
        found = [[*filter(prepared.part_of(f"{part + 1}/{parts}"), paths)] for part in range(parts)]
        assert sorted(chain(*found)) == sorted(paths) and min(map(len, found)) > 0.6 * 1000 / parts
    for shard in ("0/4", "5/4", "3", "3/0", "-1/4", "1/2/3", "a/b", ""):
        with pytest.raises(ConfigError, match=f"shard={shard} must be K/N"):
            prepare("ucf101", shard=shard)


@pytest.mark.parametrize("check, lines, best", [
    ("decode", [("", "decode", False), ("-1-of-2", "", True)], "decode"),  # sound once, for another job deadly
    ("decode", [("", "", True), ("-1-of-2", "decode", False)], "decode"),
    ("packets", [("", "decode", False), ("-1-of-2", "packets", False)], "decode"),  # which sees damage inside
    ("packets", [("-1-of-2", "decode", False), ("", "packets", False)], "decode"),
    ("decode", [("", "packets", False), ("-1-of-2", "", True)], ""),  # that it kills a decoder is what is known
    ("decode", [("", "packets", False)], None)])
def test_the_best_of_what_several_journals_know(tmp_path, check, lines, best):
    for name, checked, kills in lines:
        line = json.dumps({"path": "a", "size": 1, "mtime": 2, "check": checked, "deadly": kills})
        (tmp_path / f"prepare-journal{name}.jsonl").write_text(line)
    known = prepared.read_journals(tmp_path, check)
    assert (known[("a", 1, 2)].check if known else None) == best


# ---- many files, in processes that may die


@pytest.mark.parametrize("workers, items", [
    (1, [1, "crash", 2, "hang", 3]), (4, [*range(20), *["crash"] * 6, "hang"]), (2, []),
])
def test_a_crash_or_a_hang_costs_one_item(workers, items):
    seen = list(parallel(partial(deadly, 10), items, "", workers, limit))
    assert Counter(item for item, _, _ in seen) == Counter(items)
    said = {"crash": "crashes the process that reads it (exit code -11)",
            "hang": "makes no progress, given up after 1 s"}
    for item, result, problem in seen:
        assert problem == said.get(item) and (result is None) == (item in said)
        if result:
            assert result[0] == len(str(item)) + 10 and result[1] != os.getpid()


def test_a_bug_stops_everything(capfd):
    with pytest.raises(RuntimeError, match="failed on bug"):
        list(parallel(partial(deadly, 1), [1, "bug", *range(2, 100)], "", workers=1))
    assert "ValueError: a bug" in capfd.readouterr().err


def test_whoever_leaves_early_leaves_no_process():
    others = set(multiprocessing.active_children())
    work = parallel(partial(deadly, 1), ["hang", 1, 2, 3], "", workers=2)
    assert next(work)[1][0] == 2
    work.close()
    deadline = time.monotonic() + 20
    while set(multiprocessing.active_children()) - others and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - others


def test_stopped_and_interrupted_as_by_a_shell():
    """Ctrl-Z, a laptop's lid, a scheduler that suspends: such time does not count. Ctrl-C ends all processes."""
    code = f"""{BARE}
import signal
from functools import partial
from be.prepare import parallel
from deadly import deadly, limit
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts the tests in the background has it ignored
for item, result, problem in parallel(partial(deadly, 0), [1, "slow", "wait", "wait"], "", 2, limit):
    print(item, problem, flush=True)
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, env={**os.environ, "PYTHONPATH": path})
    assert started.stdout.readline() == "1 None\n"
    os.killpg(started.pid, signal.SIGSTOP)
    time.sleep(4)  # longer than its limit
    os.killpg(started.pid, signal.SIGCONT)
    assert started.stdout.readline() == "slow None\n"
    os.killpg(started.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in started.communicate(timeout=30)[1]
    with pytest.raises(ProcessLookupError):  # the last of them is multiprocessing's own, which takes a moment
        for _ in range(200):
            os.killpg(started.pid, 0)
            time.sleep(0.1)
