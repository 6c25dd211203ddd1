"""Run a function on several ranks of this machine, with a time limit and every rank's traceback."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from moram_dist.comm import env
from moram_dist.comm.joining import join
from tools.warm_ranks import warm_forks


def run_ranks(
    fn: Callable[..., None],
    *,
    world_size: int,
    tmp_path: Path,
    args: tuple[Any, ...] = (),
    timeout_s: float = 900.0,
) -> None:
    """Call ``fn(rank, world_size, *args)`` on every rank, and wait for all of them.

    ``fn`` must be a module-level function: ranks are forked from a process that has imported what
    they need, and know nothing of this one. They meet through a file in ``tmp_path``, so tests
    running side by side cannot collide on a port. The time limit leaves room for DeepSpeed's CPU
    extension, which a fresh machine compiles first.

    Raises:
        AssertionError: a rank failed. Holds every rank's traceback, earliest first: the others are
            usually only "connection reset" after-effects, and torch reports whichever it sees.
        TimeoutError: not done after ``timeout_s`` seconds, as when one rank skips a collective.
    """
    warm_forks()
    workers = mp.start_processes(
        _worker, (fn, world_size, tmp_path, args), world_size, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + timeout_s
    try:
        while not workers.join(timeout=1.0):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{fn.__name__}: {world_size} ranks, {timeout_s} s, not done")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        reports = sorted(tmp_path.glob("rank*.err"), key=lambda path: path.stat().st_mtime_ns)
        told = "\n".join(path.read_text() for path in reports)
        raise AssertionError(told or str(error)) from None
    finally:
        for process in workers.processes:
            process.kill()
            process.join()


def _worker(
    rank: int, fn: Callable[..., None], world_size: int, tmp_path: Path, args: tuple[Any, ...]
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in place.items()})
    meet_at = f"file://{tmp_path / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=meet_at, rank=rank, world_size=world_size)
    try:
        join()
        fn(rank, world_size, *args)
    except BaseException:
        (tmp_path / f"rank{rank}.err").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise
    finally:
        env.leave()
