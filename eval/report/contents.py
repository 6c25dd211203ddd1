"""The contents of a report: one frozen record, from which page, figures and tables are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eval.column_blocks import ColumnBlock, column_blocks
from eval.confusion import Confusion
from eval.continual import MatrixEntry, Row, Scores
from eval.edited import EditRecord
from eval.general import GeneralChange
from eval.routing import TaskRouting
from eval.run_files import CurvePoint, ScoredExample
from eval.scoring_modes import ScoringMode


@dataclass(frozen=True, kw_only=True)
class ReportContents:
    """Everything that the report of a run shows; the run may be unfinished."""

    title: str
    facts: dict[str, Any]
    """Facts about the run by name: order, seed, base model and others."""

    modes: tuple[ModeScores, ...]
    """The scores in each scoring mode, the main one first."""

    average: list[MatrixEntry]
    """Per row, the mean score on the tasks learned so far."""

    forgetting: list[MatrixEntry]
    """Per task, the points lost since its best row."""

    drift: list[MatrixEntry]
    """Per task, in the last row: the score by the likeliest label minus that by generation. Empty
    if the run does not have both."""

    recognition: Recognition | None
    """None if no recogniser ran."""

    routing: tuple[TaskRouting, ...]
    """Whose atoms answered whose tokens, after each task for which that was observed."""

    edit: EditRecord | None
    """How the memory was made from others; None if it was learned."""

    before: tuple[ModeScores, ...]
    """Of an edited memory, the scores of what it was made from, in the scoring modes that these
    have."""
    general: tuple[GeneralChange, ...]
    """What lm-eval measured, by its tasks; empty if nothing was asked for."""

    curve: list[CurvePoint]
    """Training losses; empty if there are none."""

    tasks: tuple[TaskFacts, ...]
    """In the order of learning."""

    notes: tuple[str, ...]
    """Notes of the benchmark."""

    predictions: dict[str, list[ScoredExample]]
    """Task to some of its examples in the last row."""

    wrong: WrongAnswers | None
    """Wrong answers on pictures in the last row; None if the tasks are texts."""

    config: dict[str, Any]
    """run.yaml, flat: dotted name to value."""

    environment: dict[str, Any]
    """environment.json, flat."""

    @property
    def main(self) -> ModeScores:
        """The scores in the main scoring mode."""
        return self.modes[0]


@dataclass(frozen=True, kw_only=True)
class ModeScores:
    """The scores in one scoring mode."""

    mode: ScoringMode
    label: str
    """A name that distinguishes the mode from the run's others; may be empty."""

    matrix: Scores
    metrics: dict[str, MatrixEntry]
    """The sequence metrics of ``matrix``."""

    @property
    def learned(self) -> list[MatrixEntry]:
        """Per task, the score right after it was learned; None if that was not measured."""
        return [self.row(i)[i] for i in range(len(self.matrix.tasks))]

    @property
    def blocks(self) -> tuple[ColumnBlock, ...]:
        """Transfer, Average and Last of each task; empty unless the matrix is whole."""
        return column_blocks(self.matrix.scores)

    @property
    def last(self) -> Row:
        """The last row so far; None for each task if there is no row."""
        return self.row(len(self.matrix.scores) - 1)

    def row(self, t: int) -> Row:
        """The scores after task ``t``; None for each task if there is no such row."""
        known = 0 <= t < len(self.matrix.scores)
        return self.matrix.scores[t] if known else [None] * len(self.matrix.tasks)


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The tasks that a recogniser assigned the prompts of the last row to."""

    recogniser: Any
    """Its name, as run.yaml has it."""

    unknown: str
    """Who answered the prompts of no task, in words."""

    confusion: Confusion


@dataclass(frozen=True, kw_only=True)
class WrongAnswer:
    """A picture that was taken for another class."""

    name: str
    """The picture's."""

    thumbnail: str
    """The picture as a data URI; empty if it could not be opened."""

    right: str
    """Its class."""

    answer: str
    """The class that it was taken for."""


@dataclass(frozen=True, kw_only=True)
class WrongAnswers:
    """Some wrong answers of each task on pictures."""

    shown: Mapping[str, tuple[WrongAnswer, ...]] = field(default_factory=dict)
    """By task; tasks without wrong answers are left out."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """By task, the number of all its wrong answers."""

    missing: str = ""
    """Why no picture can be shown; empty if they can."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """A task; unknown fields are None."""

    name: str
    metric: str
    train: int | None
    """Number of training examples."""

    test: int | None
    """Number of test examples."""

    file: str | None
    """Its file in the memory."""

    sha256: str | None
    """Of that file."""
