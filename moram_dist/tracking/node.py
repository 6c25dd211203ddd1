"""Measure each node's load with MLflow's system metrics, on one rank per node.

MLflow's own thread needs the run's id on every node and ends at the first failure of the server.
This one writes to a file in the run directory, which the main rank sends with all other records.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from moram_dist.tracking.spool import FOLDER, Spool, operations
from moram_dist.tracking.tracker import RunDescription, Status, Tracker, as_json

logger = logging.getLogger(__name__)

EVERY_S = 10.0
"""Seconds between two samples, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is set."""


def wanted() -> bool:
    """Whether to measure: yes, unless MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false."""
    said = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    return said.lower() not in ("false", "0")


class NodeMetrics(Tracker):
    """Samples CPU, memory, disk, network and, with nvidia-ml-py, GPUs while the run is open.

    ``node`` counts from 0; None, for a single node, leaves it out of the metrics' names.
    """

    def __init__(self, node: int | None = None) -> None:
        self._node = node
        self._prefix = "system" if node is None else f"system/node_{node}"

    def open(self, run: RunDescription, from_step: int | None = None) -> None:
        """Start sampling. Steps continue from those of an earlier process."""
        import mlflow.system_metrics  # noqa: F401  # here: two threads that import it would collide

        path = run.run_dir / FOLDER / f"node_{self._node or 0:03d}.jsonl"
        self._spool = Spool(path)
        self._first = sum(1 for _ in operations(path))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node metrics", daemon=True)
        self._thread.start()

    def close(self, status: Status) -> None:
        """Stop sampling."""
        self._done.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            said = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or EVERY_S)
            every = said if 0 < said < threading.TIMEOUT_MAX else EVERY_S
            monitors = _monitors()
            self._sample(monitors, 0)  # load is measured since the last sample, so discard one
            step = self._first
            while True:
                last = self._done.wait(every)
                self._spool.append(self._sample(monitors, step))
                step += 1
                if last:
                    break
        except Exception as error:  # measuring must not stop training
            logger.warning("this node is not measured any more: %s", error)
        self._spool.close()

    def _sample(self, monitors: list[Any], step: int) -> dict[str, Any]:
        found: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        metrics = {f"{self._prefix}/{name}": value for name, value in found.items()}
        now = int(time.time() * 1000)
        return {"do": "log", "time": now, "task": None, "step": step, "metrics": as_json(metrics)}


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):  # no nvidia-ml-py, or no GPU
        pass
    return monitors
