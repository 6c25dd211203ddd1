"""A run in MLflow: the sequence is a parent run, each task a child run.

The child holds the task's training curves over global steps; the parent holds parameters, data
digests, files, and the scores over the number of tasks learned. Runs are named by explicit ids,
kept in the run directory, so the same command after a stop continues the same runs.

Tracking never decides whether training goes on: see ``_never_stops_training``.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moram_dist.files import write_atomically
from moram_dist.registry import InputError
from moram_dist.tracking.entities import dataset_input, points
from moram_dist.tracking.names import allowed_name, cut, without_password
from moram_dist.tracking.tracker import RunDescription, Status, Tracker

logger = logging.getLogger(__name__)

IDS_FILE = "tracking.json"
RUN_DIRECTORY = "run_directory"
"""The parent's tag that says where the run is recorded."""

STATUS: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

# MLflow refuses longer ones. The limits on a batch (100 parameters, 1000 metrics) are its client's.
MAX_PARAMETER, MAX_TAG = 6000, 8000

SEND_EVERY_S = 2.0
"""Seconds for which points of curves are gathered into one request."""

# Defaults of ours, where the user set none. MLflow's own (7 retries, 120 s) let a server that is
# away hold up every rank for minutes, and its client reports usage to its makers.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on ``path``, made where missing; the system frees it if we die."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _never_stops_training(method: Callable[..., None]) -> Callable[..., None]:
    """Turn the first failure into one warning, and this and all later calls into nothing.

    Every exception counts: a server can fail in many ways, and none is worth the training run.
    """

    @functools.wraps(method)
    def call(self: MlflowTracker, *args: Any, **kwargs: Any) -> None:
        if self.lost:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.lost = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning(
                "MLflow at %s failed in %s(); training goes on, and from here to the end of this "
                "process nothing more is sent to it (metrics.jsonl has everything): %s",
                without_password(self.uri),
                method.__name__,
                cut(without_password(reason), 300),
            )

    return call


