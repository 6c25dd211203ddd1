"""Level ``run``: three tasks on two gloo ranks through the real launcher, from start to report.

It trains the demo and its base with ZeRO-3. Bytes are those that a rank receives in the last step
of the last task, from the run's metrics.jsonl: the difference between two consecutive steps. For
``gathered`` they must equal the formula of ``moram_dist.atoms.placement``; for ``stationary`` they
depend on the lengths of texts, and tests/distributed/test_traffic.py checks them. CPU seconds
include all processes from the launcher on, and imports.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.contest import Settings
from bench.results import Measurement
from moram_dist.comm.env import free_port

ROOT = Path(__file__).resolve().parents[1]
RANKS, TASKS, ATOMS = 2, ("topic", "mood", "place"), 8
FLAGS = (
    *("--order", ",".join(TASKS), "--atoms_per_task", str(ATOMS)),
    *("--limit_train", "32", "--limit_eval", "8", "--epochs", "1", "--batch_size", "8"),
    *("--log_every", "1", "--tracking", "none", "--preset", "published"),
)
RUNS = {
    "ours, resident": ("--placement", "resident"),
    "ours, gathered": ("--placement", "gathered"),
    "ours, stationary": ("--placement", "stationary"),
    "one LoRA for all tasks": ("--method", "sequential_lora"),
}
QUICK = "ours, gathered"
LINEARS, WIDTH = 12, 128
"""Adapted linears of the demo's base, and their number of inputs and of outputs."""

TIMEOUT_S = 900


def run(settings: Settings) -> Iterator[list[Measurement]]:
    """Measure all runs in turn."""
    names = (QUICK,) if settings.quick else tuple(RUNS)
    for name in names:
        yield [one_run(name)]


def gathered_bytes() -> int:
    """Bytes received in a step of one micro-batch: other ranks' atoms of two tasks, both passes."""
    others = (RANKS - 1) * len(TASKS[:-1]) * ATOMS // RANKS
    return 2 * others * LINEARS * 2 * WIDTH * 4


def one_run(name: str) -> Measurement:
    """Start a run, wait for it, and read its files."""
    with tempfile.TemporaryDirectory() as folder:
        before = _children_seconds()
        with subprocess.Popen(
            [
                *("deepspeed", "--master_port", str(free_port()), "--num_gpus", str(RANKS)),
                *("launch/train.py", "--ds_config", "ds_configs/zero3.json"),
                *(*FLAGS, *RUNS[name], "--output_dir", f"{folder}/run"),
            ],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=TIMEOUT_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # after a timeout, ranks too
        seconds = _children_seconds() - before
        if process.returncode:
            raise RuntimeError(f"{name}: exit code {process.returncode}\n{said}")
        text = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    logged = [json.loads(line) for line in text.splitlines()]
    received, calls = (step_difference(logged, suffix) for suffix in ("_bytes", "_calls"))
    expected = {"ours, resident": 0, "ours, gathered": gathered_bytes()}.get(name, received)
    steps = [line for line in logged if "train/tokens_per_second" in line]
    return Measurement(
        level="run",
        case={"tasks": len(TASKS), "ranks": RANKS, "steps": len(steps)},
        way=name,
        passed=received == expected,
        least=seconds,
        median=seconds,
        repeats=1,
        also={
            "received bytes a step": received,
            "collectives a step": calls,
            "tokens/s of wall time": round(steps[-1]["train/tokens_per_second"]),
            "peak MB of a rank": round(steps[-1]["train/peak_memory_mb"]),
        },
    )


def step_difference(logged: list[dict[str, Any]], suffix: str) -> int:
    """The increase of the memory's counters in the last step."""
    before, last = [line for line in logged if "train/tokens_per_second" in line][-2:]
    names = [name for name in last if name.startswith("atoms/") and name.endswith(suffix)]
    return round(sum(last[name] - before.get(name, 0) for name in names))


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
