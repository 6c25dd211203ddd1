"""A run of which all is done is reported without starting ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import launching

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, "-m", "launch.moram", "train", "--ranks", "2"]
SMALL = ["--order", "topic,mood", "--limit_train", "8", "--limit_eval", "4", "--epochs", "1"]


SMALL += ["--tracking", "none"]


def train(run: Path, *more: str) -> subprocess.CompletedProcess:
    """With a launcher of DeepSpeed's name that only says that it was started."""
    package = run.parent / "fake" / "deepspeed" / "launcher"
    package.mkdir(parents=True, exist_ok=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "runner.py").write_text("print('ranks are started')\n")
    return subprocess.run(
        [*TRAIN, *SMALL, "--output_dir", str(run), *more],
        cwd=run.parent,
        env=os.environ | {"PYTHONPATH": f"{package.parent.parent}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_a_complete_run_starts_no_ranks(tmp_path):
    run = tmp_path / "run"
    first = launching.train(*SMALL, "--output_dir", run)
    assert first.code == 0, first.out + first.err
    again = train(run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "all 2 tasks are done" in again.stdout and "ranks are started" not in again.stdout
    assert "score on each task" in again.stdout
    told = again.stdout.partition("again\n")[2].splitlines()
    assert len(told) > 5 and {*told} <= {*first.out.splitlines()}
    (run / "scores.json").unlink()  # something is missing
    assert "ranks are started" in train(run).stdout
    other = train(run, "--temperature", "0.5")
    assert other.returncode == 2 and "temperature" in other.stderr
