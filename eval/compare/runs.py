"""Read what a comparison needs from a run: its identity, its score matrix and its item scores.

They come from a run directory, or from a ``.jsonl`` file with one line per run (``Run.to_json``),
which is small enough to be kept with the code and suffices to make every table again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from eval.column_blocks import column_blocks
from eval.compare.items import Items, is_score, read_cell
from eval.continual import MatrixEntry, Scores
from eval.edited import read_edit
from eval.predictions import predictions_path
from eval.run_files import part, read_base, read_benchmark
from eval.score_matrix import scores_path
from eval.scoring_modes import ScoringMode, saved_scoring_modes
from moram_dist import config_io
from moram_dist.config import MethodConfig, RunConfig
from moram_dist.reading import read_mapping, record
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records

OF_THE_RUN = frozenset(
    {
        "model.model",
        "model.trust_remote_code",
        "model.gradient_checkpointing",
        "data.benchmark",
        "data.order",
        "data.protocol",
        "data.limit_eval",
        "train.seed",
        "eval.answers",
        "eval.recall",
        "eval.eval_rows",
    }
)
"""Settings that do not distinguish groups: ``Run`` has a field for them, or they do not change what
was learned."""

OF_THE_RECOGNISER = frozenset({"eval.recogniser", "eval.unknown"})
"""Settings that only recall ``prefix`` depends on."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, scored in one mode, as read from its files."""

    name: str
    benchmark: str
    protocol: str
    order: str
    seed: int
    method: str
    answers: str
    """How answers were obtained: generate, labels, ..."""

    recall: str = "all"
    """Which tasks of the memory answered: all, prefix, oracle."""

    base: dict[str, str]
    """The base model's name and fingerprint."""

    settings: dict[str, Any]
    """Dotted name -> value of the settings that define the result, except order and seed."""

    tasks: tuple[str, ...]
    """In the order of learning."""

    tests: tuple[str, ...]
    """Per task, a digest of its test set."""

    scores: tuple[tuple[MatrixEntry, ...], ...]
    """The score matrix: row t after task t."""

    last: tuple[Items, ...]
    """Per task, its items' scores after the last task."""

    learned: tuple[Items, ...]
    """Per task, its items' scores right after it was learned."""

    cells: tuple[tuple[Items, ...], ...] = ()
    """Items' scores of the whole matrix: row t after task t, a column per task. Empty unless all of
    it was measured."""

    def to_json(self) -> str:
        """The run as one line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_runs(
    paths: Sequence[Path], answers: str | None = None, recalls: Sequence[str] = ()
) -> list[Run]:
    """Read run directories and ``.jsonl`` files, one ``Run`` per recall of each.

    Args:
        paths: run directories, and files of ``Run.to_json`` lines.
        answers: which of ``EvalConfig.answers`` to compare; None: each run's main one.
        recalls: which recalls to compare; empty: all.

    Raises:
        InputError: a file is missing or broken, or a run is unfinished or lacks that scoring mode.
    """
    runs: list[Run] = []
    for path in paths:
        if path.suffix == ".jsonl":
            found = [_checked(part(Run, one, at), at) for at, one in read_records(path)]
            wanted = [run for run in found if not recalls or run.recall in recalls]
            if found and not wanted:
                _refuse_recall(path, [run.recall for run in found], recalls)
            runs += [replace(run, settings=_defining_settings(run)) for run in wanted]
        elif os.path.isdir(path):
            runs += runs_of_directory(path, answers, recalls)
        else:
            raise InputError(f"{path}: no such run directory or .jsonl file")
    for run in runs:
        if answers is not None and run.answers != answers:
            raise InputError(f"{run.name} holds answers by {run.answers!r}, not by {answers!r}")
    return runs


def runs_of_directory(
    folder: Path, answers: str | None = None, recalls: Sequence[str] = ()
) -> list[Run]:
    """One ``Run`` per recall of a run. Arguments and errors are those of ``read_runs``."""
    modes = saved_scoring_modes(_settings(folder), folder / "run.yaml")
    known = list(dict.fromkeys(mode.recall for mode in modes))
    wanted = [recall for recall in known if not recalls or recall in recalls]
    if not wanted:
        _refuse_recall(folder, known, recalls)
    return [read_run_directory(folder, answers, recall) for recall in wanted]


def _refuse_recall(path: Path, known: Sequence[str], wanted: Sequence[str]) -> NoReturn:
    found = ", ".join(dict.fromkeys(known))
    raise InputError(f"{path} holds recall {found}, not {', '.join(wanted)}")


def read_run_directory(folder: Path, answers: str | None = None, recall: str | None = None) -> Run:
    """Read a run directory in one scoring mode; None for either half is the main mode's.

    Raises InputError as ``read_runs`` does.
    """
    settings = _settings(folder)
    modes = saved_scoring_modes(settings, folder / "run.yaml")
    mode = ScoringMode(answers or modes[0].answers, recall or modes[0].recall)
    if mode not in modes:
        known = list(dict.fromkeys(one.answers for one in modes))
        if answers is not None and answers not in known:
            raise InputError(f"{folder} holds answers by {', '.join(known)}, not by {answers!r}")
        _refuse_recall(folder, [one.recall for one in modes], [mode.recall])
    suffix = mode.file_suffix(modes[0])
    benchmark = read_benchmark(folder)
    for name in ("name", "protocol", "order"):
        if getattr(benchmark, name) is None:
            raise InputError(f"{folder / 'benchmark.json'}: {name} is missing")
    base = read_base(folder)
    matrix = Scores.load(scores_path(folder, suffix))
    end = len(matrix.tasks) - 1
    if len(matrix.scores) <= end:
        raise InputError(f"{folder}: not finished: {len(matrix.scores)} of {end + 1} tasks")
    whole = bool(column_blocks(matrix.scores))
    read = {
        (row, i): read_cell(predictions_path(folder, row, i, task, suffix), matrix.scores[row][i])
        for i, task in enumerate(matrix.tasks)
        for row in (range(end + 1) if whole else {i, end})
    }
    columns = range(end + 1)
    values = {
        "name": folder.name,
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "order": benchmark.order,
        "seed": settings["train.seed"],
        "method": settings["method.method"],
        "answers": mode.answers,
        "recall": mode.recall,
        "base": {"name": Path(base.name).name, "fingerprint": base.fingerprint},
        "settings": settings,
        "tasks": matrix.tasks,
        "tests": [read[end, i][1] or read[i, i][1] for i in columns],
        "scores": matrix.scores,
        "last": [read[end, i][0] for i in columns],
        "learned": [read[i, i][0] for i in columns],
        "cells": [[read[row, i][0] for i in columns] for row in columns] if whole else [],
    }
    run = _checked(record(Run, values, folder), str(folder))
    return replace(run, settings=_defining_settings(run))


def _settings(folder: Path) -> dict[str, Any]:
    """A run's settings by dotted name. Raises InputError if run.yaml is not a run's."""
    settings = {
        f"{section}.{name}": value
        for section, values in read_mapping(folder / "run.yaml").items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }
    for name, kind in (("train.seed", int), ("method.method", str)):
        if not isinstance(settings.get(name), kind):
            raise InputError(f"{folder / 'run.yaml'}: {name}: not a run's: {settings.get(name)!r}")
    edit = read_edit(folder)
    return settings if edit is None else {**settings, "memory.edited": edit.what}


def _defining_settings(run: Run) -> dict[str, Any]:
    """The settings that define its result, without those that ``Run`` has a field for."""
    from moram_dist.methods import METHODS  # imports torch

    known = run.method in set(METHODS)
    kind = METHODS[run.method].Config if known else MethodConfig
    # A setting that is newer than the run has its default.
    defaults = config_io.flat(RunConfig(method=kind(method=run.method)))
    settings = defaults | run.settings
    # Training settings are kept even for methods that do not train: a table shows them for all.
    left_out = OF_THE_RUN | config_io.MAY_CHANGE
    if run.recall != "prefix":
        left_out |= OF_THE_RECOGNISER
    if known:  # older runs also saved the settings of other methods
        left_out |= {n for n in settings.keys() - defaults.keys() if n.startswith("method.")}
    return {name: value for name, value in settings.items() if name not in left_out}


def _checked(run: Run, where: str) -> Run:
    """Return the run. Raises InputError if its parts do not fit together."""
    t = len(run.tasks)
    cells = [cell for row in run.scores for cell in row if cell is not None]
    rows = (run.last, run.learned, *run.cells)
    items = [one for row in rows for one in row if one is not None]
    lengths = [
        {len(one) for one in column if one is not None} for column in zip(*rows, strict=False)
    ]
    for what, holds in {
        "tasks": t > 0 and len(set(run.tasks)) == t,
        "tests, last and learned": t == len(run.tests) == len(run.last) == len(run.learned),
        "cells": not run.cells
        or ([len(row) for row in run.cells] == [t] * t and all(all(row) for row in run.cells)),
        "scores": [len(row) for row in run.scores] == [t] * t and all(map(is_score, cells)),
        "scores of items": all(
            set(one) <= {"0", "1"} if isinstance(one, str) else all(map(is_score, one))
            for one in items
        ),
        "numbers of items": all(items) and all(len(found) <= 1 for found in lengths),
        "base": {"name", "fingerprint"} <= run.base.keys(),
    }.items():
        if not holds:
            raise InputError(f"{where}: {what}: not those of a finished run")
    return run
