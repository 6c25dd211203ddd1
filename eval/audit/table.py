"""An audit as Markdown: a row per split, then a line per finding."""

from __future__ import annotations

from collections.abc import Sequence

from eval.audit.benchmark import Audit, SplitAudit
from eval.audit.findings import ERROR, NOTE, WARNING, Audited, Finding
from eval.markup import markdown_text, one_line

_HEADER = (
    "task",
    "split",
    "examples",
    "prompt median",
    "prompt max",
    "cut %",
    "cue lost %",
    "answer median",
    "answer max",
    "oracle",
    "by tokens",
    "empty",
)
_TEXT_COLUMNS = 2
_SHOWN = 3


def markdown(audit: Audit) -> str:
    """The whole audit as Markdown, aligned so that it reads well as plain text."""
    legend = (
        f"Lengths in tokens of {audit.tokenizer}. Oracle: the mean score of the gold answers; by "
        "tokens: of the same after encoding and decoding; empty: of an empty answer."
    )
    return page(audit, legend, [_HEADER, *map(_cells, audit.splits)])


def page(audit: Audited, legend: str, rows: Sequence[Sequence[str]]) -> str:
    """A heading, a legend, a table whose first row is its header, and the findings."""
    counts = ", ".join(
        f"{sum(f.severity == severity for f in audit.findings)} {severity}s"
        for severity in (ERROR, WARNING, NOTE)
    )
    return "\n".join(
        [
            f"# {audit.benchmark}, order {audit.order}, protocol {audit.protocol}",
            "",
            legend,
            "",
            *_table(rows),
            "",
            f"## Findings: {counts}",
            "",
            *map(_line, audit.findings),
        ]
    )


def _cells(split: SplitAudit) -> tuple[str, ...]:
    return (
        markdown_text(split.task),
        split.split,
        str(split.examples),
        f"{split.prompt.median:.0f}",
        str(split.prompt.longest),
        f"{split.truncated:.1f}",
        f"{split.lost_cue:.1f}",
        f"{split.answer.median:.0f}",
        str(split.answer.longest),
        "" if split.oracle is None else f"{split.oracle:.2f}",
        "" if split.through_tokens is None else f"{split.through_tokens:.2f}",
        "" if split.empty is None else f"{split.empty:.2f}",
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of an aligned Markdown table; the first row is the header."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    sides = ["<" if k < _TEXT_COLUMNS else ">" for k in range(len(widths))]
    cells = [[f"{row[k]:{sides[k]}{widths[k]}}" for k in range(len(widths))] for row in rows]
    rule = [
        "-" * (w + 1) + ("-" if side == "<" else ":") for w, side in zip(widths, sides, strict=True)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "|".join(rule) + "|", *lines[1:]]


def _line(finding: Finding) -> str:
    ids = ", ".join(finding.examples[:_SHOWN]) + (", ..." if len(finding.examples) > _SHOWN else "")
    line = f"- {finding.severity}: {finding.where}: {finding.text}" + (f" ({ids})" if ids else "")
    return one_line(line)
