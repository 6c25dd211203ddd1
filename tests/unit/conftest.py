"""Unit tests are for the inner loop: one that starts ranks or a launcher must be marked slow."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LAUNCHERS = ("deepspeed", "torchrun", "mpirun", "srun")
SAYS = "is for tests marked slow, or for tests/distributed and tests/integration"


def refused(process: BaseProcess) -> str | None:
    """Why a process is taken for a rank: it does not begin as a copy of this one, or is no first.

    A single fork, of code that ends its process, costs next to nothing.
    """
    method = getattr(process, "_start_method", "fork")
    if method != "fork":
        return f"a process by {method} {SAYS}"
    return f"a second process at once {SAYS}" if active_children() else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """With what it sets up, too: fixtures of a module start processes as well."""
    with pytest.MonkeyPatch.context() as patch:
        # pytest calls this for all tests of a session, not only for those of this folder.
        if HERE in item.path.parents and item.get_closest_marker("slow") is None:
            start, popen = BaseProcess.start, subprocess.Popen.__init__

            def checked_start(process: BaseProcess) -> None:
                if reason := refused(process):
                    pytest.fail(reason)
                start(process)

            def checked_popen(process: Any, args: Any, *more: Any, **named: Any) -> None:
                words = args.split() if isinstance(args, str) else [str(word) for word in args]
                if words and Path(words[0]).name in LAUNCHERS:
                    pytest.fail(f"{words[0]} {SAYS}")
                popen(process, args, *more, **named)

            patch.setattr(BaseProcess, "start", checked_start)
            patch.setattr(subprocess.Popen, "__init__", checked_popen)
        yield
