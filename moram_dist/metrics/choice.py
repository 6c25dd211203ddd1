"""Multiple choice where the model may say more than the letter."""

from __future__ import annotations

import re

from moram_dist.metrics.exact import starts_with
from moram_dist.metrics.metric import METRICS, Answer
from moram_dist.registry import InputError


def choose_label(text: str, labels: tuple[str, ...]) -> str:
    """The label that ``text`` names, or the stripped text where it names none.

    A label that stands alone as a word wins; failing that, the first character anywhere that is a
    label. Case never counts. So the English article in ``This is a hawkish stance`` reads as A and
    ``neutral`` reads as A by its one letter a: the published rule, kept for comparable numbers.

    Args:
        text: the model's answer.
        labels: the answer set, one character each.

    Raises:
        InputError: no labels, or one that is not a single character.

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
    """100.0 where the label that the prediction names begins with the reference, else 0.0.

    Raises:
        InputError: the task has no single-character labels.

    Source: accuracy on C-STANCE and FOMC in the MoRAM code for TRACE.
    """
    return starts_with(choose_label(answer.prediction, answer.labels), answer.reference)
