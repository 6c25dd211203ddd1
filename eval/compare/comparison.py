"""Compare methods over orders and seeds: means, intervals, and which differences are significant.

Two methods are compared on the orders and seeds that both have run, and on the same items. Each
run counts once, so an order with more seeds has more weight.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.column_blocks import BLOCKS
from eval.compare import bootstrap
from eval.compare.bootstrap import Array
from eval.compare.contributions import contributions
from eval.compare.groups import Group, RunSlot, check_comparable, group_runs
from eval.compare.runs import Run
from eval.continual import MatrixEntry, mean_change
from moram_dist.registry import InputError

SEEN_METRICS = {"AP": "ap", "BWT": "bwt_gem", "learned": "mean_diagonal"}
METRICS = SEEN_METRICS | {title: metric for metric, title in BLOCKS.items()}
"""The compared metrics: name in tables -> name in ``sequence_metrics``. Those that are not of
``SEEN_METRICS`` need scores on tasks not learned yet."""

PAIRED = ("AP", "BWT", "Transfer", "Average")
"""Metrics whose differences are tested. Last is AP under another name."""

RESAMPLES, SEED = 10_000, 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over runs, in points."""

    value: float
    runs: int
    spread: float | None
    """Standard deviation over runs; None for a single run."""

    items: tuple[float, float]
    """95 % interval over items, for these runs."""

    both: tuple[float, float]
    """95 % interval over items and runs. For a single run the same as ``items``."""

    error: float
    """Standard error over items of the mean over these runs."""

    p: float
    """p value of the mean being 0, over items and runs."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, over the orders and seeds that both have."""

    metric: str
    first: str
    second: str
    estimate: Estimate
    p_holm: float
    """p after Holm's correction for all differences of the metric."""

    @property
    def resolved(self) -> bool:
        """Whether it is significant at 5 %, after correction for all differences of the metric."""
        return self.p_holm < 1 - bootstrap.LEVEL

    @property
    def detectable(self) -> float:
        """The smallest difference that these items detect with power 80 %, for fixed runs."""
        return bootstrap.detectable(self.estimate.error)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All numbers that the tables and figures show."""

    groups: tuple[Group, ...]
    estimates: dict[tuple[str, str], Estimate]
    """By label of a group and metric; absent if it was not measured."""

    by_order: dict[tuple[str, str], Estimate]
    """AP, by label of a group and order."""

    differences: tuple[Difference, ...]
    one_run_error: tuple[float, float]
    """Smallest and largest standard error over items of a single run's AP."""

    @property
    def any_run(self) -> Run:
        """One of the runs, for settings that all have in common."""
        return next(iter(self.groups[0].runs.values()))

    @property
    def orders(self) -> list[str]:
        """All orders, sorted alphabetically."""
        return sorted({order for group in self.groups for order, _ in group.runs})


def compare(runs: Sequence[Run], *, resamples: int | None = None) -> Comparison:
    """Compare runs by method and recall.

    Args:
        runs: of any methods, recalls, orders and seeds.
        resamples: of the bootstrap; None: 10,000, or more if there are very many groups.

    Raises:
        InputError: there is no run, runs are not comparable, or resamples are too few.
    """
    check_comparable(runs)
    groups = group_runs(runs)
    # The smallest p of B resamples is 2 / B, and Holm multiplies it by the number of differences.
    fewest = max(1000, 80 * math.comb(len(groups), 2))
    if resamples is not None and resamples < fewest:
        raise InputError(
            f"--resamples {resamples} is too few: no difference among {len(groups)} groups could "
            f"be significant; give at least {fewest}"
        )
    resamples = resamples or max(RESAMPLES, fewest)
    estimates: dict[tuple[str, str], Estimate] = {}
    by_order: dict[tuple[str, str], Estimate] = {}
    differences: list[Difference] = []
    errors = [0.0]
    for metric in METRICS:
        table = _Table.of(groups, metric, resamples)
        for group in groups:
            measured = [(group.label, slot) for slot in group.runs]
            measured = [key for key in measured if key in table.column]
            if not measured:
                continue
            estimates[group.label, metric] = table.estimate(measured)
            if metric == "AP":
                for order in sorted({order for _, (order, _) in measured}):
                    of_order = [key for key in measured if key[1][0] == order]
                    by_order[group.label, order] = table.estimate(of_order)
                errors += [table.estimate([key]).error for key in measured]
        if metric in PAIRED:
            differences += _differences(groups, metric, table)
    return Comparison(
        groups=groups,
        estimates=estimates,
        by_order=by_order,
        differences=tuple(differences),
        one_run_error=(min(errors[1:], default=0.0), max(errors)),
    )


