"""``pytest tests/gpu``, in parallel. The demo, which is a step of its own, is left out."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.gpu.record import How, Record
from tools.gpu.steps import Stopped

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 8

STOP_S = 10.0
"""How long before its end pytest is interrupted, so that it can write what it has."""


def run(record: Record, how: How) -> None:
    """Run the tests of kernels."""
    run_tests(record, how, ["tests/gpu", "-m", "gpu and not integration"])


def run_tests(record: Record, how: How, words: Sequence[str]) -> None:
    """Run pytest, which writes JUnit's file.

    Raises Stopped if there was no time for all tests, and RuntimeError if some failed.
    """
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    process = subprocess.Popen([*command, f"--junitxml={record.path.resolve()}"], cwd=ROOT)
    try:
        code = process.wait(timeout=max(1.0, how.left() - STOP_S))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=max(1.0, how.left()))
        except subprocess.TimeoutExpired:
            process.kill()
        raise Stopped("no time for all tests") from None
    if code:
        raise RuntimeError(f"pytest ended with code {code}")
