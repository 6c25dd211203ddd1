"""Count which task a recogniser assigned each prompt to, from a run's predictions."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.predictions import predictions_path
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records

UNKNOWN = "unknown"
"""Names the column of prompts that resemble no task."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of prompts, after the last of these tasks was learned."""

    tasks: tuple[str, ...]
    """The tasks learned by then, in order."""

    counts: tuple[tuple[int, ...], ...]
    """Row: the task of the prompts. Column: the task they were recognised as, the last for no task.
    A row of zeros was not measured."""

    @property
    def accuracy(self) -> float:
        """Percent of all prompts recognised as their own task's."""
        return self._percent(sum(row[i] for i, row in enumerate(self.counts)))

    @property
    def rejected(self) -> float:
        """Percent of all prompts recognised as no task's."""
        return self._percent(sum(row[-1] for row in self.counts))

    def _percent(self, prompts: int) -> float:
        return 100 * prompts / sum(map(sum, self.counts))

    def percents(self) -> list[list[float | None]]:
        """The counts as percent of their row; None where the row was not measured."""
        return [
            [100 * count / prompts if prompts else None for count in row]
            for row in self.counts
            for prompts in [sum(row)]
        ]

    def to_csv(self) -> str:
        """``percents`` as CSV, one row per task of prompts; cells not measured are empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["prompts of", *self.tasks, UNKNOWN])
        for name, row in zip(self.tasks, self.percents(), strict=True):
            writer.writerow([name, *row])
        return buffer.getvalue()


def read_confusion(
    run_dir: Path, tasks: Sequence[str], row: int, suffix: str | None
) -> Confusion | None:
    """The counts after task ``row``; None if no recogniser ran.

    Args:
        run_dir: the run.
        tasks: all of its tasks, in order.
        row: index of a task, from 0.
        suffix: of the predictions' file names (``ScoringMode.file_suffix``).

    Raises:
        InputError: a file is broken, or names a task that was not learned by then.
    """
    learned = tuple(tasks[: row + 1])
    place = {name: i for i, name in enumerate(learned)}
    counts = [[0] * (len(learned) + 1) for _ in learned]
    for column, task in enumerate(learned):
        path = predictions_path(run_dir, row, column, task, suffix)
        for where, line in read_records(path) if os.path.exists(path) else ():
            name = line.get("recognised")
            if name is None:
                continue
            if not isinstance(name, str) or name not in place:
                raise InputError(f"{where}: recognised: no task that was learned by then")
            counts[column][-1 if line.get("rejected") is True else place[name]] += 1
    if not any(map(any, counts)):
        return None
    return Confusion(tasks=learned, counts=tuple(map(tuple, counts)))
