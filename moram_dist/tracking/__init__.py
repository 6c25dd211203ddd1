"""Experiment tracking: curves, scores and files of a run, for people to compare.

The only home of mlflow, which takes seconds to import and is imported when a run uses it.
"""

from moram_dist.registry import unknown
from moram_dist.tracking.mlflow import IDS_FILE, MlflowTracker
from moram_dist.tracking.runs import run_directories
from moram_dist.tracking.tracker import (
    DatasetRecord,
    MetricsFile,
    RunDescription,
    Together,
    Tracker,
    read_metrics,
)

__all__ = [
    "IDS_FILE",
    "DatasetRecord",
    "MetricsFile",
    "MlflowTracker",
    "RunDescription",
    "Together",
    "Tracker",
    "open_tracker",
    "read_metrics",
    "run_directories",
]


def open_tracker(kind: str, uri: str | None = None) -> Tracker:
    """The tracker of the main rank, not yet opened; the metrics file is always part of it.

    Other ranks hold a plain ``Tracker()``.

    Args:
        kind: "mlflow" or "none".
        uri: MLflow's store; None is explained at ``MlflowTracker``.

    Raises:
        InputError: no such kind, or a store that MLflow cannot use.
    """
    if kind == "none":
        return MetricsFile()
    if kind == "mlflow":
        return Together(MetricsFile(), MlflowTracker(uri))
    raise unknown("tracking", kind, ("mlflow", "none"))
