"""Generate answers greedily with a protocol's repetition rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.adapters.prompts import asking
from moram_dist.data.answers import read_answers
from moram_dist.data.encode import encode_prompt
from moram_dist.data.stream import pad_left
from moram_dist.decode.continuous_batching import ContinuousBatcher, Request, Room
from moram_dist.decode.settings import generate
from moram_dist.tasks.task import Decoding, Example, Task


@dataclass(frozen=True)
class Beginning:
    """Arguments of transformers' ``generate`` for a batch of prompts."""

    input_ids: Tensor
    attention_mask: Tensor
    num_before: int
    """Tokens of a row that ``generate`` returns before the new ones."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of ``GenerationConfig``."""


Begin = Callable[[Sequence[Sequence[int]], int], Beginning]
"""Called with the token ids of each prompt and the pad token."""


def after_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> Beginning:
    """A causal model continues the rows of the prompts, which are padded on the left."""
    input_ids, attention_mask = pad_left(prompts, pad_id)
    return Beginning(input_ids, attention_mask, input_ids.shape[1])


def generate_stream(
    model: nn.Module,
    tokenizer: Any,
    asked: Iterable[tuple[int, Task, Example]],
    decoding: Decoding,
    room: Room,
) -> Iterator[tuple[int, str]]:
    """Yield (key, answer) as each is complete; up to rounding, the same as for each prompt alone.

    Args:
        model: one that ``can_batch_continuously``, with whole weights.
        tokenizer: with a pad token.
        asked: the caller's key, the task with the rules, and the example.
        decoding: repetition rules. As in the published scripts, they include the prompt.
        room: how many rows may be active together.
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
    begin: Begin = after_prompts,
    synced: bool = False,
    allowed: Callable[[int, list[int]], list[int]] | None = None,
    streamer: Any = None,
    **rules: Any,
) -> Tensor:
    """Take the most likely next token until EOS or ``max_new_tokens``.

    Args:
        model: language model in eval mode, with ``generate``.
        tokenizer: with a pad token.
        prompts: token ids of each row.
        begin: makes the model's inputs from the prompts.
        synced: all ranks generate together until all are done, as sharded weights need.
        allowed: the tokens that may come next, given a row and its new tokens; default: all.
        streamer: of transformers, which gets the tokens of a single row as they come.
        rules: further fields of transformers' ``GenerationConfig``.

    Returns:
        New tokens only, (B, T); a row that ended early is padded.
    """
    device = next(iter(model.parameters())).device
    start = begin(prompts, tokenizer.pad_token_id)

    def may_follow(row: int, ids: Tensor) -> list[int]:
        assert allowed is not None
        return allowed(row, ids[start.num_before :].tolist())

    with asking(model, prompts):
        sequences = generate(
            model,
            _settings(tokenizer) | dict(start.settings) | rules,
            input_ids=start.input_ids.to(device),
            attention_mask=start.attention_mask.to(device),
            synced_gpus=synced,
            prefix_allowed_tokens_fn=None if allowed is None else may_follow,
            streamer=streamer,
        )
    return sequences[:, start.num_before :]


def _settings(tokenizer: Any) -> dict[str, Any]:
    """Fields of transformers' ``GenerationConfig``, for greedy decoding."""
    return {
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
    }
