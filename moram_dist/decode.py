"""Generate answers in batches: greedy, by a protocol's repetition rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from moram_dist.data.answers import read_answers
from moram_dist.data.encode import encode_prompt
from moram_dist.tasks.task import Decoding, Example, Task


@torch.no_grad()
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
        model: causal language model in eval mode, with ``generate``.
        tokenizer: with a pad token.
        examples: the batch; their prompts are encoded by the task's rules and padded on the left.
        task: prompt and answer lengths.
        decoding: repetition rules. As in the published scripts they look at the prompt too.
        synced: all ranks generate together, as sharded weights need; they go on until all are done.

    Returns:
        The answers as the task reads them, in the order of ``examples``.
    """
    prompts = [encode_prompt(tokenizer, example.prompt, task) for example in examples]
    longest = max(len(tokens) for tokens in prompts)
    device = next(iter(model.parameters())).device
    input_ids = torch.full((len(prompts), longest), tokenizer.pad_token_id, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(prompts):
        input_ids[row, longest - len(tokens) :] = torch.tensor(tokens, device=device)
        attention_mask[row, longest - len(tokens) :] = 1
    sequences = model.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=attention_mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=task.max_answer_tokens,
        repetition_penalty=decoding.repetition_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        synced_gpus=synced,
    )
    return read_answers(tokenizer, sequences, longest, task)