def forgetting_curve(group: Group) -> list[MatrixEntry]:
    """Points lost on earlier tasks after each task, mean over runs: minus BWT of the tasks so far.

    None if a cell is missing in a run; the first is 0.
    """
    curve: list[MatrixEntry] = [0.0]
    tasks = len(next(iter(group.runs.values())).tasks)
    for last in range(1, tasks):
        lost = [mean_change(run.scores, last) for run in group.runs.values()]
        known = [-change for change in lost if change is not None]
        curve.append(statistics.fmean(known) if len(known) == len(lost) else None)
    return curve


@dataclass(frozen=True)
class _Table:
    """One metric of all runs, one column per run."""

    column: dict[tuple[str, RunSlot], int]
    tasks_NR: list[Array]
    values_R: Array
    draws_BR: Array

    @classmethod
    def of(cls, groups: Sequence[Group], metric: str, resamples: int) -> _Table:
        columns: dict[tuple[str, RunSlot], dict[str, Array]] = {}
        for group in groups:
            for slot, run in group.runs.items():
                parts = contributions(run, metric)
                if parts is not None:
                    columns[group.label, slot] = parts
        if not columns:
            return cls({}, [], np.zeros(0), np.zeros((resamples, 0)))
        tasks = sorted(next(iter(columns.values())))
        tasks_NR = [np.stack([parts[task] for parts in columns.values()], 1) for task in tasks]
        return cls(
            column={key: k for k, key in enumerate(columns)},
            tasks_NR=tasks_NR,
            values_R=np.sum([task_NR.mean(axis=0) for task_NR in tasks_NR], axis=0),
            draws_BR=bootstrap.item_resamples(tasks_NR, resamples=resamples, seed=SEED),
        )

    def estimate(
        self,
        first: Sequence[tuple[str, RunSlot]],
        second: Sequence[tuple[str, RunSlot]] = (),
    ) -> Estimate:
        """The mean over the runs ``first``, or over pairs of the first minus the second."""
        weigh = np.zeros((len(self.column), len(first)))
        for r, key in enumerate(first):
            weigh[self.column[key], r] += 1
        for r, key in enumerate(second):
            weigh[self.column[key], r] -= 1
        values_R = self.values_R @ weigh
        items_B = (self.draws_BR @ weigh).mean(axis=1)
        both_B = items_B + bootstrap.run_resamples(values_R, resamples=len(items_B), seed=SEED)
        return Estimate(
            value=float(values_R.mean()),
            runs=len(values_R),
            spread=float(values_R.std(ddof=1)) if len(values_R) > 1 else None,
            items=bootstrap.interval(items_B),
            both=bootstrap.interval(both_B),
            error=bootstrap.standard_error([(x @ weigh).mean(axis=1) for x in self.tasks_NR]),
            p=bootstrap.p_value(both_B),
        )


def _differences(groups: Sequence[Group], metric: str, table: _Table) -> list[Difference]:
    found = []
    for one, other in itertools.combinations(groups, 2):
        shared = [
            slot
            for slot in one.runs
            if (one.label, slot) in table.column and (other.label, slot) in table.column
        ]
        if shared:
            estimate = table.estimate(
                [(one.label, slot) for slot in shared], [(other.label, slot) for slot in shared]
            )
            found.append(
                Difference(
                    metric=metric,
                    first=one.label,
                    second=other.label,
                    estimate=estimate,
                    p_holm=estimate.p,
                )
            )
    adjusted = bootstrap.holm([one.p_holm for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, adjusted, strict=True)]
