"""Carry out spooled operations in an MLflow store, in order and once each.

The sequence is a parent run, each task a child run. ``tracking.json`` in the run directory holds
the ids of the runs, and how much of each spool is done. It is written after the store has answered,
so an operation may be repeated if a process or a server dies. Every operation is idempotent: a run
is searched by a tag before it is created, a point includes its time, a status or a file replaces
itself.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moram_dist.files import exclusive_lock
from moram_dist.redaction import clean_address, clean_tree, without_secrets
from moram_dist.registry import InputError
from moram_dist.tracking.addresses import sqlite_file
from moram_dist.tracking.connect import are_active, connect
from moram_dist.tracking.entities import dataset_input, points
from moram_dist.tracking.ids import IDS_FILE, read_ids, write_ids
from moram_dist.tracking.names import allowed_name, run_name, text
from moram_dist.tracking.spool import FOLDER, Operation, entries, on_disk, operations, spools
from moram_dist.tracking.versions import publish

logger = logging.getLogger(__name__)

RUN_DIRECTORY = "run_directory"
"""The parent's tag with the path of the run directory."""

SEQUENCE = "sequence"
"""The tag that all runs of one sequence share: a random id of the run directory."""

STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

# MLflow refuses longer values. Its client splits batches (100 parameters, 1000 metrics).
MAX_PARAMETER, MAX_TAG = 6000, 8000

LOGS_IN_A_BATCH = 200


