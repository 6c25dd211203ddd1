"""General abilities, as lm-eval measures them: a file for each row of the score matrix.

general/base.json         the untouched base
general/after_004.json    after the fifth task
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moram_dist.files import write_atomically
from moram_dist.reading import read_object, record
from moram_dist.registry import InputError


@dataclass(frozen=True, kw_only=True)
class GeneralScore:
    """The first metric of one task of lm-eval, unchanged."""

    task: str
    metric: str
    """With its filter, as lm-eval names it: ``acc,none``."""

    value: float
    stderr: float | None
    """None if lm-eval gives none."""


@dataclass(frozen=True, kw_only=True)
class GeneralRow:
    """What was measured of one state of the model."""

    scores: Mapping[str, tuple[GeneralScore, ...]] = field(default_factory=dict)
    """By task as ``--general`` names it; a group without a mean of its own has several."""

    @property
    def metrics(self) -> dict[str, float]:
        """For the tracker: ``general/<task>``."""
        return {
            f"general/{one.task}": one.value for scores in self.scores.values() for one in scores
        }


@dataclass(frozen=True, kw_only=True)
class GeneralChange:
    """One task of lm-eval over the rows."""

    task: str
    metric: str
    base: float | None
    after: tuple[float | None, ...]
    """By row; None where it was not measured."""

    @property
    def last(self) -> float | None:
        """The last row that was measured."""
        return next((value for value in reversed(self.after) if value is not None), None)

    @property
    def change(self) -> float | None:
        """The last row minus the base."""
        return None if self.last is None or self.base is None else self.last - self.base


def general_path(run_dir: Path, row: int) -> Path:
    """``general/after_002.json``, or ``general/base.json`` for row -1."""
    return run_dir / "general" / ("base.json" if row < 0 else f"after_{row:03d}.json")


def read_general(run_dir: Path, row: int) -> GeneralRow:
    """What was measured in a row; empty if nothing was. Raises InputError on a broken file."""
    path = general_path(run_dir, row)
    if not path.exists():
        return GeneralRow()
    found = record(GeneralRow, read_object(path), path)
    for scores in found.scores.values():
        for one in scores:
            if not math.isfinite(one.value):
                raise InputError(f"{path}: {one.task} has a value that is no finite number")
    return found


def write_general(run_dir: Path, row: int, found: GeneralRow) -> None:
    """Write what was measured in a row."""
    text = json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n"
    write_atomically(general_path(run_dir, row), text)


def missing_tasks(run_dir: Path, row: int, asked: Sequence[str]) -> list[str]:
    """The tasks, as ``--general`` names them, that a row lacks."""
    there = read_general(run_dir, row).scores
    return [name for name in asked if name not in there]


def changes(run_dir: Path, num_tasks: int) -> tuple[GeneralChange, ...]:
    """Every task that was measured in any row, in the order of the first one."""
    base = read_general(run_dir, -1)
    rows = [read_general(run_dir, row) for row in range(num_tasks)]
    seen = {
        (one.task, one.metric): None
        for row in (base, *rows)
        for scores in row.scores.values()
        for one in scores
    }
    return tuple(
        GeneralChange(
            task=task,
            metric=metric,
            base=base.metrics.get(f"general/{task}"),
            after=tuple(row.metrics.get(f"general/{task}") for row in rows),
        )
        for task, metric in seen
    )
