"""The metrics to track when a row of the score matrix has been measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from eval.column_blocks import BLOCKS, column_blocks
from eval.confusion import read_confusion
from eval.continual import HEADLINE, sequence_metrics
from eval.routing import read_routing
from eval.score_matrix import ScoreMatrix
from eval.scoring_modes import ScoringMode


def row_metrics(
    run_dir: Path,
    matrices: Mapping[ScoringMode, ScoreMatrix],
    row: int,
    measured: Collection[ScoringMode],
) -> dict[str, float]:
    """All metrics of the main scoring mode, and the headline metrics of each other mode.

    Once the matrix of a mode is whole, its headline metrics include Transfer, Average and Last. The
    main mode also has the columns of the first two by task; those of Last are the last row's
    ``score/<task>``. They are named ``transfer_on/<task>``, as MLflow's stores in files cannot keep
    a metric ``transfer`` beside a folder ``transfer``.

    Args:
        run_dir: the run.
        matrices: of all scoring modes, the main one first.
        row: index of the task after which the row was measured; -1 is the untouched base.
        measured: the modes in which some of the row has just been measured; others are left out.
    """
    metrics: dict[str, float] = {}
    main = next(iter(matrices))
    for mode, matrix in matrices.items():
        if mode not in measured:
            continue
        found = _of_sequence(matrix, row)
        if mode == main:
            named = zip(matrix.tasks, matrix.rows[row], strict=True)
            metrics |= {f"score/{task}": value for task, value in named if value is not None}
            metrics |= found
            metrics |= _by_column(matrix) if row + 1 == len(matrix.tasks) else {}
        else:
            prefix = mode.metric_prefix(main)
            whole = column_blocks(matrix.scores)
            kept = ("average_so_far", *HEADLINE, *(BLOCKS if whole else ()))
            metrics |= {f"{prefix}/{name}": found[name] for name in kept if name in found}
    recognising = next((mode for mode in matrices if mode.recall == "prefix"), None)
    if recognising is not None and recognising in measured and row >= 0:
        tasks, suffix = matrices[recognising].tasks, recognising.file_suffix(main)
        confusion = read_confusion(run_dir, tasks, row, suffix)
        if confusion is not None:
            metrics["recogniser/accuracy"] = confusion.accuracy
            metrics["recogniser/rejected"] = confusion.rejected
    routing = read_routing(run_dir, matrices[main].tasks, row)
    return metrics | (routing.metrics() if routing is not None else {})


def _of_sequence(matrix: ScoreMatrix, row: int) -> dict[str, float]:
    """The sequence metrics known so far."""
    learned, found = row + 1, {}
    seen = [value for value in matrix.rows.get(row, [])[:learned] if value is not None]
    if row >= 0 and len(seen) == learned:
        found["average_so_far"] = math.fsum(seen) / learned
    if learned == len(matrix.tasks):
        final = sequence_metrics(matrix.scores, base=matrix.base)
        found |= {name: value for name, value in final.items() if value is not None}
    return found


def _by_column(matrix: ScoreMatrix) -> dict[str, float]:
    """Transfer and Average of each task; empty until the matrix is whole."""
    return {
        f"{block.metric}_on/{task}": value
        for block in column_blocks(matrix.scores)
        if block.metric != "last"
        for task, value in zip(matrix.tasks, block.columns, strict=True)
        if value is not None
    }
