"""The training command in a test: by the real launcher, or on ranks forked from a warm process.

Both run ``launch/train.py`` as a script and return what a shell would see. The launcher costs each
run its imports twice over; forks of a process that has made them cost next to nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from moram_dist.comm import env
from tools.warm_ranks import TRAIN, WarmRanks

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
"""For the longest single command: DeepSpeed may have to compile its CPU extension first."""


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@contextmanager
def started(
    *command: str | Path, cwd: Path, timeout_s: float = TIMEOUT_S
) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, which is killed at the end or when time is up."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    alarm = threading.Timer(timeout_s, kill)
    alarm.start()
    try:
        yield process
    finally:
        alarm.cancel()
        kill()
        process.communicate()


def launcher(*words: str | Path) -> list[str | Path]:
    """The real command on two ranks, at a port that nobody else uses."""
    return ["deepspeed", "--master_port", str(env.free_port()), "--num_gpus", "2", TRAIN, *words]


def run(*command: str | Path, cwd: Path, timeout_s: float = TIMEOUT_S) -> Done:
    """Wait for a command; one that took too long was ended by signal 9."""
    with started(*command, cwd=cwd, timeout_s=timeout_s) as process:
        out, err = process.communicate()
    return Done(process.returncode, out, err)


def train(
    *words: str | Path,
    ranks: int = 2,
    before: Callable[[int], None] | None = None,
    timeout_s: float = TIMEOUT_S,
    meanwhile: Callable[[list[int]], bool] = lambda pids: True,
) -> Done:
    """``launch/train.py`` on warm ranks. As a launcher does, ends all when one fails.

    ``before(rank)`` is called in each rank first; ``meanwhile`` again and again, with the ranks'
    process ids, until it says that it has done what it does.
    """
    with WarmRanks(words, ranks=ranks, before=before) as forked:
        done = False

        def one_failed() -> bool:
            nonlocal done
            done = done or meanwhile([process.pid for process in forked.processes])
            return any(forked.codes)

        forked.wait(one_failed, timeout_s=timeout_s)
        code = next((code for code in forked.codes if code), 0)
        return Done(code, forked.said("out"), forked.said("err"))
