"""A run's report: one static page, and its figures and tables as files.

Reads what the run left in its directory, computes every number from the score matrix, and writes
``report/``. No model, no network; a run that is still going, or stopped, has a report too.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.confusion import Confusion, read_confusion
from eval.continual import Scores, average_so_far, forgetting_per_task
from eval.figures import svg_text
from eval.predictions import predictions_path
from eval.report.page import page
from eval.report.plots import average_curve, confusion_map, forgetting_bars, heat_map, loss_curve
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
from eval.ways import Way, ways_in
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

    ways: dict[Way, Scores]
    """Every way in which it was measured, and its matrix; ``matrix`` under the first."""

    confusion: Confusion | None
    """What the recogniser said in the last row, where one was asked."""

    benchmark: BenchmarkFile

    memory: dict[str, StoredTask]
    """Task to its entry in the memory's manifest."""

    predictions: dict[str, list[ScoredExample]]
    """Task to some of its examples in the last row."""

    curve: list[CurvePoint]


@dataclass(frozen=True, kw_only=True)
class ReportContents:
    """Every number and picture that the page shows, computed from a RunRecord."""

    sequence: dict[str, float | None]
    average: list[float | None]
    forgetting: list[float | None]
    figures: dict[str, str]
    """Name to SVG: matrix, average, forgetting, confusion where a recogniser was asked, and loss
    where there is a curve."""

    by_way: dict[Way, dict[str, float | None]]
    """The sequence metrics of each way."""

    drift: list[float | None]
    """Per task, in the last row: score by the likeliest label less score by generation."""


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report`` and return its ``index.html``.

    Beside the page: its figures, matrix.csv, metrics.json, and confusion.csv where a recogniser was
    asked. Each file is replaced whole, the page last.

    Raises:
        InputError: run.yaml, environment.json or scores.json is missing, a file is broken, or the
            folder is a link. Nothing is written then.
        WriteError: the folder cannot be written.
    """
    folder = run_dir / "report"
    if folder.is_symlink():
        raise InputError(f"{folder} is a link; reports are not written through links")
    record = read_run(run_dir)
    results = compute(record)
    for name, svg in results.figures.items():
        _write(folder / f"{name}.svg", svg)
    _write(folder / "matrix.csv", _matrix_csv(record.matrix))
    numbers: dict[str, Any] = {
        "metrics": results.sequence,
        "average_so_far": results.average,
        "forgetting": dict(zip(record.matrix.tasks, results.forgetting, strict=False)),
    }
    if len(record.ways) > 1:
        numbers["metrics_by_way"] = [
            asdict(way) | {"metrics": metrics} for way, metrics in results.by_way.items()
        ]
    if record.confusion is not None:
        _write(folder / "confusion.csv", record.confusion.to_csv())
        numbers["recogniser"] = {
            "accuracy": record.confusion.accuracy,
            "rejected": record.confusion.rejected,
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
    ways = _read_ways(run_dir, ways_in(config, run_dir / "run.yaml"), matrix)
    curve = read_curve(run_dir / "metrics.jsonl")
    return RunRecord(
        config=config,
        environment=flatten(environment),
        matrix=matrix,
        ways=ways,
        confusion=_read_confusion(run_dir, ways),
        benchmark=read_benchmark(run_dir),
        memory=read_stored_tasks(run_dir),
        predictions=_read_predictions(run_dir, matrix),
        curve=curve[:: 1 + len(curve) // CURVE_POINTS],
    )


def compute(record: RunRecord) -> ReportContents:
    """The numbers and figures of a run, complete or not."""
    matrix = record.matrix
    average = average_so_far(matrix.scores)
    forgetting = forgetting_per_task(matrix.scores)
    figures = {
        "matrix": svg_text(heat_map(matrix.tasks, matrix.scores, matrix.base)),
        "average": svg_text(average_curve(average)),
        "forgetting": svg_text(forgetting_bars(matrix.tasks, forgetting)),
    }
    if record.confusion is not None:
        confusion = record.confusion
        figures["confusion"] = svg_text(confusion_map(confusion.tasks, confusion.percents()))
    if record.curve:
        steps = [point.step for point in record.curve]
        losses = [point.loss for point in record.curve]
        names = [point.task or "" for point in record.curve]
        figures["loss"] = svg_text(loss_curve(steps, losses, names))
    by_way = {way: scores.sequence_metrics() for way, scores in record.ways.items()}
    return ReportContents(
        sequence=next(iter(by_way.values())),
        average=average,
        forgetting=forgetting,
        figures=figures,
        by_way=by_way,
        drift=_drift(record.ways),
    )


def _drift(ways: dict[Way, Scores]) -> list[float | None]:
    """For each task, by the first recall; none at all where not both ways ran."""
    recall = next(iter(ways)).recall
    labels = ways.get(Way("labels", recall), ways.get(Way("labels_mean", recall)))
    generated = ways.get(Way("generate", recall))
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


def _read_ways(run_dir: Path, ways: Sequence[Way], matrix: Scores) -> dict[Way, Scores]:
    first, *others = ways
    paths = {way: scores_path(run_dir, way.differs(first)) for way in others}
    further = {way: Scores.load(path) for way, path in paths.items() if os.path.exists(path)}
    for way, other in further.items():
        if other.tasks != matrix.tasks:
            raise InputError(f"{paths[way]}: its tasks are not those of scores.json")
    return {first: matrix, **further}


def _read_confusion(run_dir: Path, ways: dict[Way, Scores]) -> Confusion | None:
    first, *_ = ways
    for way, matrix in ways.items():
        if way.recall == "prefix":
            last = len(matrix.scores) - 1
            return read_confusion(run_dir, matrix.tasks, last, way.differs(first))
    return None


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
