"""Transfer, Average and Last by task and method, as papers on CLIP print them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from eval.column_blocks import BLOCKS, column_blocks
from eval.compare.comparison import Comparison
from eval.compare.runs import Run
from eval.compare.table import Table
from eval.continual import MatrixEntry
from eval.markup import points

MOST_TASKS = 20
"""More columns fit on no page: there is no such table then."""


def block_tables(comparison: Comparison) -> list[Table]:
    """One table per order, since a task's columns depend on the tasks before it.

    A row is a method's mean over its runs whose matrix is whole. A cell is empty where no task
    comes before, as for Transfer of the first.
    """
    found = []
    for order in comparison.orders:
        whole = {
            group.label: [
                run
                for (name, _), run in group.runs.items()
                if name == order and column_blocks(run.scores)
            ]
            for group in comparison.groups
        }
        runs = [run for of_group in whole.values() for run in of_group]
        if not runs or len(runs[0].tasks) > MOST_TASKS:
            continue
        tasks = runs[0].tasks
        of_order = f", order {order}" if len(comparison.orders) > 1 else ""
        found.append(
            Table(
                title=f"Transfer, Average and Last by task{of_order}: mean over runs",
                header=("block", "method", "runs", *tasks, "mean"),
                rows=tuple(
                    (title, label, str(len(of_group)), *_cells(of_group, metric, tasks))
                    for metric, title in BLOCKS.items()
                    for label, of_group in whole.items()
                    if of_group
                ),
            )
        )
    return found


def _cells(runs: Sequence[Run], metric: str, tasks: Sequence[str]) -> list[str]:
    """A row of a block: the mean over runs of each task's column and of the block."""
    columns: dict[str, list[MatrixEntry]] = {task: [] for task in tasks}
    means = []
    for run in runs:
        block = next(one for one in column_blocks(run.scores) if one.metric == metric)
        means.append(block.mean)
        for task, value in zip(run.tasks, block.columns, strict=True):
            columns[task].append(value)
    return [*map(_mean, columns.values()), _mean(means)]


def _mean(values: Sequence[MatrixEntry]) -> str:
    known = [value for value in values if value is not None]
    return points(statistics.fmean(known)) if known else ""
