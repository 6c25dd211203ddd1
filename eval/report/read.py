"""Read a run directory into the contents of its report. Needs no model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.confusion import read_confusion
from eval.continual import MatrixEntry, Scores, average_so_far, forgetting_per_task
from eval.edited import EditRecord, read_edit, scores_before
from eval.general import changes
from eval.predictions import predictions_path
from eval.report.contents import ModeScores, Recognition, ReportContents, TaskFacts
from eval.report.wrong_pictures import read_wrong_answers
from eval.routing import read_routing
from eval.run_files import (
    BenchmarkFile,
    ScoredExample,
    StoredTask,
    TaskSizes,
    read_benchmark,
    read_curve,
    read_stored_tasks,
    scored_example,
)
from eval.score_matrix import scores_path
from eval.scoring_modes import ScoringMode, saved_scoring_modes
from moram_dist.reading import read_mapping, read_object
from moram_dist.redaction import clean_address, clean_command
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records

PREDICTIONS_PER_TASK = 5
PREDICTIONS = 250
"""Number over all tasks: with many tasks there are fewer of each, and some tasks may have none."""

CURVE_POINTS = 1500
"""A longer curve is thinned: more points than pixels only make the page heavy."""

UNKNOWN_ANSWERED_BY = {
    "all": "all tasks",
    "base": "the base alone",
    "likeliest": "the task that they resemble most",
}
"""``EvalConfig.unknown`` in words."""


def read_contents(run_dir: Path) -> ReportContents:
    """Read a run, finished or not.

    Raises:
        InputError: run.yaml, environment.json or scores.json is missing, or a file is broken.
    """
    config = flatten(read_mapping(run_dir / "run.yaml"))
    environment = flatten(read_object(run_dir / "environment.json"))
    benchmark = read_benchmark(run_dir)
    modes = _read_modes(run_dir, config)
    matrix = modes[0].matrix
    curve = read_curve(run_dir / "metrics.jsonl")
    edit = read_edit(run_dir)
    return ReportContents(
        title=_title(config, benchmark),
        facts=_facts(config, benchmark, modes[0]),
        modes=modes,
        average=average_so_far(matrix.scores),
        forgetting=forgetting_per_task(matrix.scores),
        drift=_drift(modes),
        recognition=_read_recognition(run_dir, config, modes),
        routing=tuple(
            found
            for row in range(len(matrix.tasks))
            if (found := read_routing(run_dir, matrix.tasks, row)) is not None
        ),
        edit=edit,
        before=() if edit is None else tuple(_before(run_dir, edit, modes)),
        general=changes(run_dir, len(matrix.tasks)),
        curve=curve[:: 1 + len(curve) // CURVE_POINTS],
        tasks=_tasks(matrix, benchmark, read_stored_tasks(run_dir)),
        notes=benchmark.notes,
        predictions=_read_predictions(run_dir, matrix),
        wrong=read_wrong_answers(run_dir, config, matrix),
        config=config,
        environment=environment,
    )


def flatten(tree: Any) -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots, without passwords in addresses and commands."""
    flat: dict[str, Any] = {}
    waiting = [("", tree)]
    while waiting:  # no recursion: a file may nest as deep as its reader allows
        name, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{name}.{k}" if name else str(k), v) for k, v in value.items()]
            waiting += reversed(inner)
        else:
            flat[name] = _without_passwords(value)
    return flat


def _without_passwords(value: Any) -> Any:
    if isinstance(value, str):
        return clean_address(value)
    words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return clean_command(value) if words else value


def _setting(config: dict[str, Any], name: str) -> Any:
    """A setting by its last name, in any section; None if there is none."""
    wanted = (name, f"{name}.name")
    return next((v for k, v in config.items() if k in wanted or k.endswith(f".{name}")), None)


