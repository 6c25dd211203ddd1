"""Write an edited memory as a run directory, which the training command measures.

Every task is learned already, so ``moram train`` with the run's own settings trains nothing and
fills what is missing of the score matrix. Rows of tasks whose files are those of the source, up to
the first one that is not, are taken over with their predictions: the state after them is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from eval.continual import Scores
from eval.edited import EditRecord, LeftOut
from eval.predictions import predictions_path
from eval.routing import routing_path
from eval.score_matrix import ScoreMatrix, scores_path
from eval.scoring_modes import ScoringMode, scoring_modes
from launch.settings import resolve
from moram_dist import config_io
from moram_dist.config import RunConfig
from moram_dist.files import write_atomically
from moram_dist.reading import read_mapping
from moram_dist.registry import InputError
from moram_dist.tasks import Benchmark
from moram_dist.terminal import say
from moram_dist.train.inputs import RunInputs, TaskInputs, differences, in_one_line, task_inputs
from moram_dist.train.run_dir import RunDir
from moram_dist.use.editing import EditedMemory
from moram_dist.use.source import MemorySource

CLASSES = ("labels", "texts")
"""Rules of a task that say among which classes its answers are."""

OF_OTHER_TASKS = (*CLASSES, "text_to_image")
"""Rules that depend on which tasks a run has (``tasks.pictures.make_tasks``)."""


@dataclass(frozen=True, kw_only=True)
class EditedRun:
    """A run directory before it is written."""

    sources: tuple[MemorySource, ...]
    saved: Mapping[str, Any]
    """Content of run.yaml, with the new order."""

    config: RunConfig
    benchmark: Benchmark
    inputs: RunInputs
    other_classes: bool
    """Whether learned tasks choose among other classes than in their source, as where the classes
    of all tasks compete. Scores of the source are then those of other questions."""

    @property
    def modes(self) -> tuple[ScoringMode, ...]:
        """How it is scored, the main mode first."""
        return scoring_modes(self.config.eval)


def plan_run(sources: Sequence[MemorySource], names: Sequence[str]) -> EditedRun:
    """The run of these tasks, with the settings of the first source.

    Args:
        sources: run directories.
        names: tasks in order; those that no source learned are still to come.

    Raises:
        InputError: the benchmark has no such task, or a source learned or measured a task with
            other data, rules, base or tokenizer.
    """
    path, first = sources[0].path / "run.yaml", sources[0].inputs
    assert first is not None  # the command takes runs only
    saved = read_mapping(path)
    if [task.name for task in first.tasks] != [*names]:  # else the order's own name stays
        saved = {**saved, "data": {**saved["data"], "order": ",".join(names)}}
    # Resolved in the source's name: what older versions did not record depends on their folder.
    config = config_io.from_saved(saved, path)
    record = replace(config.record, output_dir=sources[0].path)
    _, benchmark = resolve(replace(config, record=record))
    now = {task.name: task_inputs(task, config) for task in benchmark.tasks}
    pictured = {task.name for task in benchmark.tasks if task.pictures is not None}
    other_classes = False
    for source in sources:
        then = source.inputs
        assert then is not None
        tasks = tuple(task for task in then.tasks if task.name in source.tasks and task.name in now)
        same = tuple(
            _beside(now[task.name], task) if task.name in pictured else now[task.name]
            for task in tasks
        )
        other_classes |= any(
            one.rules.get(name) != now[one.name].rules.get(name) for one in same for name in CLASSES
        )
        changed = differences(replace(then, tasks=tasks), replace(first, tasks=same))
        if changed:
            raise InputError(f"{source.path} was started with other input ({in_one_line(changed)})")
    return EditedRun(
        sources=tuple(sources),
        saved={**saved, "data": {**saved["data"], "order": benchmark.order}},
        config=config,
        benchmark=benchmark,
        inputs=replace(first, tasks=tuple(now.values())),
        other_classes=other_classes,
    )


def _beside(now: TaskInputs, then: TaskInputs) -> TaskInputs:
    """A task as it would be among the tasks of its source."""
    names = [name for name in OF_OTHER_TASKS if name in then.rules]
    return replace(now, rules={**now.rules, **{name: then.rules[name] for name in names}})


def write_run(folder: Path, out: Path, run: EditedRun, edited: EditedMemory) -> None:
    """Write everything of the run but ``edit.json``, and the rows that are still valid.

    Args:
        folder: an empty one.
        out: the name that it will have.
        run: from ``plan_run``.
        edited: its memory.

    Raises:
        InputError: a file of a source is missing or damaged.
    """
    RunDir(folder).record_inputs(run.inputs, say)
    manifest = edited.write(folder / "memory")
    record = {**run.saved["record"], "output_dir": str(out)}
    text = yaml.safe_dump({**run.saved, "record": record}, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "run.yaml", text, private=True)
    source = run.sources[0]
    same = 0
    for new, old in zip(manifest.tasks, source.manifest.tasks, strict=False):
        if (new.name, new.sha256) != (old.name, old.sha256):
            break
        same += 1
    if run.other_classes:
        return
    for mode in run.modes:
        _take_scores(folder, run, mode, same)
    for row in range(same):
        observed = routing_path(source.path, row)
        if observed.is_file():
            write_atomically(routing_path(folder, row), observed.read_bytes())


def _take_scores(folder: Path, run: EditedRun, mode: ScoringMode, same: int) -> None:
    """Take over the base's row and the rows of the first ``same`` tasks, with their answers."""
    source, suffix = run.sources[0], mode.file_suffix(run.modes[0])
    old = scores_of(source, suffix)
    if old is None:
        return
    rows: dict[int, list[float | None]] = {}
    names = [task.name for task in run.benchmark.tasks]
    for row in (-1, *range(same)):
        values = old.base or () if row < 0 else old.scores[row] if row < len(old.scores) else ()
        known = dict(zip(old.tasks, values, strict=False))
        kept: list[float | None] = [None] * len(names)
        for column, name in enumerate(names):
            score = known.get(name)
            if score is None:
                continue
            where = predictions_path(source.path, row, old.tasks.index(name), name, suffix)
            if where.is_file():
                target = predictions_path(folder, row, column, name, suffix)
                write_atomically(target, where.read_bytes())
                kept[column] = score
        if any(value is not None for value in kept):
            rows[row] = kept
    if rows:
        ScoreMatrix(scores_path(folder, suffix), run.benchmark).fill(rows)


