"""What the report's page is made of: escaped text, numbers, tables, cards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from eval.markup import MINUS, html_text
from eval.report.plots import MANY_TASKS

if TYPE_CHECKING:
    from eval.continual import Scores

UNKNOWN = "\N{EN DASH}"
LONGEST_TEXT = 50_000
"""Characters that a click opens, or that a cell of any table holds."""


def text(value: Any) -> str:
    """Any value, escaped for a page; lists and mappings as JSON, None as a dash."""
    if value is None:
        return UNKNOWN
    if isinstance(value, list | dict):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except (RecursionError, TypeError, ValueError):  # what YAML can hold and JSON cannot
            value = f"a {type(value).__name__}"
    whole = str(value)
    return html_text(whole if len(whole) <= LONGEST_TEXT else whole[:LONGEST_TEXT] + " …")


def number(value: float | None) -> str:
    """Two decimals with a true minus sign, or a dash for what is not known."""
    return UNKNOWN if value is None else f"{value:.2f}".replace("-", MINUS)


def card(title: str, body: str) -> str:
    """A section with a heading."""
    return f'<section class="card"><h2>{title}</h2>{body}</section>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are markup already; columns in ``numbers`` are set to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if k in numbers else "" for k in range(len(cells))]
        inside = (f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="scroll"><table><thead>{row(header, "th")}</thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def find(flat: dict[str, Any], name: str) -> Any:
    """A setting by its last name, whatever section it is in; None where there is none."""
    wanted = (name, f"{name}.name")
    return next((v for k, v in flat.items() if k in wanted or k.endswith(f".{name}")), None)


def matrix_table(matrix: Scores) -> str:
    """Every cell; of many tasks, each one's score when it was learned and in the last row."""
    if len(matrix.tasks) > MANY_TASKS:
        return _diagonal_table(matrix)
    header = [
        "after",
        *(f"{text(t)}<small>{text(matrix.metrics.get(t))}</small>" for t in matrix.tasks),
    ]
    rows = []
    if matrix.base is not None:
        rows.append(["base model", *map(number, matrix.base)])
    for i, row in enumerate(matrix.scores):
        cells = [f"<b>{number(v)}</b>" if j == i else number(v) for j, v in enumerate(row)]
        rows.append([text(matrix.tasks[i]), *cells])
    return table(header, rows, numbers=range(1, len(header)))


def _diagonal_table(matrix: Scores) -> str:
    last = matrix.scores[-1] if matrix.scores else [None] * len(matrix.tasks)
    learned = [row[i] for i, row in enumerate(matrix.scores)]
    learned += [None] * (len(matrix.tasks) - len(learned))
    rows = [
        (
            str(i),
            text(name),
            text(matrix.metrics.get(name)),
            number(learned[i]),
            number(last[i]),
        )
        for i, name in enumerate(matrix.tasks)
    ]
    header = ("#", "task", "metric", "when learned", "last row")
    note = "<p>Every cell is in <code>matrix.csv</code> beside this page.</p>"
    return note + table(header, rows, numbers=(0, 3, 4))
