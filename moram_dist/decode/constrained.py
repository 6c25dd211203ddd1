"""Greedy generation that can produce only a task's labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from moram_dist.data.candidates import Candidates
from moram_dist.decode.generate import Begin, after_prompts, greedy


def choose_labels(
    model: nn.Module,
    tokenizer: Any,
    choices: Sequence[Candidates],
    labels: Sequence[str],
    *,
    begin: Begin = after_prompts,
    synced: bool = False,
) -> list[str]:
    """The label that greedy decoding produces for each prompt.

    Each step takes the most likely of the tokens that continue some label, or EOS after a whole
    label. So labels are chosen token by token; the answer mode ``labels`` compares whole labels.
    A protocol's repetition rules are off: they could forbid a label that the prompt names.

    Args:
        model: as for ``greedy``.
        tokenizer: as for ``greedy``.
        choices: the batch.
        labels: the labels of each choice's tails, in that order.
        begin: as for ``greedy``.
        synced: as for ``greedy``.
    """

    def allowed(row: int, said: list[int]) -> list[int]:
        following = _following(choices[row], said)
        return following or [tokenizer.pad_token_id]  # this row has ended, others have not

    new_BT = greedy(
        model,
        tokenizer,
        [one.prefix for one in choices],
        begin=begin,
        max_new_tokens=max(len(tail) for one in choices for tail in one.tails),
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        synced=synced,
        allowed=allowed,
    )
    return [
        next(
            label
            for label, tail in zip(labels, one.tails, strict=True)
            if tuple(row[: len(tail)]) == tail
        )
        for one, row in zip(choices, new_BT.tolist(), strict=True)
    ]


def _following(one: Candidates, said: list[int]) -> list[int]:
    """Tokens that continue some label after the tokens in ``said``."""
    n = len(said)
    return sorted({tail[n] for tail in one.tails if len(tail) > n and [*tail[:n]] == said})
