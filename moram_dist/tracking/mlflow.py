"""A run in MLflow: the sequence is a parent run, each task a child run.

The child holds the task's training curves over global steps; the parent holds parameters, data
digests, files, and the scores over the number of tasks learned. What is logged goes to a file in
the run directory (``spool``), a thread sends it from there (``sender``), and the same command after
a stop continues the same runs (``replay``). So tracking never decides whether training goes on.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moram_dist.files import WriteError
from moram_dist.redaction import clean_address, clean_tree
from moram_dist.tracking.addresses import store_of
from moram_dist.tracking.connect import prepare
from moram_dist.tracking.replay import Replay
from moram_dist.tracking.sender import Sender
from moram_dist.tracking.spool import FOLDER, MAIN, Spool, operations
from moram_dist.tracking.tracker import RunDescription, Status, Tracker, as_json

logger = logging.getLogger(__name__)

LAST_WAIT_S = {"finished": 120.0, "failed": 10.0, "stopped": 5.0}
"""Longest wait at the end for a store that answers. A run that is stopped has 30 s to leave."""


class MlflowTracker(Tracker):
    """Records to an MLflow store. Make one on the main rank only: a second would double each run.

    ``uri`` None means MLFLOW_TRACKING_URI where that is set, and otherwise an embedded store beside
    the run directory, which the runs next to it share: ``mlflow.db`` (sqlite), ``mlartifacts/``.

    With ``register`` the memory after each task becomes a version of a registered model.

    Raises InputError for a store that MLflow does not have: a plain folder, or no URI at all.
    """

    def __init__(self, uri: str | None = None, *, register: bool = False) -> None:
        self._uri = uri
        self._register = register
        prepare(uri)
        self.complete = False
        """After ``close``: whether the store has everything."""

    def open(self, run: RunDescription, from_step: int | None = None) -> None:
        """Start to record and to send, or go on where the run directory has been recorded."""
        import mlflow.tracking  # noqa: F401  # here: two threads that import it would collide

        self._run_dir = run.run_dir.resolve()
        path = self._run_dir / FOLDER / MAIN
        self._spool = Spool(path)
        self._name = run.name
        self._task: int | None = None
        sequence = self._recall(path) or uuid.uuid4().hex
        self._write(
            "open",
            sequence=sequence,
            name=run.name,
            experiment=run.experiment,
            run_directory=str(self._run_dir),
            parameters={k: str(v) for k, v in clean_tree(dict(run.parameters)).items()},
            tags=clean_tree(run.tags),
            datasets=clean_tree([asdict(record) for record in run.datasets]),
        )
        self._store = store_of(run.run_dir, self._uri)
        self._sender = Sender(Replay(self._store, self._run_dir))

    def begin_task(self, index: int, name: str) -> None:
        """Curves from here on are of the task's child run."""
        self._task = index
        self._write("begin_task", task=index, name=name)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add a point to each curve. What was logged before a restart is not logged again."""
        new = {k: v for k, v in metrics.items() if step > self._newest.get((self._task, k), -1)}
        self._newest |= {(self._task, name): step for name in new}
        if new:
            self._write("log", task=self._task, step=step, metrics=as_json(new))

    def log_sequence(self, metrics: dict[str, float], step: int) -> None:
        """Add results to the parent, at ``step`` tasks learned, where they are not there yet."""
        values = as_json(metrics)
        new = {k: v for k, v in values.items() if self._results.get((step, k)) != v}
        self._results |= {(step, name): value for name, value in new.items()}
        if new:
            self._write("log", task=None, step=step, metrics=new)

    def end_task(self) -> None:
        """Mark the task's child run finished; its memory has been published."""
        self._write("end", task=self._task, status="finished", whole=False)
        if self._register and self._task is not None:
            memory = self._run_dir / "memory"
            learned = sorted(memory.glob(f"{self._task:03d}_*.safetensors"))
            self.attach([*learned, memory / "memory.json"], "memory")
            self._write("publish", task=self._task, name=self._name)
        self._task = None

    def attach(self, paths: Sequence[Path], folder: str) -> None:
        """Keep files, or what is in folders, with the parent run, as they are when it is sent."""
        names = [path.resolve() for path in paths]
        inside = [
            p.relative_to(self._run_dir) if p.is_relative_to(self._run_dir) else p for p in names
        ]
        self._write("attach", paths=[str(path) for path in inside], folder=folder)

    def close(self, status: Status) -> None:
        """Mark the parent, and a child still open, with how the run ended; wait for the sender."""
        with suppress(WriteError):  # it must not hide why the run failed
            self._write("end", task=self._task, status=status, whole=True)
        self._spool.close()
        self.complete = self._sender.close(LAST_WAIT_S[status])
        if not self.complete:
            logger.warning(
                "MLflow at %s has not got all of this run. The rest is kept; this sends it: "
                "python -m moram_dist.tracking send %s",
                clean_address(self._store),
                self._run_dir,
            )

    def _write(self, do: str, **rest: Any) -> None:
        """Spool an operation. Only of curves may a machine that loses its power lose the end."""
        operation = {"do": do, "time": int(time.time() * 1000), **rest}
        self._spool.append(operation, sync=do != "log" or rest["task"] is None)

    def _recall(self, path: Path) -> str | None:
        """What was logged before a restart. Returns the sequence's number, None at its start."""
        sequence = None
        self._newest: dict[tuple[int | None, str], int] = {}
        self._results: dict[tuple[int, str], float | str] = {}
        for operation, _ in operations(path):
            if operation["do"] == "open":
                sequence = sequence or operation["sequence"]
            elif operation["do"] == "log":
                task, step = operation["task"], operation["step"]
                for name, value in operation["metrics"].items():
                    if task is None:
                        self._results[step, name] = value
                    else:
                        self._newest[task, name] = step
        return sequence
