"""Find answers that do not survive the tokenizer, so that even a perfect model cannot give them.

Training learns an answer's tokens, and prediction decodes tokens to text without special tokens. So
``yes</s>`` comes back as ``yes`` if ``</s>`` is the tokenizer's EOS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moram_dist.metrics import score
from moram_dist.tasks.task import Benchmark, Example, Task

BATCH = 4096
"""Answers tokenised at a time."""


@dataclass(frozen=True)
class Lost:
    """An example whose answer comes back as another text with a lower score."""

    example: Example
    text: str
    """The text that comes back."""

    score: float

    def __str__(self) -> str:
        return f"{_short(self.example.references[0])} comes back as {_short(self.text)}"


def lost_answers(
    tokenizer: Any, examples: Sequence[Example], task: Task, *, limited: bool = False
) -> list[Lost]:
    """Examples whose first reference scores less after a round trip through the tokenizer.

    Each distinct answer is tokenised once, and only answers that change are scored.

    Args:
        tokenizer: the model's.
        examples: from either split.
        task: gives the metric, the labels and ``answer_after``.
        limited: answers are also cut to ``task.max_answer_tokens``, as in generation.
    """
    back = _round_trips(tokenizer, (e.references[0] for e in examples), task, limited=limited)
    found = []
    for example in examples:
        text = back[example.references[0]]
        if text != example.references[0]:
            value = _score(task, example, text)
            if value < _score(task, example, example.references[0]):
                found.append(Lost(example, text, value))
    return found


def lost_labels(tokenizer: Any, task: Task) -> list[str]:
    """Labels that come back as another text, apart from white space around them."""
    back = _round_trips(tokenizer, task.labels, task)
    return [label for label in task.labels if back[label].strip() != label.strip()]


def round_trip_notes(tokenizer: Any, benchmark: Benchmark) -> list[str]:
    """One line for each task with answers that no model can give, and one for such labels."""
    notes = []
    for task in benchmark.tasks:
        both = (*task.train, *task.test)
        lost = lost_answers(tokenizer, both, task)
        if lost:
            notes.append(
                f"{task.name}: {len(lost)} of {len(both)} answers do not survive the tokenizer, so "
                f"no model can give them: {lost[0]} ({lost[0].example.id})"
            )
        labels = lost_labels(tokenizer, task)
        if labels:
            shown = ", ".join(map(_short, labels[:3])) + (", ..." if len(labels) > 3 else "")
            notes.append(f"{task.name}: labels that do not survive the tokenizer: {shown}")
    return notes


def _round_trips(
    tokenizer: Any, texts: Iterable[str], task: Task, *, limited: bool = False
) -> dict[str, str]:
    """Each text and its decoded tokens up to EOS, without special tokens."""
    different = list(dict.fromkeys(texts))
    back: dict[str, str] = {}
    for start in range(0, len(different), BATCH):
        batch = different[start : start + BATCH]
        rows = [
            _said(tokenizer, row, task, limited)
            for row in tokenizer(batch, add_special_tokens=False)["input_ids"]
        ]
        read = tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for text, found in zip(batch, read, strict=True):
            mark = task.answer_after
            back[text] = found.rpartition(mark)[2].strip() if mark else found
    return back


def _said(tokenizer: Any, tokens: list[int], task: Task, limited: bool) -> list[int]:
    end = tokenizer.eos_token_id
    said = tokens[: tokens.index(end)] if end in tokens else tokens
    return said[: task.max_answer_tokens] if limited else said


def _score(task: Task, example: Example, prediction: str) -> float:
    return score(
        task.metric,
        prompt=example.prompt,
        prediction=prediction,
        references=example.references,
        labels=task.labels,
    )


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:30]!r} … {text[-30:]!r}"
