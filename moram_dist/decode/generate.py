"""Generate answers: greedy, by a protocol's repetition rules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.adapters.prompts import asking
from moram_dist.data.answers import read_answers
from moram_dist.data.encode import encode_prompt, encode_question
from moram_dist.data.stream import pad_left, pad_right
from moram_dist.decode.continuous_batching import (
    ContinuousBatcher,
    Request,
    Room,
    can_batch_continuously,
)
from moram_dist.decode.settings import decoder_start, generate
from moram_dist.tasks.task import Decoding, Example, Task


def generate_batch(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    task: Task,
    decoding: Decoding,
    *,
    synced: bool = False,
) -> list[str]:
    """Answers to a batch of prompts.

    Args:
        model: language model in eval mode, with ``generate``.
        tokenizer: with a pad token.
        examples: the batch; their prompts are encoded by the task's rules.
        task: prompt and answer lengths.
        decoding: repetition rules. As in the published scripts they look at the prompt too, unless
            an encoder reads it.
        synced: all ranks generate together, as sharded weights need; they go on until all are done.

    Returns:
        The answers as the task reads them, in the order of ``examples``.
    """
    if not synced and can_batch_continuously(model):
        asked = [(i, task, example) for i, example in enumerate(examples)]
        room = Room(rows=max(1, len(asked)), tokens=sys.maxsize)
        texts = dict(generate_stream(model, tokenizer, asked, decoding, room))
        return [texts[i] for i in range(len(examples))]
    start = decoder_start(model)
    prompts = [encode_question(tokenizer, example.prompt, task, start) for example in examples]
    if start is not None:
        # A decoder says nothing but the answer, after whatever prompt.
        task = replace(task, answer_after="")
    new_BT = greedy(
        model,
        tokenizer,
        prompts,
        max_new_tokens=task.max_answer_tokens,
        synced=synced,
        **asdict(decoding),
    )
    return read_answers(tokenizer, prompts, new_BT.tolist(), task)


def generate_stream(
    model: nn.Module,
    tokenizer: Any,
    asked: Iterable[tuple[int, Task, Example]],
    decoding: Decoding,
    room: Room,
) -> Iterator[tuple[int, str]]:
    """Answers as they end: what ``generate_batch`` makes of each prompt alone, to rounding.

    Args:
        model: one that ``can_batch_continuously``, with whole weights.
        tokenizer: as for ``generate_batch``.
        asked: a key of the caller's, and what is asked by which task's rules.
        decoding: as for ``generate_batch``.
        room: how many go on together.
    """
    tasks: dict[int, Task] = {}

    def rows() -> Iterator[Request]:
        for key, task, example in asked:
            tasks[key] = task
            yield Request(
                key, encode_prompt(tokenizer, example.prompt, task), task.max_answer_tokens
            )

    batcher = ContinuousBatcher(model, room, **_settings(tokenizer), **asdict(decoding))
    for row in batcher(rows()):
        task = tasks.pop(row.key)
        yield row.key, read_answers(tokenizer, [row.prompt], [row.said], task)[0]


@torch.no_grad()
def greedy(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    synced: bool = False,
    allowed: Callable[[int, Tensor], list[int]] | None = None,
    **rules: Any,
) -> Tensor:
    """The most likely next token, again and again, until EOS or ``max_new_tokens``.

    Args:
        model: as for ``generate_batch``.
        tokenizer: with a pad token.
        prompts: token ids of each row.
        synced: as for ``generate_batch``.
        allowed: which tokens may come next, by a row and all its tokens so far; default: all.
        rules: further fields of transformers' ``GenerationConfig``.

    Returns:
        New tokens only, (B, T); a row that ended early is padded.
    """
    device = next(iter(model.parameters())).device
    pad = pad_left if decoder_start(model) is None else pad_right
    input_ids, attention_mask = pad(prompts, tokenizer.pad_token_id)
    with asking(model, prompts):
        sequences = generate(
            model,
            _settings(tokenizer) | rules,
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            synced_gpus=synced,
            prefix_allowed_tokens_fn=allowed,
        )
    return sequences[:, num_before(model, prompts) :]


def _settings(tokenizer: Any) -> dict[str, Any]:
    """Fields of transformers' ``GenerationConfig``, for greedy decoding."""
    return {
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
    }


def num_before(model: nn.Module, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens of a generated row before the new ones: the padded prompt, or a decoder's start."""
    return max(map(len, prompts)) if decoder_start(model) is None else 1
