"""A tracking store that is away, slow or forgetful: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import logging
import math
import resource
import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from moram_dist.files import WriteError, exclusive_lock
from moram_dist.tracking import open_tracker, replay
from moram_dist.tracking.__main__ import main
from moram_dist.tracking.mlflow import MlflowTracker
from moram_dist.tracking.node import NodeMetrics
from moram_dist.tracking.spool import Spool, operations
from moram_dist.tracking.tracker import RunDescription, read_metrics

TASKS = ("FOMC", "C-STANCE")


def describe(run_dir: Path, **parameters) -> RunDescription:
    return RunDescription(
        name=run_dir.name, experiment="demo", run_dir=run_dir, parameters=parameters
    )


def track(tracker, run_dir: Path) -> None:
    """A whole run of two tasks, five steps each."""
    tracker.open(describe(run_dir, seed=1))
    for index, task in enumerate(TASKS):
        tracker.begin_task(index, task)
        for step in range(5 * index, 5 * index + 5):
            tracker.log({"train/loss": math.nan if step == 3 else 1.0 / (1 + step)}, step)
        (run_dir / "memory").mkdir(exist_ok=True)
        (run_dir / "memory" / f"{index:03d}_{task}.safetensors").write_text("")
        (run_dir / "memory" / "memory.json").write_text("{}")
        tracker.end_task()
        tracker.log_sequence({"ap": 40.0 + index}, index + 1)
    (run_dir / "report").mkdir(exist_ok=True)
    (run_dir / "report" / "index.html").write_text("<html/>")
    tracker.attach([run_dir / "report"], "report")
    tracker.close("finished")


def expect_all_of_it(uri: str) -> None:
    """The store holds what ``track`` logged, once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    names = sorted(run.info.run_name for run in runs if run is not parent)
    assert names == ["000_FOMC", "001_C-STANCE"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.params == {"seed": "1"}
    points = client.get_metric_history(parent.info.run_id, "ap")
    assert [(point.step, point.value) for point in points] == [(1, 40.0), (2, 41.0)]
    for run in runs:
        if run is not parent:
            first = 5 * int(run.data.tags["task_index"])
            points = client.get_metric_history(run.info.run_id, "train/loss")
            assert [point.step for point in points] == [*range(first, first + 5)]
            assert all(math.isnan(p.value) == (p.step == 3) for p in points)
            assert run.info.start_time <= points[0].timestamp <= run.info.end_time
    files = client.list_artifacts(parent.info.run_id, "report")
    assert [file.path for file in files] == ["report/index.html"]
    for index in range(len(TASKS)):
        version = client.get_model_version_by_alias("run", f"after_{index:03d}")
        assert (version.tags, str(version.version)) == ({"upto": str(index + 1)}, str(index + 1))
        assert version.source == f"{parent.info.artifact_uri}/memory"
    assert len(client.search_model_versions("name = 'run'")) == len(TASKS)
    files = client.list_artifacts(parent.info.run_id, "memory")
    names = [f"memory/{index:03d}_{task}.safetensors" for index, task in enumerate(TASKS)]
    assert [file.path for file in files] == [*names, "memory/memory.json"]


@pytest.fixture
def away(tmp_path, monkeypatch):
    """The run directory of a run whose server nobody has started."""
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with socket.socket() as probe:  # a port that was free a moment ago, and nobody listens on
        probe.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    track(open_tracker("mlflow", register=True), tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run"


class LosesReplies:
    """An MLflow client whose every request is carried out; the first answer to each is lost.

    A run is made once more later on, as by a server that was only slow.
    """

    def __init__(self, client, lost: set[str]) -> None:
        self._client = client
        self._lost = lost

    def __getattr__(self, name):
        def call(*args, **kwargs):
            answer = getattr(self._client, name)(*args, **kwargs)
            request = f"{name} {args} {sorted(kwargs)}"
            if request in self._lost:
                return answer
            if name == "create_run":
                getattr(self._client, name)(*args, **kwargs)
            self._lost.add(request)
            raise ConnectionError(f"no answer to {name}")

        return call


@pytest.mark.slow
def test_what_no_server_took_is_sent_by_a_command_once_whatever_answers_are_lost(
    away, monkeypatch, capsys
):
    assert read_metrics(away / "metrics.jsonl")[-1] == {"tasks_learned": 2, "ap": 41.0}
    assert main(["send", str(away)]) == 4
    assert "error: MLflow at http://127.0.0.1:" in (said := capsys.readouterr().err)
    assert "secret" not in said

    uri = f"sqlite:///{away.parent / 'mlflow.db'}"
    with closing(sqlite3.connect(away.parent / ".mlflow.db.partial")) as left:
        left.execute("create table scorers (a int)")  # by a process that was killed on the way
    lost: set[str] = set()
    real = replay.connect
    with monkeypatch.context() as patch:

        def connect(*args):
            client, experiment = real(*args)
            return LosesReplies(client, lost), experiment

        patch.setattr(replay, "connect", connect)
        codes = [main(["send", str(away), "--tracking_uri", uri])]
        while codes[-1] and len(codes) < 100:  # each try is a process that starts and dies
            codes.append(main(["send", str(away), "--tracking_uri", uri]))
    assert codes[-1] == 0 and len(codes) == len(lost) + 1 > 15
    expect_all_of_it(uri)

    before = (away / "tracking.json").read_text()
    assert main(["send", str(away), "--tracking_uri", uri]) == 0
    assert (away / "tracking.json").read_text() == before
    (away / "tracking.json").unlink()  # all is sent again
    assert main(["send", str(away), "--tracking_uri", uri]) == 0
    expect_all_of_it(uri)
    assert json.loads((away / "tracking.json").read_text())["parent"] in before

    with exclusive_lock(away / "tracking" / ".lock"):
        assert main(["send", str(away), "--tracking_uri", uri]) == 2
    assert "is being sent by a run at work" in capsys.readouterr().err


def test_what_the_command_cannot_send_is_said_in_a_line(tmp_path, capsys):
    for words, complaint in (
        (["send", str(tmp_path)], "has nothing to send: it holds no tracked run"),
        (["send"], "the following arguments are required: RUN"),
        (["fetch", str(tmp_path)], "invalid choice: 'fetch'"),
        (["send", str(tmp_path), "--tracking_uri", "some/folder"], "MLflow keeps no runs in a"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and complaint in said and said.count("\n") == 1


@pytest.mark.slow
def test_training_never_waits_for_a_server_that_hangs(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}"
        tracker = MlflowTracker(uri)
        with caplog.at_level(logging.WARNING, logger="moram_dist"):
            track(tracker, tmp_path / "run")
    assert not tracker.complete
    away, unsent = [r.getMessage() for r in caplog.records if r.name.startswith("moram_dist")]
    assert "training continues" in away and uri.partition("@")[2] in away
    assert f"python -m moram_dist.tracking send {tmp_path / 'run'}" in unsent
    assert "secret" not in away + unsent
    assert "secret" not in (tmp_path / "run" / "tracking" / "run.jsonl").read_text()


ENDED = {"do": "end", "time": 2, "task": None, "status": "finished", "whole": True}


def logged(text):
    return {"do": "log", "time": 1, "task": None, "step": 0, "metrics": {text: 1.0}}


def test_a_spool_drops_what_a_dying_machine_left_half_written(tmp_path):
    path = tmp_path / "tracking" / "run.jsonl"
    spool = Spool(path)
    spool.append(logged("x" * 5000))
    spool.append(logged("é"), sync=True)
    whole = path.stat().st_size
    spool.close()
    with path.open("ab") as file:
        file.write(b"\0" * 9000)
    assert [end for _, end in operations(path)][-1] == whole
    spool = Spool(path)
    assert path.stat().st_size == whole
    spool.append(ENDED)
    spool.close()
    assert [found["do"] for found, _ in operations(path)] == ["log", "log", "end"]
    assert [found["do"] for found, _ in operations(path, whole)] == ["end"]
    path.write_bytes(b"half")
    Spool(path).close()
    assert path.read_bytes() == b""


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "tracking" / "run.jsonl"
    spool = Spool(path)
    spool.append(logged(""))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))  # takes 10 bytes more
    try:
        with pytest.raises(WriteError, match=r"run\.jsonl cannot be written: "):
            spool.append(logged("longer than that"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    spool.append(ENDED)
    assert [found["do"] for found, _ in operations(path)] == ["log", "end"]


def test_a_node_is_measured_from_start_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "600")
    path = tmp_path / "tracking" / "node_001.jsonl"
    for _ in range(2):  # a restart goes on counting
        node = NodeMetrics(1)
        node.open(describe(tmp_path))
        node.close("finished")
    found = [operation for operation, _ in operations(path)]
    assert [operation["step"] for operation in found] == [0, 1]
    assert {"do": "log", "task": None}.items() <= found[0].items()
    assert "system/node_1/cpu_utilization_percentage" in found[0]["metrics"]
    assert "system/node_1/network_receive_megabytes" in found[0]["metrics"]
