"""The report's page: HTML of ReportContents; computes nothing and fetches nothing.

Whatever comes from a file of the run passes ``text``, which escapes it: a model may well answer
with a script tag. The figures are the only markup that is put in as it is; our own code drew them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report.parts import UNKNOWN, card, find, matrix_table, number, table, text
from eval.report.plots import MANY_TASKS
from eval.report.ways import recognised_section, ways_section
from eval.run_files import TaskSizes

if TYPE_CHECKING:
    from eval.report.write import ReportContents, RunRecord
    from eval.run_files import ScoredExample

STYLESHEET = Path(__file__).with_name("page.css")
SHOWN_CHARACTERS = 220
"""Longer texts are cut and open on a click."""

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

TILES = {
    "ap": "Average performance",
    "bwt_gem": "Backward transfer",
    "forgetting_max": "Forgetting",
}


def page(record: RunRecord, results: ReportContents) -> str:
    """The whole document, as text; it refers to nothing outside itself."""
    title = _title(record)
    sections = [
        _header(record, title),
        _tiles(record, results),
        card("Scores after each task", results.figures["matrix"]),
        recognised_section(record, results),
        '<div class="pair">',
        card("Average over the tasks learned so far", results.figures["average"]),
        card("Forgetting per task", results.figures["forgetting"]),
        "</div>",
        card("Training loss", results.figures["loss"]) if "loss" in results.figures else "",
        card("Sequence metrics", _sequence_table(results)),
        card("Score matrix", matrix_table(record.matrix)),
        ways_section(record, results),
        card("Tasks", _task_table(record)),
        _notes(record),
        _predictions(record),
        '<div class="pair">',
        card("Configuration", _pairs(record.config)),
        card("Environment", _pairs(record.environment)),
        "</div>",
    ]
    style = STYLESHEET.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _title(record: RunRecord) -> str:
    benchmark = record.benchmark.name or find(record.config, "benchmark")
    return f"{find(record.config, 'method') or 'run'} on {benchmark or 'a benchmark'}"


def _header(record: RunRecord, title: str) -> str:
    facts = {
        "order": record.benchmark.order or find(record.config, "order"),
        "protocol": record.benchmark.protocol or find(record.config, "protocol"),
        "seed": find(record.config, "seed"),
        "base model": find(record.config, "model"),
        "measured by": next(iter(record.ways)).among([*record.ways]) or None,
    }
    shown = "".join(
        f"<li>{name} <b>{text(value)}</b></li>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<header><h1>{text(title)}</h1><ul>{shown}</ul></header>"


def _tiles(record: RunRecord, results: ReportContents) -> str:
    learned, tasks = len(record.matrix.scores), len(record.matrix.tasks)
    so_far = f"average so far {number(results.average[-1])}" if results.average else "nothing yet"
    tiles = [("Tasks learned", f"{learned} of {tasks}", so_far)]
    for key, name in TILES.items():
        value = results.sequence.get(key)
        tiles.append((name, number(value), key if value is not None else "needs more scores"))
    body = "".join(
        f'<div class="tile"><span>{name}</span><strong>{value}</strong><small>{note}</small></div>'
        for name, value, note in tiles
    )
    return f'<section class="tiles">{body}</section>'


def _sequence_table(results: ReportContents) -> str:
    rows = [
        (f"<code>{text(name)}</code>", number(value), text(DEFINITIONS.get(name, "")))
        for name, value in results.sequence.items()
    ]
    return table(("metric", "value", "definition"), rows, numbers=(1,))


def _task_table(record: RunRecord) -> str:
    known = {task.name: task for task in record.benchmark.tasks}
    rows = []
    for i, name in enumerate(record.matrix.tasks):
        task, stored = known.get(name, TaskSizes(name=name)), record.memory.get(name)
        digest = stored.sha256 if stored else None
        rows.append(
            (
                str(i),
                text(name),
                text(record.matrix.metrics.get(name)),
                text(task.train),
                text(task.test),
                text(stored.file if stored else None),
                f'<code class="hash">{text(digest)}</code>' if digest else UNKNOWN,
            )
        )
    header = ("#", "task", "metric", "train", "test", "memory file", "sha256")
    return table(header, rows, numbers=(0, 3, 4))


def _notes(record: RunRecord) -> str:
    notes = "".join(f"<li>{text(note)}</li>" for note in record.benchmark.notes)
    return card("Notes of the benchmark", f"<ul>{notes}</ul>") if notes else ""


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
    return card("Some predictions after the last task learned", "".join(parts)) if parts else ""


def _examples_of(task: str, examples: Sequence[ScoredExample], *, unfolded: bool) -> str:
    header = ("prompt (its end)", "accepted", "prediction", "score")
    rows = [
        (
            _clipped(example.prompt, tail=True),
            _clipped(" | ".join(example.references)),
            _clipped(example.prediction),
            number(example.score),
        )
        for example in examples
    ]
    return (
        f'<details class="task"{" open" if unfolded else ""}><summary>{text(task)}</summary>'
        f"{table(header, rows, numbers=(3,))}</details>"
    )


def _clipped(whole: str, *, tail: bool = False) -> str:
    """The text where it is short; else its start, or its end, which opens to all of it."""
    if len(whole) <= SHOWN_CHARACTERS:
        return f"<pre>{text(whole)}</pre>"
    short = "… " + whole[-SHOWN_CHARACTERS:] if tail else whole[:SHOWN_CHARACTERS] + " …"
    return f"<details><summary>{text(short)}</summary><pre>{text(whole)}</pre></details>"


def _pairs(flat: dict[str, Any]) -> str:
    return table(("name", "value"), [(f"<code>{text(k)}</code>", text(v)) for k, v in flat.items()])
