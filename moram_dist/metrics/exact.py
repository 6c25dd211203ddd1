"""Metrics that compare strings. Each gives 0.0 or 100.0."""

from __future__ import annotations

import string

from moram_dist.metrics.metric import METRICS, Answer

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def starts_with(prediction: str, target: str) -> float:
    """100.0 if the stripped prediction begins with ``target``, else 0.0; an empty target is wrong.

    The target is not stripped. A longer answer can match by accident: ``55`` begins with ``5``.

    Source: accuracy of the MoRAM and TreeLoRA code for TRACE.
    """
    return 100.0 if target and prediction.strip().startswith(target) else 0.0


@METRICS.register("accuracy_prefix")
def accuracy_prefix(answer: Answer) -> float:
    """100.0 if the stripped prediction begins with the reference, see ``starts_with``."""
    return starts_with(answer.prediction, answer.reference)


@METRICS.register("exact_match")
def exact_match(answer: Answer) -> float:
    """100.0 if both texts are exactly equal, including white space and case.

    Source: accuracy of the original TRACE code, arXiv:2310.06762.
    """
    return 100.0 if answer.prediction == answer.reference else 0.0


@METRICS.register("first_character")
def first_character(answer: Answer) -> float:
    """100.0 if the first characters of prediction and reference, both stripped, are equal.

    For answers that begin with an option letter and then give reasons. Case counts. An empty
    prediction or reference scores 0.0.

    Source: ScienceQA in TRACE, arXiv:2310.06762, with the MoRAM code's guard for empty answers.
    """
    prediction, reference = answer.prediction.strip(), answer.reference.strip()
    return 100.0 if prediction and prediction[0] == reference[:1] else 0.0


@METRICS.register("exact_match_normalised")
def exact_match_normalised(answer: Answer) -> float:
    """100.0 if both texts are equal except for case, ASCII punctuation and amount of white space.

    Source: exact match of the SAPT and O-LoRA code for the long-sequence benchmarks.
    """
    return 100.0 if _normalise(answer.prediction) == _normalise(answer.reference) else 0.0


def _normalise(text: str) -> str:
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
