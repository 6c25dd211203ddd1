"""Runs against a real tracking server that asks for a password and dies, and on one fresh sqlite.

What MLflow holds afterwards is compared with ``metrics.jsonl``: every point, and none twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from moram_dist.comm import env
from moram_dist.tracking import MlflowTracker, RunDescription, read_metrics
from moram_dist.tracking.__main__ import main
from tests.integration.launching import ROOT, WarmRanks, train

pytestmark = pytest.mark.integration

FLAGS = ("--limit_eval", "4", "--epochs", "1", "--batch_size", "8")
FLAGS += ("--log_every", "1", "--dtype", "fp32", "--ds_config", ROOT / "ds_configs" / "zero3.json")
FLAGS += ("--preset", "published")
PASSWORD = "a password of the test"


@contextmanager
def server(home: Path, port: int) -> Iterator[subprocess.Popen]:
    """``mlflow server`` with basic authentication, ready; killed at the end if not before."""
    home.mkdir(exist_ok=True)
    config = home / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"admin_password = {PASSWORD}\ndatabase_uri = sqlite:///{home / 'auth.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # a password is hashed once, not in each request
    )
    command = ["mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home / 'server.db'}"]
    command += ["--artifacts-destination", str(home / "artifacts")]
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (home / "log").open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=home,
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, (
                home / "log"
            ).read_text()
            time.sleep(0.2)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """At once, with its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as reply:
            return reply.status == 200
    except OSError:
        return False


def in_a_rank(settings: dict[str, str], rank: int) -> None:
    """Environment of a forked rank; it sends so often that a kill has something to interrupt."""
    from moram_dist.tracking import sender

    os.environ.update(settings)
    sender.SEND_EVERY_S = 0.05


def acknowledged(run_dir: Path) -> int:
    """Bytes of what the run was to send that the server has taken."""
    return json.loads((run_dir / "tracking.json").read_text())["sent"]["run.jsonl"]


def logged(run_dir: Path) -> int:
    """Lines of the metrics file."""
    path = run_dir / "metrics.jsonl"
    return len(read_metrics(path)) if path.exists() else 0


def expect_all_points(client, run_dir: Path, status: str = "FINISHED") -> str:
    """All that the run logged is there, once, under one parent, whose id is returned."""
    experiment = client.get_experiment_by_name("demo").experiment_id
    runs = client.search_runs([experiment], f"tags.run_directory = '{run_dir}'")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    found = client.search_runs(
        [experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", max_results=100
    )
    children = {run.data.tags["task"]: run for run in found}
    assert len(found) == len(children)
    expected: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for line in read_metrics(run_dir / "metrics.jsonl"):
        task, step = line.pop("task", None), line.pop("step", None)
        run = parent if task is None else children[task]
        step = line.pop("tasks_learned", step)
        for name, value in line.items():
            expected[run.info.run_id, name][step] = float(value)
    assert {run.info.run_id for run in found} <= {run_id for run_id, _ in expected}
    for (run_id, name), points in expected.items():
        history = client.get_metric_history(run_id, name)
        assert len(history) == len(points), name
        assert {point.step: point.value for point in history} == points, name
    assert {run.info.status for run in (parent, *found)} == {status}
    return parent.info.run_id


def test_a_server_with_a_password_that_dies_in_the_middle(tmp_path, monkeypatch, capsys, caplog):
    """Stopped and continued, then the server is killed and comes back after the run's end."""
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    port, run_dir = env.free_port(), tmp_path / "run"
    settings = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    words = (*FLAGS, "--limit_train", "64", "--order", "topic,mood", "--output_dir", run_dir)
    words += ("--register_memory", "true")
    before = partial(in_a_rank, settings)
    client = MlflowClient(settings["MLFLOW_TRACKING_URI"])

    def stop(pids: list[int]) -> bool:
        if not logged(run_dir):
            return False
        os.kill(pids[1], signal.SIGTERM)
        return True

    with server(tmp_path / "server", port) as process:
        done = train(*words, before=before, meanwhile=stop)
        assert done.code == 75, done.out + done.err
        assert main(["send", str(run_dir)]) == 0  # a stopped run does not wait long
        parent = expect_all_points(client, run_dir, "KILLED")
        sent, so_far = acknowledged(run_dir), logged(run_dir)

        def kill_server(pids: list[int]) -> bool:
            if logged(run_dir) <= so_far:
                return False
            os.kill(pids[1], signal.SIGSTOP)  # so training cannot be over before
            if acknowledged(run_dir) == sent:
                return False
            kill(process)
            os.kill(pids[1], signal.SIGCONT)
            return True

        done = train(*words, before=before, meanwhile=kill_server)
    assert done.code == 0, done.out + done.err
    assert f"MLflow at http://127.0.0.1:{port} does not accept data" in done.err
    assert f"python -m moram_dist.tracking send {run_dir}" in done.err
    assert PASSWORD not in done.out + done.err

    late = MlflowTracker()  # a run that begins while there is no server
    late.open(RunDescription(name="late", experiment="demo", run_dir=tmp_path / "late"))
    late.log_sequence({"ap": 50.0}, 1)
    while "does not accept data" not in caplog.text:
        time.sleep(0.05)
    with server(tmp_path / "server", port):
        late.close("finished")
        assert late.complete
        assert "has caught up" in caplog.text

        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
        assert main(["send", str(run_dir)]) == 4
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        assert main(["send", str(run_dir)]) == 0
        assert "has all of it" in capsys.readouterr().out
        assert expect_all_points(client, run_dir) == parent
        files = {file.path for file in client.list_artifacts(parent, "config")}
        assert {"config/run.yaml", "config/environment.json", "config/datasets.json"} <= files
        assert "report/index.html" in {f.path for f in client.list_artifacts(parent, "report")}
        run = client.get_run(parent)
        assert {
            "method": "moram",
            "order": "topic,mood",
            "seed": "0",
        }.items() <= run.data.tags.items()
        name = run.info.run_name
        versions = [client.get_model_version_by_alias(name, f"after_{i:03d}") for i in range(2)]
        assert [version.tags["upto"] for version in versions] == ["1", "2"]
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", settings["MLFLOW_TRACKING_URI"])
        kept = Path(download_artifacts(f"models:/{name}@after_001", dst_path=str(tmp_path / "got")))
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
            path.name: path.read_bytes() for path in (run_dir / "memory").iterdir()
        }
        assert "system/cpu_utilization_percentage" in run.data.metrics


@pytest.mark.nightly
def test_four_runs_at_once_on_a_fresh_sqlite_one_of_them_on_four_ranks(tmp_path):
    from mlflow.tracking import MlflowClient

    words = (*FLAGS, "--order", "topic", "--limit_train", "16")
    places = [tmp_path / "runs" / f"run{i}" for i in range(4)]
    before = partial(in_a_rank, {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'all.db'}"})
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                WarmRanks(
                    (*words, "--seed", str(i), "--output_dir", place),
                    ranks=1 if i else 4,
                    before=before,
                )
            )
            for i, place in enumerate(places)
        ]
        for run in runs:
            run.wait(timeout_s=240)
            assert set(run.codes) == {0}, run.said("out") + run.said("err")
    client = MlflowClient(f"sqlite:///{tmp_path / 'all.db'}")
    parents = [expect_all_points(client, place) for place in places]
    assert len({*parents}) == 4
    assert client.get_run(parents[0]).data.tags["world_size"] == "4"
