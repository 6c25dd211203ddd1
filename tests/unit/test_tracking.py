"""Trackers: what reaches the metrics file and MLflow, and what a restart keeps.

One MLflow database is made for all tests, by the processes that start at once: making the tables
is the slow part.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.compare.command import compare_runs
from moram_dist.registry import InputError
from moram_dist.tracking import (
    DatasetRecord,
    MetricsFile,
    RunDescription,
    open_tracker,
    run_directories,
)
from moram_dist.tracking.entities import MAX_DIGEST
from moram_dist.tracking.mlflow import MlflowTracker
from moram_dist.tracking.names import allowed_name
from moram_dist.tracking.replay import MAX_PARAMETER
from moram_dist.tracking.tracker import read_metrics
from tests.helpers.made_up_runs import make_run

DIGEST = "0123456789abcdef" * 4


def describe(run_dir: Path, **parameters) -> RunDescription:
    record = DatasetRecord(name="FOMC", context="eval", digest=DIGEST, rows=7, source="generated")
    return RunDescription(
        name=run_dir.name,
        experiment="demo",
        run_dir=run_dir,
        parameters=parameters,
        tags={"method": "moram"},
        datasets=[record],
    )


def _start_alone(run_dir: Path, barrier) -> None:
    tracker = MlflowTracker()
    barrier.wait()
    tracker.open(describe(run_dir))
    tracker.close("finished")
    assert tracker.complete


@pytest.fixture(scope="module")
def simultaneous(tmp_path_factory):
    """Three processes that met before each opened a run in one folder without a database."""
    folder = tmp_path_factory.mktemp("runs")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        workers = [
            context.Process(target=_start_alone, args=(folder / f"run{i}", barrier))
            for i in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=300)
    return folder, [worker.exitcode for worker in workers]


@pytest.fixture
def runs(simultaneous, tmp_path, monkeypatch):
    """A folder of runs with a ready database, and the current directory elsewhere."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(simultaneous[0] / "mlflow.db", folder / "mlflow.db")
    client = client_of(folder)
    # The experiment remembers where the first folder was, so the tests make their own.
    client.rename_experiment(client.get_experiment_by_name("demo").experiment_id, "of the copy")
    return folder


def client_of(folder: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def recorded(client) -> list:
    return client.search_runs([client.get_experiment_by_name("demo").experiment_id])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_runs_that_start_together_share_a_fresh_store(simultaneous):
    folder, exit_codes = simultaneous
    assert exit_codes == [0, 0, 0]
    found = recorded(client_of(folder))
    assert sorted(run.info.run_name for run in found) == ["run0", "run1", "run2"]
    assert {run.info.status for run in found} == {"FINISHED"}


@pytest.mark.slow
def test_one_parent_with_a_child_per_task(runs, tmp_path):
    tracker = MlflowTracker()
    many = {f"p{i:03d}": i for i in range(230)}  # more than one batch
    tracker.open(
        describe(runs / "a", prompt="x" * 7000, seed=None, uri="http://me:secret@host", **many)
    )
    for index, task in enumerate(["C-STANCE", "FOMC"]):
        tracker.begin_task(index, task)
        for step in range(3):
            tracker.log({"train/loss": 2.0 - step, "train/lr": 0.1}, 10 * index + step)
        tracker.end_task()
        tracker.log_sequence({"score/中文": 50.0 + index, "ap": 40.0 + index}, index + 1)
    (tmp_path / "figure.svg").write_text("<svg/>")
    tracker.attach([tmp_path / "figure.svg"], "report")
    tracker.close("finished")
    assert tracker.complete

    client = client_of(runs)
    by_name = {run.info.run_name: run for run in recorded(client)}
    assert sorted(by_name) == ["000_C-STANCE", "001_FOMC", "a"]
    parent = by_name.pop("a")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in by_name.values()} == {parent.info.run_id}
    assert len(parent.data.params) == 233
    assert parent.data.params["p229"] == "229" and parent.data.params["seed"] == "None"
    assert parent.data.params["uri"] == "http://host"
    long = parent.data.params["prompt"]
    assert len(long) == MAX_PARAMETER and "[cut, 7000 characters, sha256 " in long

    points = client.get_metric_history(by_name["001_FOMC"].info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(10, 2.0), (11, 1.0), (12, 0.0)]
    points = client.get_metric_history(parent.info.run_id, allowed_name("score/中文"))
    assert [(point.step, point.value) for point in points] == [(1, 50.0), (2, 51.0)]
    assert "train/loss" not in parent.data.metrics

    (data,) = parent.inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in data.tags}
    assert data.dataset.digest == DIGEST[:MAX_DIGEST]
    assert tags["sha256"] == DIGEST and tags["mlflow.data.context"] == "eval"
    assert json.loads(data.dataset.profile) == {"num_rows": 7}

    assert list((runs / "mlartifacts").rglob("report/figure.svg"))
    assert not (tmp_path / "mlruns").exists(), "nothing lands in the current directory"


