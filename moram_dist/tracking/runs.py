"""Find the run directories of an experiment in an MLflow store."""

from __future__ import annotations

import os
from pathlib import Path

from moram_dist.redaction import clean_address, without_secrets
from moram_dist.registry import InputError, unknown
from moram_dist.tracking.addresses import VARIABLE, sqlite_file
from moram_dist.tracking.connect import prepare
from moram_dist.tracking.names import experiment_name
from moram_dist.tracking.replay import RUN_DIRECTORY

DEFAULT_STORE = "sqlite:///runs/mlflow.db"


def run_directories(experiment: str, uri: str | None = None) -> list[Path]:
    """Directories of an experiment's finished sequences, oldest first.

    Args:
        experiment: its name, which is the benchmark's.
        uri: the store; None means MLFLOW_TRACKING_URI if set, otherwise the store of the run
            directories in ``runs``.

    Raises:
        InputError: no such store or experiment, no finished run in it, or the directory of a run
            is not recorded or no longer exists.
    """
    prepare(uri)
    uri = uri or os.environ.get(VARIABLE) or DEFAULT_STORE
    shown = clean_address(uri)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise InputError(f"--tracking_uri {shown}: no such file")  # MLflow would make an empty one
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment_name(experiment))
        if found is None:
            raise unknown("experiment", experiment, [e.name for e in client.search_experiments()])
        runs = client.search_runs(
            [found.experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            max_results=50_000,  # the most that MLflow returns at once
        )
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--tracking_uri {shown}: {without_secrets(reason)}") from None
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    if not parents:
        raise InputError(f"experiment {experiment!r} of {shown} holds no finished run")
    folders = []
    for run in parents:
        folder = Path(run.data.tags.get(RUN_DIRECTORY, ""))
        if RUN_DIRECTORY not in run.data.tags or not folder.is_dir():
            where = f"is not at {folder} any more" if RUN_DIRECTORY in run.data.tags else "unknown"
            raise InputError(
                f"run {run.info.run_name} of {experiment!r}: its directory {where}; give run "
                "directories instead of --experiment"
            )
        folders.append(folder)
    return folders
