"""A run in MLflow: the sequence is a parent run, each task a child run.

The child holds the task's training curves over global steps; the parent holds parameters, data
digests, files, and the scores over the number of tasks learned. All records go to a file in the run
directory (``spool``), from which a thread sends them (``sender``). After a stop, the same command
continues the same MLflow runs (``replay``). So tracking problems never stop training.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moram_dist.files import WriteError
from moram_dist.redaction import clean_address, clean_tree
from moram_dist.tracking.addresses import store_of
from moram_dist.tracking.already_spooled import modified, recall
from moram_dist.tracking.connect import prepare
from moram_dist.tracking.replay import MlflowReplay
from moram_dist.tracking.sender import Sender
from moram_dist.tracking.spool import FOLDER, MAIN, Spool
from moram_dist.tracking.tracker import (
    METRICS_FILE,
    Files,
    RunDescription,
    Status,
    Tracker,
    as_json,
    read_metrics,
)

logger = logging.getLogger(__name__)

LAST_WAIT_S = {"finished": 120.0, "failed": 10.0, "stopped": 5.0}
"""Longest wait for the store at the end of a run. A run that is stopped has 30 s to exit."""

LOOK_S = 10.0
"""Longest check, when a finished run is started again, whether the store still has its records."""


class MlflowTracker(Tracker):
    """Records to an MLflow store. Create it on the main rank only: others would duplicate each run.

    ``uri`` None means MLFLOW_TRACKING_URI if set, otherwise an embedded store next to the run
    directory, shared by the runs there: ``mlflow.db`` (sqlite), ``mlartifacts/``.

    With ``register``, the memory after each task becomes a version of a registered model.

    Raises InputError for a store that MLflow does not support: a plain folder, or an invalid URI.
    """

    def __init__(self, uri: str | None = None, *, register: bool = False) -> None:
        self._uri = uri
        self._register = register
        prepare(uri)
        self.complete = False
        """After ``close``: whether the store has everything."""

    def open(self, run: RunDescription, from_step: int | None = None) -> None:
        """Start recording and sending; resume if the run directory was recorded before."""
        self._begin(run)
        self._open(run)
        _import()
        self._sender = Sender(MlflowReplay(self._store, self._run_dir))

    def catch_up(self, run: RunDescription, files: Files, say: Callable[[str], None]) -> None:
        """Send the missing records of a finished run, from all its starts, to any store.

        Records that were never spooled are read from the run's files: all records of a start
        without tracking, or the end and the report if a process was killed before it wrote them.
        """
        self._begin(run)
        self._backfill(run, files)
        replay = MlflowReplay(self._store, self._run_dir)
        if replay.is_done():
            self._spool.close()
            self.complete = True
            return
        _import()
        pending = replay.pending()
        wait = LAST_WAIT_S["finished"] if pending else LOOK_S
        if pending:
            say(
                f"MLflow at {clean_address(self._store)} has not got all of this run: the rest is "
                f"sent, which takes up to {wait:.0f} s"
            )
        self._sender = Sender(replay)
        self._finish(wait, warn=pending)

    def _begin(self, run: RunDescription) -> None:
        self._run_dir = run.run_dir.resolve()
        path = self._run_dir / FOLDER / MAIN
        self._spool = Spool(path)
        self._name = run.name
        self._task: int | None = None
        self._told = recall(path)
        self._time = 0
        self._added = False
        self._store = store_of(run.run_dir, self._uri)

    def _open(self, run: RunDescription) -> None:
        self._write(
            "open",
            sequence=self._told.sequence or uuid.uuid4().hex,
            name=run.name,
            experiment=run.experiment,
            run_directory=str(self._run_dir),
            parameters={k: str(v) for k, v in clean_tree(dict(run.parameters)).items()},
            tags=clean_tree(run.tags),
            datasets=clean_tree([asdict(record) for record in run.datasets]),
        )

    def begin_task(self, index: int, name: str) -> None:
        """Log the following curves to the task's child run."""
        self._task = index
        self._write("begin_task", task=index, name=name)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add a point to each curve, unless it was logged before a restart."""
        told = self._told.steps
        new = {k: v for k, v in metrics.items() if step not in told[self._task, k]}
        for name in new:
            told[self._task, name].add(step)
        if new:
            self._write("log", task=self._task, step=step, metrics=as_json(new))

    def log_sequence(self, metrics: dict[str, float], step: int) -> None:
        """Add results to the parent, at ``step`` tasks learned, unless they are there already."""
        values = as_json(metrics)
        new = {k: v for k, v in values.items() if self._told.results.get((step, k)) != v}
        self._told.results |= {(step, name): value for name, value in new.items()}
        if new:
            self._write("log", task=None, step=step, metrics=new)

    def end_task(self) -> None:
        """Mark the task's child run as finished; its memory has been published."""
        self._write("end", task=self._task, status="finished", whole=False)
        if self._register and self._task is not None:
            self._publish(self._task)
        self._task = None

    def attach(self, paths: Sequence[Path], folder: str) -> None:
        """Upload files or folders' contents to the parent run, as they are when they are sent."""
        names = [path.resolve() for path in paths]
        inside = [
            p.relative_to(self._run_dir) if p.is_relative_to(self._run_dir) else p for p in names
        ]
        self._write("attach", paths=[str(path) for path in inside], folder=folder)

    def close(self, status: Status) -> None:
        """Set the final status of the parent and an open child; wait for the sender."""
        with suppress(WriteError):  # it must not hide the run's own error
            self._write("end", task=self._task, status=status, whole=True)
        self._finish(LAST_WAIT_S[status], warn=True)

    def _finish(self, wait_s: float, *, warn: bool) -> None:
        self._spool.close()
        self.complete = self._sender.close(wait_s)
        if warn and not self.complete:
            logger.warning(
                "MLflow at %s has not got all of this run. The rest is kept; this sends it: "
                "python -m moram_dist.tracking send %s",
                clean_address(self._store),
                self._run_dir,
            )

    def _publish(self, task: int) -> None:
        memory = self._run_dir / "memory"
        learned = sorted(memory.glob(f"{task:03d}_*.safetensors"))
        self.attach([*learned, memory / "memory.json"], "memory")
        self._write("publish", task=task, name=self._name)

    def _backfill(self, run: RunDescription, files: Files) -> None:
        """Spool the missing records of a finished run, if any."""
        self._time = modified(self._run_dir / "run.yaml")
        if self._told.sequence is None:
            self._open(run)
        metrics = self._run_dir / METRICS_FILE
        self._time = max(modified(metrics), self._told.time)  # the file's lines have no times
        tasks = {name: i for i, name in enumerate(dict.fromkeys(r.name for r in run.datasets))}
        for entry in read_metrics(metrics) if metrics.exists() else ():
            task, step, learned = (entry.pop(k, None) for k in ("task", "step", "tasks_learned"))
            values = {name: float(value) for name, value in entry.items()}
            if learned is not None:
                self.log_sequence(values, learned)
            elif task in tasks:
                self._task = tasks[task]
                if self._task not in self._told.begun:
                    self._told.begun.add(self._task)
                    self.begin_task(self._task, task)
                self.log(values, step)
        self._task = None
        for task in range(len(tasks)) if self._register else ():
            if task not in self._told.published:
                self._publish(task)
        if self._added or not self._told.ended:
            for folder, paths in files.items():
                self.attach(paths, folder)
            self._write("end", task=None, status="finished", whole=True)

    def _write(self, do: str, **rest: Any) -> None:
        """Spool an operation. A power loss may lose only the last points of curves."""
        self._added = True
        operation = {"do": do, "time": self._time or int(time.time() * 1000), **rest}
        self._spool.append(operation, sync=do != "log" or rest["task"] is None)


def _import() -> None:
    """Import MLflow's client before the sender: two threads that do so would collide."""
    import mlflow.tracking  # noqa: F401