def edit_record(run: EditedRun, edited: EditedMemory, left_out: LeftOut | None) -> EditRecord:
    """What edit.json says of a run."""
    suffixes = [mode.file_suffix(run.modes[0]) for mode in run.modes]
    before = {suffix or "": _before(run, suffix) for suffix in suffixes}
    return EditRecord(
        command=edited.edit.command,
        what=edited.edit.what,
        caution=edited.edit.caution,
        sources=tuple(str(source.path) for source in run.sources),
        before={suffix: value for suffix, value in before.items() if value["scores"]},
        left_out=left_out,
        other_classes=run.other_classes,
    )


def _before(run: EditedRun, suffix: str | None) -> dict[str, Any]:
    """The sources' scores, in the rows and columns of the new run."""
    tasks = run.benchmark.tasks
    found = [scores for source in run.sources if (scores := scores_of(source, suffix))]
    cells = {
        (after, name): score
        for scores in found
        for after, row in zip(scores.tasks, scores.scores, strict=False)
        for name, score in zip(scores.tasks, row, strict=True)
    }
    rows = [[cells.get((after.name, task.name)) for task in tasks] for after in tasks]
    while rows and not any(value is not None for value in rows[-1]):
        rows.pop()
    metrics = {task.name: task.metric for task in tasks}
    return {"tasks": [*metrics], "metrics": metrics, "scores": rows}


def scores_of(source: MemorySource, suffix: str | None) -> Scores | None:
    """A run's scores in the mode of a ``ScoringMode.file_suffix``; None if it has none."""
    path = scores_path(source.path, suffix)
    return Scores.load(path) if path.is_file() else None
