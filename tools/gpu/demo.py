"""The demo by the training command, in bf16 on a GPU. Its log has all that it prints."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.gpu.record import How, Record
from tools.gpu.steps import Stopped

ROOT = Path(__file__).resolve().parents[2]
TASKS = "topic,mood"
SIZES = ("--limit_train", "32", "--limit_eval", "8")
TINY = ("--limit_train", "8", "--limit_eval", "2", "--epochs", "1")


def run(record: Record, how: How) -> None:
    """Train two tasks. Raises RuntimeError if the command fails, Stopped if it takes too long."""
    with tempfile.TemporaryDirectory() as folder, record.path.open("a", encoding="utf-8") as log:
        command = [sys.executable, "launch/train.py", "--ds_config", "ds_configs/zero3.json"]
        command += ["--order", TASKS, *(TINY if how.tiny else SIZES)]
        command += ["--tracking", "none", "--output_dir", f"{folder}/run"]
        if how.device == "cuda":
            command += ["--dtype", "bf16"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, how.left() - 1),
            )
        except subprocess.TimeoutExpired:
            raise Stopped("no time for the whole demo") from None
    if done.returncode:
        raise RuntimeError(f"the demo ended with code {done.returncode}")
