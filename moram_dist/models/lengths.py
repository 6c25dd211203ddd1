"""Check that a benchmark's texts fit the positions of a model.

The check comes before any work, because a token beyond them is an error in the middle of a run.
Texts are tokenised only if they might not fit.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from moram_dist.data.encode import answer_text
from moram_dist.families.positions import Positions
from moram_dist.families.text import TextFamily
from moram_dist.tasks.task import Benchmark, Example, Task

SPECIAL = 8
"""Most tokens in addition to a text's own: BOS, EOS, a decoder's start, a tokenizer's word
prefix."""

LEAST_ANSWER = 34
"""Tokens that ``encode_training`` always leaves for an answer, EOS and BOS."""


@dataclass(frozen=True)
class LengthRules:
    """Which texts of a benchmark a model reads."""

    benchmark: Benchmark
    """With the final prompts."""

    trained: bool
    """Whether the training examples are read."""

    generated: Callable[[Task], bool]
    """Whether answers to a task's test examples are generated freely."""

    chosen: bool
    """Whether a task's labels are read after its prompts."""

    room: bool = True
    """Whether generated answers count with their longest length, or not at all."""


@dataclass(frozen=True)
class Need:
    """The number of tokens that a model reads for an example."""

    prompt: int
    answer: int
    where: str = ""
    """The example and its task, for messages."""


def first_beyond(
    family: TextFamily, tokenizer: Any, asked: LengthRules, there: Positions
) -> Need | None:
    """The first example that needs more positions than there are; None if all fit.

    Args:
        family: of the model.
        tokenizer: of the model.
        asked: the texts that the model reads.
        there: the model's positions.
    """

    def beyond(need: Need) -> bool:
        return family.exceeds(there, need.prompt, need.answer)

    for task in asked.benchmark.tasks:
        behind = max((_at_most(label + task.ending) for label in task.labels), default=0)
        most = max(task.max_answer_tokens + 2, LEAST_ANSWER, behind)
        if not beyond(Need(task.max_prompt_tokens, most)):
            continue
        for need, measured in _needs(family, tokenizer, asked, task, behind):
            if beyond(need) and beyond(found := measured()):
                return found
    return None


def _needs(
    family: TextFamily, tokenizer: Any, asked: LengthRules, task: Task, behind: int
) -> Iterator[tuple[Need, Callable[[], Need]]]:
    """For each example an upper bound of its need, and a function that measures the need."""
    for example in task.train if asked.trained else ():
        answer = _at_most(answer_text(example, task))
        measure = partial(_training, family, tokenizer, task, example)
        yield Need(_at_most(example.prompt), answer), measure
    for example in task.test:
        prompt = min(_at_most(example.prompt), task.max_prompt_tokens)
        if asked.generated(task):
            answer = task.max_answer_tokens if asked.room else 1
            measure = partial(_generated, family, tokenizer, task, example, answer)
            yield Need(prompt, answer), measure
        if task.labels and asked.chosen:
            yield Need(prompt, behind), partial(_labelled, family, tokenizer, task, example)


def _at_most(text: str) -> int:
    """Upper bound of a text's tokens: its bytes, raw or after NFKC normalisation."""
    forms = (text, unicodedata.normalize("NFKC", text))
    return SPECIAL + max(len(form.encode(errors="replace")) for form in forms)


def _training(family: TextFamily, tokenizer: Any, task: Task, example: Example) -> Need:
    prompt, answer = family.lengths(family.encode_training(tokenizer, example, task))
    return Need(prompt, answer, f"training example {example.id} of task {task.name}")


def _generated(
    family: TextFamily, tokenizer: Any, task: Task, example: Example, answer: int
) -> Need:
    prompt = len(family.encode_question(tokenizer, example.prompt, task))
    where = f"test example {example.id} of task {task.name}"
    return Need(prompt, family.num_read(answer), where)


def _labelled(family: TextFamily, tokenizer: Any, task: Task, example: Example) -> Need:
    choices = family.encode_candidates(tokenizer, example, task)
    answer = family.num_read(max(len(tail) for tail in choices.tails))
    where = f"test example {example.id} of task {task.name}, with its longest label"
    return Need(len(choices.prefix), answer, where)
