"""A run that is stopped or killed within a task goes on from there, and ends as if nothing was.

The runs are those of one demo order; what they end with is compared with one that ran through.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.launching import ROOT, Done, launcher, started, train

pytestmark = pytest.mark.integration

STEPS = 8  # of each of two tasks: 64 examples, 8 a step
FLAGS = ("--limit_train", "64", "--limit_eval", "8", "--epochs", "1", "--order", "topic,mood")
FLAGS += ("--batch_size", "8", "--micro_batch_size", "1", "--log_every", "1", "--dtype", "fp32")
FLAGS += ("--tracking", "none", "--ds_config", ROOT / "ds_configs" / "zero3.json")
FLAGS += ("--preset", "published")
SAVING = ("--save_every", "2")
ONLY_WHEN_STOPPED = ("--save_every", "1000")


def losses(folder: Path) -> dict[int, float]:
    """Global step to loss; a step that was logged twice would fail here."""
    text = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    found = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert [step for step, _ in found] == list(range(len(found)))
    return dict(found)


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def saved(folder: Path) -> list[int]:
    """Global steps behind each saved state, oldest first."""
    places = [json.loads(path.read_text()) for path in sorted(folder.glob("progress/*.json"))]
    return [place["task"] * STEPS + place["step"] for place in places]


def first_step(done: Done) -> int:
    """Global index of the first step that a process did."""
    line = next(line for line in done.out.splitlines() if "  step " in line)
    number, step = line.split("/")[0].split()[-1], line.split("  step ")[1].split("/")[0]
    return (int(number) - 1) * STEPS + int(step) - 1


def after(step: int, folder: Path, act: Callable[[list[int]], None]) -> Callable[..., bool]:
    """For ``train``: act once so many global steps are logged, so in the middle of the next."""

    def meanwhile(pids: list[int]) -> bool:
        if len(losses(folder)) < step:
            return False
        act(pids)
        return True

    return meanwhile


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def stop_last(pids: list[int]) -> None:
    os.kill(pids[-1], signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = train(*FLAGS, *SAVING, "--output_dir", folder)
    assert done.code == 0, done.out + done.err
    assert not (folder / "progress").exists()  # published, so of no more use
    return folder


def check_the_same(folder: Path, whole: Path) -> None:
    """Bit for bit."""
    assert losses(folder) == losses(whole)
    everything = ("memory/*", "predictions/*/*", "scores.json")
    assert contents(folder, *everything) == contents(whole, *everything)
    assert not (folder / "progress").exists()


def test_stopped_then_killed(whole, tmp_path):
    """A signal to one of two ranks; a loss of both in the second task; a signal in evaluation."""
    flags = (*FLAGS, "--output_dir", tmp_path / "run")
    stop = after(3, tmp_path / "run", stop_last)
    done = train(*flags, *ONLY_WHEN_STOPPED, meanwhile=stop)
    assert done.code == 75, done.out + done.err
    assert "Traceback" not in done.err
    (at,) = saved(tmp_path / "run")
    assert 3 <= at < STEPS
    assert len(losses(tmp_path / "run")) == at
    assert f"after step {at}/{STEPS} of task topic; rerun the same command to resume" in done.out

    done = train(*flags, *SAVING, meanwhile=after(STEPS + 5, tmp_path / "run", kill_all))
    assert done.code == -signal.SIGKILL, done.out + done.err
    assert f"task topic resumes after step {at}" in done.out
    assert first_step(done) == at
    places = saved(tmp_path / "run")
    assert [place % 2 for place in places] == [0, 0] and places[1] == places[0] + 2 > STEPS

    first_cell = tmp_path / "run" / "predictions" / "after_001" / "on_000_topic.jsonl"

    def stop_in_evaluation(pids: list[int]) -> bool:
        rows = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
        if len(rows) < 2 or rows[1][0] is None:  # predictions alone are no finished cell
            return False
        os.kill(pids[0], signal.SIGTERM)
        return True

    done = train(*flags, *SAVING, meanwhile=stop_in_evaluation)
    assert done.code == 75, done.out + done.err
    assert first_step(done) == places[1]
    evaluated_at = first_cell.stat().st_mtime_ns

    done = train(*flags, *SAVING)
    assert done.code == 0, done.out + done.err
    assert "task 2/2" not in done.out
    assert first_cell.stat().st_mtime_ns == evaluated_at
    check_the_same(tmp_path / "run", whole)


@pytest.mark.nightly
def test_going_on_with_other_numbers_of_ranks(tmp_path):
    """All atoms answer: if some were chosen, rounding would choose another one now and then."""
    every = (*FLAGS, *SAVING, "--top_k", "64", "--output_dir")
    whole, flags = tmp_path / "whole", (*every, tmp_path / "run")
    done = train(*every, whole)
    assert done.code == 0, done.out + done.err
    expected = 0
    for ranks, until in ((2, 4), (1, 7), (3, STEPS + 4), (2, None)):
        kill = after(until, tmp_path / "run", kill_all) if until else lambda _: True
        done = train(*flags, ranks=ranks, meanwhile=kill)
        assert done.code == (-signal.SIGKILL if until else 0), done.out + done.err
        assert first_step(done) == expected
        if until:
            expected = saved(tmp_path / "run")[-1]
            assert expected >= until - 2
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=2e-6)
    texts = contents(whole, "predictions/*/*")
    assert texts and contents(tmp_path / "run", "predictions/*/*") == texts


def test_by_the_launcher(whole, tmp_path):
    """A signal to one rank; then one to all processes at once, as a scheduler sends it."""
    folder = tmp_path / "run"
    command = launcher(*FLAGS, *ONLY_WHEN_STOPPED, "--output_dir", folder)
    stopped_at = [0]
    for steps in (3, STEPS + 3):
        with started(*command, cwd=tmp_path) as process:
            while len(losses(folder)) < steps and process.poll() is None:
                time.sleep(0.05)
            if steps == 3:
                _rank(1, process.pid).send_signal(signal.SIGTERM)
                out, err = process.communicate()
                assert process.returncode == 75, out + err
                assert "Traceback" not in err
            else:
                os.killpg(process.pid, signal.SIGTERM)
                process.communicate()  # the launcher itself dies of it
                while [p for p in psutil.process_iter() if _in_group(p, process.pid)]:
                    time.sleep(0.05)
        (at,) = saved(folder)
        assert at >= steps
        stopped_at.append(at)
    done = train(*FLAGS, "--output_dir", folder)
    assert done.code == 0, done.out + done.err
    assert first_step(done) == stopped_at[-1]
    check_the_same(folder, whole)


def _rank(number: int, launcher_pid: int) -> psutil.Process:
    """A rank that the launcher has started."""
    for child in psutil.Process(launcher_pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if f"--local_rank={number}" in child.cmdline():
                return child
    raise AssertionError(f"the launcher has no rank {number}")


def _in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
