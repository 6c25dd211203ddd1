"""The training command in a test: by the real launcher, or on ranks forked from a warm process.

Both run ``launch/train.py`` as a script and return what a shell would see. The launcher costs each
run its imports twice over; forks of a process that has made them cost next to nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "launch" / "train.py"
TIMEOUT_S = 300
"""For the longest single command: DeepSpeed may have to compile its CPU extension first."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["deepspeed", "transformers.models.llama.modeling_llama", "matplotlib.figure"]
)


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
    return ["deepspeed", "--master_port", str(free_port()), "--num_gpus", "2", TRAIN, *words]


def run(*command: str | Path, cwd: Path, timeout_s: float = TIMEOUT_S) -> Done:
    """Wait for a command; one that took too long was ended by signal 9."""
    with started(*command, cwd=cwd, timeout_s=timeout_s) as process:
        out, err = process.communicate()
    return Done(process.returncode, out, err)


def train(
    *words: str | Path,
    ranks: int = 2,
    timeout_s: float = TIMEOUT_S,
    meanwhile: Callable[[list[int]], bool] = lambda pids: True,
) -> Done:
    """``launch/train.py`` on warm ranks. As a launcher does, ends all when one fails.

    ``meanwhile`` is called with the ranks' process ids again and again, until it says that it has
    done what it does.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        arguments = [str(word) for word in words]
        processes = [
            _forks.Process(target=_rank, args=(rank, ranks, port, arguments, folder))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout_s
        done = False
        try:
            while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes):
                assert time.monotonic() < deadline, f"not done after {timeout_s} s: {arguments}"
                done = done or meanwhile([process.pid for process in processes])
                time.sleep(0.05)
            code = next((p.exitcode for p in processes if p.exitcode), 0)
        finally:
            for process in processes:
                process.kill()
                process.join()
        out, err = (
            "".join((folder / f"{stream}{rank}").read_text() for rank in range(ranks))
            for stream in ("out", "err")
        )
        return Done(code, out, err)


def _rank(rank: int, ranks: int, port: int, arguments: list[str], folder: Path) -> None:
    for descriptor, stream in ((1, "out"), (2, "err")):
        with (folder / f"{stream}{rank}").open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")
