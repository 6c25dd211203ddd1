"""A run's report: one static page, and its figures and tables as files.

Reads what the run left in its directory, computes every number from the score matrix, and writes
``report/``. No model, no network; a run that is still going, or stopped, has a report too.
"""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.continual import Scores, average_so_far
from eval.plots import (
    average_curve,
    forgetting_bars,
    forgetting_per_task,
    heat_map,
    loss_curve,
    svg_text,
)
from eval.predictions import predictions_path
from eval.report_html import page
from eval.run_files import (
    BenchmarkFile,
    CurvePoint,
    ScoredExample,
    StoredTask,
    read_benchmark,
    read_curve,
    read_stored_tasks,
    scored_example,
)
from eval.score_matrix import scores_path
from moram_dist.config_io import read_mapping
from moram_dist.files import write_atomically
from moram_dist.reading import read_object
from moram_dist.redaction import clean_address, clean_command
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records

PREDICTIONS_PER_TASK = 5
PREDICTIONS = 250
"""Of all tasks together: of many tasks there are fewer each, and of very many, not of each."""

CURVE_POINTS = 1500
"""A longer curve is thinned: more points than pixels only make the page heavy."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run directory says, as read from its files."""

    config: dict[str, Any]
    """run.yaml, flat: dotted name to value."""

    environment: dict[str, Any]
    """environment.json, flat."""

    matrix: Scores
    """Tasks in the order of learning, their metrics, and the scores so far."""

    answers: dict[str, Scores]
    """How answers were obtained -> the matrix of it; ``matrix`` under the first name."""

    benchmark: BenchmarkFile

    memory: dict[str, StoredTask]
    """Task to its entry in the memory's manifest."""

    predictions: dict[str, list[ScoredExample]]
    """Task to some of its examples in the last row."""

    curve: list[CurvePoint]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Every number and picture that the page shows, computed from a RunRecord."""

    sequence: dict[str, float | None]
    average: list[float | None]
    forgetting: list[float | None]
    figures: dict[str, str]
    """Name (matrix, average, forgetting, and loss where there is a curve) to SVG."""

    drift: list[float | None]
    """Per task, in the last row: score by the likeliest label less score by generation."""


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report`` and return its ``index.html``.

    Beside the page: matrix.svg, average.svg, forgetting.svg, matrix.csv, metrics.json. Each file is
    replaced whole, the page last.

    Raises:
        InputError: run.yaml, environment.json or scores.json is missing, or a file is broken.
            Nothing is written then.
        WriteError: the folder cannot be written.
    """
    record = read_run(run_dir)
    results = compute(record)
    folder = run_dir / "report"
    for name, svg in results.figures.items():
        _write(folder / f"{name}.svg", svg)
    _write(folder / "matrix.csv", _matrix_csv(record.matrix))
    numbers: dict[str, Any] = {
        "metrics": results.sequence,
        "average_so_far": results.average,
        "forgetting": dict(zip(record.matrix.tasks, results.forgetting, strict=False)),
    }
    if len(record.answers) > 1:
        numbers["metrics_by_answers"] = {
            mode: matrix.sequence_metrics() for mode, matrix in record.answers.items()
        }
    _write(folder / "metrics.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    _write(folder / "index.html", page(record, results))
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    """Half a character, which JSON can say and no file can hold, becomes a question mark."""
    write_atomically(path, text.encode("utf-8", errors="replace"))


def read_run(run_dir: Path) -> RunRecord:
    """Read a run directory. Raises InputError as ``write_report`` does."""
    config = flatten(read_mapping(run_dir / "run.yaml"))
    environment = read_object(run_dir / "environment.json")
    matrix = Scores.load(run_dir / "scores.json")
    curve = read_curve(run_dir / "metrics.jsonl")
    return RunRecord(
        config=config,
        environment=flatten(environment),
        matrix=matrix,
        answers=_read_answers(run_dir, str(config.get("eval.answers", "generate")), matrix),
        benchmark=read_benchmark(run_dir),
        memory=read_stored_tasks(run_dir),
        predictions=_read_predictions(run_dir, matrix),
        curve=curve[:: 1 + len(curve) // CURVE_POINTS],
    )


def compute(record: RunRecord) -> Results:
    """The numbers and figures of a run, complete or not."""
    matrix = record.matrix
    average = average_so_far(matrix.scores)
    forgetting = forgetting_per_task(matrix.scores)
    figures = {
        "matrix": svg_text(heat_map(matrix.tasks, matrix.scores, matrix.base)),
        "average": svg_text(average_curve(average)),
        "forgetting": svg_text(forgetting_bars(matrix.tasks, forgetting)),
    }
    if record.curve:
        steps = [point.step for point in record.curve]
        losses = [point.loss for point in record.curve]
        names = [point.task or "" for point in record.curve]
        figures["loss"] = svg_text(loss_curve(steps, losses, names))
    return Results(
        sequence=matrix.sequence_metrics(),
        average=average,
        forgetting=forgetting,
        figures=figures,
        drift=_drift(record.answers),
    )


def _drift(answers: dict[str, Scores]) -> list[float | None]:
    """For each task; none at all where not both ways ran."""
    labels = answers.get("labels", answers.get("labels_mean"))
    generated = answers.get("generate")
    if labels is None or generated is None or not labels.scores:
        return []
    row = len(generated.scores) - 1
    if len(labels.scores) <= row:  # the run goes on, and this row is not whole yet
        return []
    pairs = zip(labels.scores[row], generated.scores[row], strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def flatten(tree: Any) -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; passwords in addresses are taken out."""
    flat: dict[str, Any] = {}
    waiting = [("", tree)]
    while waiting:  # no recursion: a file may nest as deep as its reader allows
        name, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{name}.{k}" if name else str(k), v) for k, v in value.items()]
            waiting += reversed(inner)
        else:
            flat[name] = _shown(value)
    return flat


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return clean_address(value)
    words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return clean_command(value) if words else value


def _read_answers(run_dir: Path, modes: str, matrix: Scores) -> dict[str, Scores]:
    first, *others = modes.split(",")
    paths = {mode: scores_path(run_dir, mode) for mode in others}
    further = {mode: Scores.load(path) for mode, path in paths.items() if os.path.exists(path)}
    for mode, other in further.items():
        if other.tasks != matrix.tasks:
            raise InputError(f"{paths[mode]}: its tasks are not those of scores.json")
    return {first: matrix, **further}


def _read_predictions(run_dir: Path, matrix: Scores) -> dict[str, list[ScoredExample]]:
    """Examples of the last row, evenly spread over each file, so that the choice is nobody's."""
    chosen = {}
    tasks = list(enumerate(matrix.tasks))
    each = max(1, min(PREDICTIONS_PER_TASK, PREDICTIONS // len(tasks)))
    for column, task in tasks[:: 1 + (len(tasks) - 1) // PREDICTIONS]:
        path = predictions_path(run_dir, len(matrix.scores) - 1, column, task)
        if os.path.exists(path):
            answers = list(read_records(path))
            stride = max(1, len(answers) // each)
            chosen[task] = [scored_example(one, at) for at, one in answers[::stride][:each]]
    return chosen


def _matrix_csv(matrix: Scores) -> str:
    """A row after each task, a column per task; a cell that was not measured is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["after", *matrix.tasks])
    if matrix.base is not None:
        writer.writerow(["base model", *matrix.base])
    for name, row in zip(matrix.tasks, matrix.scores, strict=False):
        writer.writerow([name, *row])
    return buffer.getvalue()
