"""Greedy generation that can say nothing but one of a task's labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from moram_dist.data.candidates import Candidates, encode_candidates
from moram_dist.decode.generate import greedy, num_before
from moram_dist.decode.settings import decoder_start
from moram_dist.tasks.task import Example, Task


def choose_batch(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    task: Task,
    *,
    synced: bool = False,
) -> list[str]:
    """The label that each prompt's greedy walk through the labels' tokens ends at.

    At each step the most likely of the tokens by which some label goes on is taken, EOS after a
    whole label included. So a label is chosen token by token, where ``labels`` compares whole ones.
    A protocol's repetition rules are off: they may forbid a label that the prompt names.

    Args are those of ``generate_batch``.
    """
    start = decoder_start(model)
    choices = [encode_candidates(tokenizer, example, task, start) for example in examples]
    prompts = [one.prefix for one in choices]
    before = num_before(model, prompts)

    def allowed(row: int, ids: Tensor) -> list[int]:
        following = _following(choices[row], ids[before:].tolist())
        return following or [tokenizer.pad_token_id]  # the row has ended, others go on

    new_BT = greedy(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max(len(tail) for one in choices for tail in one.tails),
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        synced=synced,
        allowed=allowed,
    )
    return [
        next(
            label
            for label, tail in zip(task.labels, one.tails, strict=True)
            if tuple(row[: len(tail)]) == tail
        )
        for one, row in zip(choices, new_BT.tolist(), strict=True)
    ]


def _following(one: Candidates, said: list[int]) -> list[int]:
    """Tokens by which some label goes on after what was said."""
    n = len(said)
    return sorted({tail[n] for tail in one.tails if len(tail) > n and [*tail[:n]] == said})
