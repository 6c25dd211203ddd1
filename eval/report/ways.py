"""Sections of the report on ways of measuring: each beside the others, and what was recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.confusion import UNKNOWN
from eval.continual import HEADLINE
from eval.report.parts import card, find, matrix_table, number, table, text
from eval.ways import WHAT_TOLD_MEANS

if TYPE_CHECKING:
    from eval.report.write import ReportContents, RunRecord

DRIFT = (
    "After the last row, score by the likeliest label less score by generation: where labels are "
    "high and generation is low, the model still knows the answer but no longer says it in the "
    "form that is asked for (format drift); where both are low, it has forgotten or never learned."
)

ANSWERED_BY = {"all": "all tasks", "base": "the base alone"}
"""In words, ``EvalConfig.unknown``."""


def recognised_section(record: RunRecord, results: ReportContents) -> str:
    """What the recogniser said; nothing where none was asked."""
    if record.confusion is None:
        return ""
    found, recogniser = record.confusion, find(record.config, "recogniser")
    by = ANSWERED_BY.get(str(find(record.config, "unknown")), "others")
    note = (
        f"<p>After the last task learned, the recogniser <code>{text(recogniser)}</code> took "
        f"{found.accuracy:.1f}&nbsp;% of all prompts for those of their own task, and "
        f"{found.rejected:.1f}&nbsp;% for those of no task, which {by} answered "
        f"(<i>{UNKNOWN}</i>). Percent of the prompts of each task:</p>"
    )
    return card("What prompts were recognised as", note + results.figures["confusion"])


def ways_section(record: RunRecord, results: ReportContents) -> str:
    """What other ways of measuring found; nothing where there is one way only."""
    first, *others = ways = [*record.ways]
    if not others:
        return ""
    parts = [f"<p>The scores above are those of <b>{text(first.among(ways))}</b>.</p>"]
    if any(way.recall == "oracle" for way in ways):
        parts.append(f"<p>{WHAT_TOLD_MEANS}</p>")
    if results.drift:
        parts.append(f"<p>{DRIFT}</p>")
    parts.append(_ways_table(record, results))
    parts += [f"<h3>{text(way.among(ways))}</h3>{matrix_table(record.ways[way])}" for way in others]
    return card("How answers were obtained", "".join(parts))


def _ways_table(record: RunRecord, results: ReportContents) -> str:
    """The last row and the headlines of each way side by side, and the drift where it is known."""
    ways = [*record.ways]
    header = ["task", *(text(way.among(ways)).replace(", recall", ",<br>recall") for way in ways)]
    header += ["drift"] if results.drift else []
    row, unknown = len(record.matrix.scores) - 1, [None] * len(record.matrix.tasks)
    last = [dict(enumerate(matrix.scores)).get(row, unknown) for matrix in record.ways.values()]
    rows = []
    for i, task in enumerate(record.matrix.tasks):
        cells = [text(task), *(number(scores[i]) for scores in last)]
        rows.append(cells + ([number(results.drift[i])] if results.drift else []))
    for key, name in HEADLINE.items():
        found = [f"<b>{number(metrics[key])}</b>" for metrics in results.by_way.values()]
        rows.append([f"<b>{name}</b>", *found, *([""] if results.drift else [])])
    return table(header, rows, numbers=range(1, len(header)))
