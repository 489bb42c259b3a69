import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import videos as files
from conftest import ROOT, TINY
from safetensors.torch import load_file

from be import config, datasets, evaluate, prepare, train, video
from be.config import ConfigError, UserError, arguments
from be.datasets import (
    DATASETS,
    MANIFEST,
    Clips,
    DatasetMissing,
    Item,
    Manifest,
    Samples,
    collate,
    load,
    loader,
)
from be.evaluate import holdout
from be.train import epoch_batches
from be.weights import read_about

OFFICIAL = Path(__file__).parents[2] / "shared" / "annotations"


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())  # CRLF stays CRLF


def touch(root, *paths):  # the parsers look whether videos are there, not into them
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def names(samples):
    return [os.fsdecode(path) for path in samples.paths]


# ---- the official lists


@pytest.fixture
def official(tmp_path):
    if not OFFICIAL.is_dir():
        pytest.skip("no official lists here")
    for entry in [*OFFICIAL.iterdir(), *(OFFICIAL / "diving48").iterdir()]:
        if entry.name != "diving48":
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def parse(root, dataset, subset, split):
    """The samples, after making a file of the first video listed of each class; skips where the list is absent."""
    try:
        listed, _ = DATASETS[dataset].read(*DATASETS[dataset].find(root), subset, split)
    except FileNotFoundError as error:
        pytest.skip(f"no {error.filename} here")
    touch(root, *(names(listed)[i] for i in np.unique(listed.labels, return_index=True)[1]))
    return DATASETS[dataset](root, subset, split)


