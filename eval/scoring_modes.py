"""Scoring modes: how answers are obtained, together with which tasks of a memory answer.

A run is scored in every combination of its ``EvalConfig.answers`` and ``EvalConfig.recall``. The
first is its main mode, whose scores are the run's headline. File names of other modes state how
they differ from it: ``scores.labels.json``, ``scores.all.json``, ``scores.labels.all.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from moram_dist.config import EvalConfig
from moram_dist.registry import InputError

ORACLE_MARK = "told the task"
"""Marks recall ``oracle`` wherever it appears."""

ORACLE_NOTE = (
    "Told the task: recall oracle is not task-agnostic, since the memory is told which task each "
    "prompt belongs to."
)


@dataclass(frozen=True)
class ScoringMode:
    """One of ``EvalConfig.answers`` together with one of ``EvalConfig.recall``."""

    answers: str
    recall: str = "all"

    def file_suffix(self, main: ScoringMode) -> str | None:
        """How it differs from the main mode, as file names state it; None for the main mode."""
        parts = [self.answers] if self.answers != main.answers else []
        parts += [self.recall] if self.recall != main.recall else []
        return ".".join(parts) or None

    def metric_prefix(self, main: ScoringMode) -> str:
        """The same for names of tracked metrics: ``recall_all`` in ``recall_all/ap``."""
        parts = [f"answers_{self.answers}"] if self.answers != main.answers else []
        if self.recall != main.recall:
            mark = f"_{ORACLE_MARK.replace(' ', '_')}" if self.recall == "oracle" else ""
            parts.append(f"recall_{self.recall}{mark}")
        return ".".join(parts)

    def label(self, modes: Sequence[ScoringMode]) -> str:
        """A name that distinguishes it among ``modes``, for people; always names ``oracle``."""
        parts = [self.answers] if len({mode.answers for mode in modes}) > 1 else []
        if len({mode.recall for mode in modes}) > 1 or self.recall == "oracle":
            parts.append(recall_label(self.recall))
        return ", ".join(parts)


def recall_label(recall: str) -> str:
    """A recall's name for people."""
    return f"recall {recall} ({ORACLE_MARK})" if recall == "oracle" else f"recall {recall}"


def scoring_modes(config: EvalConfig) -> tuple[ScoringMode, ...]:
    """All scoring modes of a run, the main one first."""
    return tuple(ScoringMode(*both) for both in product(config.answer_modes, config.recalls))


def saved_scoring_modes(settings: Mapping[str, Any], path: Path) -> tuple[ScoringMode, ...]:
    """The scoring modes of a saved run, the main one first.

    Args:
        settings: by dotted name. Settings missing in runs of older versions have their defaults.
        path: the file of the settings, for the error.

    Raises:
        InputError: a setting names no such mode.
    """
    answers, recall = (
        str(settings.get(f"eval.{name}", getattr(EvalConfig, name)))
        for name in ("answers", "recall")
    )
    try:
        return scoring_modes(EvalConfig(answers=answers, recall=recall))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
