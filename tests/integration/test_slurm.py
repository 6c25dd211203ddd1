"""Job scripts on a real SLURM: two nodes, both of them this machine, one rank each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.integration.launching import ROOT, train

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]  # a requeue alone waits minutes

PORT = 16817
"""Of the SLURM that the tool starts, so there can be one of them on a machine."""

FLAGS = ("--limit_train", "192", "--limit_eval", "8", "--epochs", "1", "--order", "topic,mood")
FLAGS += ("--batch_size", "8", "--log_every", "1", "--dtype", "fp32", "--save_every", "1000")
FLAGS += ("--preset", "published")
STEPS = 24  # of each of the two tasks
ENDS_WITHIN_S = 600.0


@pytest.fixture(scope="module")
def slurm(shared, tmp_path_factory):
    """A cluster of two nodes; the site's settings for it."""
    tool = shared / "tools" / "slurm_local.sh"
    if not tool.is_file():
        pytest.skip(f"{tool} does not exist: it starts a SLURM on one machine")
    if os.getuid() != 0:
        pytest.skip("starting a SLURM needs root")
    lacking = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)} (Debian: slurm-wlm, munge)")
    with closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"another SLURM is at port {PORT} of this machine")
    home = tmp_path_factory.mktemp("slurm")
    (home / "site.yaml").write_text("cpus_per_rank: 1\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(home / "slurm.conf"))
        try:
            started = [tool, "start", home]
            subprocess.run(started, check=True, stdout=subprocess.DEVNULL, timeout=ENDS_WITHIN_S)
            yield home / "site.yaml"
        finally:
            subprocess.run(["scancel", "--user", "root"], timeout=60)
            subprocess.run([tool, "stop", home], timeout=60)


def submit(*words: str | Path, site: Path) -> str:
    """Number of the job that the command submits."""
    command = [sys.executable, ROOT / "launch" / "submit.py", "--site", site, *words]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=ENDS_WITHIN_S
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])["job"]


def state(job: str) -> str:
    """RUNNING, PENDING, COMPLETED, ...; of an array all states of its tasks."""
    shown = slurm_says("scontrol", "--oneliner", "show", "job", job)
    return " ".join(word[9:] for word in shown.split() if word.startswith("JobState="))


def starts_now(job: str) -> bool:
    """Whether a requeued job runs again, which SLURM puts off by two minutes, maybe not at once."""
    if state(job) == "PENDING":
        slurm_says("scontrol", "update", f"JobId={job}", "StartTime=now")
        time.sleep(1)
    return state(job) == "RUNNING"


def slurm_says(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def wait(until: Callable[[], bool], logs: Path) -> None:
    ends = time.monotonic() + ENDS_WITHIN_S
    while not until():
        if time.monotonic() > ends:
            said = [path.read_text() for path in sorted(logs.rglob("*.log"))]
            said += [slurm_says("squeue", "--long"), slurm_says("sinfo", "--long", "--Node")]
            pytest.fail("\n".join([f"not within {ENDS_WITHIN_S} s:", *said]))
        time.sleep(0.05)


def losses(run: Path) -> dict[int, float]:
    """Global step to loss; a step that was logged twice would fail here."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    found = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert [step for step, _ in found] == list(range(len(found)))
    return dict(found)


def results(run: Path) -> dict[str, bytes]:
    paths = [p for pattern in ("memory/*", "predictions/*/*") for p in run.glob(pattern)]
    return {str(p.relative_to(run)): p.read_bytes() for p in (*paths, run / "scores.json")}


def ranks(run: Path) -> list[psutil.Process]:
    """The run's processes of training, on both nodes."""
    words = {str(ROOT / "launch" / "train.py"), str(run)}
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if words <= set(process.info["cmdline"] or ())
        and any(word.startswith("--local_rank") for word in process.info["cmdline"])
    ]


def stand_still(run: Path, after: int, logs: Path) -> list[psutil.Process]:
    """Halt the run's two ranks once so many steps are logged, so in the middle of a task."""
    wait(lambda: len(losses(run)) >= after, logs)
    halted = ranks(run)
    for process in halted:
        process.send_signal(signal.SIGSTOP)
    assert len(halted) == 2
    return halted


