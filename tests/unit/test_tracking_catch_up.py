"""A run that is done tells MLflow at its next start what it could not tell before, once."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from pathlib import Path

import pytest

from moram_dist.tracking import DatasetRecord, MetricsFile, RunDescription
from moram_dist.tracking.mlflow import MlflowTracker

pytestmark = pytest.mark.slow  # waits for an MLflow store

TASKS = ("news 1", "news#1")
AWAY = "http://127.0.0.1:9/"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database with tables; making them takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(made, tmp_path / "ml.db")
    return f"sqlite:///{tmp_path}/ml.db"


def describe(run_dir: Path) -> RunDescription:
    return RunDescription(
        name="run",
        experiment="demo",
        run_dir=run_dir,
        parameters={"seed": 1},
        datasets=[
            DatasetRecord(name=task, context="train", digest="0" * 64, rows=1, source="made")
            for task in TASKS
        ],
    )


def files(run_dir: Path) -> dict[str, list[Path]]:
    return {"report": [run_dir / "report"], "config": [run_dir / "run.yaml"]}


def train(trackers, run_dir: Path, *, tasks: int = 2, close: str | None = "finished") -> None:
    """What a run tells its trackers, up to its end or, without ``close``, up to a kill."""
    (run_dir / "report").mkdir(parents=True, exist_ok=True)
    (run_dir / "report" / "index.html").write_text("<html/>")
    (run_dir / "run.yaml").write_text("a: 1\n")
    for tracker in trackers:
        tracker.open(describe(run_dir))
        for index, task in enumerate(TASKS[:tasks]):
            tracker.begin_task(index, task)
            for step in range(3 * index, 3 * index + 3):
                tracker.log({"train/loss": 1.0 / (1 + step)}, step)
            tracker.end_task()
            tracker.log_sequence({"ap": 40.0 + index, f"score/{task}": 50.0}, index + 1)
        if close:
            for folder, paths in files(run_dir).items():
                tracker.attach(paths, folder)
            tracker.close(close)
        elif isinstance(tracker, MlflowTracker):
            tracker._sender.close(60)  # its thread would die with the process


def start(run_dir: Path, uri: str, **options) -> list[str]:
    """A start of a run that is done; the lines that it says."""
    said: list[str] = []
    tracker = MlflowTracker(uri, **options)
    tracker.catch_up(describe(run_dir), files(run_dir), said.append)
    assert tracker.complete
    return said


def expect_all_of_it(uri: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = sorted(
        (run for run in runs if run is not parent), key=lambda run: run.data.tags["task_index"]
    )
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run.info.run_name for run in children] == ["000_news 1", "001_news#1"]
    points = client.get_metric_history(parent.info.run_id, "ap")
    assert sorted((point.step, point.value) for point in points) == [(1, 40.0), (2, 41.0)]
    scores = [name for name in parent.data.metrics if name.startswith("score/news_1-")]
    assert len(scores) == 2, "two tasks, two curves"
    for index, run in enumerate(children):
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in points] == [*range(3 * index, 3 * index + 3)]
        assert run.info.start_time <= points[0].timestamp <= run.info.end_time
    for folder, name in (("report", "report/index.html"), ("config", "config/run.yaml")):
        kept = [file.path for file in client.list_artifacts(parent.info.run_id, folder)]
        assert name in kept


def expect_no_more(run_dir: Path, uri: str) -> None:
    """A further start says nothing, spools nothing and changes nothing."""
    spool, ids = run_dir / "tracking" / "run.jsonl", run_dir / "tracking.json"
    before = spool.read_bytes(), ids.read_bytes()
    assert start(run_dir, uri) == []
    assert (spool.read_bytes(), ids.read_bytes()) == before
    expect_all_of_it(uri)


def test_after_a_store_that_did_not_answer(store, tmp_path):
    run_dir = tmp_path / "run"
    train([MetricsFile(), MlflowTracker(AWAY)], run_dir)
    (line,) = start(run_dir, store)
    assert line.startswith(f"MLflow at {store} has not got all of this run") and "120 s" in line
    expect_all_of_it(store)
    expect_no_more(run_dir, store)


def test_after_a_kill_before_the_end_was_spooled(store, tmp_path):
    run_dir = tmp_path / "run"
    train([MetricsFile(), MlflowTracker(store)], run_dir, close=None)
    assert len(start(run_dir, store)) == 1
    expect_all_of_it(store)
    expect_no_more(run_dir, store)


@pytest.mark.parametrize("tracked", [0, 1])
def test_after_starts_that_did_not_track(store, tmp_path, tracked):
    """All of it, or the second task, is known from the run's own files only."""
    run_dir = tmp_path / "run"
    train([MetricsFile()], run_dir)
    if tracked:
        train([MlflowTracker(AWAY)], run_dir, tasks=tracked, close="stopped")
    assert len(start(run_dir, store)) == 1
    expect_all_of_it(store)
    expect_no_more(run_dir, store)


