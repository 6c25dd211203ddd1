"""Choose the examples of each optimizer step and deal them out to ranks.

The order is a function of (seed, task, epoch) alone, and a step's examples do not depend on the
number of ranks: a rank with fewer micro-batches gets empty ones that add nothing to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moram_dist.data.encode import Encoded, EncodedExample

IGNORED = -100
"""Label of a position where nothing is learned; cross-entropy ignores it by default."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank, as a model family collates it."""

    inputs: dict[str, Tensor]
    """Arguments of the model's ``forward`` by name."""

    labels: Tensor
    """(B, T). At position t of a row the model should predict ``labels[:, t + 1]``; ``IGNORED``
    where nothing is learned."""

    rows: tuple[int, ...]
    """The example of each row, as its index in ``Step.ids``."""

    prompts: Sequence[Tensor]
    """The tokens of each row before its answer."""

    lengths: tuple[int, ...]
    """Tokens in a row, with padding, for each part of the model that reads its own tokens."""

    shared: tuple[int, int] = (0, 0)
    """Number and length of further rows that every rank reads, such as texts of classes."""


class Collator(Protocol):
    """Collates examples into micro-batches: a model family (``families.family.Family``)."""

    def in_step(self, examples: Sequence[Any], place: Sequence[int]) -> Sequence[Any]:
        """The examples of one optimizer step, told what they need to know about it."""
        ...

    def blank(self, like: Any, pad_id: int) -> Any:
        """An example that adds nothing to the loss, of the same form as ``like``."""
        ...

    def collate(
        self, examples: Sequence[Any], pad_id: int, rows: Sequence[int] | None = None
    ) -> MicroBatch:
        """The micro-batch of these examples.

        ``rows`` gives each one's index in the step; default: the first ones.
        """
        ...


@dataclass(frozen=True)
class Step:
    """One optimizer step: the examples of all ranks, and this rank's part of them."""

    index: int
    """Counted from 0 at the task's beginning."""

    ids: tuple[str, ...]
    num_answer_tokens: int
    """Over all ranks. The loss is divided by it."""

    num_tokens: int
    micro_batches: tuple[MicroBatch, ...]


def num_steps(num_examples: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps of a task; a last, smaller batch of an epoch counts.

    At least one if there are examples: a task that was never trained must not count as learned.
    """
    steps = _rounded(num_examples, batch_size, epochs)
    return max(1, steps) if num_examples else 0


def is_under_a_step(num_examples: int, batch_size: int, epochs: float) -> bool:
    """Whether a task's steps round to 0, so that it takes one only because one is required."""
    return num_examples > 0 and _rounded(num_examples, batch_size, epochs) == 0


def _rounded(num_examples: int, batch_size: int, epochs: float) -> int:
    return round(math.ceil(num_examples / batch_size) * epochs)


def order(num_examples: int, *, seed: int, task: int, epoch: int) -> list[int]:
    """The epoch's permutation of example indices."""
    return np.random.default_rng([seed, task, epoch]).permutation(num_examples).tolist()


def steps(
    examples: Sequence[EncodedExample],
    collator: Collator,
    *,
    batch_size: int,
    micro_batch_size: int | None,
    micro_batch_tokens: int,
    epochs: float,
    seed: int,
    task: int,
    rank: int,
    world_size: int,
    pad_id: int,
    first: int = 0,
) -> Iterator[Step]:
    """The steps of one task from ``first`` on, with this rank's micro-batches.

    Every rank gets the same number of micro-batches. Each has at most ``micro_batch_size`` examples
    and ``micro_batch_tokens`` tokens with padding, unless a single example is longer.
    """
    for index, chosen in batches(
        len(examples), batch_size=batch_size, epochs=epochs, seed=seed, task=task, first=first
    ):
        batch = collator.in_step([examples[i] for i in chosen], (seed, task, index))
        parts_of_ranks = deal(
            [example.num_tokens for example in batch],
            world_size=world_size,
            micro_batch_size=micro_batch_size,
            micro_batch_tokens=micro_batch_tokens,
        )
        parts = parts_of_ranks[rank]
        lacking = max(map(len, parts_of_ranks)) - len(parts)
        yield Step(
            index=index,
            ids=tuple(example.id for example in batch),
            num_answer_tokens=sum(example.num_answer for example in batch),
            num_tokens=sum(example.num_tokens for example in batch),
            micro_batches=tuple(
                collator.collate(
                    [batch[row] for row in part] or [collator.blank(batch[0], pad_id)], pad_id, part
                )
                for part in [*parts, *[[]] * lacking]
            ),
        )


def batches(
    num_examples: int, *, batch_size: int, epochs: float, seed: int, task: int, first: int = 0
) -> Iterator[tuple[int, list[int]]]:
    """The steps of one task from ``first`` on: the step's index and those of its examples."""
    per_epoch = math.ceil(num_examples / batch_size)
    for index in range(first, num_steps(num_examples, batch_size, epochs)):
        epoch, within = divmod(index, per_epoch)
        if within == 0 or index == first:
            shuffled = order(num_examples, seed=seed, task=task, epoch=epoch)
        yield index, shuffled[within * batch_size : (within + 1) * batch_size]


def deal(
    lengths: Sequence[int],
    *,
    world_size: int,
    micro_batch_size: int | None,
    micro_batch_tokens: int,
) -> list[list[list[int]]]:
    """Deal the rows of a step, with their lengths in tokens: rank -> micro-batch -> rows.

    Rows are sorted by length, so that ranks do similar work and micro-batches have little padding:
    the last row of each is the longest. The step's sum is the same for every division.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return [
        _parts(by_length[rank::world_size], lengths, micro_batch_size, micro_batch_tokens)
        for rank in range(world_size)
    ]


def _parts(
    rows: Sequence[int], lengths: Sequence[int], most_rows: int | None, most_tokens: int
) -> list[list[int]]:
    """Rows, sorted by length, in groups for one forward pass each."""
    parts: list[list[int]] = []
    for row in rows:
        count = len(parts[-1]) + 1 if parts else 0
        full = count > (most_rows or count) or count * lengths[row] > most_tokens
        if not parts or full:
            parts.append([])
        parts[-1].append(row)
    return parts


def pad_answers(examples: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """The examples' tokens as rows, padded on the right to the longest, and their labels."""
    ids_BT, _ = pad_right([example.tokens for example in examples], pad_id)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    for row, example in enumerate(examples):
        for first, end in example.learned:
            labels_BT[row, first:end] = ids_BT[row, first:end]
    return ids_BT, labels_BT


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids as rows, padded on the right, and their mask."""
    shape = (len(sequences), max(len(sequence) for sequence in sequences))
    ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids as rows, padded on the left, and their mask of 0 and 1; both (B, P)."""
    longest = max(len(row) for row in rows)
    ids_BP = torch.full((len(rows), longest), pad_id)
    mask_BP = torch.zeros_like(ids_BP)
    for i, row in enumerate(rows):
        ids_BP[i, longest - len(row) :] = torch.tensor(row)
        mask_BP[i, longest - len(row) :] = 1
    return ids_BP, mask_BP
