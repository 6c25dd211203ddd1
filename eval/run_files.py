"""Read the files of a run: typed records of the fields that evaluation uses.

Users may have edited these files, and a crash may have truncated them. Other fields are ignored, so
runs of older and newer versions can be read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from moram_dist.reading import parse_json, read_object, record
from moram_dist.registry import InputError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TaskSizes:
    """A task of ``benchmark.json``."""

    name: str
    train: int | None = None
    test: int | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkFile:
    """``benchmark.json``; all fields are at their defaults if the run has none."""

    name: str | None = None
    order: str | None = None
    protocol: str | None = None
    notes: tuple[str, ...] = ()
    tasks: tuple[TaskSizes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredTask:
    """A task of the memory's manifest."""

    name: str
    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredBase:
    """The base model that a run was trained on."""

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A line of ``metrics.jsonl`` that has a training loss."""

    step: int
    loss: float
    task: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredExample:
    """A line of a predictions file."""

    prompt: str
    references: tuple[str, ...]
    prediction: str
    score: float | None = None
    id: str = ""


def read_benchmark(run_dir: Path) -> BenchmarkFile:
    """Read ``benchmark.json``. Raises InputError if the file exists but is invalid."""
    path = run_dir / "benchmark.json"
    if not os.path.exists(path):
        return BenchmarkFile()
    content = read_object(path)
    if isinstance(content.get("tasks"), list):
        content["tasks"] = [_only(TaskSizes, task) for task in content["tasks"]]
    return record(BenchmarkFile, _only(BenchmarkFile, content), path)


def read_stored_tasks(run_dir: Path) -> dict[str, StoredTask]:
    """The tasks of the memory's manifest by name; empty if the run has no memory.

    Raises InputError if the manifest exists but is broken.
    """
    path = run_dir / "memory" / "memory.json"
    if not os.path.exists(path):
        return {}
    entries = read_object(path).get("tasks", [])
    if not isinstance(entries, list):
        raise InputError(f"{path}: tasks: expected a list")
    stored = [part(StoredTask, entry, f"{path}: task {k}") for k, entry in enumerate(entries)]
    return {task.name: task for task in stored}


def read_base(run_dir: Path) -> StoredBase:
    """A run's base. Raises InputError if no file states it.

    A run that an older version began states it in the current form once it has been resumed.
    """
    inputs = run_dir / "inputs.json"
    path = inputs if os.path.exists(inputs) else run_dir / "memory" / "memory.json"
    content = read_object(path)
    if "base" not in content:
        raise InputError(f"{path}: base is missing")
    return part(StoredBase, content["base"], f"{path}: base")


def read_curve(path: Path) -> list[CurvePoint]:
    """The training losses of a metrics file, oldest first; empty if there is no file.

    An incomplete last line is ignored: the run is active, or was killed while it wrote.

    Raises:
        InputError: the file cannot be read, or a line is not one that the trainer writes.
    """
    if not os.path.exists(path):
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    points = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{where}: not UTF-8") from None
        if not text.strip():
            continue
        entry = parse_json(text, path, first_line=number)
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object")
        if "train/loss" in entry:
            entry["loss"] = entry["train/loss"]
            points.append(part(CurvePoint, entry, where))
            if not 0 <= points[-1].step < 2**53:
                raise InputError(f"{where}: step: no number of a step")
    return points


def scored_example(value: dict[str, Any], where: str) -> ScoredExample:
    """Check a line of a predictions file. Raises InputError if it is invalid."""
    return part(ScoredExample, value, where)


def part(kind: type[T], value: Any, where: str | Path) -> T:
    """Make a ``kind`` of a JSON object, ignoring fields that ``kind`` does not have.

    Raises InputError as ``reading.record`` does.
    """
    return record(kind, _only(kind, value), where)


def _only(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {field.name: value[field.name] for field in fields(kind) if field.name in value}
