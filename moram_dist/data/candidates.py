"""A prompt and every label that may follow it, as tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from moram_dist.data.encode import cut_prompt, encode_training, plain, texts_of
from moram_dist.data.tokens import InBatches
from moram_dist.registry import InputError
from moram_dist.tasks.task import Example, Task

NO_LIMIT = sys.maxsize // 2
"""A length limit in tokens that never applies; halved because length rules add to it."""


@dataclass(frozen=True)
class Candidates:
    """One example's closed choice."""

    prefix: tuple[int, ...]
    """The tokens before every label: the prompt without the tokens that merge with a label when
    both are tokenised together, such as final white space. A prompt that a model reads separately
    from its answer is complete."""

    tails: tuple[tuple[int, ...], ...]
    """The tokens after the prefix, for each of the task's labels in order; each ends in EOS."""


def encode_candidates(tokenizer: Any, example: Example, task: Task) -> Candidates:
    """The labels of a task after one prompt, tokenised for a causal model as in training.

    If the prompt fits, prefix and tail together are the tokens that ``encode_training`` makes of
    the label. A longer prompt is cut by the rules of ``encode_prompt``: the question is the same as
    in generation, and no label loses its EOS to a long prompt. Training cuts in the same way,
    except for tasks with a ``shared_limit``.

    All tails begin at one position, the first at which any label differs from the prompt. So all
    are conditioned on the same tokens, even if the final white space of a prompt merges with the
    first token of some labels only.

    Raises:
        InputError: no token of the prompt is left before the labels.
    """
    uncut = replace(task, max_prompt_tokens=NO_LIMIT, num_bos=0)
    answered = [Example(example.id, example.prompt, (label,)) for label in task.labels]
    tokenizer = InBatches(tokenizer, [text for one in answered for text in texts_of(one, uncut)])
    prompt = plain(tokenizer, example.prompt)
    learned = [encode_training(tokenizer, one, uncut) for one in answered]
    start = min(len(one.tokens) - one.num_answer for one in learned)
    prefix = cut_prompt(tokenizer, prompt[:start], example.prompt, task)
    if not prefix or any(one.tokens[:start] != tuple(prompt[:start]) for one in learned):
        raise InputError(
            f"{task.name}: nothing of the prompt of {example.id} stands before every label, so "
            "none can be scored; leave the task to --answers generate"
        )
    return Candidates(tuple(prefix), tuple(one.tokens[start:] for one in learned))