def _title(config: dict[str, Any], benchmark: BenchmarkFile) -> str:
    name = benchmark.name or _setting(config, "benchmark")
    return f"{_setting(config, 'method') or 'run'} on {name or 'a benchmark'}"


def _facts(config: dict[str, Any], benchmark: BenchmarkFile, main: ModeScores) -> dict[str, Any]:
    facts = {
        "order": benchmark.order or _setting(config, "order"),
        "protocol": benchmark.protocol or _setting(config, "protocol"),
        "seed": _setting(config, "seed"),
        "base model": _setting(config, "model"),
        "measured by": main.label or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _read_modes(run_dir: Path, config: dict[str, Any]) -> tuple[ModeScores, ...]:
    """The scoring modes that have a file of scores; the main mode must have one."""
    main, *others = saved_scoring_modes(config, run_dir / "run.yaml")
    matrices = {main: Scores.load(scores_path(run_dir))}
    for mode in others:
        path = scores_path(run_dir, mode.file_suffix(main))
        if os.path.exists(path):
            matrices[mode] = Scores.load(path)
            if matrices[mode].tasks != matrices[main].tasks:
                raise InputError(f"{path}: its tasks are not those of scores.json")
    return tuple(
        ModeScores(
            mode=mode,
            label=mode.label([*matrices]),
            matrix=matrix,
            metrics=matrix.sequence_metrics(),
        )
        for mode, matrix in matrices.items()
    )


def _before(run_dir: Path, edit: EditRecord, modes: Sequence[ModeScores]) -> Iterator[ModeScores]:
    """The scores of what an edited memory was made from."""
    for one in modes:
        before = scores_before(run_dir, edit, one.mode.file_suffix(modes[0].mode))
        if before is not None and before.tasks == one.matrix.tasks:
            yield replace(one, matrix=before, metrics=before.sequence_metrics())


def _drift(modes: Sequence[ModeScores]) -> list[MatrixEntry]:
    """``ReportContents.drift``, with the recall of the main mode."""
    by_mode = {one.mode: one.matrix.scores for one in modes}
    recall = modes[0].mode.recall
    generated = by_mode.get(ScoringMode("generate", recall))
    labels = by_mode.get(
        ScoringMode("labels", recall), by_mode.get(ScoringMode("labels_mean", recall))
    )
    if not labels or generated is None:
        return []
    row = len(generated) - 1
    if len(labels) <= row:  # the run is not finished, and neither is this row
        return []
    pairs = zip(labels[row], generated[row], strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def _read_recognition(
    run_dir: Path, config: dict[str, Any], modes: Sequence[ModeScores]
) -> Recognition | None:
    recognising = next((one for one in modes if one.mode.recall == "prefix"), None)
    if recognising is None:
        return None
    matrix, suffix = recognising.matrix, recognising.mode.file_suffix(modes[0].mode)
    confusion = read_confusion(run_dir, matrix.tasks, len(matrix.scores) - 1, suffix)
    if confusion is None:
        return None
    return Recognition(
        recogniser=_setting(config, "recogniser"),
        unknown=UNKNOWN_ANSWERED_BY.get(str(_setting(config, "unknown")), "others"),
        confusion=confusion,
    )


def _tasks(
    matrix: Scores, benchmark: BenchmarkFile, memory: dict[str, StoredTask]
) -> tuple[TaskFacts, ...]:
    sizes = {task.name: task for task in benchmark.tasks}
    tasks = []
    for name in matrix.tasks:
        size, stored = sizes.get(name, TaskSizes(name=name)), memory.get(name)
        tasks.append(
            TaskFacts(
                name=name,
                metric=matrix.metrics[name],
                train=size.train,
                test=size.test,
                file=stored.file if stored else None,
                sha256=stored.sha256 if stored else None,
            )
        )
    return tuple(tasks)


def _read_predictions(run_dir: Path, matrix: Scores) -> dict[str, list[ScoredExample]]:
    """Examples of the last row, evenly spaced in each file to avoid selection."""
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