@pytest.mark.nightly
def test_stopped_requeued_cancelled_submitted_again(slurm, tmp_path):
    """One sequence in three attempts, with the results of one that ran through."""
    whole, run, logs = tmp_path / "whole", tmp_path / "runs" / "run", tmp_path / "runs" / "slurm"
    words = ("--nodes", "2", "--gpus_per_node", "0", "--time", "60", "--stop_before", "60")
    words += (*FLAGS, "--output_dir", str(run))
    job = submit(*words, site=slurm)
    # So they are still in training when SLURM comes round to look at time limits.
    halted = stand_still(run, 3, logs)
    job_log = next(logs.glob(f"*-{job}.log"))
    minutes = int(time.time() - job_log.stat().st_ctime) // 60 + 2
    slurm_says("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait(lambda: "asked to stop" in job_log.read_text(), logs)
    for process in halted:
        process.send_signal(signal.SIGCONT)
    wait(lambda: state(job) == "PENDING", logs)
    first = (logs / "run" / "attempt_001.log").read_text()
    (at,) = (json.loads(p.read_text())["step"] for p in (run / "progress").glob("*.json"))
    assert 3 <= at < STEPS
    assert f"stopped by a signal after step {at}/{STEPS} of task topic" in first
    assert "attempt 1 ended with exit code 75" in job_log.read_text()

    slurm_says("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait(lambda: starts_now(job), logs)
    stand_still(run, STEPS + 2, logs)
    slurm_says("scancel", job)  # which wakes them up to end them
    wait(lambda: state(job) == "CANCELLED" and not ranks(run), logs)
    assert f"task topic resumes after step {at}" in (logs / "run/attempt_002.log").read_text()

    again = submit(*words, site=slurm)
    wait(lambda: state(again) == "COMPLETED", logs)
    assert len(list((logs / "run").iterdir())) == 3  # so what was cancelled was not requeued
    assert "topic  step" not in (logs / "run" / "attempt_003.log").read_text()

    done = train(*FLAGS, "--tracking", "none", "--output_dir", whole)
    assert done.code == 0, done.out + done.err
    assert losses(run) == losses(whole)
    assert results(run) == results(whole)
    tracked = mlflow_runs(tmp_path / "runs" / "mlflow.db")
    assert sorted(tracked) == [("000_topic", "FINISHED"), ("001_mood", "FINISHED"), tracked[-1]]
    assert tracked[-1][1] == "FINISHED"


def mlflow_runs(database: Path) -> list[tuple[str, str]]:
    """Name and state of each run of the store, by name."""
    import sqlite3

    with closing(sqlite3.connect(database)) as store:
        return sorted(store.execute("select name, status from runs"))


def test_an_array_side_by_side(slurm, tmp_path):
    """2 orders x 2 methods, each on one node, as many at a time as there are cores."""
    runs = tmp_path / "runs"
    words = ("--nodes", "1", "--gpus_per_node", "0", "--time", "60", "--orders", "topic,mood")
    words += ("mood,topic", "--methods", "moram", "sequential_lora", "--limit_train", "8")
    words += ("--limit_eval", "4", "--epochs", "1", "--dtype", "fp32", "--tracking", "none")
    job = submit(*words, "--output_dir", str(runs), site=slurm)
    together = 0

    def done() -> bool:
        nonlocal together
        states = state(job).split()
        together = max(together, states.count("RUNNING"))
        return set(states) == {"COMPLETED"}

    wait(done, runs / "slurm")
    assert together > 1
    folders = sorted(path for path in runs.iterdir() if path.name != "slurm")
    assert [path.name for path in folders] == [
        f"demo-{order}-{method}-seed0"
        for order in ("mood+topic", "topic+mood")
        for method in ("moram", "sequential_lora")
    ]
    for folder in folders:
        scores = json.loads((folder / "scores.json").read_text())["scores"]
        assert len(scores) == 2 and None not in scores[1]
        assert len(list((runs / "slurm" / folder.name).iterdir())) == 1
    nodes = {p.read_text().split(" on ")[1].split(",")[0] for p in (runs / "slurm").glob("*.log")}
    assert nodes == {"n0", "n1"}
