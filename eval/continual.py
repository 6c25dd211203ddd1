"""Sequence metrics: learning, forgetting and transfer, computed from a matrix of scores.

``a[t][i]`` is the score on task i after training on task t, both from 0; ``T`` tasks. An entry that
was not measured is None. A metric that needs a missing entry is None too; it never counts as 0.
Papers use one name for different formulas, so each formula has its own name here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moram_dist.reading import read_json
from moram_dist.registry import InputError
from moram_dist.tasks.readers import kind_of

MatrixEntry = float | None
"""A score, 0 to 100; None if it was not measured."""

Row = Sequence[MatrixEntry]

HEADLINE = {"ap": "AP", "bwt_gem": "BWT", "forgetting_max": "forgetting"}
"""The sequence metrics that are shown first, with their usual names."""


def sequence_metrics(
    scores: Sequence[Row],
    base: Row | None = None,
    single_task: Row | None = None,
    multitask: Row | None = None,
) -> dict[str, MatrixEntry]:
    """Every sequence metric by name, in the unit of the scores.

    ========================  ====================================================================
    ``ap``                    mean of the last row. Also OP, last average, average accuracy
    ``all_average``           mean of a[t][i] over i <= t
    ``mean_diagonal``         mean of a[i][i]: how well each task was learned
    ``bwt_gem``               sum over i < T-1 of a[T-1][i] - a[i][i], divided by T-1; the usual one
    ``bwt_sapt``              the same sum divided by T. Also the TRACE paper's
    ``bwt_clipped``           bwt_sapt, gains counted as 0. MoRAM and TreeLoRA print it positive
    ``forgetting_max``        mean over i < T-1 of max over i <= t <= T-2 of a[t][i], minus
                              a[T-1][i]. Also SAPT's forgetting rate, F.Ra
    ``fwt_gem``               mean over i >= 1 of a[i-1][i] - base[i]: the zero-shot form
    ``fwt_single``            mean_diagonal minus the mean of ``single_task``. SAPT's
    ``intransigence_single``  mean of ``single_task`` minus mean_diagonal: -fwt_single
    ``intransigence_joint``   mean of ``multitask`` minus mean_diagonal
    ``transfer``              mean over i >= 1 of the mean over t < i of a[t][i]
    ``average``               mean of the whole matrix
    ``last``                  mean of the last row, under the name used with the two above
    ========================  ====================================================================

    Intransigence of a task is a reference model's score minus a[i][i]; here it is the mean
    over tasks. The paper's reference for task i learns the tasks up to i jointly; ``multitask``
    uses one model instead, which learned all T jointly.

    ``forgetting_max`` considers scores from the task's own training on. SAPT's script takes the
    maximum over all rows of a table that holds 0 before that, which is the same for non-negative
    scores. Measuring those entries must not change the metric, so they are ignored.

    Args:
        scores: row t holds the scores after task t; at most T rows, fewer in an unfinished run.
            T is the length of the longest row; a shorter row was not measured to its end.
        base: scores before any training, length T.
        single_task: score on each task of a model trained on that task alone, length T.
        multitask: score on each task of one model trained on all of them at once, length T.

    Returns:
        A value for every name above; None if a needed entry is missing, or if T = 1 leaves nothing
        to average.

    Raises:
        ValueError: no row at all, more rows than tasks, or ``base``, ``single_task`` or
            ``multitask`` too short.

    Source: Lopez-Paz and Ranzato 2017, arXiv:1706.08840 (GEM); Chaudhry et al. 2018,
    arXiv:1801.10112 (forgetting, intransigence); Wang et al. 2023, arXiv:2310.06762
    (TRACE); Zhao et al. 2024, arXiv:2401.08295 (SAPT); Zheng et al. 2023, arXiv:2303.06628
    (transfer, average, last).
    """
    references = [row for row in (base, single_task, multitask) if row]
    T = max((len(row) for row in [*scores, *references]), default=0)
    if not T or len(scores) > T or any(len(row) != T for row in references):
        raise ValueError(f"{len(scores)} rows of at most {T} scores are no score matrix")
    a = [[*row, *[None] * (T - len(row))] for row in scores]
    a += [[None] * T for _ in range(T - len(a))]
    last, diagonal = a[-1], [a[i][i] for i in range(T)]

    changes = [_difference(last[i], diagonal[i]) for i in range(T)]
    best_before = [_max(a[t][i] for t in range(i, T - 1)) for i in range(T - 1)]
    zero_shot = [_mean(a[t][i] for t in range(i)) for i in range(1, T)]
    gains = [_difference(a[i - 1][i], base[i]) for i in range(1, T)] if base else [None]
    return {
        "ap": _mean(last),
        "all_average": _mean(a[t][i] for t in range(T) for i in range(t + 1)),
        "mean_diagonal": _mean(diagonal),
        "bwt_gem": mean_change(a, T - 1),
        "bwt_sapt": _mean(changes),
        "bwt_clipped": _mean(None if change is None else min(change, 0.0) for change in changes),
        "forgetting_max": _mean(map(_difference, best_before, last)),
        "fwt_gem": _mean(gains),
        "fwt_single": _difference(_mean(diagonal), _mean(single_task or [])),
        "intransigence_single": _difference(_mean(single_task or []), _mean(diagonal)),
        "intransigence_joint": _difference(_mean(multitask or []), _mean(diagonal)),
        "transfer": _mean(zero_shot),
        "average": _mean(cell for row in a for cell in row),
        "last": _mean(last),
    }


def average_so_far(scores: Sequence[Row]) -> list[MatrixEntry]:
    """For each row t, the mean score on tasks 0 to t; None if one of them was not measured."""
    return [
        _mean(row[: t + 1]) if len(row) > t else None  # a short row misses a task learned by then
        for t, row in enumerate(scores)
    ]


def forgetting_per_task(scores: Sequence[Row]) -> list[MatrixEntry]:
    """Per task, in points: best score from its training on, before the last row, minus the last.

    Positive is forgotten, negative is gained. None if either is unknown, as for the newest task.
    The mean over the tasks of a complete matrix is ``forgetting_max``.
    """
    if not scores:
        return []
    *earlier, last = scores
    drops: list[MatrixEntry] = []
    for j, final in enumerate(last):
        seen = [value for row in earlier[j:] if (value := row[j]) is not None]
        drops.append(None if final is None or not seen else max(seen) - final)
    return drops


def mean_change(scores: Sequence[Row], last: int) -> MatrixEntry:
    """``bwt_gem`` of the tasks up to ``last``, from 0; None if an entry for it is missing."""
    row = scores[last]
    return _mean(_difference(row[i], scores[i][i]) for i in range(last))


def _mean(cells: Iterable[MatrixEntry]) -> MatrixEntry:
    known = _all_known(cells)
    return math.fsum(known) / len(known) if known else None


def _max(cells: Iterable[MatrixEntry]) -> MatrixEntry:
    return max(_all_known(cells), default=None)


def _all_known(cells: Iterable[MatrixEntry]) -> list[float]:
    """The entries, or an empty list if one of them is missing."""
    known: list[float] = []
    for cell in cells:
        if cell is None:
            return []
        known.append(cell)
    return known


def _difference(a: MatrixEntry, b: MatrixEntry) -> MatrixEntry:
    return None if a is None or b is None else a - b


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The content of a run's ``scores.json``."""

    tasks: tuple[str, ...]
    """Names in the order in which the tasks were learned; T of them."""

    metrics: Mapping[str, str]
    """Per task, the name of its metric."""

    scores: tuple[tuple[MatrixEntry, ...], ...]
    """Row t after training on task t, each of length T; fewer than T rows in an unfinished run."""

    base: tuple[MatrixEntry, ...] | None = None
    """The row before any training; None if it was not measured."""

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read and check a file. Unknown keys are ignored.

        Raises:
            InputError: the file cannot be read or is malformed, or a field is missing or invalid;
                names the file and the field.
        """
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, content: Any, path: Path) -> Scores:
        """Check the value of a JSON file, as ``load``; ``path`` is for messages."""
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected an object, got {kind_of(content)}")
        for key in ("tasks", "metrics", "scores"):
            if key not in content:
                raise InputError(f"{path}: {key} is missing")
        tasks = _tasks(content["tasks"], path)
        rows = content["scores"]
        if not isinstance(rows, list) or len(rows) > len(tasks):
            found = f"{len(rows)}" if isinstance(rows, list) else kind_of(rows)
            raise InputError(
                f"{path}: scores must be a list of at most {len(tasks)} rows, got {found}"
            )
        base = content.get("base")
        return cls(
            tasks=tasks,
            metrics=_metrics(content["metrics"], tasks, path),
            scores=tuple(
                _row(row, len(tasks), f"{path}: scores[{t}]", shortest=t + 1)  # lower triangle
                for t, row in enumerate(rows)
            ),
            base=_row(base, len(tasks), f"{path}: base") if base is not None else None,
        )

    def sequence_metrics(
        self, single_task: Scores | None = None, multitask: Scores | None = None
    ) -> dict[str, MatrixEntry]:
        """``sequence_metrics`` of this matrix and base row.

        Args:
            single_task: a run that learned each task alone; its diagonal is the reference.
            multitask: a run that learned all tasks at once; its last row is the reference.

        Raises:
            InputError: a reference lacks a task of this run, or scored it by another metric.
        """
        return sequence_metrics(
            self.scores,
            self.base or [None] * len(self.tasks),
            self._reference("single_task", single_task, diagonal=True),
            self._reference("multitask", multitask, diagonal=False),
        )

    def _reference(self, kind: str, run: Scores | None, *, diagonal: bool) -> list[MatrixEntry]:
        """The other run's scores on this run's tasks, by name: its order may differ."""
        if run is None:
            return [None] * len(self.tasks)
        for task in self.tasks:
            if run.metrics.get(task) != self.metrics[task]:
                found = f"by {run.metrics[task]}" if task in run.tasks else "not at all"
                raise InputError(
                    f"--{kind}: task {task!r} is scored by {self.metrics[task]} here, {found} there"
                )
        T = len(run.tasks)
        rows = [*run.scores, *[(None,) * T] * (T - len(run.scores))]
        cells = {task: rows[i if diagonal else -1][i] for i, task in enumerate(run.tasks)}
        return [cells[task] for task in self.tasks]


def _tasks(value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
        raise InputError(f"{path}: tasks must be a list of names")
    seen: set[str] = set()
    for name in value:
        try:
            name.encode()
        except UnicodeEncodeError:  # JSON can hold a lone surrogate, a file name cannot
            raise InputError(f"{path}: tasks holds {name!r}, which is no text") from None
        if name in seen:
            raise InputError(f"{path}: tasks holds {name!r} twice")
        seen.add(name)
    return tuple(value)


def _metrics(value: Any, tasks: tuple[str, ...], path: Path) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: metrics must be an object, got {kind_of(value)}")
    for name in tasks:
        if not isinstance(value.get(name), str):
            raise InputError(f"{path}: metrics has no metric name for task {name!r}")
    return {name: value[name] for name in tasks}


def _row(
    value: Any, length: int, where: str, shortest: int | None = None
) -> tuple[MatrixEntry, ...]:
    """A row of ``length`` entries; one of at least ``shortest`` is padded with None."""
    shortest = length if shortest is None else shortest
    if not isinstance(value, list) or not shortest <= len(value) <= length:
        found = f"{len(value)}" if isinstance(value, list) else kind_of(value)
        expected = f"{length}" if shortest == length else f"{shortest} to {length}"
        raise InputError(f"{where} must be a list of {expected} scores, got {found}")
    for i, cell in enumerate(value):
        number = isinstance(cell, int | float) and not isinstance(cell, bool)
        if cell is not None and not (number and 0 <= cell <= 100):
            raise InputError(f"{where}[{i}] must be null or a number from 0 to 100, got {cell!r}")
    return (*value, *[None] * (length - len(value)))
