"""Transfer, Average and Last by task, as papers on CLIP print them: three blocks of columns.

A block has one column per task and the mean over its columns, which is the sequence metric of the
same name. Only a whole score matrix has them: tasks not learned yet must have been measured too.

Source: Zheng et al. 2023, arXiv:2303.06628 (ZSCL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.continual import MatrixEntry, Row, sequence_metrics

BLOCKS = {"transfer": "Transfer", "average": "Average", "last": "Last"}
"""Sequence metric -> title of its block, in the order of the papers."""


@dataclass(frozen=True, kw_only=True)
class ColumnBlock:
    """One of the three blocks."""

    metric: str
    """A key of ``BLOCKS``."""

    columns: tuple[MatrixEntry, ...]
    """One per task, in the order of learning. None only for Transfer of the first task, before
    which nothing is learned."""

    mean: float
    """Mean over the columns that have a number."""

    @property
    def title(self) -> str:
        """The block's name in papers."""
        return BLOCKS[self.metric]


def column_blocks(scores: Sequence[Row]) -> tuple[ColumnBlock, ...]:
    """The three blocks; empty unless all T x T cells of at least two tasks were measured.

    ================  =========================================
    Transfer          mean over t < j of a[t][j]; None for j = 0
    Average           mean over t of a[t][j]
    Last              a[T-1][j]
    ================  =========================================

    Args:
        scores: row t holds the scores after task t.
    """
    whole = [[cell for cell in row if cell is not None] for row in scores]
    T = len(scores)
    if T < 2 or any(len(row) != T for row in whole):
        return ()
    columns: dict[str, tuple[MatrixEntry, ...]] = {
        "transfer": (None, *(_mean([whole[t][j] for t in range(j)]) for j in range(1, T))),
        "average": tuple(_mean([row[j] for row in whole]) for j in range(T)),
        "last": tuple(whole[-1]),
    }
    means = sequence_metrics(whole)
    return tuple(
        ColumnBlock(metric=metric, columns=columns[metric], mean=mean)
        for metric in BLOCKS
        if (mean := means[metric]) is not None
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
