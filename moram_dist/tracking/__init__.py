"""Experiment tracking: curves, scores and files of runs for comparison.

Only this package uses mlflow, which takes seconds to import and is imported when a run needs it.
"""

from moram_dist.registry import unknown
from moram_dist.tracking.addresses import sqlite_file, store_of
from moram_dist.tracking.connect import require_mlflow
from moram_dist.tracking.ids import read_ids, write_ids
from moram_dist.tracking.mlflow import MlflowTracker
from moram_dist.tracking.node import NodeMetrics, wanted
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
    "DatasetRecord",
    "MetricsFile",
    "MlflowTracker",
    "RunDescription",
    "Together",
    "Tracker",
    "open_tracker",
    "read_ids",
    "read_metrics",
    "require_mlflow",
    "run_directories",
    "sqlite_file",
    "store_of",
    "write_ids",
]


def open_tracker(
    kind: str,
    uri: str | None = None,
    *,
    register: bool = False,
    rank: int = 0,
    local_size: int = 1,
    world_size: int = 1,
) -> Tracker:
    """A rank's tracker, not yet opened. The main rank's always includes the metrics file.

    With MLflow, the first rank of each node measures the node. All other ranks record nothing.

    Args:
        kind: "mlflow" or "none".
        uri: MLflow's store; for None see ``MlflowTracker``.
        register: whether the memory after each task becomes a version of a registered model.
        rank: this process, from 0.
        local_size: processes on a node.
        world_size: processes on all nodes.

    Raises:
        InputError: no such kind, or MLflow cannot use the store.
    """
    if kind not in ("mlflow", "none"):
        raise unknown("tracking", kind, ("mlflow", "none"))
    trackers: list[Tracker] = []
    if rank == 0:
        trackers.append(MetricsFile())
    if kind == "mlflow":
        if rank % local_size == 0 and wanted():
            # Before MlflowTracker, which sends the other trackers' spools when it closes.
            trackers.append(NodeMetrics(rank // local_size if world_size > local_size else None))
        if rank == 0:
            trackers.append(MlflowTracker(uri, register=register))
    return Together(*trackers)