@pytest.mark.parametrize("split, train, test", [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_ucf101_official(official, capsys, split, train, test):
    sources = []
    for subset, n in ("train", train), ("test", test):
        samples = parse(official, "ucf101", subset, split)
        assert len(samples) == len(set(names(samples))) == n and len(samples.classes) == 101
        for path, label in zip(names(samples), samples.labels, strict=True):  # a name has its class in it
            assert samples.classes[label].lower() == path.split("/")[2].split("_")[1].lower()
        sources.append({DATASETS["ucf101"].group(path) for path in names(samples)})
        assert len(sources[-1]) == len(np.unique(samples.groups))
    assert not sources[0] & sources[1]  # the official splits keep source videos apart, 25 to a class
    assert len(sources[0] | sources[1]) == 25 * 101
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51_official(official, capsys, split):
    sources = []
    for subset, n in ("train", 3570), ("test", 1530):
        samples = parse(official, "hmdb51", subset, split)
        assert len(samples) == len(set(names(samples))) == n and len(samples.classes) == 51
        assert set(Counter(samples.labels.tolist()).values()) == {n // 51}  # 70 and 30 of every class
        assert sum("[" in name for name in names(samples)) == 7 or split != 1
        actor = parse(official, "actor_hmdb51", subset, split)
        assert names(actor) == [name.replace("hmdb51/", "actor-hmdb51/", 1) for name in names(samples)]
        sources.append({(path.split("/")[1], DATASETS["hmdb51"].group(path)) for path in names(samples)})
    assert not sources[0] & sources[1]
    assert capsys.readouterr().err == ""


def test_diving48_official(official, capsys):
    sources = []
    for subset, n in ("train", 15027), ("test", 1970):
        samples = parse(official, "diving48", subset, 1)
        assert len(samples) == len(set(names(samples))) == n
        assert len(set(samples.classes)) == len(samples.classes) == 48
        assert len(np.unique(samples.labels)) == 47
        sources.append({DATASETS["diving48"].group(path) for path in names(samples)})
    assert not sources[0] & sources[1]
    assert samples.classes[0] == "Back_15som_05Twis_FREE" and capsys.readouterr().err == ""


@pytest.mark.parametrize("dataset", ["ucf101", "hmdb51", "diving48"])
def test_holdout_of_official(official, dataset):
    samples = parse(official, dataset, "train", 1)
    rest, held = holdout(samples, 0.1, seed=3)
    assert sorted(names(rest) + names(held)) == sorted(names(samples))
    assert not set(rest.groups) & set(held.groups)
    assert 0.08 < len(held) / len(samples) < (0.15 if dataset == "diving48" else 0.12)  # 58 broadcasts
    shares = np.bincount(held.labels, minlength=51) / np.bincount(samples.labels, minlength=51).clip(1)
    assert shares.max() < 0.5 and set(rest.labels) == set(samples.labels)


# ---- the same formats, small

TAIL = "u_cm_np1_fr_goo_0.avi"
A, B, C = AWKWARD = ["[a] (b);c & d!", "v #1 ~", "plain"]


def make_ucf(root):
    write(root / "ucfTrainTestlist/classInd.txt", "1 Run\r\n2 Jump Rope\r\n")
    write(root / "ucfTrainTestlist/trainlist01.txt",
          "Run/v_Run_g01_c01.avi 1\r\nRun/v_Run_g01_c02.avi 1\r\n\r\n"
          "Jump Rope/v [x] (y)_g02_c01.avi 2\r\n")
    write(root / "ucfTrainTestlist/testlist01.txt",
          "Jump Rope/a;b & c_g03_c01.avi\r\nRun/v_Run_g04_c01.avi\r\n")
    write(root / "ucfTrainTestlist/swappedlist01.txt", "Run/v_Run_g05_c01.avi\n")
    touch(root, *(f"UCF-101/Run/v_Run_g0{g}_c01.avi" for g in (1, 4, 5)))


def make_hmdb(root, folder):
    state = {"clap": "120", "clap_twice": "211"}
    for action, states in state.items():
        text = "".join(f"{a}_{action}_{TAIL} {s} \r\n" for a, s in zip(AWKWARD, states, strict=True))
        write(root / f"testTrainMulti_7030_splits/{action}_test_split2.txt", text)
        touch(root, *(f"{folder}{action}/{a}_{action}_{TAIL}" for a in AWKWARD))
    write(root / "testTrainMulti_7030_splits/clap_twice_swapped_split2.txt", f"{A}_clap_twice_{TAIL} 1\n")


def test_ucf101_format(tmp_path):
    make_ucf(tmp_path)
    train = DATASETS["ucf101"](tmp_path, "train", 1)
    assert names(train) == ["UCF-101/Run/v_Run_g01_c01.avi", "UCF-101/Run/v_Run_g01_c02.avi",
                            "UCF-101/Jump Rope/v [x] (y)_g02_c01.avi"]
    assert train.classes == ["Run", "Jump Rope"] and train.labels.tolist() == [0, 0, 1]
    assert train.labels.dtype == np.int64 and train.paths.dtype.kind == "S"
    assert train.groups.tolist() == [0, 0, 1] and train.path(0) == f"{tmp_path}/UCF-101/Run/v_Run_g01_c01.avi"
    test = DATASETS["ucf101"](tmp_path, "test", 1)
    assert names(test)[0] == "UCF-101/Jump Rope/a;b & c_g03_c01.avi" and test.labels.tolist() == [1, 0]
    assert names(DATASETS["ucf101"](tmp_path, "swapped", 1)) == ["UCF-101/Run/v_Run_g05_c01.avi"]


@pytest.mark.parametrize("dataset, folder", [
    ("hmdb51", "hmdb51/"), ("hmdb51", ""), ("actor_hmdb51", "actor-hmdb51/"),
])
def test_hmdb51_format(tmp_path, dataset, folder):
    make_hmdb(tmp_path, folder)
    one, two = f"{folder}clap/{{}}_clap_{TAIL}".format, f"{folder}clap_twice/{{}}_clap_twice_{TAIL}".format
    train, test, swapped = (DATASETS[dataset](tmp_path, subset, 2) for subset in ("train", "test", "swapped"))
    assert train.classes == test.classes == swapped.classes == ["clap", "clap_twice"]
    assert names(train) == [one(A), two(B), two(C)] and train.labels.tolist() == [0, 1, 1]
    assert names(test) == [one(B), two(A)] and test.labels.tolist() == [0, 1]
    assert DATASETS[dataset].group(one(A)) == DATASETS[dataset].group(two(A)) == A
    assert names(swapped) == [two(A)] and swapped.labels.tolist() == [1]  # only this class has such a list


def test_actor_hmdb51_never_takes_the_uncropped_videos(tmp_path):
    make_hmdb(tmp_path, "")
    with pytest.raises(DatasetMissing, match="actor-hmdb51/clap/"):
        DATASETS["actor_hmdb51"](tmp_path, "train", 2)


def test_diving48_format(tmp_path):
    entry = {"vid_name": "-mmq0_PT_00155", "label": 1, "start_frame": 0, "end_frame": 48}
    write(tmp_path / "Diving48_vocab.json", '[["Back", "15som"], ["Reverse", "Dive"]]')
    second = entry | {"vid_name": "-mmq0_PT_00156", "label": 0}
    write(tmp_path / "Diving48_V2_train.json", json.dumps([entry, second]))
    touch(tmp_path, "rgb/-mmq0_PT_00155.mp4")
    samples = DATASETS["diving48"](tmp_path, "train", 1)
    assert names(samples) == ["rgb/-mmq0_PT_00155.mp4", "rgb/-mmq0_PT_00156.mp4"]
    assert samples.labels.tolist() == [1, 0] and samples.classes == ["Back_15som", "Reverse_Dive"]
    assert samples.groups.tolist() == [0, 0]
    for bad in {"start_frame": 7}, {"label": 2}, {"vid_name": "../x"}, {"vid_name": 3}:
        write(tmp_path / "Diving48_V2_train.json", json.dumps([entry, entry | bad]))
        with pytest.raises(ConfigError, match="V2_train.json, entry 2"):
            DATASETS["diving48"](tmp_path, "train", 1)
    write(tmp_path / "Diving48_V2_train.json", "[\n{,}]")
    with pytest.raises(ConfigError, match="V2_train.json: .* line 2 "):
        DATASETS["diving48"](tmp_path, "train", 1)


@pytest.mark.parametrize("folders", [
    ("train", "val"), ("train/riding a bike", "val/riding_a_bike"), ("train/link", "val"),
])
def test_kinetics400_format(tmp_path, capsys, folders):
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "annotations/train.csv",
          header + 'riding a bike,-3B32lodo2M,59,69,train\n"clap, twice",abc_defghij,0,10,train\n'
          "yawning,gone,1,11,train\n")
    write(tmp_path / "annotations/val.csv", header + "riding a bike,vvvvvvvvvvv,3,13,validate\n")
    touch(tmp_path, "train/x", "other disk/x")
    (tmp_path / "train/link").symlink_to(tmp_path / "other disk")
    touch(tmp_path, f"{folders[0]}/-3B32lodo2M_000059_000069.mp4", "train/abc_defghij_000000_000010.mp4",
          f"{folders[1]}/vvvvvvvvvvv_000003_000013.mp4")
    train, val = (DATASETS["kinetics400"](tmp_path, subset, 1) for subset in ("train", "val"))
    assert train.classes == val.classes == ["clap, twice", "riding a bike", "yawning"]
    assert names(train) == [f"{folders[0]}/-3B32lodo2M_000059_000069.mp4",
                            "train/abc_defghij_000000_000010.mp4"]
    assert train.labels.tolist() == [1, 0] and val.labels.tolist() == [1]
    assert names(val) == [f"{folders[1]}/vvvvvvvvvvv_000003_000013.mp4"]
    err = capsys.readouterr().err  # of one class there is nothing
    assert err.count("\n") == 1 and "2 of 3 listed videos (66.7%)" in err and "of 2 of 3 classes" in err
    assert """'classes=["clap, twice", "riding a bike"]'""" in err
    write(tmp_path / "annotations/train.csv",
          (tmp_path / "annotations/train.csv").read_text() + "yawning,abc_defghij,0,10,train\n")
    assert DATASETS["kinetics400"](tmp_path, "train", 1).labels.tolist() == [1, 0, 2]
    assert "3 of 4 listed videos (75.0%) are in" in capsys.readouterr().err
    for text, line in (header + "riding a bike,vvvvvvvvvvv,x,13,validate\n", 2), (header + "\nyawning,v\n", 3), \
            ("label,youtube_id,time_start\nyawning,v,1\n", 2):
        write(tmp_path / "annotations/val.csv", text)
        with pytest.raises(ConfigError, match=f"val.csv:{line}: expected label,youtube_id"):
            DATASETS["kinetics400"](tmp_path, "val", 1)


def test_plain_format(tmp_path):
    write(tmp_path / "plain/classes.txt", "walk\nrun\n")
    write(tmp_path / "plain/mine.txt", "some/folder/a b.mp4 1\nc.mkv 0\n")
    touch(tmp_path / "plain", "c.mkv")
    samples = load("plain", tmp_path, "mine")
    assert names(samples) == ["some/folder/a b.mp4", "c.mkv"] and samples.labels.tolist() == [1, 0]
    assert samples.classes == ["walk", "run"]


@pytest.mark.parametrize("dataset, file, line", [
    ("ucf101", "ucfTrainTestlist/trainlist01.txt", "../x.avi 1"),
    ("ucf101", "ucfTrainTestlist/trainlist01.txt", "/etc/x.avi 1"),
    ("ucf101", "ucfTrainTestlist/trainlist01.txt", "Run/x.avi one"),
    ("ucf101", "ucfTrainTestlist/testlist01.txt", "Walk/x.avi"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", "Walk"),
    ("hmdb51", "testTrainMulti_7030_splits/clap_test_split2.txt", "x.avi 3"),
    ("hmdb51", "testTrainMulti_7030_splits/clap_test_split2.txt", "../x.avi 1"),
    ("plain", "train.txt", "a/../../x.avi 0"),
    ("plain", "train.txt", "x.avi 2"),
    ("plain", "train.txt", "x.avi"),
])
def test_bad_line_is_named(tmp_path, dataset, file, line):
    make_ucf(tmp_path)
    make_hmdb(tmp_path, "")
    write(tmp_path / "classes.txt", "walk\nrun\n")
    touch(tmp_path, "train.txt", "a.avi")
    text = (tmp_path / file).read_bytes()
    write(tmp_path / file, text.decode() + line + "\n")
    subset, split = "test" if "testlist" in file else "train", 2 if dataset == "hmdb51" else 1
    with pytest.raises(ConfigError) as error:
        DATASETS[dataset](tmp_path, subset, split)
    last = len(text.splitlines()) + 1
    assert str(error.value).startswith(f"{tmp_path / file}:{last}: ")


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_a_missing_data_set_is_explained(tmp_path, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, *(f"file {i:02}" for i in range(12)), ".hidden")
    with pytest.raises(DatasetMissing) as error:
        DATASETS[dataset]("nowhere", "train", 1)
    text = str(error.value)
    assert isinstance(error.value, FileNotFoundError) and text.startswith(f"{tmp_path}/nowhere/{dataset}/")
    assert f"{tmp_path} holds {', '.join(f'file {i:02}' for i in range(10))} ...\n" in text  # ten of twelve
    assert f"docs/DATA.md says what {dataset} is" in text and "videos=FOLDER, lists=FOLDER" in text and "demo" in text


def test_missing_parts(tmp_path):
    make_ucf(tmp_path)
    make_hmdb(tmp_path, "hmdb51/")
    for dataset, subset, split, looked_for in [("ucf101", "train", 2, "ucfTrainTestlist/trainlist02.txt"),
                                               ("hmdb51", "train", 1, "CLASS_test_split1.txt"),
                                               ("hmdb51", "val", 2, "CLASS_val_split2.txt")]:
        with pytest.raises(DatasetMissing, match=f"{looked_for} does not exist.\n.* holds cl"):
            DATASETS[dataset](tmp_path, subset, split)
    (tmp_path / "UCF-101").rename(tmp_path.with_name("elsewhere"))  # lists without their videos
    with pytest.raises(DatasetMissing, match="Run/v_Run_g01_c01.avi does not exist.\n.* holds hmdb51, "):
        DATASETS["ucf101"](tmp_path, "train", 1)
    assert len(DATASETS["ucf101"](tmp_path, "train", 1, videos=tmp_path.with_name("elsewhere"))) == 3
    with pytest.raises(ValueError, match="no split 4; it has 1, 2, 3"):
        DATASETS["ucf101"](tmp_path, "train", 4)
    write(tmp_path / "ucfTrainTestlist/trainlist01.txt", "\r\n")
    with pytest.raises(ValueError, match="names no video"):
        DATASETS["ucf101"](tmp_path, "train", 1)
    with pytest.raises(ConfigError, match="ucf101"):
        load("ucf11", tmp_path, "train")


# ---- layouts

UCF_LISTS = {"classInd.txt": "1 Run\n2 Jump\n",
             "trainlist01.txt": "Run/v_Run_g01_c01.avi 1\nJump/v_Jump_g02_c01.avi 2\n"}
HMDB_LISTS = {f"{c}_test_split1.txt": f"{n}_{c}_{TAIL} 1 \n" for c, n in (("Jump", 1), ("Run", 2))}
KINETICS_LIST = "label,youtube_id,time_start,time_end\nJump up,-bcdefghij0,5,15\nRun,abcdefghij1,0,10\n"
J, R = "-bcdefghij0_000005_000015", "abcdefghij1_000000_000010"
MM = "annotations/ucf101_train_split_1_videos.txt"
LAYOUTS = [  # data set; is data= itself; folder of its official lists, or {list: content}; the two videos
    ("ucf101", True, "ucfTrainTestlist", "UCF-101/Run/v_Run_g01_c01.avi", "UCF-101/Jump/v_Jump_g02_c01.avi"),
    ("ucf101", True, "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "UCF-101/UCF-101/Run/v_Run_g01_c01.avi",
     "UCF-101/UCF-101/Jump/v_Jump_g02_c01.avi"),
    ("ucf101", False, "annotations", "videos/Run/v_Run_g01_c01.mkv", "videos/Jump/v_Jump_g02_c01.MP4"),
    ("ucf101", True, "lists/ucfTrainTestlist", "v_Run_g01_c01.webm", "v_Jump_g02_c01.avi"),
    ("ucf101", True, {MM: "Run/v_Run_g01_c01.avi 0\nJump/v_Jump_g02_c01.avi 1\n"}, "rawframes/Run/v_Run_g01_c01/7.jpg",
     "rawframes/Jump/v_Jump_g02_c01/7.jpg"),
    ("ucf101", False, {"ucf101_train_split_1_rawframes.txt": "Run/v_Run_g01_c01 120 0\nJump/v_Jump_g02_c01 99 1\n"},
     "frames/Run/v_Run_g01_c01/7.jpg", "frames/Jump/v_Jump_g02_c01/7.jpg"),
    ("hmdb51", True, "test_train_splits/testTrainMulti_7030_splits", f"hmdb51_org/Run/Run/2_Run_{TAIL}",
     f"hmdb51_org/Jump/Jump/1_Jump_{TAIL}"),
    ("hmdb51", False, ".", f"Run/2_Run_{TAIL}", f"Jump/1_Jump_{TAIL}"),
    ("diving48", True, {"annotations/Diving48_vocab.json": '[["Jump"], ["Run"]]', "annotations/Diving48_V2_train.json":
                       '[{"vid_name": "a_1", "label": 1, "start_frame": 0}, {"vid_name": "b_2", "label": 0, '
                       '"start_frame": 0}]'}, "videos/a_1.mp4", "videos/b_2.mov"),
    ("kinetics400", True, {"train.csv": KINETICS_LIST}, f"train/Run/{R}.mp4", f"train/Jump_up/{J}.mp4"),
    ("kinetics400", False, {"annotations/kinetics_train.csv": KINETICS_LIST}, f"videos_train/Run/{R}.webm",
     f"videos_train/Jump up/{J}.mkv"),
    ("kinetics400", True, {"annotations/train.csv": KINETICS_LIST}, "compress/train/abcdefghij1.mp4",
     "compress/train/-bcdefghij0.mp4"),
    ("kinetics400", True, {"kinetics400_train_list_videos.txt": f"Jump_up/{J}.mp4 0\nRun/{R}.mp4 1\n"},
     f"videos_train/Run/{R}.mp4", f"videos_train/Jump_up/{J}.mp4"),
]


@pytest.mark.parametrize("dataset, itself, lists, run, jump", LAYOUTS)
def test_layouts(tmp_path, capsys, dataset, itself, lists, run, jump):
    home = tmp_path / {"ucf101": "UCF_101", "kinetics400": "k400"}.get(dataset, dataset.upper())
    if isinstance(lists, str):
        official = UCF_LISTS if dataset == "ucf101" else HMDB_LISTS
        lists = {f"{lists}/{name}": text for name, text in official.items()}
    for name, text in lists.items():
        write(home / name, text)
        write(home / Path(name).parent / f"._{Path(name).name}", "\0\5\26\7Mac OS X")  # as tar leaves it there
    touch(home, run, jump, "Thumbs.db", f"{Path(run).parent}/._{Path(run).name}", f"{Path(jump).parent}/Thumbs.db")
    samples = load(dataset, home if itself else tmp_path, "train")
    found = {samples.classes[label][:3]: name for label, name in zip(samples.labels, names(samples), strict=True)}
    assert found == {"Run": run.removesuffix("/7.jpg"), "Jum": jump.removesuffix("/7.jpg")}
    assert samples.root == str(home) and capsys.readouterr().err == ""


@pytest.mark.parametrize("good, bad, content", [
    ("train/Run/{}.mp4", "train/{}.mp4", b""),
    ("replacement/replacement_for_corrupted_k400/{}.mp4", "train/{}.mp4", None),  # that opens, too
    ("train/zumba/{}.mp4", "train/abseiling/{}.mp4", b"<!DOCTYPE html>" * 999),
    ("train/{}.webm", "train/{}.mp4", b"version https://git-lfs.github.com/spec/v1\n"),
    ("train/{}.mp4", "train/{}.mkv", None),  # the listed suffix
    ("train/{}.mp4", "train/{}/00001.jpg", b"no JPEG"),
])
def test_of_two_files_of_one_name_the_readable_one(tmp_path, videos, capsys, good, bad, content):
    home, sound = tmp_path / "k400", Path(videos.root, "00000.mp4").read_bytes()
    write(home / "annotations/train.csv", KINETICS_LIST)
    for path, data in ((good, sound), (bad, sound if content is None else content)):
        touch(home, path.format(R))
        (home / path.format(R)).write_bytes(data)
    samples = load("kinetics400", tmp_path, "train")
    assert names(samples) == [good.format(R)]
    assert f"1 videos lie more than once in {home}; one that opens is used" in capsys.readouterr().err


def test_people_s_own_lists(tmp_path, capsys):
    """Whatever wrote them: Windows, pandas, VideoMAE, TSN."""
    write(tmp_path / "annotations/train.txt", "somebody else's")
    for text, want in [
        ("\ufeffx/a b.mp4 1\r\ny/c.mkv 0\r\n", [1, 0]),
        ('"x/a b.mp4",1\ny/c.mkv,0\n', [1, 0]),
        ("x/a b.mp4\t1\ny/c.mkv\t0\n", [1, 0]),
        ("x/a b.mp4 300 1\ny/c.avi 29 0\n", [1, 0]),
        (f"{tmp_path}/x/a b.mp4, 7\n{tmp_path}/y/c, 10\n", [7, 10]),
    ]:
        write(tmp_path / "train.csv", text)
        touch(tmp_path, "x/a b.mp4", "y/c.mkv")
        samples = load("plain", tmp_path, "train")
        assert names(samples) == ["x/a b.mp4", "y/c.mkv"] and samples.labels.tolist() == want
        assert samples.classes == (["y", "x"] if want == [1, 0] else [str(i) for i in range(11)])
    write(tmp_path / "classes.txt", "\ufeffwalk\r\nrun\r\n")
    write(tmp_path / "train.txt", f"{tmp_path.parent}/out.avi 1\nx/a b.avi 0\n")  # the .txt is the one to read
    touch(tmp_path.parent, "out.mp4")
    samples = load("plain", tmp_path, "train")
    assert samples.path(0) == f"{tmp_path.parent}/out.mp4" and samples.path(1) == f"{tmp_path}/x/a b.mp4"
    assert samples.classes == ["walk", "run"] and capsys.readouterr().err == ""


def test_a_list_of_frame_folders(tmp_path):
    """Beside the list or in folders of classes, with or without the suffix that the video had."""
    write(tmp_path / "train.txt", f"jpegs/run/v_1 1\njpegs/run/v_2.avi 1\nv_3 0\n{tmp_path}/jpegs/sit/v_4 0\n")
    touch(tmp_path, *(f"{at}/image_0000{n}.jpg" for at in ("jpegs/run/v_1", "jpegs/run/v_2", "v_3", "jpegs/sit/v_4")
                      for n in (1, 2)))
    samples = load("plain", tmp_path, "train")
    assert names(samples) == ["jpegs/run/v_1", "jpegs/run/v_2", "v_3", "jpegs/sit/v_4"]
    assert all(Path(samples.path(i)).is_dir() for i in range(4))


def test_a_file_of_another_line_does_not_stand_in(tmp_path):
    write(tmp_path / "train.txt", "x.mp4 0\nx.avi 1\ny.mp4 0\ny.mov 1\nz.mp4 0\n")
    touch(tmp_path, "x.mp4", "x.avi", "y.mov", "z.mkv")  # none of them opens
    samples, there = DATASETS["plain"].read(tmp_path, tmp_path, "train", 1)
    assert names(samples) == ["x.mp4", "x.avi", "y.mp4", "y.mov", "z.mkv"] and there.tolist() == [1, 1, 0, 1, 1]


def test_where_a_person_says_that_it_lies(tmp_path):
    """As keys, too: they are of `data`, not of `test_data`."""
    for name, text in UCF_LISTS.items():
        write(tmp_path / "my splits" / name, text)
    touch(tmp_path, "disk/films/Run/v_Run_g01_c01.mp4", "disk/films/Jump/v_Jump_g02_c01.avi")
    words = [f"data={tmp_path}", f"videos={tmp_path}/disk/films", f"lists={tmp_path}/my splits"]
    cfg = config.load("demo-random", words)
    samples = datasets.load_for(cfg, "train")
    assert samples.root == f"{tmp_path}/disk/films"
    assert names(samples) == ["Run/v_Run_g01_c01.mp4", "Jump/v_Jump_g02_c01.avi"]
    assert names(load("ucf101", tmp_path / "disk", "train", lists=tmp_path / "my splits")) == [
        "films/Run/v_Run_g01_c01.mp4", "films/Jump/v_Jump_g02_c01.avi"]
    with pytest.raises(DatasetMissing):
        datasets.load_for(cfg, "train", str(tmp_path / "other"))


def test_neighbours_are_not_taken_for_it(tmp_path):
    """Kinetics-700 beside Kinetics-400, which is not there; and another data set's manifest."""
    write(tmp_path / "kinetics700/annotations/train.csv", KINETICS_LIST)
    touch(tmp_path, f"kinetics700/train/{R}.mp4")
    with pytest.raises(DatasetMissing, match="holds kinetics700"):
        load("kinetics400", tmp_path, "train")
    np.savez(tmp_path / "kinetics700" / MANIFEST, **vars(table(tmp_path / "kinetics700", ["annotations/train.csv"])))
    samples = load("kinetics400", tmp_path / "kinetics700", "train")  # said in so many words
    assert len(samples) == 1 and samples.manifest is samples.manifest_hash is None


def test_with_a_manifest_no_folder_is_looked_through(tmp_path, monkeypatch, capsys):
    home, listed = tmp_path / "k400", [f"train/Run/{R}.webm"]
    write(home / "annotations/train.csv", KINETICS_LIST)
    touch(home, *listed)
    np.savez(home / MANIFEST, **vars(table(home, listed)))
    touch(home, f"train/{J}.mp4")  # came later
    monkeypatch.setattr(datasets, "walk", lambda *_: pytest.fail("looked through the folders"))
    samples = load("kinetics400", tmp_path, "train")
    assert names(samples) == listed and samples.rows.tolist() == [0]
    assert "1 of 2 listed videos (50.0%)" in capsys.readouterr().err
    monkeypatch.undo()
    (home / "train").rename(home / "videos_train")  # the manifest is of another layout
    np.savez(home / MANIFEST, **vars(table(home, ["annotations/train.csv"])))
    assert names(load("kinetics400", tmp_path, "train")) == [f"videos_train/{J}.mp4", f"videos_train/Run/{R}.webm"]


@pytest.mark.parametrize("classes", [101, 100])
def test_other_counts_are_a_warning(tmp_path, capsys, classes):
    write(tmp_path / "ucfTrainTestlist/classInd.txt", "".join(f"{i + 1} C{i}\n" for i in range(classes)))
    write(tmp_path / "ucfTrainTestlist/testlist02.txt", "C7/a.avi\nC9/b.avi\nC9/lost.avi\n")
    touch(tmp_path, "UCF-101/C9/b.avi", "UCF-101/C7/a.avi")  # a lost file is Clips' to report
    assert len(DATASETS["ucf101"](tmp_path, "test", 2)) == 3
    err = capsys.readouterr().err
    assert ("3 videos" in err and "3734" in err and err.count("\n") == 1) if classes == 101 else err == ""


def test_a_run_of_two_classes(tiny, tmp_path, capsys):
    words = [*TINY, f"data={tiny}", f"out={tmp_path}"]
    chosen = load("ucf101", tiny, "train").classes[2:7:4]
    cfg = config.load("demo-random", [*words, f"classes={json.dumps(chosen)}"], "finetune")
    train.finetune(cfg)
    evaluate.evaluate(cfg)
    path = config.run_dir(cfg, "finetune")
    result = json.loads((path / "result-test.json").read_text())
    said = load_file(path / "probabilities-test.safetensors")
    listed = load("ucf101", tiny, "test")
    mine = [listed.classes[label] for label in listed.labels if listed.classes[label] in chosen]
    assert result["n_expected"] == result["n_scored"] == len(mine) == 4
    assert said["probabilities"].shape == (4, 2) and [chosen[label] for label in said["label"]] == mine
    assert read_about(path / "model.safetensors")["classes"] == chosen
    assert "8 videos" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="the model knows other classes"):
        evaluate.evaluate(config.load("demo-random", words, "finetune"))


def test_chosen_classes(tmp_path, capsys):
    write(tmp_path / "plain/classes.txt", "walk\nrun\nsit\nstand\n")
    write(tmp_path / "plain/train.txt", "a/1 3\nb/2 1\na/3 0\nb/4 3\nc/5 2\n")
    write(tmp_path / "plain/test.txt", "a/1 3\nb/2 2\n")
    touch(tmp_path / "plain", "a/1", "b/2", "a/3", "b/4", "c/5")
    samples = load("plain", tmp_path, "train", classes=["stand", "walk", "stand"])
    assert samples.classes == ["walk", "stand"]  # in the official order, whatever the order asked for
    assert names(samples) == ["a/1", "a/3", "b/4"] and samples.labels.tolist() == [1, 0, 1]
    assert samples.groups.tolist() == [0, 1, 2]
    assert load("plain", tmp_path, "test", classes=["walk", "stand"]).labels.tolist() == [1]
    for nothing in (), [], None:
        assert load("plain", tmp_path, "train", classes=nothing).labels.tolist() == [3, 1, 0, 3, 2]
    with pytest.raises(ConfigError, match="unknown class of plain 'wlak'; nearest: walk"):
        load("plain", tmp_path, "train", classes=["run", "wlak"])
    with pytest.raises(ConfigError, match="names no video of run"):
        load("plain", tmp_path, "test", classes=["run"])
    assert capsys.readouterr().err == ""


def test_a_partial_copy_is_named(tmp_path, capsys):
    write(tmp_path / "ucf101/ucfTrainTestlist/classInd.txt", "".join(f"{i + 1} C{i:02}\n" for i in range(40)))
    for subset in "train", "test":
        write(tmp_path / f"ucf101/ucfTrainTestlist/{subset}list01.txt",
              "".join(f"C{i // 2:02}/{subset}{i}.avi\n" for i in range(80)))
    touch(tmp_path / "ucf101", "UCF-101/C39/train78.avi", "UCF-101/C39/test79.avi", "UCF-101/C05/train10.avi",
          "UCF-101/C05/train11.avi", "UCF-101/C05/test10.avi")
    train = load("ucf101", tmp_path, "train")  # what is listed stays: a run may not shrink unasked
    assert len(train) == 80 and len(train.classes) == 40
    err = capsys.readouterr().err
    assert err.startswith("warning: ucf101 train, split 1: 3 of 80 listed videos (3.8%) are in ")
    assert "of 2 of 40 classes" in err and err.count("\n") == 1
    (word,) = re.findall(r"classes=(\[.*\])", err)
    fitting = load("ucf101", tmp_path, "test", classes=json.loads(word))
    assert fitting.classes == ["C05", "C39"] and fitting.labels.tolist() == [0, 0, 1, 1]
    assert capsys.readouterr().err == ""


def test_scenes_of_drawn_videos(tmp_path):
    make_ucf(tmp_path)
    touch(tmp_path, "UCF-101/Jump Rope/v [x] (y)_g02_c01.avi")
    assert DATASETS["ucf101"](tmp_path, "train").scene is None
    drawn = {"UCF-101/Run/v_Run_g01_c02.avi": "sea", "UCF-101/Run/v_Run_g04_c01.avi": "forest",
             "UCF-101/Jump Rope/v [x] (y)_g02_c01.avi": "beach"}
    write(tmp_path / "synthetic.jsonl",
          "\n".join(json.dumps({"path": path, "label": 0, "spec": {"scene": s}}) for path, s in drawn.items()))
    train, test = (DATASETS["ucf101"](tmp_path, subset) for subset in ("train", "test"))
    assert train.scenes == test.scenes == ["beach", "forest", "sea"]
    assert train.scene.tolist() == [-1, 2, 0] and test.scene.tolist() == [-1, 1]
    assert train.scene.dtype == np.int64 and train.take([2, 1]).scene.tolist() == [0, 2]
    assert DATASETS["ucf101"](tmp_path, "train", classes=["Jump Rope"]).scene.tolist() == [0]


# ---- the manifest


def table(root, names):
    """A manifest of the files `names` in root, each said to have one frame and the index of one."""
    index = video.Index(np.zeros(1, np.int32), np.array([7]), np.array([True])).pack()
    stats, n = [os.stat(root / name) for name in names], len(names)
    return Manifest(
        path=np.array([name.encode() for name in names]),
        size=np.array([stat.st_size for stat in stats]),
        mtime=np.array([stat.st_mtime_ns for stat in stats]),
        digest=np.arange(16 * n, dtype=np.uint8).reshape(n, 16),
        frames=np.ones(n, np.int32),
        deadly=np.zeros(n, bool),
        packed=np.frombuffer(index * n, np.uint8),
        end=np.cumsum([len(index)] * n),
    )


def test_rows_index_and_hash(tmp_path):
    listed = ["a b.avi", "b", "c/d.mp4"]
    for i, name in enumerate(listed):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(i))
    known = table(tmp_path, listed)

    def samples(*names, labels=(0, 1), table=known):
        paths = np.array([name.encode() for name in names])
        return Samples(str(tmp_path), paths, np.array(labels), np.arange(len(paths)), ["x", "y"]).with_manifest(table)

    assert samples("c/d.mp4", "a", "zz", "a b.avi", "c/d.mp4 and longer").rows.tolist() == [2, -1, -1, 0, -1]
    some = samples("c/d.mp4", "b", "gone", "a b.avi")
    assert [part.tolist() for part in vars(some.index(0)).values()] == [[0], [7], [True]]
    os.utime(tmp_path / "b", ns=(0, 0))  # changed since, by its time ...
    (tmp_path / "a b.avi").write_bytes(b"longer")  # ... or by its size
    stat = os.stat(tmp_path / "a b.avi")
    os.utime(tmp_path / "a b.avi", ns=(stat.st_atime_ns, int(known.mtime[0])))
    assert some.index(1) is some.index(2) is some.index(3) is None and some.take([1, 0]).index(1) is not None
    (tmp_path / "c/d.mp4").unlink()
    assert some.index(0) is None

    marks = [one.manifest_hash for one in (
        samples("b", "c/d.mp4"), samples("c/d.mp4", "b"), samples("b", "c/d.mp4", labels=[1, 0]),
        samples("gone", "c/d.mp4"), samples("b", labels=[0]))]
    assert len(set(marks)) == 5 and {len(mark) for mark in marks} == {16}
    (tmp_path / "c/d.mp4").touch()
    other = table(tmp_path, listed)  # other times and sizes, same content: the same videos
    assert other.mtime[1] != known.mtime[1] and samples("b", "c/d.mp4", table=other).manifest_hash == marks[0]


def test_read(tmp_path):
    assert Manifest.read(tmp_path) is None
    (tmp_path / "b").touch()
    known = table(tmp_path, ["b"])
    np.savez(tmp_path / MANIFEST, **vars(known), more=np.zeros(3))
    again = Manifest.read(tmp_path)
    assert all(np.array_equal(getattr(again, column.name), getattr(known, column.name)) for column in fields(known))
    whole = (tmp_path / MANIFEST).read_bytes()
    without = {name: column for name, column in vars(known).items() if name != "end"}
    for spoil in (lambda: (tmp_path / MANIFEST).write_bytes(b""), lambda: (tmp_path / MANIFEST).write_bytes(whole[:-9]),
                  lambda: (tmp_path / MANIFEST).write_bytes(b"text"), lambda: np.savez(tmp_path / MANIFEST, **without),
                  lambda: np.savez(tmp_path / MANIFEST, **vars(known) | {"path": np.array([print], object)})):
        spoil()
        with pytest.raises(UserError, match="run `prepare` again"):
            Manifest.read(tmp_path)


# ---- held-out source videos


def listing(labels, groups, classes, root="/nowhere"):
    paths = np.array([f"{i:05d}.mp4".encode() for i in range(len(labels))])
    labels, groups = np.array(labels, np.int64), np.array(groups, np.int64)
    return Samples(root, paths, labels, groups, [str(c) for c in range(classes)])


def test_holdout():
    rng = np.random.default_rng(0)
    groups = rng.integers(60, size=400)
    samples = listing(rng.integers(4, size=400), groups, 4)  # a source video lends clips to several classes
    rest, held = holdout(samples, 0.25, seed=1)
    assert not set(rest.groups) & set(held.groups) and len(rest) + len(held) == 400
    assert sorted([*names(rest), *names(held)]) == names(samples) and names(held) == sorted(names(held))
    assert 80 <= len(held) <= 120 and set(held.labels) == set(rest.labels) == {0, 1, 2, 3}
    assert names(holdout(samples, 0.25, seed=1)[1]) == names(held) != names(holdout(samples, 0.25, seed=2)[1])
    where = [names(samples).index(name) for name in names(held)]
    assert held.labels.tolist() == samples.labels[where].tolist()
    with pytest.raises(ValueError, match="too long"):
        holdout(listing([0] * 9, [0] * 9, 1), 0.1, seed=0)


# ---- items, from real files

SIZES = [(24, 32), (32, 24), (24, 48)]  # height and width, by turns


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Seven videos of 6 to 12 frames; numbers 2, 3 and 6 cannot be decoded."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for i in range(7):
        frames = rng.integers(0, 256, (6 + i, *SIZES[i % 3], 3), dtype=np.uint8)
        video.encode(root / f"{i:05d}.mp4", frames, fps=10, options={"crf": "10"})
    (root / "00002.mp4").write_bytes(b"not a video")
    (root / "00003.mp4").write_bytes((root / "00001.mp4").read_bytes()[:200])
    (root / "00006.mp4").unlink()
    return listing([0, 1, 2, 0, 1, 2, 0], range(7), 3, str(root))


GOOD, BAD = [0, 1, 4, 5], [2, 3, 6]
SAMPLER = partial(video.random_clips, K=2, T=4, stride=1)


def make(samples, sampler=SAMPLER, seed=5, train=True):
    return Clips(samples, sampler, short_side=16, seed=seed, train=train)


def same(a, b):
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("train", [True, False])
def test_item_is_the_decoded_video(videos, train):
    for epoch, i in itertools.product([0, 3], GOOD):
        path = f"{videos.root}/{i:05d}.mp4"
        indices = SAMPLER(files.probe(path).frames, np.random.default_rng((5, epoch, i)))
        want = files.decode(path, indices, 16)
        item = make(videos, train=train)[epoch, i]
        assert isinstance(item, Item) and item.clips.dtype == np.uint8 and item.clips.shape[:2] == (2, 4)
        assert np.array_equal(item.clips, want) and min(want.shape[2:4]) == 16
        assert item[1:] == (videos.labels[i], i, True, 0, False)


@pytest.fixture
def opened(monkeypatch):
    """The paths that are opened, one after the other."""
    paths = []

    class Counting(video.Reader):
        def __init__(self, path, *options):
            paths.append(path)
            super().__init__(path, *options)

    monkeypatch.setattr(datasets, "Reader", Counting)
    return paths


def test_cached_videos_give_the_same_items_and_are_opened_once(videos, opened, monkeypatch):
    monkeypatch.setattr(datasets, "CACHE", datasets.VideoCache())
    plain = [make(videos)[epoch, i] for epoch in range(3) for i in range(7)]
    opened.clear()
    clips = Clips(videos, SAMPLER, 16, 5, True, cache_gb=1)
    cached = [clips[epoch, i] for epoch in range(3) for i in range(7)]
    assert all(same(a, b) for a, b in zip(plain, cached, strict=True))
    assert all(opened.count(videos.path(i)) == 1 for i in GOOD)
    assert datasets.CACHE.bytes == sum(frames.nbytes for frames in datasets.CACHE.values())
    assert [path for path, _ in datasets.CACHE] == [videos.path(i) for i in (1, 4, 5, 0)]  # 0 stands in for 6


def test_the_least_recently_used_video_leaves_the_cache():
    cache, frames = datasets.VideoCache(), np.zeros((4, 2, 3, 3), np.uint8)
    for name in "abc":
        cache.add((name, 16), frames, 3 * frames.nbytes / 2**30)
    cache.move_to_end(("a", 16))
    cache.add(("d", 16), frames, 3 * frames.nbytes / 2**30)
    assert [name for name, _ in cache] == ["c", "a", "d"] and cache.bytes == 3 * frames.nbytes
    cache.add(("e", 16), np.zeros((40, 2, 3, 3), np.uint8), 3 * frames.nbytes / 2**30)  # too large to be cached at all
    assert not cache and cache.bytes == 0


def test_a_clip_before_the_damage_is_read_with_a_cache_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "CACHE", datasets.VideoCache())
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    video.encode(tmp_path / "00000.avi", frames, fps=10, codec="mpeg4")
    data = bytearray((tmp_path / "00000.avi").read_bytes())
    half = len(data) // 2
    data[half : half + half // 2] = bytes(half // 2)
    (tmp_path / "00000.avi").write_bytes(data)

    def first(n, rng):
        return np.arange(4)[None]

    samples = listing([0], [0], 1, str(tmp_path))
    samples.paths[0] = b"00000.avi"
    plain, cached = (Clips(samples, first, 16, 0, False, gb)[0, 0] for gb in (0, 1))
    with video.Reader(samples.path(0), strict=True) as reader, pytest.raises(video.VideoError):
        reader.decode(np.arange(reader.frames))
    assert plain.ok and same(plain, cached) and not datasets.CACHE
    for gb, strict in itertools.product((0, 1), (False, True)):
        clips = Clips(samples, lambda n, rng: np.arange(n)[None], 16, 0, False, gb, strict)
        batch = collate([clips[0, 0], plain._replace(clips=np.zeros_like(clips[0, 0].clips))])
        assert (batch.ok.tolist(), batch.damaged.tolist()) == ([not strict, True], [not strict, False])
        assert batch.clips.any() != strict and Clips(samples, first, 16, 0, False, gb, strict)[0, 0].ok


def test_unreadable_in_training(videos, capfd):
    clips = make(videos)
    for i, instead, skipped in [(2, 4, 2), (3, 4, 1), (6, 0, 1), (2, 4, 2)]:
        item = clips[1, i]
        indices = SAMPLER(files.probe(videos.path(instead)).frames, np.random.default_rng((5, 1, i)))
        assert np.array_equal(item.clips, files.decode(videos.path(instead), indices, 16))
        assert item[1:] == (videos.labels[instead], instead, True, skipped, False)
    err = capfd.readouterr().err
    assert err.count("unreadable video") == 3
    for i in BAD:  # each once, with a reason after its name
        assert err.count(f"unreadable video: {videos.path(i)}: ") == 1


def test_unreadable_in_evaluation(videos, capfd):
    clips = make(videos, train=False)
    for i in [*BAD, 2]:
        item = clips[0, i]
        assert item.clips.shape == (2, 4, 16, 16, 3) and not item.clips.any()
        assert item[1:] == (videos.labels[i], i, False, 0, False)
    assert capfd.readouterr().err.count("unreadable video: ") == 3


def test_what_ends_a_run(videos):
    with pytest.raises(UserError, match="none of the 3 videos in .* can be decoded"):
        make(videos.take(BAD))[0, 1]
    for training in True, False:  # a bug of a sampler, or of whoever asks, does not pass for a bad video
        with pytest.raises(IndexError):
            make(videos, lambda n, rng: np.array([[n]]), train=training)[0, 0]
        for i in 7, -1:
            with pytest.raises(IndexError, match=f"{i} of 7 videos"):
                make(videos, train=training)[0, i]


def test_what_a_worker_is_sent_is_small():
    n = 20_000
    samples = listing(range(n), range(n), 3)
    arrays = samples.paths.nbytes + samples.labels.nbytes + samples.groups.nbytes
    assert len(pickle.dumps(make(samples))) < arrays + 2000


# ---- batches


def test_collate_pads(monkeypatch):
    rng, items = np.random.default_rng(1), []
    for b, (H, W) in enumerate([(4, 6), (6, 4), (5, 5)]):
        items.append(Item(rng.integers(1, 256, (2, 3, H, W, 3), dtype=np.uint8), 7 + b, 70 + b, b != 1, b))
    batch = collate(items)
    assert batch.clips.shape == (3, 2, 3, 6, 6, 3) and batch.clips.dtype == torch.uint8
    for b, k, t, y, x in itertools.product(range(3), range(2), range(3), range(6), range(6)):
        H, W = items[b].clips.shape[2:4]
        want = items[b].clips[k, t, y, x].tolist() if y < H and x < W else [0, 0, 0]
        assert batch.clips[b, k, t, y, x].tolist() == want
    monkeypatch.setattr(datasets, "in_worker", True)
    assert not batch.clips.is_shared() and collate(items).clips.is_shared()
    assert batch.size.tolist() == [[4, 6], [6, 4], [5, 5]] and batch.size.dtype == torch.int64
    assert batch.label.tolist() == [7, 8, 9] and batch.index.tolist() == [70, 71, 72]
    assert batch.ok.tolist() == [True, False, True] and batch.ok.dtype == torch.bool
    assert batch.skipped.tolist() == [0, 1, 2] and batch.label.dtype == batch.skipped.dtype == torch.int64


def test_epoch_batches():
    one = list(epoch_batches(50, 8, seed=1, epoch=2))
    assert [len(batch) for batch in one] == [8] * 6 and {epoch for batch in one for epoch, _ in batch} == {2}
    shown = [i for batch in one for _, i in batch]
    assert len(set(shown)) == 48 and set(shown) < set(range(50)) and all(type(i) is int for i in shown)
    assert sorted(i for batch in epoch_batches(48, 8, seed=1, epoch=2) for _, i in batch) == list(range(48))
    for world in 2, 4:
        parts = [list(epoch_batches(50, 8, 1, 2, rank, world)) for rank in range(world)]
        assert [sum(step, []) for step in zip(*parts, strict=True)] == one
    orders = {tuple(i for batch in epoch_batches(50, 8, seed, epoch) for _, i in batch)
              for seed, epoch in [(1, 2), (1, 3), (2, 2)]}
    assert len(orders) == 3 and tuple(shown) in orders
    assert shown != np.random.default_rng((1, 2, 0)).permutation(50)[:48].tolist()  # the stream of item 0


def test_loader_does_not_depend_on_workers(videos):
    keys = [*epoch_batches(7, 4, 5, 0), *epoch_batches(7, 4, 5, 1), [(2, 6), (2, 1), (2, 2)]]
    before = torch.get_rng_state()
    batches = {workers: list(loader(make(videos), iter(keys), workers)) for workers in (0, 1, 2)}
    assert torch.equal(torch.get_rng_state(), before)  # the training's own draws are left alone
    for alone, *others in zip(*batches.values(), keys, strict=True):
        key = others.pop()
        assert all(same(alone, other) for other in others)
        assert same(alone, collate([make(videos)[k] for k in key]))
    parts = [list(loader(make(videos), epoch_batches(7, 4, 5, 0, rank, 2), workers=1))[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([part.index for part in parts]), batches[0][0].index)
    for part, rows in zip(parts, batches[0][0].clips.split(2), strict=True):
        assert torch.equal(part.clips, rows[:, :, :, : part.clips.shape[3], : part.clips.shape[4]])


def test_a_worker_lets_requests_to_end_pass(videos):
    """Schedulers signal every process of a job, and the launcher its groups again; batches are still wanted."""
    batches = iter(loader(make(videos), [[(0, i % 7)] for i in range(9)], workers=1))
    next(batches)
    (worker,) = batches._workers
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        time.sleep(0.05)
    assert sum(len(batch.index) for batch in itertools.islice(batches, 8)) == 8 and worker.is_alive()
    del batches
    worker.join(10)
    assert worker.exitcode == 0


def test_a_process_that_an_error_ends_takes_its_workers_along():
    """A traceback holds the loader to the very end, where multiprocessing sends workers a SIGTERM and waits."""
    code = """
import torch
from torch.utils.data import DataLoader
from be import datasets
batches = iter(DataLoader(torch.arange(99), batch_size=1, num_workers=2, worker_init_fn=datasets.init_worker))
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
raise MemoryError("out of memory")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.rstrip().endswith("MemoryError: out of memory"), done.stderr
    for pid in done.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs CUDA")
def test_batches_for_cuda_are_pinned(videos):
    (batch,) = loader(make(videos), [[(0, 0)]], workers=1, device="cuda")
    assert all(tensor.is_pinned() for tensor in batch)


def test_data_md_knows_every_dataset():
    text = (Path(__file__).parents[1] / "docs/DATA.md").read_text()
    for name, source in DATASETS.items():
        assert f"| `{name}` |" in text and f"\n{name}/ " in text
        assert all(f"{count:,}" in text for count in source.expected.values())
        assert all(f"{folder.format(subset='val')}/" in text for folder in source.folders + source.videos if folder)
    for dataset, words in re.findall(r"run\.py prepare --cfg (\w+) (.*)", text):
        assert dataset in DATASETS and arguments(prepare.prepare, [f"dataset={dataset}", *words.split()])
    assert text.count("run.py prepare --cfg") > 2
