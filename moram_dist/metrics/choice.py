"""Multiple choice for answers that may contain more than the letter."""

from __future__ import annotations

import re

from moram_dist.metrics.exact import starts_with
from moram_dist.metrics.metric import METRICS, Answer
from moram_dist.registry import InputError


def choose_label(text: str, labels: tuple[str, ...]) -> str:
    """The label that ``text`` names, or the stripped text if it names none.

    The first label that is a separate word wins; otherwise the first character that is a label.
    Case is ignored. So ``This is a hawkish stance`` reads as A because of the article, and
    ``neutral`` because of its letter a: this is the published rule, kept for comparable numbers.

    Args:
        text: the model's answer.
        labels: the answer set, one character each.

    Raises:
        InputError: no labels, or a label that is not a single character.

    Source: choice normalisation of the MoRAM code for TRACE.
    """
    if not labels or any(len(label) != 1 for label in labels):
        raise InputError(f"metric 'choice' needs labels of one character each, got {list(labels)}")
    text = text.strip()
    by_capital = {label.upper(): label for label in labels}
    word = re.search(rf"\b([{re.escape(''.join(labels))}])\b", text, re.IGNORECASE)
    for character in word[1] if word else text:
        if character.upper() in by_capital:
            return by_capital[character.upper()]
    return text


@METRICS.register("choice")
def choice(answer: Answer) -> float:
    """100.0 if the label that the prediction names begins with the reference, else 0.0.

    Raises:
        InputError: the task has no single-character labels.

    Source: accuracy on C-STANCE and FOMC in the MoRAM code for TRACE.
    """
    return starts_with(choose_label(answer.prediction, answer.labels), answer.reference)
