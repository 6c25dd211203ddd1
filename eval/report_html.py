"""The report's page: HTML from a RunRecord and its Results, nothing computed and nothing fetched.

Whatever comes from a file of the run passes ``_text``, which escapes it: a model may well answer
with a script tag. The figures are the only markup that is put in as it is; our own code drew them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.markup import MINUS, html_text
from eval.plots import MANY_TASKS
from eval.run_files import TaskSizes

if TYPE_CHECKING:
    from eval.continual import Scores
    from eval.report import Results, RunRecord
    from eval.run_files import ScoredExample

STYLESHEET = Path(__file__).with_name("report.css")
UNKNOWN = "\N{EN DASH}"
SHOWN_CHARACTERS = 220
"""Longer texts are cut and open on a click."""

LONGEST_TEXT = 50_000
"""Characters that a click opens, or that a cell of any table holds."""

MOST_EXAMPLES = 2**21
"""Characters of all examples together: the page stays one that a browser opens at once."""

DEFINITIONS = {
    "ap": "mean of the last row: all tasks, after the last one was learned",
    "all_average": "mean of every score on a task already learned, over all rows",
    "mean_diagonal": "mean score on each task right after it was learned",
    "bwt_gem": "mean change of the earlier tasks from right after learning to the end",
    "bwt_sapt": "the same sum of changes, divided by the number of all tasks",
    "bwt_clipped": "bwt_sapt with gains counted as 0",
    "forgetting_max": "mean over the earlier tasks of best score since learned, less the last",
    "fwt_gem": "mean score just before a task is learned, less that of the untouched base",
    "fwt_single": "mean_diagonal less the mean of models trained on one task alone",
    "intransigence_single": "mean of models trained on one task alone, less mean_diagonal",
    "intransigence_joint": "mean of a model trained on all tasks at once, less mean_diagonal",
    "transfer": "mean score on tasks not learned yet, first per task, then over tasks",
    "average": "mean of the whole matrix, tasks not learned yet included",
    "last": "mean of the last row, named so beside transfer and average",
}
"""One line each; eval/continual.py has the formulas and their sources."""

DRIFT = (
    "After the last row, score by the likeliest label less score by generation: where labels are "
    "high and generation is low, the model still knows the answer but no longer says it in the "
    "form that is asked for (format drift); where both are low, it has forgotten or never learned."
)

HEADLINES = {
    "ap": "Average performance",
    "bwt_gem": "Backward transfer",
    "forgetting_max": "Forgetting",
}


def page(record: RunRecord, results: Results) -> str:
    """The whole document, as text; it refers to nothing outside itself."""
    title = _title(record)
    sections = [
        _header(record, title),
        _tiles(record, results),
        _card("Scores after each task", results.figures["matrix"]),
        '<div class="pair">',
        _card("Average over the tasks learned so far", results.figures["average"]),
        _card("Forgetting per task", results.figures["forgetting"]),
        "</div>",
        _card("Training loss", results.figures["loss"]) if "loss" in results.figures else "",
        _card("Sequence metrics", _sequence_table(results)),
        _card("Score matrix", _matrix_table(record.matrix)),
        _answers(record, results),
        _card("Tasks", _task_table(record)),
        _notes(record),
        _predictions(record),
        '<div class="pair">',
        _card("Configuration", _pairs(record.config)),
        _card("Environment", _pairs(record.environment)),
        "</div>",
    ]
    style = STYLESHEET.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    """Any value, escaped for a page; lists and mappings as JSON, None as a dash."""
    if value is None:
        return UNKNOWN
    if isinstance(value, list | dict):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except (RecursionError, TypeError, ValueError):  # what YAML can hold and JSON cannot
            value = f"a {type(value).__name__}"
    text = str(value)
    return html_text(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …")


def _number(value: float | None) -> str:
    """Two decimals with a true minus sign, or a dash for what is not known."""
    return UNKNOWN if value is None else f"{value:.2f}".replace("-", MINUS)


def _find(flat: dict[str, Any], name: str) -> Any:
    """A setting by its last name, whatever section it is in; None where there is none."""
    wanted = (name, f"{name}.name")
    return next((v for k, v in flat.items() if k in wanted or k.endswith(f".{name}")), None)


def _title(record: RunRecord) -> str:
    benchmark = record.benchmark.name or _find(record.config, "benchmark")
    return f"{_find(record.config, 'method') or 'run'} on {benchmark or 'a benchmark'}"


def _header(record: RunRecord, title: str) -> str:
    facts = {
        "order": record.benchmark.order or _find(record.config, "order"),
        "protocol": record.benchmark.protocol or _find(record.config, "protocol"),
        "seed": _find(record.config, "seed"),
        "base model": _find(record.config, "model"),
    }
    shown = "".join(
        f"<li>{name} <b>{_text(value)}</b></li>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<header><h1>{_text(title)}</h1><ul>{shown}</ul></header>"


def _tiles(record: RunRecord, results: Results) -> str:
    learned, tasks = len(record.matrix.scores), len(record.matrix.tasks)
    so_far = f"average so far {_number(results.average[-1])}" if results.average else "nothing yet"
    tiles = [("Tasks learned", f"{learned} of {tasks}", so_far)]
    for key, name in HEADLINES.items():
        value = results.sequence.get(key)
        tiles.append((name, _number(value), key if value is not None else "needs more scores"))
    body = "".join(
        f'<div class="tile"><span>{name}</span><strong>{value}</strong><small>{note}</small></div>'
        for name, value, note in tiles
    )
    return f'<section class="tiles">{body}</section>'


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{title}</h2>{body}</section>'


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
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


def _sequence_table(results: Results) -> str:
    rows = [
        (f"<code>{_text(name)}</code>", _number(value), _text(DEFINITIONS.get(name, "")))
        for name, value in results.sequence.items()
    ]
    return _table(("metric", "value", "definition"), rows, numbers=(1,))


def _matrix_table(matrix: Scores) -> str:
    """Every cell; of many tasks, each one's score when it was learned and in the last row."""
    if len(matrix.tasks) > MANY_TASKS:
        return _diagonal_table(matrix)
    header = [
        "after",
        *(f"{_text(t)}<small>{_text(matrix.metrics.get(t))}</small>" for t in matrix.tasks),
    ]
    rows = []
    if matrix.base is not None:
        rows.append(["base model", *map(_number, matrix.base)])
    for i, row in enumerate(matrix.scores):
        cells = [f"<b>{_number(v)}</b>" if j == i else _number(v) for j, v in enumerate(row)]
        rows.append([_text(matrix.tasks[i]), *cells])
    return _table(header, rows, numbers=range(1, len(header)))


