"""A prompt and every label that may follow it, as tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from moram_dist.data.encode import cut_prompt, encode_pair, encode_training, plain
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example, Task

_NO_LIMIT = sys.maxsize // 2


@dataclass(frozen=True)
class Candidates:
    """One example's closed choice."""

    prefix: tuple[int, ...]
    """What all labels follow: the prompt, less tokens that merge with a label when both are
    tokenised together, such as the white space that a prompt ends in. For an encoder-decoder model
    what the encoder reads."""

    tails: tuple[tuple[int, ...], ...]
    """What follows, for each of the task's labels in their order; each ends in EOS."""


def encode_candidates(
    tokenizer: Any, example: Example, task: Task, decoder_start: int | None = None
) -> Candidates:
    """The labels of a task after one prompt, as training would tokenise them.

    ``decoder_start`` as for ``encode_training``. Of a causal model:

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
    if decoder_start is not None:
        uncut = replace(task, max_answer_tokens=_NO_LIMIT)
        asked = (Example(example.id, example.prompt, (label,)) for label in task.labels)
        pairs = [encode_pair(tokenizer, one, uncut, decoder_start) for one in asked]
        return Candidates(pairs[0].source or (), tuple(pair.tokens[1:] for pair in pairs))
    uncut = replace(task, max_prompt_tokens=_NO_LIMIT, num_bos=0)
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
