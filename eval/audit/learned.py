"""A training example of each task as the model reads it, with the tokens that it learns marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from moram_dist.data.stream import IGNORED
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
    """The first training example of a task, from the labels that training would use."""
    example = task.train[0]
    encoded = family.encode_training(tokenizer, example, task)
    batch = family.collate([encoded], tokenizer.pad_token_id)
    ids = batch.inputs["input_ids"][0].tolist()
    parts: list[Part] = []
    if "decoder_input_ids" in batch.inputs:
        parts.append((f"{_shortened(_text(tokenizer, ids))}\n", False))
        ids = batch.inputs["decoder_input_ids"][0].tolist()
    learned = [label != IGNORED for label in batch.labels[0].tolist()]
    start = 0
    for is_learned, group in groupby(learned):
        end = start + len([*group])
        # Decoded with what precedes it: some tokenizers drop a blank at the beginning of a text.
        text = _text(tokenizer, ids[:end]).removeprefix(_text(tokenizer, ids[:start]))
        parts.append((_shortened(text), is_learned))
        start = end
    return LearnedExample(task=task.name, id=example.id, parts=tuple(parts))


def parts_of_page(examples: Sequence[LearnedExample]) -> list[Part]:
    """A section of Markdown: each example as an indented block."""
    parts: list[Part] = [("\n## What is learned: the first training example of each task", False)]
    for example in examples:
        parts.append((f"\n\n{example.task}, {example.id}:\n\n    ", False))
        parts += [(text.replace("\n", "\n    "), learned) for text, learned in example.parts]
    return parts


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... [{len(text) - 2 * half} characters] ... {text[-half:]}"
