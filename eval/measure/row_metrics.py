"""What a tracker is told once a row of the score matrix is there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from eval.confusion import read_confusion
from eval.continual import HEADLINE, sequence_metrics
from eval.score_matrix import ScoreMatrix
from eval.ways import Way


def row_metrics(
    run_dir: Path, matrices: Mapping[Way, ScoreMatrix], row: int, measured: Collection[Way]
) -> dict[str, float]:
    """Of the first way all that there is, of each other one the headlines.

    Args:
        run_dir: the run.
        matrices: of all ways, the first one's first.
        row: the task after which it was measured; -1 is the untouched base.
        measured: the ways in which anything of the row was measured now.
    """
    metrics: dict[str, float] = {}
    first = next(iter(matrices))
    for way in matrices:
        if way not in measured:
            continue
        matrix = matrices[way]
        found = _of_sequence(matrix, row)
        if way == first:
            named = zip(matrix.tasks, matrix.rows[row], strict=True)
            metrics |= {f"score/{task}": value for task, value in named if value is not None}
            metrics |= found
        else:
            group = way.metric_group(first)
            kept = ("average_so_far", *HEADLINE)
            metrics |= {f"{group}/{name}": found[name] for name in kept if name in found}
    asked = next((way for way in matrices if way.recall == "prefix"), None)
    if asked is not None and asked in measured and row >= 0:
        confusion = read_confusion(run_dir, matrices[asked].tasks, row, asked.differs(first))
        if confusion is not None:
            metrics["recogniser/accuracy"] = confusion.accuracy
            metrics["recogniser/rejected"] = confusion.rejected
    return metrics


def _of_sequence(matrix: ScoreMatrix, row: int) -> dict[str, float]:
    """What is known of the sequence so far."""
    learned, found = row + 1, {}
    seen = [value for value in matrix.rows.get(row, [])[:learned] if value is not None]
    if row >= 0 and len(seen) == learned:
        found["average_so_far"] = math.fsum(seen) / learned
    if learned == len(matrix.tasks):
        final = sequence_metrics(matrix.scores, base=matrix.base)
        found |= {name: value for name, value in final.items() if value is not None}
    return found
