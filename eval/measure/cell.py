"""A unit of measurement: one task's test set, after one more task, with one recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.measure.recall import Portion
from moram_dist.families import Answered
from moram_dist.recognise import Recognised
from moram_dist.tasks.task import Benchmark

ColumnState = tuple[int, int | None]
"""A column, and how many tasks answer it (``Portion.tasks``): equal states, equal answers."""


@dataclass(frozen=True)
class Cell:
    """A column of a row, to be measured with one recall."""

    row: int
    column: int
    recall: str
    answer_modes: Sequence[str]
    """How answers are obtained: some of ``EvalConfig.answers``."""

    portions: Sequence[Portion]
    """Everything that is not in ``taken``."""

    recognised: Mapping[int, Recognised]
    """By index in the test set; empty if no recogniser ran."""

    taken: Mapping[int, Mapping[str, Answered]] = field(default_factory=dict)
    """Answers that an earlier row got from the same state: index in the test set -> answer mode."""

    def lines(self, benchmark: Benchmark, answers: Sequence[Answered]) -> list[dict[str, Any]]:
        """The lines of its predictions file, without scores."""
        test = benchmark.tasks[self.column].test
        lines = []
        for i, (example, answer) in enumerate(zip(test, answers, strict=True)):
            line: dict[str, Any] = {
                "id": example.id,
                "prompt": example.prompt,
                "references": list(example.references),
                "prediction": answer.text,
                "score": None,
            }
            if answer.log_likelihoods is not None:
                line["log_likelihoods"] = answer.log_likelihoods
            if i in self.recognised:
                line["recognised"] = benchmark.tasks[self.recognised[i].task].name
                if not self.recognised[i].known:
                    line["rejected"] = True
            lines.append(line)
        return lines


def without_repeats(cells: Sequence[Cell]) -> list[tuple[Cell, Portion, bool]]:
    """Each portion of each cell, and whether it is new.

    It is not new if the first portion of the same ``ColumnState`` holds all of its answers.
    """
    covered: dict[ColumnState, tuple[set[int], set[str]]] = {}
    work = []
    for cell in cells:
        for portion in cell.portions:
            mine = set(portion.examples), set(cell.answer_modes)
            first = covered.setdefault((portion.column, portion.tasks), mine)
            new = first is mine or not (mine[0] <= first[0] and mine[1] <= first[1])
            work.append((cell, portion, new))
    return work