class MlflowReplay:
    """One run directory and one store. Used by one thread; a lock excludes other processes."""

    def __init__(self, uri: str, run_dir: Path) -> None:
        self.uri = uri
        self.run_dir = run_dir.resolve()
        self._client: Any = None
        self._experiment = ""
        self._state: dict[str, Any] = {}

    def send(self) -> None:
        """Carry out all operations on disk that are not carried out yet.

        Raises:
            BlockingIOError: another process is sending the same run directory.
            Exception: any exception of MLflow's client; operations acknowledged before it count.
        """
        with exclusive_lock(self.run_dir / FOLDER / ".lock", wait=False):
            for path in spools(self.run_dir):
                if self._client is None:
                    self._open(path)
                for batch, end in _batches(path, self._sent(path)):
                    self._carry_out(batch)
                    on_disk(path)
                    self._state["sent"][path.name] = end
                    self._save()

    def _sent(self, path: Path) -> int:
        """Bytes of a spool that the store has; 0 if the spool is shorter, and thus a new one."""
        sent = self._state["sent"].get(path.name, 0)
        return sent if sent <= path.stat().st_size else 0

    def complete(self) -> bool:
        """Whether the store has all of the main rank's spool; other nodes may still measure."""
        main = spools(self.run_dir)[0]
        return main.stat().st_size == self._state.get("sent", {}).get(main.name, 0)

    def pending(self) -> bool:
        """Whether this store has yet to acknowledge anything, without a request to it."""
        ids = read_ids(self.run_dir)
        if ids is None or ids["store"] != clean_address(self.uri):
            return bool(spools(self.run_dir))
        sizes = ((path.name, path.stat().st_size) for path in spools(self.run_dir))
        return any(ids["sent"].get(name, 0) != size for name, size in sizes)

    def is_done(self) -> bool:
        """Whether the store has everything, as far as that is known without MLflow."""
        ids, database = read_ids(self.run_dir), sqlite_file(self.uri)
        if self.pending() or ids is None or ids["parent"] is None or database is None:
            return False
        return are_active(database, [ids["parent"], *ids["tasks"].values()])

    def _open(self, main: Path) -> None:
        first = next((one for one, _ in operations(main) if one["do"] == "open"), None)
        if first is None:
            raise InputError(f"{main} is damaged: it does not say whose run it is")
        client, self._experiment = connect(self.uri, first["experiment"])
        self._state = self._restored(client)
        self._client = client

    def _restored(self, client: Any) -> dict[str, Any]:
        """The state of an earlier process, if it is for this store and its runs still exist.

        Otherwise everything is sent from the beginning, to the runs that still exist.
        """
        from mlflow.exceptions import MlflowException

        store = clean_address(self.uri)
        fresh: dict[str, Any] = {"store": store, "parent": None, "tasks": {}, "sent": {}}
        found = read_ids(self.run_dir) or fresh
        if found["store"] != store:
            logger.info("%s is of another MLflow store: new runs start here", IDS_FILE)
            return fresh
        if found["parent"] is None:
            return fresh
        runs = (found["parent"], *found["tasks"].values())
        try:
            active = all(client.get_run(run).info.lifecycle_stage == "active" for run in runs)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            active = False
        return fresh | found if active else fresh

    def _save(self) -> None:
        write_ids(self.run_dir, self._state)

    def _carry_out(self, batch: list[Operation]) -> None:
        if not batch:
            return
        operation = batch[0]
        if not self._known(operation):
            logger.warning("an operation of a run whose beginning is damaged is skipped")
            return
        match operation["do"]:
            case "open":
                self._open_parent(operation)
            case "begin_task":
                self._begin_task(operation)
            case "log":
                metrics = [point for logged in batch for point in points(logged)]
                self._client.log_batch(self._run_of(operation["task"]), metrics=metrics)
            case "attach":
                self._attach(operation)
            case "publish":
                publish(self._client, operation["name"], self._state["parent"], operation["task"])
            case "end":
                self._end(operation)

    def _known(self, operation: Operation) -> bool:
        """Whether the operation's run is open; it may not be if the spool is damaged."""
        if operation["do"] == "open":
            return True
        tasks = [None, *self._state["tasks"]]
        begins = operation["do"] == "begin_task"
        task = None if begins or operation.get("task") is None else str(operation["task"])
        return self._state["parent"] is not None and task in tasks

    def _run_of(self, task: int | None) -> str:
        return self._state["parent"] if task is None else self._state["tasks"][str(task)]

    def _open_parent(self, operation: Operation) -> None:
        """Create the parent run or continue it, and send parameters and data digests.

        MLflow does not let parameters change. If a restart changes one (such as ``log_every``), a
        tag ``restarted_with/<name>`` holds the new value.
        """
        from mlflow.entities import Param, RunTag

        tags = {**operation["tags"], SEQUENCE: operation["sequence"]}
        parent = self._state["parent"] or self._find_or_create(
            operation["name"], tags, operation["time"], task=None
        )
        self._state["parent"] = parent
        self._state["tags"] = tags
        self._client.update_run(parent, status="RUNNING")
        before = self._client.get_run(parent).data.params
        params, changed = [], {RUN_DIRECTORY: operation["run_directory"], **tags}
        for name, value in operation["parameters"].items():
            key, whole = allowed_name(name), text(value, MAX_PARAMETER)
            if key not in before:
                params.append(Param(key, whole))
            elif before[key] != whole:
                changed[f"restarted_with/{name}"] = whole
        run_tags = [RunTag(allowed_name(key), text(tag, MAX_TAG)) for key, tag in changed.items()]
        self._client.log_batch(parent, params=params, tags=run_tags)
        if operation["datasets"]:
            inputs = [dataset_input(record) for record in operation["datasets"]]
            self._client.log_inputs(parent, inputs)  # the store removes duplicates
            digests = {"datasets": operation["datasets"]}
            self._upload(lambda: self._client.log_dict(parent, digests, "config/datasets.json"))

    def _begin_task(self, operation: Operation) -> None:
        index, name = operation["task"], operation["name"]
        known = self._state["tasks"].get(str(index))
        if known is None:
            tags = {
                **self._state["tags"],
                "mlflow.parentRunId": self._state["parent"],
                "task": name,
                "task_index": str(index),
            }
            known = self._find_or_create(
                f"{index:03d}_{name}", tags, operation["time"], task=str(index)
            )
            self._state["tasks"][str(index)] = known
        self._client.update_run(known, status="RUNNING")
        # If the old parent was deleted and this run was not, its parent is a new run now.
        self._client.set_tag(known, "mlflow.parentRunId", self._state["parent"])

    def _find_or_create(
        self, name: str, tags: dict[str, str], time: int, *, task: str | None
    ) -> str:
        """The sequence's oldest run of a task (None: the parent); created if there is none."""
        from mlflow.tracking.context.registry import resolve_tags  # user, source, as the UI shows

        for run in self._all_runs(tags[SEQUENCE]):
            if run.data.tags.get("task_index") == task:
                return run.info.run_id
        # Cleaned again, because the repository's address may hold a password.
        found = clean_tree(resolve_tags(tags))
        clean = {allowed_name(key): text(value, MAX_TAG) for key, value in found.items()}
        created = self._client.create_run(
            self._experiment, start_time=time, tags=clean, run_name=run_name(name)
        )
        return created.info.run_id

    def _all_runs(self, sequence: str) -> list[Any]:
        return self._client.search_runs(
            [self._experiment],
            filter_string=f"tags.{SEQUENCE} = '{sequence}'",
            order_by=["attributes.start_time ASC"],
            max_results=10_000,
        )

    def _attach(self, operation: Operation) -> None:
        for name in operation["paths"]:
            path = self.run_dir / name
            upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            target = (self._state["parent"], str(path), operation["folder"])
            self._upload(functools.partial(upload, *target))

    def _upload(self, upload: Callable[[], None]) -> None:
        """Upload to the artifact store. A permanent refusal is logged and does not stop sending."""
        try:
            upload()
        except Exception as error:
            if not _refused(error):
                raise
            reason = text(without_secrets(str(error)), 300)
            logger.warning("MLflow keeps no copy of a file of %s: %s", self.run_dir, reason)

    def _end(self, operation: Operation) -> None:
        """Set the final status of a task, of the whole run, or of both."""
        status, time = STATUS[operation["status"]], operation["time"]
        if operation["task"] is not None:
            self._client.set_terminated(self._run_of(operation["task"]), status, time)
        if operation["whole"]:
            self._client.set_terminated(self._state["parent"], status, time)
            self._tidy(status, time)

    def _tidy(self, status: str, time: int) -> None:
        """Delete duplicate runs made by a slow server; end runs left open by a killed process."""
        ours = {self._state["parent"], *self._state["tasks"].values()}
        for run in self._all_runs(self._state["tags"][SEQUENCE]):
            if run.info.run_id not in ours and not run.data.params and not run.data.metrics:
                self._client.delete_run(run.info.run_id)
            elif run.info.status != status == STATUS["finished"]:
                self._client.set_terminated(run.info.run_id, status, time)


def _batches(path: Path, offset: int) -> Iterator[tuple[list[Operation], int]]:
    """Operations from ``offset`` on with their end; logged steps of one run form batches.

    The last batch may be empty: it ends behind damaged lines, so that they are not read again.
    """
    batch: list[Operation] = []
    end = offset
    for operation, behind in entries(path, offset):
        if operation is None:
            end = behind
            continue
        joins = (
            batch
            and batch[0]["do"] == operation["do"] == "log"
            and batch[0]["task"] == operation["task"]
            and len(batch) < LOGS_IN_A_BATCH
        )
        if batch and not joins:
            yield batch, end
            batch = []
        batch.append(operation)
        end = behind
    if end > offset:
        yield batch, end


def _refused(error: Exception) -> bool:
    """Whether an upload would fail again: a missing file, or a store without write access."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        code = error.get_http_status_code()
    else:
        code = getattr(getattr(error, "response", None), "status_code", 500)
    # 401: the user can correct the password; 408, 429: busy
    client_error = 400 <= code < 500 and code not in (401, 408, 429)
    return client_error or isinstance(error, FileNotFoundError | PermissionError | ImportError)
