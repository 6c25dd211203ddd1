"""Tables of published numbers, each with its source and whether it is comparable with ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eval.column_blocks import BLOCKS
from eval.compare.references import Reference, Setting
from eval.compare.table import Table
from eval.markup import points


def published_tables(references: Sequence[Reference], ours: Setting) -> list[Table]:
    """A table of single metrics, and one of Transfer, Average and Last; each if it has rows.

    Args:
        references: the rows of our benchmark.
        ours: what our runs have in common.
    """
    blocks = [one for one in references if one.metric in BLOCKS]
    others = [one for one in references if one.metric not in BLOCKS]
    found = [_single(others, ours)] if others else []
    return found + ([_of_blocks(blocks, ours)] if blocks else [])


def _single(references: Sequence[Reference], ours: Setting) -> Table:
    return Table(
        title="Published numbers",
        header=("method", "base model", "metric", "by order", "source", "comparable with ours"),
        rows=tuple(
            (
                one.method,
                one.model or "not stated",
                one.metric,
                ", ".join(f"{order}: {points(value)}" for order, value in one.values.items()),
                one.source,
                one.mark(ours),
            )
            for one in references
        ),
    )


def _of_blocks(references: Sequence[Reference], ours: Setting) -> Table:
    """A row per method and order: the three figures of one published run."""
    figures: dict[tuple[str, str], dict[str, float]] = {}
    rows: dict[tuple[str, str], Reference] = {}
    for one in references:
        for order, value in one.values.items():
            key = (repr(replace(one, metric="", values={})), order)
            rows.setdefault(key, one)
            figures.setdefault(key, {})[one.metric] = value
    return Table(
        title="Published Transfer, Average and Last",
        header=(
            "method",
            "base model",
            "shots",
            "splits",
            "order",
            *BLOCKS.values(),
            "source",
            "comparable with ours",
        ),
        rows=tuple(
            (
                one.method,
                one.model or "not stated",
                one.shots or "not stated",
                one.splits or "not stated",
                order,
                *(points(figures[key, order].get(metric)) for metric in BLOCKS),
                one.source,
                one.mark(ours, order),
            )
            for (key, order), one in rows.items()
        ),
    )
