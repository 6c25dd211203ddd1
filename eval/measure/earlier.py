"""Take over answers that an earlier row got from the same state of the memory.

The state after task i never changes, so with recall ``prefix`` or ``oracle`` most prompts of a row
are answered by a state that answered them one row before. Of the cells below the diagonal, only
prompts that are now recognised as another task are answered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.measure.cell import Cell
from eval.score_matrix import ScoreMatrix
from eval.scoring_modes import ScoringMode
from moram_dist.families import Answered
from moram_dist.recognise import Recognised
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records
from moram_dist.tasks.task import Benchmark


class EarlierAnswers:
    """Reads the predictions of earlier rows. Main rank only."""

    def __init__(
        self,
        benchmark: Benchmark,
        matrices: Mapping[ScoringMode, ScoreMatrix],
        path: Callable[[int, int, ScoringMode], Path],
        unknown: str,
    ) -> None:
        """Remember where answers are.

        Args:
            benchmark: the tasks in their order.
            matrices: say which cells are measured.
            path: file of the predictions of (row, column, scoring mode).
            unknown: ``EvalConfig.unknown``.
        """
        self.benchmark = benchmark
        self.matrices = matrices
        self.path = path
        self.unknown = unknown
        self._column = {task.name: i for i, task in enumerate(benchmark.tasks)}

    def of(self, cell: Cell) -> dict[int, dict[str, Answered]]:
        """Answers of the newest earlier row in which the same number of tasks gave them.

        Returns:
            Index in the test set -> answer mode -> answer. Examples without an answer in each of
            the cell's modes are left out; so are all of them if a file is damaged.
        """
        if cell.recall == "all":  # a state of its own in each row
            return {}
        modes = [ScoringMode(answers, cell.recall) for answers in cell.answer_modes]
        row = self._newest_row(cell, modes)
        if row is None:
            return {}
        try:
            found = {mode.answers: self._read(row, cell.column, mode) for mode in modes}
        except (InputError, KeyError, OSError, TypeError):  # damaged: answered anew
            return {}
        return {
            i: {mode: lines[i][1] for mode, lines in found.items()}
            for portion in cell.portions
            for i in portion.examples
            if all(lines[i][0] == portion.state(cell.row) for lines in found.values())
        }

    def _newest_row(self, cell: Cell, modes: list[ScoringMode]) -> int | None:
        for row in range(cell.row - 1, -1, -1):
            if all(self.matrices[mode].get(row, cell.column) is not None for mode in modes):
                return row
        return None

    def _read(self, row: int, column: int, mode: ScoringMode) -> list[tuple[int, Answered]]:
        """For each test example, the number of tasks that answered it, and the answer."""
        path = self.path(row, column, mode)
        lines = [line for _, line in read_records(path)]
        test = self.benchmark.tasks[column].test
        if [line["id"] for line in lines] != [example.id for example in test]:
            raise InputError(f"{path}: holds other examples")
        return [
            (
                self._state(line, row, column, mode.recall),
                Answered(line["prediction"], line.get("log_likelihoods")),
            )
            for line in lines
        ]

    def _state(self, line: Mapping[str, Any], row: int, column: int, recall: str) -> int:
        if recall == "oracle":
            return min(column, row) + 1
        recognised = Recognised(self._column[line["recognised"]], not line.get("rejected"))
        tasks = recognised.answered_by(row + 1, self.unknown)
        return row + 1 if tasks is None else tasks


def without_taken(cell: Cell, taken: Mapping[int, Mapping[str, Answered]]) -> Cell:
    """The cell with only the portions that are still to be answered."""
    rest = (
        replace(portion, examples=tuple(i for i in portion.examples if i not in taken))
        for portion in cell.portions
    )
    return replace(cell, portions=[portion for portion in rest if portion.examples], taken=taken)
