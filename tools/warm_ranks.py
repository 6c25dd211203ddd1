"""Run the training command on ranks that are forked from a warm process.

With a launcher, each run repeats its imports twice; forks of a process that has made them cost next
to nothing. If one rank fails, nothing ends the other ranks here: they must end by themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from moram_dist.comm import env

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "launch" / "train.py"

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tools.warm_modules"])


def warm_forks() -> ForkServerContext:
    """Processes of this context are forked from one that has imported ``tools.warm_modules``."""
    path = os.environ.get("PYTHONPATH")
    # Python 3.11 does not tell the server where this process found its modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), path)))
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return _forks


class WarmRanks:
    """Starts ``launch/train.py`` with ``words``. A context manager; on exit no rank is left.

    ``before(rank)``, a function of a module, is called in every rank first.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        ranks: int = 2,
        before: Callable[[int], None] | None = None,
    ) -> None:
        self._home = tempfile.TemporaryDirectory()
        self.folder = Path(self._home.name)
        arguments, port = [str(word) for word in words], env.free_port()
        forks = warm_forks()
        self.processes: list[BaseProcess] = [
            forks.Process(
                target=_rank, args=(rank, ranks, port, arguments, self.folder, before), daemon=True
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> WarmRanks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self._home.cleanup()

    @property
    def codes(self) -> list[int | None]:
        """Exit codes by rank: None while it runs, minus the signal's number if one ended it."""
        return [process.exitcode for process in self.processes]

    def said(self, stream: str) -> str:
        """The output of the ranks so far to ``out`` or ``err``, rank by rank."""
        files = [self.folder / f"{stream}{rank}" for rank in range(len(self.processes))]
        return "".join(file.read_text() for file in files if file.exists())

    def wait(self, until: Callable[[], bool] | None = None, *, timeout_s: float) -> None:
        """Wait until all ranks have ended, or until ``until`` returns true.

        Raises:
            TimeoutError: neither happened in time; it contains the output of the ranks.
        """
        deadline = time.monotonic() + timeout_s
        while None in self.codes and not (until is not None and until()):
            if time.monotonic() > deadline:
                said = self.said("out") + self.said("err")
                raise TimeoutError(f"not done after {timeout_s} s, codes {self.codes}:\n{said}")
            time.sleep(0.02)


def _rank(
    rank: int,
    ranks: int,
    port: int,
    arguments: list[str],
    folder: Path,
    before: Callable[[int], None] | None,
) -> None:
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
    if before is not None:
        before(rank)
    runpy.run_path(str(TRAIN), run_name="__main__")
