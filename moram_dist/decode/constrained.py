"""Greedy generation that can say nothing but one of a task's labels."""

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
    """The label that each prompt's greedy walk through the labels' tokens ends at.

    At each step the most likely of the tokens by which some label goes on is taken, EOS after a
    whole label included. So a label is chosen token by token, where ``labels`` compares whole ones.
    A protocol's repetition rules are off: they may forbid a label that the prompt names.

    Args:
        model: as for ``greedy``.
        tokenizer: likewise.
        choices: the batch.
        labels: those that are the tails of each choice, in that order.
        begin: as for ``greedy``.
        synced: likewise.
    """

    def allowed(row: int, said: list[int]) -> list[int]:
        following = _following(choices[row], said)
        return following or [tokenizer.pad_token_id]  # the row has ended, others go on

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
    """Tokens by which some label goes on after what was said."""
    n = len(said)
    return sorted({tail[n] for tail in one.tails if len(tail) > n and [*tail[:n]] == said})
