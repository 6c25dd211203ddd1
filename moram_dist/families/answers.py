"""Answer one batch in each of the requested modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from moram_dist.config import ANSWERS
from moram_dist.decode.labels import best
from moram_dist.families.choose import family_of_model
from moram_dist.tasks.task import Decoding, Example, Task

GENERATE, CONSTRAINED, LABELS, LABELS_MEAN = ANSWERS


@dataclass(frozen=True)
class Answered:
    """A model's answer to one prompt."""

    text: str
    log_likelihoods: dict[str, float] | None = None
    """Label -> score, if the answer was chosen as the label with the largest score."""


def is_generated(modes: Sequence[str], task: Task) -> bool:
    """Whether some answers are generated freely; without labels, all are, in every mode."""
    return GENERATE in modes or not task.labels


def answer_batch(
    modes: Sequence[str],
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    task: Task,
    decoding: Decoding,
    *,
    synced: bool = False,
    texts: Sequence[str] | None = None,
) -> dict[str, list[Answered]]:
    """Mode -> answers in the order of ``examples``. Labels are scored once for both label modes.

    ``texts`` are free answers that were generated before; None generates them here if needed. The
    other arguments are those of ``Family.generate``.
    """
    family = family_of_model(model)
    found: dict[str, list[Answered]] = {}
    if is_generated(modes, task):
        if texts is None:
            texts = family.generate(model, tokenizer, examples, task, decoding, synced=synced)
        found[GENERATE] = [Answered(text) for text in texts]
    if not task.labels:
        return dict.fromkeys(modes, found[GENERATE])
    if CONSTRAINED in modes:
        texts = family.choose(model, tokenizer, examples, task, synced=synced)
        found[CONSTRAINED] = [Answered(text) for text in texts]
    if LABELS in modes or LABELS_MEAN in modes:
        scores = family.score_labels(model, tokenizer, examples, task, synced=synced)
        found[LABELS] = [Answered(best(one.sums), one.sums) for one in scores]
        found[LABELS_MEAN] = [Answered(best(one.means), one.means) for one in scores]
    return {mode: found[mode] for mode in modes}
