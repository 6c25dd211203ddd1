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

IGNORED = -100
"""Label where nothing is learned; what cross-entropy skips by default."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank. Labels are ``IGNORED`` where nothing is learned."""

    input_ids: Tensor
    """Of a causal model, or of a decoder."""

    labels: Tensor
    rows: tuple[int, ...]
    """Which example of the step each row is: its place in ``Step.ids``."""

    source_ids: Tensor | None = None
    """What an encoder reads; None for a causal model."""

    source_mask: Tensor | None = None

    def inputs(self) -> dict[str, Tensor]:
        """By the names that models of transformers give to what they read.

        Padding is on the right, where no token of a causal model or of a decoder sees it: a mask
        would change nothing but the time of attention, which doubles on long rows.
        """
        if self.source_ids is None or self.source_mask is None:
            return {"input_ids": self.input_ids}
        source = {"input_ids": self.source_ids, "attention_mask": self.source_mask}
        return source | {"decoder_input_ids": self.input_ids}

    @property
    def prompts(self) -> list[Tensor]:
        """Tokens of each row that stand before its answer, or that an encoder reads."""
        if self.source_ids is not None and self.source_mask is not None:
            pairs = zip(self.source_ids, self.source_mask.bool(), strict=True)
            return [ids[mask] for ids, mask in pairs]
        # The first learned token; all of a row that learns nothing.
        learned = (self.labels != IGNORED).int()
        ends = learned.argmax(1).where(learned.any(1), torch.tensor(learned.shape[1]))
        return [ids[:end] for ids, end in zip(self.input_ids, ends.tolist(), strict=True)]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in a row: of ``input_ids``, and of the source where there is one."""
        both = (self.input_ids, self.source_ids)
        return tuple(ids.shape[1] for ids in both if ids is not None)


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


def num_steps(num_examples: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps of a task; a last, smaller batch of an epoch counts.

    At least one where there are examples: a task that was never trained must not pass as learned.
    """
    steps = _rounded(num_examples, batch_size, epochs)
    return max(1, steps) if num_examples else 0


def is_under_a_step(num_examples: int, batch_size: int, epochs: float) -> bool:
    """Whether a task takes one step only because it must take some."""
    return num_examples > 0 and _rounded(num_examples, batch_size, epochs) == 0


def _rounded(num_examples: int, batch_size: int, epochs: float) -> int:
    return round(math.ceil(num_examples / batch_size) * epochs)


def order(num_examples: int, *, seed: int, task: int, epoch: int) -> list[int]:
    """The epoch's permutation of example indices."""
    return np.random.default_rng([seed, task, epoch]).permutation(num_examples).tolist()


def steps(
    examples: Sequence[Encoded],
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
    """The steps of one task from ``first`` on, as this rank sees them.

    Every rank gets equally many micro-batches of at most ``micro_batch_size`` examples and
    ``micro_batch_tokens`` tokens, padding counted, but for an example that is longer.
    """
    for index, chosen in batches(
        len(examples), batch_size=batch_size, epochs=epochs, seed=seed, task=task, first=first
    ):
        batch = [examples[i] for i in chosen]
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
                collate([batch[row] for row in part] or [blank(batch[0], pad_id)], pad_id, part)
                for part in [*parts, *[[]] * lacking]
            ),
        )


def batches(
    num_examples: int, *, batch_size: int, epochs: float, seed: int, task: int, first: int = 0
) -> Iterator[tuple[int, list[int]]]:
    """The steps of one task from ``first`` on: the index of each, and of its examples."""
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
    """For each rank its passes, and in a pass its rows of a step, which have so many tokens.

    By length, so that ranks have about as much to do as each other, and passes little padding: a
    pass ends with its longest row. The step is the same sum however it is cut.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return [
        _parts(by_length[rank::world_size], lengths, micro_batch_size, micro_batch_tokens)
        for rank in range(world_size)
    ]


def _parts(
    rows: Sequence[int], lengths: Sequence[int], most_rows: int | None, most_tokens: int
) -> list[list[int]]:
    """Rows, which come by length, in groups that one forward pass takes."""
    parts: list[list[int]] = []
    for row in rows:
        count = len(parts[-1]) + 1 if parts else 0
        full = count > (most_rows or count) or count * lengths[row] > most_tokens
        if not parts or full:
            parts.append([])
        parts[-1].append(row)
    return parts


def blank(like: Encoded, pad_id: int) -> Encoded:
    """An example that weighs nothing, for a model that reads examples ``like`` this one."""
    source = None if like.source is None else (pad_id, pad_id)
    return Encoded("", (pad_id, pad_id), num_answer=0, source=source)


def collate(
    examples: Sequence[Encoded], pad_id: int, rows: Sequence[int] | None = None
) -> MicroBatch:
    """Rows padded on the right to the longest.

    ``rows`` says which example of the step each is; default: the step's first ones.
    """
    input_ids, _ = pad_right([example.tokens for example in examples], pad_id)
    labels = torch.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        length, learned = len(example.tokens), example.num_answer
        labels[row, length - learned : length] = input_ids[row, length - learned : length]
    sources = [example.source for example in examples if example.source is not None]
    return MicroBatch(
        input_ids,
        labels,
        tuple(rows or range(len(examples))),
        *(pad_right(sources, pad_id) if sources else ()),
    )


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids as rows, padded on the right, and their mask."""
    shape = (len(sequences), max(len(sequence) for sequence in sequences))
    ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of tokens that end together, and their mask of 0 and 1; both (B, P)."""
    longest = max(len(row) for row in rows)
    ids_BP = torch.full((len(rows), longest), pad_id)
    mask_BP = torch.zeros_like(ids_BP)
    for i, row in enumerate(rows):
        ids_BP[i, longest - len(row) :] = torch.tensor(row)
        mask_BP[i, longest - len(row) :] = 1
    return ids_BP, mask_BP
