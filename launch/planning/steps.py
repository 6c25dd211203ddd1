"""The steps and micro-batches of a run, from its data: exactly those that the trainer will run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moram_dist.config import RunConfig
from moram_dist.data.encode import EncodedExample
from moram_dist.data.stream import MicroBatch, batches, deal
from moram_dist.families import Family
from moram_dist.methods import Method
from moram_dist.tasks import Benchmark
from moram_dist.train.task_data import epochs_of, most_tokens


@dataclass(frozen=True)
class TaskSteps:
    """The steps of training on a task."""

    name: str
    num_examples: int
    num_tokens: int
    """Of all examples."""

    longest_prompt: int
    """In evaluation, in tokens; 0 for pictures."""

    steps: tuple[tuple[int, ...], ...]
    """For each step and micro-batch, the tokens of the rank with the most, including padding."""

    largest: tuple[MicroBatch, ...]
    """The micro-batch with the most tokens, and the one with the most answer positions."""

    beside: tuple[int, int]
    """Number and length of rows that every micro-batch reads beside its own: texts of classes."""


def task_steps(
    config: RunConfig,
    benchmark: Benchmark,
    method: Method,
    family: Family,
    tokenizer: Any,
    i: int,
    world_size: int,
) -> TaskSteps:
    """The steps of task ``i``; ``config`` must be resolved (``launch.settings.resolve``)."""
    train, task = config.train, benchmark.tasks[i]
    examples = [
        family.encode_training(tokenizer, example, of_task)
        for of_task, example in method.training_data(benchmark, i)
    ]
    steps: list[tuple[int, ...]] = []
    by_tokens: tuple[int, list[EncodedExample]] = (0, [])
    by_answers: tuple[int, list[EncodedExample]] = (0, [])
    for _, chosen in batches(
        len(examples),
        batch_size=train.batch_size or benchmark.batch_size,
        epochs=epochs_of(train, benchmark, method, i),
        seed=train.seed,
        task=i,
    ):
        batch = [examples[k] for k in chosen]
        ranks = deal(
            [example.num_tokens for example in batch],
            world_size=world_size,
            micro_batch_size=train.micro_batch_size,
            micro_batch_tokens=most_tokens(train, family),
        )
        # A rank without examples gets a blank one.
        blank = family.blank(batch[0], tokenizer.pad_token_id).num_tokens
        step = [blank] * max(map(len, ranks))
        for parts in ranks:
            for m, part in enumerate(parts):
                rows = [batch[row] for row in part]
                tokens = len(rows) * rows[-1].num_tokens
                step[m] = max(step[m], tokens)
                by_tokens = max(by_tokens, (tokens, rows), key=_first)
                answers = len(rows) * max(example.num_answer for example in rows)
                by_answers = max(by_answers, (answers, rows), key=_first)
        steps.append(tuple(step))
    rows_of = [by_tokens[1]] + [by_answers[1]] * (by_answers[1] != by_tokens[1])
    largest = [family.collate(rows, tokenizer.pad_token_id) for rows in rows_of if rows]
    longest = 0
    if not family.reads_pictures:  # which would be opened for it
        longest = max(len(family.encode_question(tokenizer, e.prompt, task)) for e in task.test)
    return TaskSteps(
        name=task.name,
        num_examples=len(examples),
        num_tokens=sum(example.num_tokens for example in examples),
        longest_prompt=longest,
        steps=tuple(steps),
        largest=tuple(largest),
        beside=largest[0].shared if largest else (0, 0),
    )


def _first(pair: Sequence[Any]) -> int:
    return pair[0]