@pytest.mark.slow
def test_restart_continues_the_same_runs(runs):
    first = MlflowTracker()
    first.open(describe(runs / "a", seed=1, log_every=10))
    first.begin_task(0, "FOMC")
    for step in (10, 20, 30):
        first.log({"train/loss": float(step)}, step)
    first.close("failed")
    before = json.loads((runs / "a" / "tracking.json").read_text())
    client = client_of(runs)
    assert {run.info.status for run in recorded(client)} == {"FAILED"}

    first.open(describe(runs / "a", seed=1))
    first.close("stopped")
    assert client.get_run(before["parent"]).info.status == "KILLED"

    second = MlflowTracker()
    second.open(describe(runs / "a", seed=1, log_every=5), from_step=20)
    second.begin_task(0, "FOMC")
    wait_for(lambda: {run.info.status for run in recorded(client)} == {"RUNNING"})
    for step in (20, 30, 40):
        second.log({"train/loss": float(step)}, step)
    second.end_task()
    second.begin_task(1, "C-STANCE")
    second.close("finished")
    assert second.complete

    after = json.loads((runs / "a" / "tracking.json").read_text())
    assert after["parent"] == before["parent"]
    assert after["tasks"] == {**before["tasks"], "1": after["tasks"]["1"]}
    assert len(recorded(client)) == 3
    points = client.get_metric_history(before["tasks"]["0"], "train/loss")
    assert [point.step for point in points] == [10, 20, 30, 40], "repeated steps are sent once"
    parent = client.get_run(after["parent"])
    assert parent.data.params["log_every"] == "10"
    assert parent.data.tags["restarted_with/log_every"] == "5"
    assert "restarted_with/seed" not in parent.data.tags


@pytest.mark.slow
def test_runs_deleted_by_the_user_are_made_anew_with_all_they_held(runs):
    def ids() -> tuple[str, str]:
        found = json.loads((runs / "a" / "tracking.json").read_text())
        return found["parent"], found["tasks"]["0"]

    def again() -> tuple[str, str]:
        tracker.open(describe(runs / "a"))
        tracker.close("finished")
        assert tracker.complete
        (point,) = client.get_metric_history(ids()[1], "train/loss")
        assert (point.step, point.value) == (3, 0.5)
        return ids()

    client, tracker = client_of(runs), MlflowTracker()
    tracker.open(describe(runs / "a"))
    tracker.begin_task(0, "FOMC")
    tracker.log({"train/loss": 0.5}, 3)
    tracker.close("failed")
    parent, child = ids()
    assert again() == (parent, child)
    assert client.get_run(child).info.status == "FINISHED", "as the whole is"
    client.delete_run(child)
    assert again()[0] == parent and ids()[1] != child
    client.delete_run(parent)
    newer, child = again()
    assert newer != parent
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == newer