def test_to_another_store(store, made, tmp_path):
    run_dir = tmp_path / "run"
    train([MetricsFile(), MlflowTracker(store)], run_dir)
    shutil.copy(made, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    for uri in (other, store, other):
        assert len(start(run_dir, uri)) == 1
        expect_all_of_it(uri)
    expect_no_more(run_dir, other)


def test_a_store_that_has_everything_is_not_connected_to(store, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    train([MetricsFile(), MlflowTracker(store)], run_dir)
    start(run_dir, store)
    monkeypatch.setattr(
        "moram_dist.tracking.mlflow._import", lambda: pytest.fail("MLflow takes seconds to import")
    )
    assert start(run_dir, store) == []
    with sqlite3.connect(store.removeprefix("sqlite:///")) as tables:
        tables.execute("ALTER TABLE runs RENAME COLUMN lifecycle_stage TO stage")
    with pytest.raises(pytest.fail.Exception):  # MLflow finds out what that means
        start(run_dir, store)


def test_to_a_store_where_the_run_was_deleted(store, tmp_path):
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "run"
    train([MetricsFile(), MlflowTracker(store)], run_dir)
    ids = json.loads((run_dir / "tracking.json").read_text())
    MlflowClient(store).delete_run(ids["parent"])
    start(run_dir, store)
    expect_all_of_it(store)


def test_to_a_store_where_the_experiment_was_deleted(store, tmp_path, caplog):
    from mlflow.tracking import MlflowClient

    run_dir, client = tmp_path / "run", MlflowClient(store)
    train([MetricsFile(), MlflowTracker(store)], run_dir)
    client.delete_experiment(client.get_experiment_by_name("demo").experiment_id)
    with caplog.at_level(logging.WARNING, logger="moram_dist"):
        start(run_dir, store)
    expect_all_of_it(store)
    assert "MLflow's experiment 'demo' was deleted, and is restored" in caplog.messages


def test_versions_that_earlier_starts_did_not_ask_for(store, tmp_path):
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "run"
    train([MetricsFile(), MlflowTracker(store)], run_dir)
    (run_dir / "memory").mkdir()
    for name in ("000_a.safetensors", "001_b.safetensors", "memory.json"):
        (run_dir / "memory" / name).write_text("")
    start(run_dir, store, register=True)
    start(run_dir, store, register=True)
    versions = MlflowClient(store).search_model_versions("name = 'run'")
    assert sorted(version.tags["upto"] for version in versions) == ["1", "2"]
    expect_all_of_it(store)


def test_a_spool_without_its_first_lines(store, tmp_path):
    run_dir = tmp_path / "run"
    train([MetricsFile(), MlflowTracker(AWAY)], run_dir)
    spool = run_dir / "tracking" / "run.jsonl"
    lines = spool.read_bytes().splitlines(keepends=True)
    spool.write_bytes(b"\0\n" + b"".join(lines[1:]))
    start(run_dir, store)
    expect_all_of_it(store)
    expect_no_more(run_dir, store)