class MlflowTracker(Tracker):
    """Records to an MLflow store. Make one on the main rank only: a second would double each run.

    ``uri`` None means MLFLOW_TRACKING_URI where that is set, and otherwise an embedded store beside
    the run directory, which the runs next to it share: ``mlflow.db`` (sqlite), ``mlartifacts/``.

    Raises InputError for a store that MLflow does not have: a plain folder, or no URI at all.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        self.lost = False
        """A call failed, and nothing is sent any more."""
        scheme = urlsplit(self.uri).scheme
        if self.uri and scheme in ("", "file") and self.uri != "databricks":
            raise InputError(
                f"--tracking_uri {self.uri!r}: MLflow keeps no runs in a plain folder; "
                "give sqlite:///FILE or a server's address"
            )
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)

    @_never_stops_training
    def open(self, run: RunDescription, from_step: int | None = None) -> None:
        """Create the parent run, or continue the one that the run directory names."""
        run_dir = run.run_dir.resolve()
        run_dir.mkdir(parents=True, exist_ok=True)
        self.uri = self.uri or f"sqlite:///{run_dir.parent / 'mlflow.db'}"
        self._run, self._ids_path = run, run_dir / IDS_FILE
        self._child: str | None = None
        self._waiting: list[Any] = []
        self._sent_at = time.monotonic()
        self._connect(run.experiment)
        self._restore_ids()
        if self._ids["parent"] is None:
            self._ids["parent"] = self._create_run(run.name, {})
            self._write_ids()
        else:
            self._client.update_run(self._ids["parent"], status="RUNNING")
        self._describe(self._ids["parent"])

    @_never_stops_training
    def begin_task(self, index: int, name: str) -> None:
        """Create the task's child run, or continue it after a restart."""
        self._send_waiting()
        tasks: dict[str, str] = self._ids["tasks"]
        self._logged_step = -1
        known = tasks.get(str(index))
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._logged_step = self._last_step(known)
            self._child = known
        else:
            place = {
                "mlflow.parentRunId": self._ids["parent"],
                "task": name,
                "task_index": str(index),
            }
            self._child = tasks[str(index)] = self._create_run(f"{index:03d}_{name}", place)
            self._write_ids()

    @_never_stops_training
    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add a point to each curve. A step that was sent before a restart is not sent twice."""
        if self._child is None or step > self._logged_step:
            self._waiting += points(metrics, step)
        if time.monotonic() - self._sent_at > SEND_EVERY_S:
            self._send_waiting()

    @_never_stops_training
    def log_sequence(self, metrics: dict[str, float], step: int) -> None:
        """Send results to the parent, at ``step`` tasks learned."""
        self._client.log_batch(self._ids["parent"], metrics=points(metrics, step))

    @_never_stops_training
    def end_task(self) -> None:
        """Mark the task's child run finished."""
        self._send_waiting()
        if self._child is not None:
            self._client.set_terminated(self._child, "FINISHED")
        self._child = None

    @_never_stops_training
    def attach(self, paths: Sequence[Path], folder: str) -> None:
        """Upload files, or what is in folders, to the parent run."""
        for path in paths:
            upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            upload(self._ids["parent"], str(path), folder)

    @_never_stops_training
    def close(self, status: Status) -> None:
        """Mark the parent, and a child still open, with how the run ended."""
        self._send_waiting()
        for run_id in (self._child, self._ids["parent"]):
            if run_id is not None:
                self._client.set_terminated(run_id, STATUS[status])
        self._child = None

    def _connect(self, experiment: str) -> None:
        """Open the store and find or create the experiment.

        An sqlite file gets its tables on first use, which ruins the file if two processes do it at
        once: each holds a lock beside the file meanwhile. Servers take care of that themselves.
        """
        from mlflow.tracking import MlflowClient  # takes seconds, so only where a run is tracked

        if not self.uri.startswith("sqlite:///"):
            self._client = MlflowClient(self.uri)
            self._experiment = self._find_or_create(experiment, artifacts=None)
            return
        database = Path(self.uri.removeprefix("sqlite:///").partition("?")[0]).resolve()
        database.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive_lock(database.with_name(f"{database.name}.lock")):
            self._client = MlflowClient(self.uri)
            # Without this, artifacts would land wherever the command was started.
            artifacts = database.with_name("mlartifacts").as_uri()
            self._experiment = self._find_or_create(experiment, artifacts)

    def _find_or_create(self, experiment: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):  # on a server, another run may create it between our look and our try
            known = self._client.get_experiment_by_name(experiment)
            if known is not None:
                return known.experiment_id
            try:
                return self._client.create_experiment(experiment, artifact_location=artifacts)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise RuntimeError(f"experiment {experiment!r} can be neither found nor created")

    def _create_run(self, name: str, tags: dict[str, str]) -> str:
        from mlflow.tracking.context.registry import (
            resolve_tags,
        )  # user and source, as the UI shows

        tags = {
            allowed_name(key): cut(value, MAX_TAG) for key, value in self._run.tags.items()
        } | tags
        run = self._client.create_run(self._experiment, tags=resolve_tags(tags), run_name=name)
        return run.info.run_id

    def _restore_ids(self) -> None:
        """Ids of an earlier process, where they are of this store and its runs still exist."""
        from mlflow.exceptions import MlflowException

        store = without_password(self.uri)
        fresh: dict[str, Any] = {"store": store, "parent": None, "tasks": {}}
        self._ids = fresh
        if not self._ids_path.exists():
            return
        found = json.loads(self._ids_path.read_text(encoding="utf-8"))
        if found["store"] != store:
            logger.info("%s is of another MLflow store: new runs start here", self._ids_path)
            return
        try:
            for run_id in (found["parent"], *found["tasks"].values()):
                if self._client.get_run(run_id).info.lifecycle_stage != "active":
                    return  # deleted by the user
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return
        self._ids = found

    def _write_ids(self) -> None:
        write_atomically(self._ids_path, json.dumps(self._ids, indent=2) + "\n")

    def _describe(self, run_id: str) -> None:
        """Send parameters and data digests.

        MLflow never lets a parameter change; one that a restart does change (the batch of logging,
        say) is kept as a tag ``restarted_with/<name>``, beside its first value.
        """
        from mlflow.entities import Param, RunTag

        before = self._client.get_run(run_id).data.params
        params, tags = [], [RunTag(RUN_DIRECTORY, str(self._run.run_dir.resolve()))]
        for name, value in self._run.parameters.items():
            key, text = allowed_name(name), cut(without_password(str(value)), MAX_PARAMETER)
            if key not in before:
                params.append(Param(key, text))
            elif before[key] != text:
                tags.append(RunTag(allowed_name(f"restarted_with/{name}"), text))
        self._client.log_batch(run_id, params=params, tags=tags)
        if self._run.datasets:
            inputs = [dataset_input(record) for record in self._run.datasets]
            self._client.log_inputs(run_id, inputs)  # the store keeps one of each

    def _send_waiting(self) -> None:
        if self._waiting:
            self._client.log_batch(self._child or self._ids["parent"], metrics=self._waiting)
        self._waiting, self._sent_at = [], time.monotonic()

    def _last_step(self, run_id: str) -> int:
        """Largest step of a run's curves, -1 where it has none."""
        names = self._client.get_run(run_id).data.metrics
        history = (
            point for name in names for point in self._client.get_metric_history(run_id, name)
        )
        return max((point.step for point in history), default=-1)
