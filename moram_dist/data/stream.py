"""Which examples a step sees, and which of them are this rank's.

The order is a function of (seed, task, epoch) alone, and a step's examples do not depend on the
number of ranks: what a rank lacks is filled up with empty rows that weigh nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moram_dist.data.encode import Encoded


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank. Labels are -100 where nothing is learned."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    rows: tuple[int, ...]
    """Which example of the step each row is: its place in ``Step.ids``."""


@dataclass(frozen=True)
class Step:
    """One optimizer step: what all ranks learn from together, and this rank's part of it."""

    index: int
    """From 0 at the task's beginning."""

    ids: tuple[str, ...]
    num_answer_tokens: int
    """Over all ranks: what the loss is divided by."""

    num_tokens: int
    micro_batches: tuple[MicroBatch, ...]


def accumulation(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forward passes of each rank in one step."""
    return math.ceil(math.ceil(batch_size / world_size) / micro_batch_size)


def num_steps(num_examples: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps of a task; a last, smaller batch of an epoch counts."""
    return round(math.ceil(num_examples / batch_size) * epochs)


def order(num_examples: int, *, seed: int, task: int, epoch: int) -> list[int]:
    """The epoch's permutation of example indices."""
    return np.random.default_rng([seed, task, epoch]).permutation(num_examples).tolist()


def steps(
    examples: Sequence[Encoded],
    *,
    batch_size: int,
    micro_batch_size: int,
    epochs: float,
    seed: int,
    task: int,
    rank: int,
    world_size: int,
    pad_id: int,
    first: int = 0,
) -> Iterator[Step]:
    """The steps of one task from ``first`` on, as this rank sees them.

    Every rank gets equally many micro-batches.
    """
    passes = accumulation(batch_size, micro_batch_size, world_size)
    per_epoch = math.ceil(len(examples) / batch_size)
    for index in range(first, num_steps(len(examples), batch_size, epochs)):
        epoch, within = divmod(index, per_epoch)
        if within == 0 or index == first:
            shuffled = order(len(examples), seed=seed, task=task, epoch=epoch)
        batch = [examples[i] for i in shuffled[within * batch_size : (within + 1) * batch_size]]
        # Examples of like length share a forward pass: less padding, and the step is the same sum.
        mine = sorted(range(rank, len(batch), world_size), key=lambda row: len(batch[row].tokens))
        parts = [mine[i * micro_batch_size : (i + 1) * micro_batch_size] for i in range(passes)]
        yield Step(
            index=index,
            ids=tuple(example.id for example in batch),
            num_answer_tokens=sum(example.num_answer for example in batch),
            num_tokens=sum(len(example.tokens) for example in batch),
            micro_batches=tuple(
                collate([batch[row] for row in part], pad_id, part) for part in parts
            ),
        )


def collate(
    examples: Sequence[Encoded], pad_id: int, rows: Sequence[int] | None = None
) -> MicroBatch:
    """Rows padded on the right to the longest; with no examples, one row that weighs nothing.

    ``rows`` says which example of the step each is; default: the step's first ones.
    """
    if not examples:
        one = torch.full((1, 2), pad_id)
        return MicroBatch(one, torch.ones_like(one), torch.full_like(one, -100), rows=(0,))
    shape = (len(examples), max(len(example.tokens) for example in examples))
    input_ids = torch.full(shape, pad_id)
    labels = torch.full(shape, -100)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, example in enumerate(examples):
        length, learned = len(example.tokens), example.num_answer
        input_ids[row, :length] = torch.tensor(example.tokens)
        attention_mask[row, :length] = 1
        labels[row, length - learned : length] = input_ids[row, length - learned : length]
    rows = range(len(examples)) if rows is None else rows
    return MicroBatch(input_ids, attention_mask, labels, tuple(rows))
