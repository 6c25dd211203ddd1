"""A comparison as Markdown for people, LaTeX for papers and CSV for programs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from eval.compare.blocks import block_tables
from eval.compare.comparison import (
    METRICS,
    PAIRED,
    SEEN_METRICS,
    Comparison,
    Difference,
    Estimate,
)
from eval.compare.published import published_tables
from eval.compare.references import Reference
from eval.compare.setting import setting_of
from eval.compare.table import Table
from eval.markup import MINUS, latex_text, markdown_text, points
from eval.scoring_modes import ORACLE_NOTE

MOST_SIZES = 20
"""More test sets are summarised instead of listed."""


def tables(comparison: Comparison) -> list[Table]:
    """The table of scores, those of its columns, and one of differences per tested metric."""
    return [
        _scores(comparison),
        *block_tables(comparison),
        *(
            _differences(metric, found)
            for metric in PAIRED
            if (found := [one for one in comparison.differences if one.metric == metric])
        ),
    ]


def markdown(comparison: Comparison, references: Sequence[Reference] = ()) -> str:
    """A title, notes, the tables, and published numbers to compare with."""
    run = comparison.any_run
    lines = [
        markdown_text(
            f"# {run.benchmark}, protocol {run.protocol}, base {run.base['name']}, answers by "
            f"{run.answers}"
        ),
        "",
        *notes(comparison),
    ]
    published = [one for one in references if one.benchmark == run.benchmark]
    shown = tables(comparison)
    if published:
        shown += published_tables(published, setting_of(comparison))
    for table in shown:
        lines += ["", f"## {table.title}", "", _markdown_row(table.header)]
        lines += [_markdown_row(["---"] * len(table.header)), *map(_markdown_row, table.rows)]
    return "\n".join(lines) + "\n"


def notes(comparison: Comparison) -> list[str]:
    """Facts that a reader of the tables must know, one Markdown list item each."""
    run = comparison.any_run
    items = [len(x or y or "") for x, y in zip(run.last, run.learned, strict=True)]
    sizes = ", ".join(
        f"{markdown_text(task)} {n}" for task, n in sorted(zip(run.tasks, items, strict=True))
    )
    if len(items) > MOST_SIZES:
        sizes = f"{min(items)} to {max(items)} in each of {len(items)} tasks"
    slots = {slot for group in comparison.groups for slot in group.runs}
    low, high = comparison.one_run_error
    found = [
        f"- Test items: {sizes}. The standard error over items of one run's AP is {low:.1f} to "
        f"{high:.1f} points.",
        f"- Pairs of order and seed: {len(slots)}. A method's mean is over those it has, a "
        "difference over those both have. Brackets are 95 % intervals: over items for these runs "
        "and other test items, over runs too for other orders and seeds as well.",
        "- Resolved: p under 5 % over items and runs, after Holm's correction for all differences "
        "of the metric. Detectable: the true difference that these items find four times in five, "
        "runs being fixed.",
    ]
    tested = [one.estimate.runs for one in comparison.differences] or [len(slots)]
    if min(tested) == 1:
        found.append(
            "- Some numbers rest on a single run of a method: their intervals do not cover what "
            "another seed or order would change."
        )
    elif len({seed for _, seed in slots}) == 1:
        found.append(
            "- One seed: runs differ in order only, so the noise of the seed is seen only mixed "
            "with that of the order."
        )
    if any(run.recall == "oracle" for group in comparison.groups for run in group.runs.values()):
        found.append(f"- {ORACLE_NOTE}")
    tests = {group_run.tests for group in comparison.groups for group_run in group.runs.values()}
    if len({tuple(sorted(one)) for one in tests}) > 1:
        found.append("- Test sets differ between seeds.")
    return found


def latex(comparison: Comparison) -> str:
    """One ``tabular`` per table; needs no LaTeX packages."""
    parts = []
    for table in tables(comparison):
        columns = "l" * len(table.header)
        rows = [table.header, *table.rows]
        body = [" & ".join(map(latex_text, row)) + r" \\" for row in rows]
        body.insert(1, r"\hline")
        parts.append(
            f"% {table.title}\n\\begin{{tabular}}{{{columns}}}\n"
            + "\n".join(body)
            + "\n\\end{tabular}\n"
        )
    return "\n".join(parts)


def to_csv(comparison: Comparison) -> str:
    """One row per estimate: a mean (``less`` is empty) or a difference. Empty cells are unknown."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        "metric method less order runs value sd low_items high_items low_both high_both "
        "standard_error_items p p_holm resolved detectable".split()
    )

    def row(names: Sequence[str], one: Estimate, rest: Sequence[object]) -> None:
        spread = "" if one.spread is None else one.spread
        writer.writerow(
            [*names, one.runs, one.value, spread, *one.items, *one.both, one.error, *rest]
        )

    for (label, metric), estimate in comparison.estimates.items():
        row([metric, label, "", ""], estimate, [""] * 4)
    for (label, order), estimate in comparison.by_order.items():
        row(["AP", label, "", order], estimate, [""] * 4)
    for one in comparison.differences:
        verdict = "yes" if one.resolved else "no"
        rest = [one.estimate.p, one.p_holm, verdict, one.detectable]
        row([one.metric, one.first, one.second, ""], one.estimate, rest)
    return buffer.getvalue()


def _scores(comparison: Comparison) -> Table:
    orders = comparison.orders
    several = len(orders) > 1
    with_settings = any(group.settings for group in comparison.groups)
    measured = {metric for _, metric in comparison.estimates}
    metrics = [metric for metric in METRICS if metric in SEEN_METRICS or metric in measured]
    rows = []
    for group in comparison.groups:
        cells = [group.label]
        cells += [group.settings] if with_settings else []
        cells.append(str(len(group.runs)))
        for order in orders if several else []:
            of_order = comparison.by_order.get((group.label, order))
            cells.append(points(None if of_order is None else of_order.value))
        ap = comparison.estimates.get((group.label, "AP"))
        cells.append("–" if ap is None or ap.spread is None else f"{ap.spread:.1f}")
        for metric in metrics:
            one = comparison.estimates.get((group.label, metric))
            cells.append("–" if one is None else f"{points(one.value)} {_span(one.both)}")
        rows.append(tuple(cells))
    header = ["method", *(["settings"] if with_settings else []), "runs"]
    header += [f"AP, order {order}" for order in orders] if several else []
    return Table(
        title="Scores: mean over runs, 95 % over items and runs",
        header=(*header, "sd of AP", *metrics),
        rows=tuple(rows),
    )


def _differences(metric: str, found: Sequence[Difference]) -> Table:
    middle = statistics.median(one.detectable for one in found)
    return Table(
        title=f"Differences of {metric}; median of what is detectable: {middle:.1f} points",
        header=(
            "first less second",
            "runs",
            metric,
            "over items",
            "over items and runs",
            "p (Holm)",
            "resolved",
            "detectable",
        ),
        rows=tuple(
            (
                f"{one.first} {MINUS} {one.second}",
                str(one.estimate.runs),
                points(one.estimate.value),
                _span(one.estimate.items),
                _span(one.estimate.both),
                "< 0.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}",
                "yes" if one.resolved else "no",
                f"{one.detectable:.1f}",
            )
            for one in found
        ),
    )


def _span(span: tuple[float, float]) -> str:
    return f"({points(span[0])} to {points(span[1])})"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"
