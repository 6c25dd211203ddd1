"""What is measured at a time: one task's test set, after one more task, with one recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.recall import Portion
from moram_dist.decode import Answered
from moram_dist.recognise import Recognised
from moram_dist.tasks.task import Benchmark


@dataclass(frozen=True)
class Cell:
    """A column of a row, to be measured with one recall."""

    row: int
    column: int
    recall: str
    modes: Sequence[str]
    """How answers are obtained."""

    portions: Sequence[Portion]
    recognised: Mapping[int, Recognised]
    """By index in the test set, where a recogniser was asked."""

    def lines(self, benchmark: Benchmark, answers: Sequence[Answered]) -> list[dict[str, Any]]:
        """Lines of its file of predictions, not scored yet."""
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
