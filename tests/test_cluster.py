"""docs/CLUSTER.md keeps its word: its commands and its SLURM script run, on two "machines" of one CPU process each."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import ROOT, TINY, command, latest

from be import config, train
from be.prepare import prepare
from be.runs import RunError, read_metrics

TEXT = (ROOT / "docs/CLUSTER.md").read_text()
COMMANDS = [line for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.S | re.M) if not kind
            for line in block.splitlines()]
SCRIPT = re.search(r"```bash\n(.*?)```", TEXT, re.S)[1]
CPU = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def words(tiny, out):
    return ["pretrain", "--cfg", "demo-moco-be", f"data={tiny}", f"out={out}", *TINY]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def stop(process, step, path):
    """Signals all of `step` once the run at `path` has trained; returns what it said, with one checkpoint written."""
    deadline = time.monotonic() + 60
    while not read_metrics(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in step():
        one.terminate()
    said, _ = process.communicate(timeout=60)
    assert "stopped by SIGTERM" in said and len(list((path / "checkpoint").glob("*.pt"))) == 1, said
    return said


def losses(out):
    return [line["loss"] for line in read_metrics(out / "demo-moco-be/pretrain-seed0")]


def test_the_commands_fit_their_number_of_processes():
    found = [line.split(" #")[0].split("run.py ") for line in COMMANDS if "run.py " in line and "prepare" not in line]
    worlds = [int((re.search(r"--num_processes (\d+)", launch) or [0, 1])[1]) for launch, _ in found]
    assert worlds == [1, 8, 1, 1, 8, 8]
    for world, (_, words) in zip(worlds, found, strict=True):
        verb, _, name, *overrides = words.split()
        train.check_batch(config.load(name, overrides, verb), 240000, world)  # videos of Kinetics-400


def test_parts_of_one_group_are_warned_of(tiny, tmp_path, capsys):
    for parts, warned in (2, True), (1, False):
        train.pretrain(config.load("demo-moco-be", [*words(tiny, tmp_path / str(parts))[3:], f"accumulate={parts}"]))
        assert ("nothing to shuffle" in capsys.readouterr().out) == warned  # 8 clips, bn_group=4


def test_slurm_script_on_two_machines(tiny, tmp_path):
    """srun and scontrol are played by scripts of two lines, the machines by two launchers on this one."""
    fake = tmp_path / "bin"
    fake.mkdir()
    tools = {"scontrol": "echo localhost; echo other",
             "srun": 'for id in 0 1; do SLURM_NODEID=$id "$@" & done; wait -n && wait -n',
             "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"'}
    for name, text in tools.items():
        (fake / name).write_text(f"#!/bin/bash\n{text}\n")
        (fake / name).chmod(0o755)
    (tmp_path / "slurm.sh").write_text(SCRIPT)
    job = {"SLURM_JOB_NODELIST": "machine[1-2]", "SLURM_JOB_ID": str(free_port() - 20000 + 40000), "SLURM_NNODES": "2",
           "SLURM_GPUS_ON_NODE": "1", "PATH": f"{fake}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(tmp_path / "slurm.sh"), *words(tiny, tmp_path)], cwd=ROOT, env={**CPU, **job},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 = 2 device(s) x 1 part(s) x 4" in done.stdout
    train.pretrain(config.load("demo-moco-be", words(tiny, tmp_path / "alone")[3:]))
    assert losses(tmp_path)[:5] == pytest.approx(losses(tmp_path / "alone")[:5], rel=1e-3)  # then rounding grows
    assert len(losses(tmp_path)) == 8


def test_the_script_asks_slurm_for_what_it_says():
    options = [shlex.split(line.removeprefix("#SBATCH ")) for line in SCRIPT.splitlines() if line.startswith("#SBATCH")]
    options = dict(option.split("=", 1) for line in options for option in line)
    assert options["--ntasks-per-node"] == "1" and options["--signal"] == "TERM@120"  # to all processes of the step
    train.check_batch(config.load("table1-moco-be"), 240000, int(options["--nodes"]) * int(options["--gpus-per-node"]))
    patience = int(re.search(r"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", SCRIPT)[1])
    assert 100 <= patience < 120


def test_a_job_that_is_told_to_stop_writes_a_checkpoint(tiny, tmp_path):
    """As SLURM does it: every process of the step is signalled, after which the launcher signals its groups again."""
    begin = command(*latest(*words(tiny, tmp_path), "epochs=1000", "save_every=100000", "log_every=8", "workers=1"),
                    launch=2)
    launcher = subprocess.Popen(**begin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def step():
        found = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
        assert len(found) >= 5  # the launcher, two processes, a worker of each
        return found[::-1]

    assert "DataLoader worker" not in stop(launcher, step, tmp_path / "demo-moco-be/pretrain-seed0")


def test_a_row_of_the_paper_that_is_told_to_stop(tiny, tmp_path):
    """Of `sbatch --wrap`: B: signals the shell alone, which make has taken the place of; make passes it on."""
    line = re.search(r"^sbatch .* --wrap .*$", TEXT, re.M)[0]
    wrap = dict(word.partition("=")[::2] for word in shlex.split(line.replace("--wrap ", "--wrap=")))
    assert wrap["--signal"] == "B:TERM@120"
    settings = latest(*TINY, "dataset=ucf101", "epochs=1000", "save_every=100000")
    typed = {"GPUS": "1", "DATA": tiny, "OUT": tmp_path, "PYTHON": sys.executable,
             "SET": shlex.quote(" ".join(settings))}
    row = re.sub(r" (GPUS|DATA)=\S+", "", wrap["--wrap"])
    row += "".join(f" {key}={value}" for key, value in typed.items())
    job = subprocess.Popen(["sh", "-c", row], cwd=ROOT, env={**CPU, "MAKEFLAGS": ""}, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    stop(job, lambda: [job], tmp_path / "table1-moco-be/pretrain-seed0")


def test_jobs_that_prepare_a_data_set_have_a_part_each(tmp_path):
    """By an array of SLURM and by a loop; what the parts then do: test_prepare.py."""
    array, loop = (line for line in COMMANDS if "run.py prepare" in line)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    options = dict(word.partition("=")[::2] for word in shlex.split(array.replace("--wrap ", "--wrap=")))
    first, last = map(int, options["--array"].split("-"))
    jobs = [shell(options["--wrap"], tmp_path, SLURM_ARRAY_TASK_ID=str(job)) for job in range(first, last + 1)]
    for lines, parts in (jobs, 16), (shell(loop, tmp_path).splitlines(), 4):
        words = [line.split()[line.split().index("--cfg") + 2:] for line in lines]
        given = [config.arguments(prepare, ["dataset=kinetics400", *of])["shard"] for of in words]
        assert sorted(given) == sorted(f"{part + 1}/{parts}" for part in range(parts))


def shell(line, tools, **env):
    done = subprocess.run(["bash", "-c", line], env={**os.environ, **env, "PATH": f"{tools}:{os.environ['PATH']}"},
                          capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("other", [[3, 0], [0, 3]])
def test_a_folder_that_is_not_shared_is_noticed(tiny, tmp_path, monkeypatch, other):
    """The second machine goes on from step 3 where the first sees no checkpoint, or it lacks a video: stop, or they
    would wait for each other for ever."""
    cfg = config.load("demo-moco-be", words(tiny, tmp_path)[3:])
    make = train.make_accelerator
    def accelerator(cfg):
        made = make(cfg)
        made.gather = lambda mine: torch.cat([mine, mine + torch.tensor([other])])  # of one elsewhere
        return made
    monkeypatch.setattr(train, "make_accelerator", accelerator)
    with pytest.raises(RunError, match="do not see the same checkpoints, or .* out=... must be .* data=... must hold"):
        train.pretrain(cfg)


def test_a_signal_that_is_passed_on_twice_is_one_request(monkeypatch):
    """Ctrl-C and schedulers signal a whole group, and the launcher passes it on to the same processes again."""
    now, before, at_exit = [100.0], {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}, []
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(train.atexit, "register", lambda *call: at_exit.append(call))
    with train.Interrupt():
        pass
    assert {n: signal.getsignal(n) for n in before} == before
    with train.Interrupt() as interrupt:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            now[0] += 1
        assert interrupt.signal == signal.SIGTERM
        now[0] += train.ECHO
        with pytest.raises(SystemExit) as end:  # a person who asks again does not want to wait
            signal.raise_signal(signal.SIGINT)
        assert end.value.code == 128 + signal.SIGINT
        now[0] = 100.0
    try:  # after the loop, while the process winds up and ends, an echo is still none
        signal.raise_signal(signal.SIGTERM)
        assert at_exit == [(signal.signal, number, signal.SIG_IGN) for number in before]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
