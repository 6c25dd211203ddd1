"""What a comparison needs of a run: who it is, its score matrix, and a score an item.

Read from a run directory, or from a ``.jsonl`` file with a line a run (``Run.to_json``): small
enough to be kept with the code, and enough to make every table again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from eval.bootstrap import Array
from eval.continual import Cell, Scores
from eval.predictions import predictions_path
from eval.score_matrix import scores_path
from moram_dist import config_io
from moram_dist.config import RunConfig
from moram_dist.reading import read_json
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records

Items = str | list[float] | None
"""Scores of a test set's items, in its order: a text of 0 and 1 where each is 0 or 100, else
numbers. None where the cell was not measured."""

OF_THE_RUN = frozenset(
    {
        "model.model",
        "model.trust_remote_code",
        "model.gradient_checkpointing",
        "data.benchmark",
        "data.order",
        "data.protocol",
        "data.limit_eval",
        "train.seed",
        "eval.answers",
        "eval.eval_rows",
    }
)
"""Settings that are no part of a group's name: they have a place of their own, or change nothing
that was learned."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, as read from its files."""

    name: str
    benchmark: str
    protocol: str
    order: str
    seed: int
    method: str
    answers: str
    """How answers were obtained: generate, labels, ..."""

    base: dict[str, str]
    """The base model's name and fingerprint."""

    settings: dict[str, Any]
    """Dotted name to value: what defines the result, but for order and seed."""

    tasks: tuple[str, ...]
    """In the order of learning."""

    tests: tuple[str, ...]
    """Per task, a digest of its test set."""

    scores: tuple[tuple[Cell, ...], ...]
    """The score matrix: row t after task t."""

    last: tuple[Items, ...]
    """Per task, its items' scores after the last task."""

    learned: tuple[Items, ...]
    """Per task, its items' scores right after it was learned."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_runs(paths: Sequence[Path], answers: str | None = None) -> list[Run]:
    """Runs of directories and of ``.jsonl`` files.

    Args:
        paths: run directories, and files of ``Run.to_json`` lines.
        answers: which way of answering to compare; None is each run's main one. Lines hold one way.

    Raises:
        InputError: a file is missing or broken, a run is not finished, or answered in other ways.
    """
    runs: list[Run] = []
    for path in paths:
        if path.suffix == ".jsonl":
            runs += [_from_json(record, where) for where, record in read_records(path)]
        elif path.is_dir():
            runs.append(read_run_directory(path, answers))
        else:
            raise InputError(f"{path}: no such run directory or .jsonl file")
    for run in runs:
        if answers is not None and run.answers != answers:
            raise InputError(f"{run.name} holds answers by {run.answers!r}, not by {answers!r}")
    return runs


def read_run_directory(folder: Path, answers: str | None = None) -> Run:
    """A run's record from its directory. Raises InputError as ``read_runs`` does."""
    saved = config_io.read_mapping(folder / "run.yaml")
    # A setting that is younger than the run had its default's effect.
    settings = config_io.flat(RunConfig()) | {
        f"{section}.{name}": value
        for section, values in saved.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }
    ways = str(settings.get("eval.answers", "generate")).split(",")
    way = ways[0] if answers is None else answers
    if way not in ways:
        raise InputError(f"{folder} holds answers by {', '.join(ways)}, not by {way!r}")
    further = None if way == ways[0] else way
    benchmark = _fields(folder / "benchmark.json", "name", "protocol", "order")
    base = _fields(folder / "memory" / "memory.json", "base")["base"]
    matrix = Scores.load(scores_path(folder, further))
    end = len(matrix.tasks) - 1
    if len(matrix.scores) <= end:
        raise InputError(f"{folder}: not finished: {len(matrix.scores)} of {end + 1} tasks")
    last, learned, tests = [], [], []
    for i, task in enumerate(matrix.tasks):
        cells = [
            _read_cell(predictions_path(folder, row, i, task, further), matrix.scores[row][i])
            for row in (end, i)
        ]
        last.append(cells[0][0])
        learned.append(cells[1][0])
        tests.append(cells[0][1] or cells[1][1])
    return Run(
        name=folder.name,
        benchmark=benchmark["name"],
        protocol=benchmark["protocol"],
        order=benchmark["order"],
        seed=settings["train.seed"],
        method=settings["method.method"],
        answers=way,
        base={"name": Path(base["name"]).name, "fingerprint": str(base["fingerprint"])},
        settings={
            name: value
            for name, value in settings.items()
            if name not in OF_THE_RUN | config_io.MAY_CHANGE
        },
        tasks=matrix.tasks,
        tests=tuple(tests),
        scores=matrix.scores,
        last=tuple(last),
        learned=tuple(learned),
    )


def unpack(items: Items) -> Array | None:
    """Scores of 0 to 100 as an array; None where they were not measured."""
    if isinstance(items, str):
        digits = np.frombuffer(items.encode(), dtype=np.uint8)
        return np.where(digits == ord("1"), 100.0, 0.0)
    return None if items is None else np.array(items, dtype=np.float64)


def _pack(scores: Sequence[float]) -> Items:
    if set(scores) <= {0.0, 100.0}:
        return "".join("1" if score else "0" for score in scores)
    return list(scores)


def _fields(path: Path, *names: str) -> dict[str, Any]:
    content = read_json(path)
    for name in names:
        if not isinstance(content, dict) or name not in content:
            raise InputError(f"{path}: {name} is missing")
    return dict(content)


def _read_cell(path: Path, mean: Cell) -> tuple[Items, str]:
    """Item scores of a cell, and the digest of its test set; nothing where it was not measured."""
    if mean is None:
        return None, ""
    scores, digest = [], hashlib.sha256()
    for where, record in read_records(path):
        score = record.get("score")
        if not isinstance(score, int | float):
            raise InputError(f"{where}: no score; the command that trained the run goes on there")
        scores.append(float(score))
        question = [record.get(key) for key in ("id", "prompt", "references")]
        digest.update(json.dumps(question, ensure_ascii=False).encode())
    if not scores or abs(sum(scores) / len(scores) - mean) > 1e-6:
        raise InputError(f"{path}: its scores do not have the mean {mean} that the matrix holds")
    return _pack(scores), digest.hexdigest()[:16]


def _from_json(record: dict[str, Any], where: str) -> Run:
    names = [field.name for field in fields(Run)]
    for name in names:
        if name not in record:
            raise InputError(f"{where}: no field {name!r}")
    values = {name: record[name] for name in names}
    for name in ("tasks", "tests", "last", "learned"):
        values[name] = tuple(values[name])
    return Run(**values | {"scores": tuple(tuple(row) for row in record["scores"])})
