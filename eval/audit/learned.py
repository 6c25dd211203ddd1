"""A training example of each task as the model reads it, with the tokens that it learns marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from moram_dist.families.text import TextFamily
from moram_dist.tasks.task import Task

LONGEST = 600
"""Most characters of a part that are shown; the middle of a longer one is left out."""

Part = tuple[str, bool]
"""A text, and whether it is learned."""


@dataclass(frozen=True, kw_only=True)
class LearnedExample:
    """The parts of one example, in order."""

    task: str
    id: str
    parts: tuple[Part, ...]


def learned_example(task: Task, tokenizer: Any, family: TextFamily) -> LearnedExample:
    """The first training example of a task, encoded as training encodes it."""
    example = task.train[0]
    parts: list[Part] = []
    for ids, learned in family.rows_read(family.encode_training(tokenizer, example, task)):
        if parts:
            parts.append(("\n", False))
        cuts = [0, *(end for span in learned for end in span), len(ids)]
        for index, (first, end) in enumerate(pairwise(cuts)):
            # Decoded with what precedes it: some tokenizers drop a blank at the beginning.
            text = _text(tokenizer, ids[:end]).removeprefix(_text(tokenizer, ids[:first]))
            if text:
                parts.append((_shortened(text), index % 2 == 1))
    return LearnedExample(task=task.name, id=example.id, parts=tuple(parts))


def parts_of_page(examples: Sequence[LearnedExample]) -> list[Part]:
    """A section of Markdown: each example as an indented block."""
    parts: list[Part] = [("\n## What is learned: the first training example of each task", False)]
    for example in examples:
        parts.append((f"\n\n{example.task}, {example.id}:\n\n    ", False))
        parts += [(text.replace("\n", "\n    "), learned) for text, learned in example.parts]
    return parts


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"
