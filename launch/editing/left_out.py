"""The score on a task that a memory no longer holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eval.edited import LeftOut
from launch.editing.run_folder import EditedRun, scores_of
from launch.settings import recorded_task
from moram_dist.families import TextFamily, family_of
from moram_dist.models import language_model
from moram_dist.use.answerer import Answerer, Asked
from moram_dist.use.source import read_source


def score_without(folder: Path, run: EditedRun, name: str) -> LeftOut | None:
    """The score on a dropped task, before and after, measured as ``moram generate`` answers.

    Args:
        folder: the new run directory.
        run: the same before it was written.
        name: the task.

    Returns:
        None if the run's main scores are none of free answers to texts, or are told the task.
    """
    source, main = run.sources[0], run.modes[0]
    family = family_of(language_model.check(source.model))
    if not isinstance(family, TextFamily) or main.answers != "generate" or main.recall == "oracle":
        return None
    task = recorded_task(source, name)
    edited = replace(read_source(folder), rules=source.rules)  # those of the task, too
    after = Answerer(edited, Asked(task=name)).mean_score(task.test)
    old = scores_of(source, None)
    last = old.scores[-1] if old is not None and old.scores else None
    before = None if old is None or last is None else last[old.tasks.index(name)]
    return LeftOut(task=name, metric=task.metric, before=before, after=after)
