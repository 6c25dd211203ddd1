"""The interface by which a run records curves, scores and files.

The training loop calls one ``Tracker``. The base class does nothing, for ranks that record nothing;
``MetricsFile`` always writes lines to a file in the run directory; ``Together`` calls several
trackers.

Two axes, never mixed: training curves are over the global optimizer step, scores of the sequence
are over the number of tasks learned.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from moram_dist.files import append, open_to_append, write_atomically, writing

logger = logging.getLogger(__name__)

Status = Literal["finished", "failed", "stopped"]
METRICS_FILE = "metrics.jsonl"
Files = Mapping[str, Sequence[Path]]


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The identity of one split of one task's data."""

    name: str
    """The task's name."""

    context: Literal["train", "eval"]
    """The use of the split."""

    digest: str
    """sha256 of the examples, 64 hex digits."""

    rows: int
    """Number of examples."""

    source: str
    """The origin: a path, a hub id, or the name of a generator."""


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """The description of a run before its first step."""

    name: str
    """Short name, shown in lists."""

    experiment: str
    """The experiment, e.g. the benchmark's name; runs to be compared share it."""

    run_dir: Path
    """The run directory; a tracker stores there what it needs to resume."""

    parameters: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    """The resolved configuration: dotted name -> value."""

    tags: dict[str, str] = field(default_factory=dict)
    """Tags to filter by: method, benchmark, order, commit."""

    datasets: list[DatasetRecord] = field(default_factory=list)
    """Every split that the run reads."""


class Tracker:
    """Does nothing: tracking switched off. Call open, then begin and end per task, then close."""

    def open(self, run: RunDescription, from_step: int | None = None) -> None:
        """Start recording ``run``; resume if its directory was recorded before.

        Args:
            run: the run's description.
            from_step: on a restart, the first global step that will be logged (again); None keeps
                all earlier records.
        """

    def begin_task(self, index: int, name: str) -> None:
        """Assign the following training curves to task ``index`` (from 0) of the sequence."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log points of training curves at global optimizer step ``step``, e.g. ``train/loss``."""

    def log_sequence(self, metrics: dict[str, float], step: int) -> None:
        """Log results of the sequence after ``step`` tasks, e.g. ``score/<task>`` or ``ap``."""

    def end_task(self) -> None:
        """End the current task; its curves are complete."""

    def attach(self, paths: Sequence[Path], folder: str) -> None:
        """Store copies of files, or of folders' contents, with the run under ``folder``."""

    def close(self, status: Status) -> None:
        """Stop recording. Nothing may be logged afterwards; ``open`` may be called again."""

    def catch_up(self, run: RunDescription, files: Files, say: Callable[[str], None]) -> None:
        """Send the missing records of a finished run; called instead of open and close.

        Args:
            run: its description; its data sets name the tasks in order.
            files: the files that a finished run attaches: folder -> paths.
            say: prints a line.
        """


class MetricsFile(Tracker):
    """``metrics.jsonl`` in the run directory: one JSON object per line, written immediately.

        {"step": 40, "task": "FOMC", "train/loss": 0.71}
        {"tasks_learned": 2, "score/FOMC": 61.5, "ap": 58.2}

    NaN and infinity are written as the strings "nan", "inf" and "-inf", which ``float`` reads.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._task: str | None = None

    def open(self, run: RunDescription, from_step: int | None = None) -> None:
        """Open the run's file to append; first drop lines that a restart will repeat.

        Raises InputError or WriteError where it cannot be written.
        """
        self._path = run.run_dir / METRICS_FILE
        open_to_append(self._path).close()  # check that it can be written before reading it
        _drop_repeated(self._path, from_step)
        self._file = open_to_append(self._path)

    def begin_task(self, index: int, name: str) -> None:
        """Write the task's name in the following lines."""
        self._task = name

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write one line for a step."""
        self._write({"step": step, "task": self._task}, metrics)

    def log_sequence(self, metrics: dict[str, float], step: int) -> None:
        """Write one line for a row of results; a later line for the same row replaces it."""
        self._write({"tasks_learned": step}, metrics)

    def end_task(self) -> None:
        """Write no task in the following lines."""
        self._task = None

    def close(self, status: Status) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # a write has already failed
                self._file.close()
        self._file = self._task = None

    def _write(self, place: dict[str, int | str | None], metrics: dict[str, float]) -> None:
        if self._file is None:
            raise RuntimeError("metrics were logged before open() or after close()")
        with writing(self._path):
            line = json.dumps({**place, **as_json(metrics)}, ensure_ascii=False)
            append(self._file, line.encode("utf-8", errors="surrogatepass") + b"\n")


class Together(Tracker):
    """Calls several trackers in the given order."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def open(self, run: RunDescription, from_step: int | None = None) -> None:
        """Open each."""
        for tracker in self.trackers:
            tracker.open(run, from_step)

    def begin_task(self, index: int, name: str) -> None:
        """Begin the task in each."""
        for tracker in self.trackers:
            tracker.begin_task(index, name)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log to each."""
        for tracker in self.trackers:
            tracker.log(metrics, step)

    def log_sequence(self, metrics: dict[str, float], step: int) -> None:
        """Log to each."""
        for tracker in self.trackers:
            tracker.log_sequence(metrics, step)

    def end_task(self) -> None:
        """End the task in each."""
        for tracker in self.trackers:
            tracker.end_task()

    def attach(self, paths: Sequence[Path], folder: str) -> None:
        """Attach to each."""
        for tracker in self.trackers:
            tracker.attach(paths, folder)

    def close(self, status: Status) -> None:
        """Close each."""
        for tracker in self.trackers:
            tracker.close(status)

    def catch_up(self, run: RunDescription, files: Files, say: Callable[[str], None]) -> None:
        """Catch up in each."""
        for tracker in self.trackers:
            tracker.catch_up(run, files, say)


def as_json(metrics: dict[str, float]) -> dict[str, float | str]:
    """Metrics with NaN and infinity as the strings "nan", "inf" and "-inf", which JSON can hold."""
    return {
        name: float(value) if math.isfinite(value) else str(float(value))
        for name, value in metrics.items()
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics file, oldest first.

    Damaged lines, left by a crash or a disk, are skipped with a warning.
    """
    *lines, rest = path.read_bytes().split(b"\n")  # a whole line ends in a newline
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    damaged = len(lines) - len(entries) + bool(rest)
    if damaged:
        logger.warning("%s: %d damaged lines are skipped", path, damaged)
    return entries


def _entry(line: bytes) -> dict[str, Any] | None:
    """The entry in a line; None if ``MetricsFile`` did not write the line."""
    try:
        entry = json.loads(line)
        place = entry.get("step", entry.get("tasks_learned"))
        task = entry.get("task")
        for name, value in entry.items():
            if name != "task":
                float(value)
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    known = type(place) is int and (task is None or isinstance(task, str))
    return entry if known else None


def _drop_repeated(path: Path, from_step: int | None) -> None:
    """Cut the file before the first line at or after ``from_step``, and remove damaged lines.

    One writer logs in the order of the run, so the restart repeats the work of all later lines,
    including scores.
    """
    kept = []
    for entry in read_metrics(path):
        if from_step is not None and entry.get("step", -1) >= from_step:
            break
        kept.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(kept).encode("utf-8", errors="surrogatepass"))
