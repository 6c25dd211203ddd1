"""The steps of the check: when each must have ended, and in a process of its own.

A kernel that reads a wrong address makes CUDA useless for the rest of its process, and one that
hangs never returns. So each step is a process, which is killed when its time is up.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu.record import CUT, DONE, FAILED, SKIPPED, How, Record

LEAST_S = 2.0
"""With less time left, a step is not started."""

GRACE_S = 3.0
"""For a step that stops by itself when its time is up, to write its file."""

CODES = {DONE: 0, CUT: 10, FAILED: 11}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step."""

    name: str
    """Its module in this package."""

    file: str
    until: int
    """Second of a budget of ``WHOLE`` at which it must have ended. What earlier steps left of their
    time is its own."""

    needs: tuple[str, ...] = ()
    """Packages without which it is skipped."""

    on_cpu: bool = True
    """Whether it can run without CUDA."""


MODELS = ("torch", "transformers", "safetensors", "pydantic")
WHOLE = 480
STEPS = (
    Step(name="env", file="env.json", until=20, needs=("torch",)),
    Step(name="calibration", file="calibration.json", until=45, needs=("torch",)),
    Step(
        name="kernel_tests",
        file="junit.xml",
        until=165,
        needs=("pytest", "triton", *MODELS),
        on_cpu=False,
    ),
    Step(name="launches", file="launches.json", until=200, needs=MODELS),
    Step(name="layer", file="bench.json", until=320, needs=MODELS),
    Step(name="decode", file="decode.json", until=380, needs=MODELS),
    Step(name="train", file="train.json", until=440, needs=MODELS),
    Step(
        name="demo",
        file="demo.log",
        until=480,
        needs=(
            *("deepspeed", "msgpack", "einops", "psutil", "hjson"),  # DeepSpeed imports the others
            *("accelerate", "rapidfuzz", "rouge_score", "nltk", "matplotlib"),
        ),
    ),
)


class Stopped(Exception):  # noqa: N818  # no error: what was found so far is good
    """Raised by a step that has no time left, with the reason."""


def missing(step: Step, device: str, has_cuda: bool) -> str:
    """Why a step cannot run here; empty if it can."""
    if device == "cpu" and not step.on_cpu:
        return "needs CUDA"
    if device == "cuda" and not has_cuda and step.name != "env":
        return "CUDA is missing"
    lacking = [name for name in step.needs if importlib.util.find_spec(name) is None]
    return f"missing: {', '.join(lacking)}" if lacking else ""


def run_step(step: Step, how: How, out: Path, *, has_cuda: bool) -> tuple[str, str]:
    """Run a step and wait for it. Returns how it ended, and why if it is not ``done``."""
    path = out / step.file
    path.unlink(missing_ok=True)  # of an earlier try
    record = Record(path, step.name, how.began)
    why = missing(step, how.device, has_cuda)
    if not why and how.left() < LEAST_S:
        why = "the budget is gone"
    if why:
        record.end(SKIPPED, why)
        return SKIPPED, why
    record.put()
    # A process that has used CUDA cannot be forked, and on a CPU forks are quicker.
    context: Any = multiprocessing.get_context("spawn" if how.device == "cuda" else "fork")
    process = context.Process(target=work, args=(step, how, path))
    process.start()
    group = process.pid
    assert group
    process.join(max(0.0, how.left()) + GRACE_S)
    late = process.is_alive()
    process.kill()
    process.join()
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)  # what it started
    status = {code: word for word, code in CODES.items()}.get(process.exitcode or 0)
    if status is None or late:
        why = f"killed: {step.name} did not end in time" if late else ""
        why = why or f"its process ended with code {process.exitcode}"
        Record.of(path, step.name, how.began).end(FAILED, why)
        return FAILED, why
    return status, _why(path)


def work(step: Step, how: How, path: Path) -> None:
    """The program of a step's process."""
    os.setpgrp()
    record = Record(path, step.name, how.began)
    status, why = DONE, ""
    try:
        importlib.import_module(f"tools.gpu.{step.name}").run(record, how)
    except Stopped as stopped:
        status, why = CUT, str(stopped)
    except BaseException as error:
        status, why = FAILED, f"{type(error).__name__}: {error}"
        record.found["traceback"] = traceback.format_exc().splitlines()[-30:]
        traceback.print_exc()
    record.end(status, why)
    sys.stdout.flush()
    os._exit(CODES[status])


def _why(path: Path) -> str:
    if path.suffix != ".json":
        return f"see {path.name}"
    return str(json.loads(path.read_text(encoding="utf-8"))["why"])
