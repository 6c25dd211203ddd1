"""Find out from a run's spool, at a restart, which records MLflow has or will get."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from moram_dist.tracking.spool import operations


@dataclass
class AlreadySpooled:
    """The records in a spool, which need not be spooled again."""

    sequence: str | None = None
    """The id of the run directory's sequence; None before the first start."""

    steps: defaultdict[tuple[int | None, str], set[int]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Points of curves: (task, name) -> steps."""

    results: dict[tuple[int, str], float | str] = field(default_factory=dict)
    """Results of the sequence: (tasks learned, name) -> newest value."""

    begun: set[int] = field(default_factory=set)
    """Tasks with a child run."""

    published: set[int] = field(default_factory=set)
    """Tasks whose memory is a version of a registered model."""

    time: int = 0
    """Latest time of an operation, in milliseconds since 1970."""

    ended: bool = False
    """Whether the last operation says that the whole run is finished."""


def recall(path: Path) -> AlreadySpooled:
    """Read a spool. Operations before the opening, or before their task begins, do not count."""
    told = AlreadySpooled()
    for operation, _ in operations(path):
        do = operation["do"]
        told.time = max(told.time, operation["time"])
        if do == "open":
            told.sequence = told.sequence or operation["sequence"]
        if told.sequence is None:
            continue
        told.ended = do == "end" and operation["whole"] and operation["status"] == "finished"
        if do == "begin_task":
            told.begun.add(operation["task"])
        elif do == "publish":
            told.published.add(operation["task"])
        elif do == "log" and operation["task"] is None:
            for name, value in operation["metrics"].items():
                told.results[operation["step"], name] = value
        elif do == "log" and operation["task"] in told.begun:
            for name in operation["metrics"]:
                told.steps[operation["task"], name].add(operation["step"])
    return told


def modified(path: Path) -> int:
    """Modification time of a file in milliseconds since 1970; 0 if it is missing."""
    return int(path.stat().st_mtime * 1000) if path.exists() else 0
