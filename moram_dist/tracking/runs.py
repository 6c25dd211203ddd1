"""Read an MLflow store: where the runs of an experiment are."""

from __future__ import annotations

import os
from pathlib import Path

from moram_dist.registry import InputError, unknown
from moram_dist.tracking.connect import prepare
from moram_dist.tracking.names import without_password
from moram_dist.tracking.replay import RUN_DIRECTORY

DEFAULT_STORE = "sqlite:///runs/mlflow.db"


def run_directories(experiment: str, uri: str | None = None) -> list[Path]:
    """Directories of an experiment's finished sequences, oldest first.

    Args:
        experiment: its name: the benchmark's.
        uri: the store; None means MLFLOW_TRACKING_URI where that is set, and otherwise the one
            beside run directories in ``runs``.

    Raises:
        InputError: no such store or experiment, no finished run in it, or a run that does not say
            where its directory is, or whose directory is not there any more.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    shown = without_password(uri)
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    if uri.startswith("sqlite:///") and not Path(file).exists():
        raise InputError(f"--tracking_uri {shown}: no such file")  # MLflow would make an empty one
    prepare(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise unknown("experiment", experiment, [e.name for e in client.search_experiments()])
        runs = client.search_runs(
            [found.experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            max_results=50_000,  # the most that MLflow gives at once
        )
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--tracking_uri {shown}: {without_password(reason)}") from None
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
                "directories in place of --experiment"
            )
        folders.append(folder)
    return folders
