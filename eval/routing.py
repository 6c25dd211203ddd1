"""Which tasks' atoms answered which tasks' test tokens: a file for each row of the score matrix.

Of a linear with N atoms, a token puts the weights of its mixture on some atoms and keeps back the
weight of those that are silenced, so the shares of a token sum to 1. Experts count as atoms.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from moram_dist.reading import read_object, record
from moram_dist.registry import InputError

SILENT = "silent"
"""Names the column of the weight of silenced atoms."""


@dataclass(frozen=True, kw_only=True)
class LinearRouting:
    """Sums over the tokens that one linear read. Tuples have an item per task learned so far."""

    name: str
    tokens: tuple[int, ...]
    """By the task that the tokens belong to, like the next three."""

    weight: tuple[tuple[float, ...], ...]
    """Sums of weights that were not silenced, by the task of the atoms."""

    unanswered: tuple[int, ...]
    """Tokens that no atom answered: the relevance of each was below the threshold."""

    effective: tuple[float, ...]
    """Sums of the effective number of atoms: exp of the entropy of a token's weights."""

    atoms: tuple[int, ...]
    """By the task of the atoms, like the next."""

    unchosen: tuple[int, ...]
    """Atoms that answered none of all these tokens."""

    cosine: float | None
    """Largest cosine between a key of the newest task and one of an earlier task."""


@dataclass(frozen=True, kw_only=True)
class TaskRouting:
    """A sample of the test examples, after the last of these tasks was learned."""

    tasks: tuple[str, ...]
    """The tasks learned by then, in order."""

    examples: tuple[int, ...]
    """Number of examples of each."""

    linears: tuple[LinearRouting, ...]

    @cached_property
    def shares(self) -> list[list[float]]:
        """Percent of the mixture on each task's atoms, then silent; a row per task of tokens."""
        rows = []
        for i, tokens in enumerate(self._tokens):
            weights = zip(*(one.weight[i] for one in self.linears), strict=True)
            row = [_ratio(100 * math.fsum(column), tokens) for column in weights]
            rows.append([*row, max(0.0, 100 - math.fsum(row))])
        return rows

    @cached_property
    def own(self) -> list[float]:
        """Of each task's tokens, the percent on its own atoms."""
        return [row[i] for i, row in enumerate(self.shares)]

    @cached_property
    def unanswered(self) -> list[float]:
        """Of each task's tokens, the percent that no atom answered, over all linears."""
        return self._by_task(lambda one: one.unanswered, 100)

    @cached_property
    def effective(self) -> list[float]:
        """Of each task's tokens, the mean effective number of atoms in a linear."""
        return self._by_task(lambda one: one.effective, 1)

    @cached_property
    def atoms(self) -> list[int]:
        """Of each task, over all linears."""
        return [sum(column) for column in zip(*(one.atoms for one in self.linears), strict=True)]

    @cached_property
    def unchosen(self) -> list[int]:
        """Of each task's atoms, those that answered no token."""
        return [sum(column) for column in zip(*(one.unchosen for one in self.linears), strict=True)]

    @cached_property
    def cosine(self) -> float | None:
        """The largest of all linears; None after the first task."""
        return max((one.cosine for one in self.linears if one.cosine is not None), default=None)

    @cached_property
    def means(self) -> dict[str, float]:
        """Means over the tasks of tokens."""
        return {
            "own": _mean(self.own),
            "unanswered": _mean(self.unanswered),
            "effective_atoms": _mean(self.effective),
        }

    def by_linear(self) -> Iterator[tuple[str, TaskRouting]]:
        """The same for each linear alone."""
        for one in self.linears:
            yield one.name, replace(self, linears=(one,))

    def metrics(self) -> dict[str, float]:
        """The numbers that a tracker gets."""
        found = {f"routing/{name}": value for name, value in self.means.items()}
        found["routing/unchosen_atoms"] = float(sum(self.unchosen))
        if self.cosine is not None:
            found["routing/largest_key_cosine"] = self.cosine
        return found

    def to_csv(self) -> str:
        """The shares of all linears together, then of each, as CSV."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["linear", "tokens of", *self.tasks, SILENT])
        for linear, one in [("", self), *self.by_linear()]:
            for task, row in zip(self.tasks, one.shares, strict=True):
                writer.writerow([linear, task, *(round(value, 4) for value in row)])
        return buffer.getvalue()

    def _by_task(self, of: Callable[[LinearRouting], Sequence[float]], times: int) -> list[float]:
        return [
            _ratio(times * sum(of(one)[i] for one in self.linears), tokens)
            for i, tokens in enumerate(self._tokens)
        ]

    @cached_property
    def _tokens(self) -> list[int]:
        return [sum(column) for column in zip(*(one.tokens for one in self.linears), strict=True)]


def routing_path(run_dir: Path, row: int) -> Path:
    """``observe/after_002.json``."""
    return run_dir / "observe" / f"after_{row:03d}.json"


def to_json(routing: TaskRouting) -> str:
    """The content of a row's file."""
    return json.dumps(asdict(routing), ensure_ascii=False) + "\n"


def read_routing(run_dir: Path, tasks: Sequence[str], row: int) -> TaskRouting | None:
    """What was observed after task ``row``; None if nothing was.

    Raises:
        InputError: the file is broken, or is about other tasks than the first of ``tasks``.
    """
    path = routing_path(run_dir, row)
    if row < 0 or not os.path.exists(path):
        return None
    found = record(TaskRouting, read_object(path), path)
    if found.tasks != tuple(tasks[: row + 1]):
        raise InputError(f"{path}: its tasks are not the first {row + 1} of the run")
    if not found.linears or not all(_whole(one, row + 1) for one in found.linears):
        raise InputError(f"{path}: a linear lacks numbers of some task")
    return found


def _whole(one: LinearRouting, count: int) -> bool:
    columns = (one.tokens, one.weight, one.unanswered, one.effective, one.atoms, one.unchosen)
    numbers = [*one.effective, *(value for row in one.weight for value in row)]
    return (
        all(len(column) == count for column in (*columns, *one.weight))
        and all(map(math.isfinite, numbers))
        and all(tokens > 0 for tokens in one.tokens)
    )


def _ratio(total: float, number: int) -> float:
    return total / number if number else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
