"""Ways in which a cell is measured: how answers are obtained, and which tasks of a memory answer.

The first way is the one that counts. Files of every other one say in their names in what it
differs: ``scores.labels.json``, ``scores.all.json``, ``scores.labels.all.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from moram_dist.config import EvalConfig
from moram_dist.registry import InputError


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

    def metric_group(self, first: Way) -> str:
        """The same as the beginning of a tracked metric's name, as in ``recall_all/ap``."""
        parts = [f"answers_{self.answers}"] if self.answers != first.answers else []
        if self.recall != first.recall:
            told = f"_{TOLD.replace(' ', '_')}" if self.recall == "oracle" else ""
            parts.append(f"recall_{self.recall}{told}")
        return ".".join(parts)

    def among(self, ways: Sequence[Way]) -> str:
        """What tells it from the others, for people; ``oracle`` is named in any case."""
        parts = [self.answers] if len({way.answers for way in ways}) > 1 else []
        if len({way.recall for way in ways}) > 1 or self.recall == "oracle":
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


def ways_in(settings: Mapping[str, Any], where: Path) -> tuple[Way, ...]:
    """The same from what a run wrote down, by dotted name; older versions knew fewer settings.

    Raises InputError, which names the file ``where``, for a way that does not exist.
    """
    answers, recall = (
        str(settings.get(f"eval.{name}", getattr(EvalConfig, name)))
        for name in ("answers", "recall")
    )
    try:
        return ways_of(EvalConfig(answers=answers, recall=recall))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
