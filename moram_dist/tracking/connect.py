"""A connection to an MLflow store, and how long it may take to fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moram_dist.files import exclusive_lock
from moram_dist.registry import InputError

# Defaults of ours, where the user set none. With MLflow's own (7 retries, 120 s) a request to a
# server that is away takes minutes to fail. Requests are repeated by the sender, which looks first
# what became of them. The client would also report usage to its makers, and print addresses.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

SQLITE = "sqlite:///"


def prepare(uri: str | None) -> None:
    """Set the environment of MLflow's client. To be called before mlflow is imported.

    Raises:
        InputError: MLflow keeps no runs at ``uri``, or where that is None at MLFLOW_TRACKING_URI:
            a plain folder, or no URI at all.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and urlsplit(uri).scheme in ("", "file") and uri != "databricks":
        raise InputError(
            f"--tracking_uri {uri!r}: MLflow keeps no runs in a plain folder; "
            "give sqlite:///FILE or a server's address"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def store_of(run_dir: Path, uri: str | None = None) -> str:
    """``uri``, else MLFLOW_TRACKING_URI, else the embedded store that neighbouring runs share."""
    beside = f"{SQLITE}{run_dir.resolve().parent / 'mlflow.db'}"
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or beside


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """Open the store and find or create the experiment. Returns MLflow's client, and its id.

    An sqlite file gets its tables on first use, which ruins the file if two processes do it at
    once, or one is killed on the way: each holds a lock beside the file meanwhile, and makes it
    under another name. Servers take care of that themselves.
    """
    from mlflow.tracking import MlflowClient  # takes seconds, so only where a run is tracked

    if not uri.startswith(SQLITE):
        client = MlflowClient(uri)
        return client, _find_or_create(client, experiment, artifacts=None)
    database = Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve()
    database.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(database.with_name(f"{database.name}.lock")):
        if not database.exists():
            _create(database)
        client = MlflowClient(uri)
        # Without this, artifacts would land wherever the command was started.
        artifacts = database.with_name("mlartifacts").as_uri()
        return client, _find_or_create(client, experiment, artifacts)


def _create(database: Path) -> None:
    """Make the tables in a file that gets its name when it is whole."""
    from mlflow.tracking import MlflowClient

    partial = database.with_name(f".{database.name}.partial")
    for left in (partial, partial.with_name(f"{partial.name}-journal")):
        left.unlink(missing_ok=True)
    MlflowClient(f"{SQLITE}{partial}")
    partial.rename(database)


def _find_or_create(client: Any, experiment: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):  # on a server, another run may create it between our look and our try
        known = client.get_experiment_by_name(experiment)
        if known is not None:
            return known.experiment_id
        try:
            return client.create_experiment(experiment, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise RuntimeError(f"experiment {experiment!r} can be neither found nor created")
