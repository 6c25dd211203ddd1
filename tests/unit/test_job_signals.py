"""Signals of SLURM to a node's task arrive at the ranks, and its exit code says what to do next."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch.job_script import BODY

pytestmark = pytest.mark.skipif(shutil.which("pkill") is None, reason="no pkill (procps)")

LAUNCHER = """#!{python}
import signal, subprocess, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: (told.append(1), rank.terminate()))
rank = subprocess.Popen([sys.executable, "{folder}/rank.py"])
while rank.poll() is None:
    time.sleep(0.01)
sys.exit(1 if told else rank.returncode)  # as DeepSpeed's launcher does
"""

RANK = """
import pathlib, signal, sys, time
folder = pathlib.Path("{folder}")
def save(number, _):
    (folder / "saved").write_text(str(int(number)))
    time.sleep(0.5)  # the signal may come twice, as to a rank that saves
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, save)
(folder / "ready").touch()
ends = time.monotonic() + 300
while not (folder / "end").exists() and time.monotonic() < ends:
    time.sleep(0.01)
sys.exit({code})
"""


@pytest.fixture
def task(tmp_path):
    """Starts a node's part of a job; its launcher runs one rank, which ends with ``code``."""
    started = []

    def start(code=0):
        (tmp_path / "rank.py").write_text(RANK.format(folder=tmp_path, code=code))
        launcher = tmp_path / "python"
        launcher.write_text(LAUNCHER.format(python=sys.executable, folder=tmp_path))
        launcher.chmod(0o755)
        (node,) = re.findall(r"^node\(\) \{.*?^\}", BODY.read_text(), re.MULTILINE | re.DOTALL)
        sets = f"python={launcher} command=(train) ranks_per_node=1 nodes=n0 master=m port=1"
        task = subprocess.Popen(
            ["bash", "-c", f"{sets}; {node}; node"],
            env=os.environ | {"SLURM_NODEID": "0", "CUDA_VISIBLE_DEVICES": "0"},
            start_new_session=True,
        )
        started.append(task)
        ends = time.monotonic() + 120
        while not (tmp_path / "ready").exists():
            assert task.poll() is None and time.monotonic() < ends
            time.sleep(0.01)
        return task

    yield start
    for one in started:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_task_ends_with_the_code_of_its_ranks(task, tmp_path, code):
    running = task(code)
    (tmp_path / "end").touch()
    assert running.wait(120) == code


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_task_alone_reaches_the_ranks(task, tmp_path, number):
    """As with proctrack/cgroup: nothing but the task itself is signalled."""
    running = task()
    running.send_signal(number)
    assert running.wait(120) == 75
    assert (tmp_path / "saved").read_text() == str(int(number))


def test_a_signal_to_every_process_of_the_task(task, tmp_path):
    """As with the other kinds of tracking; the launcher goes on, and the ranks save."""
    running = task()
    os.killpg(running.pid, signal.SIGUSR1)
    assert running.wait(120) == 75
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGUSR1))
