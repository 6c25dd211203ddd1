"""The contribution of each item to a metric: every compared metric is linear in item scores.

Letters: T tasks, N items of a task.
"""

from __future__ import annotations

import numpy as np

from eval.column_blocks import BLOCKS
from eval.compare.bootstrap import Array
from eval.compare.items import unpack
from eval.compare.runs import Run


def contributions(run: Run, metric: str) -> dict[str, Array] | None:
    """The contribution of each item to a metric, by task: the metric is the sum of tasks' means.

    Returns:
        Task to array (N,); None if the run did not measure the metric.
    """
    whole = metric in BLOCKS.values()
    parts = _from_columns(run, metric) if whole else _from_last_and_learned(run, metric)
    known = [part for part in parts if part is not None]
    return dict(zip(run.tasks, known, strict=True)) if len(known) == len(run.tasks) else None


def _from_last_and_learned(run: Run, metric: str) -> list[Array | None]:
    """AP, BWT and learned."""
    t = len(run.tasks)
    last = [unpack(items) for items in run.last]
    learned = [unpack(items) for items in run.learned]
    if metric == "BWT":
        if t == 1:
            return []
        return [
            None if a is None or b is None else (a - b) / (t - 1)
            for a, b in zip(last, learned, strict=True)
        ]
    source = last if metric == "AP" else learned
    return [None if items is None else items / t for items in source]


def _from_columns(run: Run, metric: str) -> list[Array]:
    """Transfer, Average and Last; empty unless the whole matrix was measured."""
    t = len(run.tasks)
    columns_TN = [
        np.stack([scores for items in column if (scores := unpack(items)) is not None])
        for column in zip(*run.cells, strict=True)
    ]
    if metric == "Transfer":  # the first task's items are part of the test sets, with weight 0
        return [
            column_TN[:j].mean(axis=0) / (t - 1) if j else np.zeros(column_TN.shape[1])
            for j, column_TN in enumerate(columns_TN)
        ]
    if metric == "Average":
        return [column_TN.mean(axis=0) / t for column_TN in columns_TN]
    return [column_TN[-1] / t for column_TN in columns_TN]
