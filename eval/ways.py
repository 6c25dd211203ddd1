"""Ways in which a cell is measured: how answers are obtained, and which tasks of a memory answer.

The first way is the one that counts. Files of every other one say in their names in what it
differs: ``scores.labels.json``, ``scores.all.json``, ``scores.labels.all.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from moram_dist.config import EvalConfig


@dataclass(frozen=True)
class Way:
    """One of ``EvalConfig.answers`` together with one of ``EvalConfig.recall``."""

    answers: str
    recall: str = "all"

    def differs(self, first: Way) -> str | None:
        """In what it differs from the first way, as file names have it; None of the first."""
        parts = [self.answers] if self.answers != first.answers else []
        parts += [self.recall] if self.recall != first.recall else []
        return ".".join(parts) or None

    def among(self, ways: Sequence[Way]) -> str:
        """What tells it from the others, for people."""
        parts = [self.answers] if len({way.answers for way in ways}) > 1 else []
        if len({way.recall for way in ways}) > 1:
            parts.append(recall_name(self.recall))
        return ", ".join(parts)


TOLD = "told the task"
"""The mark of recall ``oracle``, wherever it appears."""

WHAT_TOLD_MEANS = (
    "Told the task: recall oracle is not task-agnostic, since the memory is told which task each "
    "prompt belongs to."
)


def recall_name(recall: str) -> str:
    """For people."""
    return f"recall {recall} ({TOLD})" if recall == "oracle" else f"recall {recall}"


def ways_of(config: EvalConfig) -> tuple[Way, ...]:
    """All ways of a run, the first one first."""
    return tuple(Way(*both) for both in product(config.answer_modes, config.recalls))


def ways_in(settings: Mapping[str, Any]) -> tuple[Way, ...]:
    """The same from what a run wrote down, by dotted name; older versions knew fewer settings."""
    answers, recalls = (
        str(settings.get(f"eval.{name}", getattr(EvalConfig, name))).split(",")
        for name in ("answers", "recall")
    )
    return tuple(Way(*both) for both in product(answers, recalls))