def _diagonal_table(matrix: Scores) -> str:
    last = matrix.scores[-1] if matrix.scores else [None] * len(matrix.tasks)
    learned = [row[i] for i, row in enumerate(matrix.scores)]
    learned += [None] * (len(matrix.tasks) - len(learned))
    rows = [
        (
            str(i),
            _text(name),
            _text(matrix.metrics.get(name)),
            _number(learned[i]),
            _number(last[i]),
        )
        for i, name in enumerate(matrix.tasks)
    ]
    header = ("#", "task", "metric", "when learned", "last row")
    note = "<p>Every cell is in <code>matrix.csv</code> beside this page.</p>"
    return note + _table(header, rows, numbers=(0, 3, 4))


def _answers(record: RunRecord, results: Results) -> str:
    """What other ways to an answer found; nothing where there is one way only."""
    first, *others = record.answers
    if not others:
        return ""
    parts = [f"<p>The scores above are of <code>{_text(first)}</code>.</p>"]
    if results.drift:
        header = ("task", *(f"<code>{_text(mode)}</code>" for mode in record.answers), "drift")
        row, unknown = len(record.matrix.scores) - 1, [None] * len(record.matrix.tasks)
        last = [dict(enumerate(m.scores)).get(row, unknown) for m in record.answers.values()]
        rows = [
            (_text(task), *(_number(scores[i]) for scores in last), _number(results.drift[i]))
            for i, task in enumerate(record.matrix.tasks)
        ]
        parts.append(f"<p>{DRIFT}</p>{_table(header, rows, numbers=range(1, len(header)))}")
    parts += [
        f"<h3><code>{_text(mode)}</code></h3>{_matrix_table(record.answers[mode])}"
        for mode in others
    ]
    return _card("How answers were obtained", "".join(parts))


def _task_table(record: RunRecord) -> str:
    known = {task.name: task for task in record.benchmark.tasks}
    rows = []
    for i, name in enumerate(record.matrix.tasks):
        task, stored = known.get(name, TaskSizes(name=name)), record.memory.get(name)
        digest = stored.sha256 if stored else None
        rows.append(
            (
                str(i),
                _text(name),
                _text(record.matrix.metrics.get(name)),
                _text(task.train),
                _text(task.test),
                _text(stored.file if stored else None),
                f'<code class="hash">{_text(digest)}</code>' if digest else UNKNOWN,
            )
        )
    header = ("#", "task", "metric", "train", "test", "memory file", "sha256")
    return _table(header, rows, numbers=(0, 3, 4))


def _notes(record: RunRecord) -> str:
    notes = "".join(f"<li>{_text(note)}</li>" for note in record.benchmark.notes)
    return _card("Notes of the benchmark", f"<ul>{notes}</ul>") if notes else ""


def _predictions(record: RunRecord) -> str:
    parts: list[str] = []
    room = MOST_EXAMPLES
    for task, examples in record.predictions.items():
        part = _examples_of(task, examples, unfolded=not parts)
        room -= len(part)
        if room < 0:
            break
        parts.append(part)
    tasks = len(record.matrix.tasks)
    if parts and len(parts) < tasks and tasks > MANY_TASKS:
        parts.append(f"<p>{len(parts)} of {tasks} tasks; all are in <code>predictions</code>.</p>")
    return _card("Some predictions after the last task learned", "".join(parts)) if parts else ""


def _examples_of(task: str, examples: Sequence[ScoredExample], *, unfolded: bool) -> str:
    header = ("prompt (its end)", "accepted", "prediction", "score")
    rows = [
        (
            _clipped(example.prompt, tail=True),
            _clipped(" | ".join(example.references)),
            _clipped(example.prediction),
            _number(example.score),
        )
        for example in examples
    ]
    return (
        f'<details class="task"{" open" if unfolded else ""}><summary>{_text(task)}</summary>'
        f"{_table(header, rows, numbers=(3,))}</details>"
    )


def _clipped(text: str, *, tail: bool = False) -> str:
    """The text where it is short; else its start, or its end, which opens to all of it."""
    if len(text) <= SHOWN_CHARACTERS:
        return f"<pre>{_text(text)}</pre>"
    short = "… " + text[-SHOWN_CHARACTERS:] if tail else text[:SHOWN_CHARACTERS] + " …"
    return f"<details><summary>{_text(short)}</summary><pre>{_text(text)}</pre></details>"


def _pairs(flat: dict[str, Any]) -> str:
    return _table(
        ("name", "value"), [(f"<code>{_text(k)}</code>", _text(v)) for k, v in flat.items()]
    )
