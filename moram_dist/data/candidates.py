"""A prompt and every label that may follow it, as tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from moram_dist.data.encode import cut_prompt, encode_training, plain
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example, Task

NO_LIMIT = sys.maxsize // 2
"""In tokens: rules for lengths add to it."""


@dataclass(frozen=True)
class Candidates:
    """One example's closed choice."""

    prefix: tuple[int, ...]
    """What all labels follow: the prompt, less tokens that merge with a label when both are
    tokenised together, such as the white space that a prompt ends in. Where a prompt is read apart
    from its answer, all of it."""

    tails: tuple[tuple[int, ...], ...]
    """What follows, for each of the task's labels in their order; each ends in EOS."""


def encode_candidates(tokenizer: Any, example: Example, task: Task) -> Candidates:
    """The labels of a task after one prompt, as training would tokenise them for a causal model.

    Prefix and tail are together what ``encode_training`` makes of the label, wherever the prompt
    has room. A longer one is cut by the rules of ``encode_prompt``, so that the question is that of
    generation and no label loses its EOS for what stands before it. Training does the same but
    for tasks with a ``shared_limit``.

    All tails begin at one place, the first at which any label differs from the prompt. So each is
    conditioned on the same tokens, also where the white space that ends a prompt becomes part of
    some labels' first token and stays apart from others'.

    Raises:
        InputError: nothing of the prompt is left before the labels.
    """
    uncut = replace(task, max_prompt_tokens=NO_LIMIT, num_bos=0)
    prompt = plain(tokenizer, example.prompt)
    learned = [
        encode_training(tokenizer, Example(example.id, example.prompt, (label,)), uncut)
        for label in task.labels
    ]
    start = min(len(one.tokens) - one.num_answer for one in learned)
    prefix = cut_prompt(tokenizer, prompt[:start], example.prompt, task)
    if not prefix or any(one.tokens[:start] != tuple(prompt[:start]) for one in learned):
        raise InputError(
            f"{task.name}: nothing of the prompt of {example.id} stands before every label, so "
            "none can be scored; leave the task to --answers generate"
        )
    return Candidates(tuple(prefix), tuple(one.tokens[start:] for one in learned))
