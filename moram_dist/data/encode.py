"""Text to tokens, by a protocol's rules for truncation, BOS, EOS and the answer's mask.

Source of the rules: the published TRACE and MoRAM collators; prompt and answer
are joined without a separator, and the loss sees the answer and EOS only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moram_dist.tasks.task import Example, Task


@dataclass(frozen=True)
class Encoded:
    """One training example as token ids; the last ``num_answer`` of them are learned."""

    id: str
    tokens: tuple[int, ...]
    num_answer: int


def plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the text alone, without BOS or EOS."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def cut(tokens: list[int], limit: int, side: str) -> list[int]:
    """At most ``limit`` tokens; ``side`` is the end that is cut away."""
    if len(tokens) <= limit:
        return tokens
    return tokens[len(tokens) - limit :] if side == "left" else tokens[:limit]


def encode_prompt(tokenizer: Any, prompt: str, task: Task) -> list[int]:
    """What generation starts from: BOS and the prompt, cut to ``task.max_prompt_tokens``.

    BOS is there only where the prompt left room for it, as in the published collator.
    """
    tokens = cut(plain(tokenizer, prompt), task.max_prompt_tokens, task.truncate_prompt)
    return _with_bos(tokenizer, tokens, task.max_prompt_tokens)


def encode_training(tokenizer: Any, example: Example, task: Task) -> Encoded:
    """Prompt, answer and EOS, cut to the task's lengths, with the answer marked.

    ``truncate_prompt == "left"``: prompt and answer are tokenised together and lose their head when
    too long; the answer's length is measured on the answer alone. ``"right"``: the prompt's tail is
    cut so that the whole answer fits.
    """
    limit = task.max_prompt_tokens + task.max_answer_tokens
    answer = plain(tokenizer, example.references[0])
    if task.truncate_prompt == "right":
        room = max(task.max_answer_tokens + 2, 32)
        answer = [*answer, tokenizer.eos_token_id][:room]
        prompt = cut(plain(tokenizer, example.prompt), limit - len(answer) - 1, "right")
        tokens = _with_bos(tokenizer, [*prompt, *answer], limit)
        return Encoded(example.id, tuple(tokens), len(answer))
    tokens = cut(plain(tokenizer, example.prompt + example.references[0]), limit, "left")
    num_answer = len(answer)
    if len(tokens) < limit:
        tokens = [*tokens, tokenizer.eos_token_id]
        num_answer += 1
    tokens = _with_bos(tokenizer, tokens, limit)
    return Encoded(example.id, tuple(tokens), min(num_answer, len(tokens) - 1))


def _with_bos(tokenizer: Any, tokens: list[int], limit: int) -> list[int]:
    if tokenizer.bos_token_id is None or len(tokens) >= limit:
        return tokens
    return [tokenizer.bos_token_id, *tokens]
