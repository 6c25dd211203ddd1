"""Generate answers in batches: greedy, by a protocol's repetition rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.data.encode import encode_prompt, encode_source
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
        model: language model in eval mode, with ``generate``.
        tokenizer: with a pad token.
        examples: the batch; their prompts are encoded by the task's rules.
        task: prompt and answer lengths.
        decoding: repetition rules. As in the published scripts they look at the prompt too, where
            it is not an encoder's.
        synced: all ranks generate together, as sharded weights need; they go on until all are done.

    Returns:
        New text only, special tokens removed, in the order of ``examples``.
    """
    inputs = _prompts(model, tokenizer, examples, task)
    sequences = model.generate(  # type: ignore[operator]
        **inputs,
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
    # A decoder's sequence begins with its start token, a causal model's with the prompt.
    old = 1 if _has_encoder(model) else inputs["input_ids"].shape[1]
    return tokenizer.batch_decode(
        sequences[:, old:], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def _has_encoder(model: nn.Module) -> bool:
    return model.config.is_encoder_decoder  # type: ignore[union-attr, return-value]


def _prompts(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], task: Task
) -> dict[str, Tensor]:
    """Token ids and their mask, padded: on the left where the answer follows, else on the right."""
    encode = encode_source if _has_encoder(model) else encode_prompt
    prompts = [encode(tokenizer, example.prompt, task) for example in examples]
    longest = max(len(tokens) for tokens in prompts)
    device = next(iter(model.parameters())).device
    input_ids = torch.full((len(prompts), longest), tokenizer.pad_token_id, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(prompts):
        first = 0 if _has_encoder(model) else longest - len(tokens)
        input_ids[row, first : first + len(tokens)] = torch.tensor(tokens, device=device)
        attention_mask[row, first : first + len(tokens)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