@pytest.mark.slow
def test_finished_runs_of_an_experiment_are_found_and_compared(runs, tmp_path, monkeypatch):
    for name, method, status in (
        ("a", "moram", "finished"),
        ("b", "replay", "finished"),
        ("c", "moram", "failed"),
    ):
        make_run(runs / name, {(0, 0): [100.0, 0.0, 100.0]}, tasks=["topic"], method=method)
        tracker = MlflowTracker()
        tracker.open(describe(runs / name))
        tracker.begin_task(0, "topic")
        tracker.end_task()
        tracker.close(status)
        assert tracker.complete
    uri = f"sqlite:///{runs / 'mlflow.db'}"
    assert run_directories("demo", uri) == [runs / "a", runs / "b"]
    assert run_directories("demo") == [runs / "a", runs / "b"]  # ``runs`` is the usual place
    text, comparison = compare_runs([], experiment="demo", tracking_uri=uri)
    assert [group.label for group in comparison.groups] == ["moram", "replay"]
    assert "| moram \N{MINUS SIGN} replay | 1 | 0.0 |" in text

    with pytest.raises(InputError, match=r"unknown experiment 'dem'; did you mean 'demo'\?"):
        run_directories("dem", uri)
    with pytest.raises(InputError, match="no such file"):
        run_directories("demo", f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    shutil.move(runs / "b", tmp_path / "b")
    with pytest.raises(InputError, match=r"run b of 'demo': its directory is not at .*/b any more"):
        run_directories("demo", uri)


def test_metrics_file_drops_what_a_restart_repeats(tmp_path):
    run = describe(tmp_path)
    lines = MetricsFile()
    lines.open(run)
    lines.begin_task(0, "A")
    lines.log({"train/loss": 3.0}, 10)
    lines.log({"train/loss": math.nan}, 20)
    lines.end_task()
    lines.log_sequence({"ap": 50.0}, 1)
    lines.begin_task(1, "B")
    lines.log({"train/loss": 2.0}, 30)
    lines.log_sequence({"ap": 55.0}, 2)
    path = tmp_path / "metrics.jsonl"  # not closed: every line must be there already
    with path.open("a") as file:
        file.write('{"step": 40, "tas')  # killed in the middle of a line

    lines = MetricsFile()
    lines.open(run, from_step=30)
    lines.begin_task(1, "B")
    lines.log({"train/loss": 1.5}, 30)
    lines.close("finished")
    assert read_metrics(path) == [
        {"step": 10, "task": "A", "train/loss": 3.0},
        {"step": 20, "task": "A", "train/loss": "nan"},
        {"tasks_learned": 1, "ap": 50.0},
        {"step": 30, "task": "B", "train/loss": 1.5},
    ]
    assert "NaN" not in path.read_text(), "strict JSON"
    lines.open(run)  # no step given: nothing is lost
    lines.close("finished")
    assert len(read_metrics(path)) == 4
    with pytest.raises(RuntimeError, match="after close"):
        lines.log({"train/loss": 1.0}, 50)


def test_kinds_of_tracker(monkeypatch):
    def parts(**place):
        return [type(part).__name__ for part in open_tracker("mlflow", **place).trackers]

    assert [type(part) for part in open_tracker("none").trackers] == [MetricsFile]
    place = {"local_size": 2, "world_size": 4}
    assert parts() == ["MetricsFile", "NodeMetrics", "MlflowTracker"]
    assert [parts(rank=rank, **place) for rank in (1, 2, 3)] == [[], ["NodeMetrics"], []]
    assert open_tracker("none", rank=2, **place).trackers == ()
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert parts(rank=0, **place) == ["MetricsFile", "MlflowTracker"]
    assert parts(rank=2, **place) == []
    with pytest.raises(InputError, match="did you mean 'mlflow'"):
        open_tracker("mlfow")
    for folder in ("runs/mlruns", "file:///tmp/mlruns"):
        with pytest.raises(InputError, match="plain folder"):
            open_tracker("mlflow", folder)
