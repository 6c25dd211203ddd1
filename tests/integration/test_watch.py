"""Ranks that die or hang: the others end by themselves, soon, and one line says which rank it was.

There is no launcher here that would end them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from launch.session import Session
from moram_dist.comm.joining import join
from moram_dist.registry import InputError, MachineError
from moram_dist.train.trainer import Trainer
from tools.warm_ranks import WarmRanks

pytestmark = pytest.mark.integration

FLAGS = ("--limit_train", "36", "--limit_eval", "4", "--batch_size", "9", "--log_every", "1")
FLAGS += ("--micro_batch_size", "3", "--order", "topic,mood", "--tracking", "none")
FLAGS += ("--preset", "published")
SOON_S = 10


def ends(started: WarmRanks, *, ended: int, within_s: float) -> str:
    """The only line of complaint of ranks that all end with code 4, but for one that was ended."""
    started.wait(timeout_s=within_s)
    codes, said = started.codes, started.said("err")
    assert codes.pop(ended) in (4, -signal.SIGKILL), said
    assert codes == [4, 4], said
    assert "Traceback" not in said
    (complaint,) = [line for line in said.splitlines() if line.startswith("error")]
    assert complaint.endswith("published tasks are intact; rerun the same command to resume")
    return complaint


@pytest.mark.parametrize("rank", [0, 1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_rank_that_is_killed(tmp_path, rank):
    with WarmRanks((*FLAGS, "--output_dir", tmp_path / "run"), ranks=3) as started:
        started.wait(lambda: "step 2/" in started.said("out"), timeout_s=300)
        pid = started.processes[rank].pid
        os.kill(pid, signal.SIGKILL)
        complaint = ends(started, ended=rank, within_s=SOON_S)
    assert complaint.startswith(f"error: rank {rank} (process {pid} on ")
    assert " died;" in complaint


def sleeps_in_its_second_task(rank: int, *, who: int) -> None:
    step = Trainer._step

    def hanging(self, i, step_, total):
        if (i, step_.index) == (1, 1):
            self.watchdog.wait_limit_s /= 100  # only now, so that a slow machine may load slowly
        if (rank, i, step_.index) == (who, 1, 2):
            time.sleep(3600)
        return step(self, i, step_, total)

    Trainer._step = hanging


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_a_rank_that_hangs(tmp_path, rank):
    flags = (*FLAGS, "--wait_limit", "600", "--output_dir", tmp_path / "run")
    with WarmRanks(flags, ranks=3, before=partial(sleeps_in_its_second_task, who=rank)) as started:
        complaint = ends(started, ended=rank, within_s=300)
        assert "task 2/2 mood  step 2/" in started.said("out")
    assert " waited 6 s for step 2 of task mood; a rank hangs" in complaint


def has_an_error_of_its_own(rank: int) -> None:
    def broken(*_):
        raise InputError("this node does not see the folder")

    if rank == 1:
        Session._manifest = broken


def test_a_rank_that_leaves_with_a_word_takes_the_others_along(tmp_path):
    flags = (*FLAGS, "--output_dir", tmp_path / "run")
    with WarmRanks(flags, ranks=3, before=has_an_error_of_its_own) as started:
        started.wait(timeout_s=300)
        assert started.codes == [2, 2, 2]
        said = started.said("err")
    assert "error (rank 1): this node does not see the folder" in said
    assert said.count("error") == 1 and "Traceback" not in said


def listening(pid: int) -> list[str]:
    """Addresses at which a process takes connections, in the kernel's hexadecimal."""
    files = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in files:
                found.append(local.partition(":")[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_machine_listens_on_loopback_alone(tmp_path):
    with WarmRanks((*FLAGS, "--output_dir", tmp_path / "run"), ranks=2) as started:
        started.wait(lambda: "step 1/" in started.said("out"), timeout_s=300)
        pids = [process.pid for process in started.processes]
        found = [address for pid in pids if pid for address in listening(pid)]
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert len(found) >= 3 and {*found} <= loopback  # the store, and gloo of each rank


def meets_nobody(rank: int) -> None:
    if rank == 0:
        try:
            join(timeout_s=2.0)
        except MachineError as error:
            print(error, flush=True)
    os._exit(0)


def test_a_rank_that_never_comes(tmp_path):
    with WarmRanks(("--output_dir", tmp_path), ranks=2, before=meets_nobody) as started:
        started.wait(timeout_s=120)
        assert "rank 0 waited 2 s for the other ranks to start\n" in started.said("out")
