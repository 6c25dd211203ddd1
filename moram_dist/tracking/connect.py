"""Connect to an MLflow store, with short timeouts."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moram_dist.files import exclusive_lock
from moram_dist.registry import InputError
from moram_dist.tracking.addresses import SQLITE_ENCODED, check, sqlite_address, sqlite_file
from moram_dist.tracking.names import experiment_name

logger = logging.getLogger(__name__)

# Our defaults for variables that the user has not set. With MLflow's own (7 retries, 120 s), a
# request to an unreachable server takes minutes to fail. The sender repeats requests, after
# checking their outcome. The client would also send telemetry, and print addresses.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def require_mlflow() -> None:
    """Check for MLflow before any work. Raises InputError where it is not installed."""
    if find_spec("mlflow") is None:
        raise InputError(
            "mlflow is not installed: pip install 'moram-dist[track]', or give --tracking none"
        )


def prepare(uri: str | None) -> None:
    """Set the environment of MLflow's client. To be called before mlflow is imported.

    Raises:
        InputError: no store can be at ``uri``, or if None, at MLFLOW_TRACKING_URI.
    """
    check(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def are_active(database: Path, runs: Iterable[str]) -> bool:
    """Whether an sqlite store has these runs and none was deleted. False if that is not clear.

    Its table answers at once, while MLflow takes seconds to import.
    """
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as store:
            rows = store.execute(
                "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id)"
                " WHERE runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'"
            )
            return {*runs} <= {name for (name,) in rows}
    except sqlite3.Error:
        return False


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """Open the store and find or create the experiment. Returns MLflow's client and its id.

    The tables of an sqlite file are created on first use. If two processes do that together, or
    one is killed meanwhile, the file is damaged. So it is created under a lock and with a temporary
    name. Servers handle this themselves.
    """
    from mlflow.tracking import MlflowClient  # takes seconds, so only where a run is tracked

    experiment = experiment_name(experiment)
    database = sqlite_file(uri)
    if database is None:
        client = MlflowClient(uri)
        return client, _find_or_create(client, experiment, artifacts=None)
    if "%" in uri:
        uri = SQLITE_ENCODED + uri.partition(":///")[2]
    database = database.resolve()
    database.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(database.with_name(f"{database.name}.lock")):
        if not database.exists():
            _create(database)
        client = MlflowClient(uri)
        # Without this, artifacts would go to the current folder.
        artifacts = database.with_name("mlartifacts").as_uri()
        return client, _find_or_create(client, experiment, artifacts)


def _create(database: Path) -> None:
    """Create the tables in a temporary file, which is renamed when it is complete."""
    from mlflow.tracking import MlflowClient

    partial = database.with_name(f".{database.name}.partial")
    for left in (partial, partial.with_name(f"{partial.name}-journal")):
        left.unlink(missing_ok=True)
    MlflowClient(sqlite_address(partial))
    partial.rename(database)


def _find_or_create(client: Any, experiment: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):  # on a server, another run may create it between our two requests
        known = client.get_experiment_by_name(experiment)
        if known is not None:
            if known.lifecycle_stage == "deleted":  # its name is still taken
                client.restore_experiment(known.experiment_id)
                logger.warning("MLflow's experiment %r was deleted, and is restored", experiment)
            return known.experiment_id
        try:
            return client.create_experiment(experiment, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise RuntimeError(f"experiment {experiment!r} can be neither found nor created")
