"""Text to tokens, by a protocol's rules for truncation, BOS, EOS and the answer's mask.

Source of the rules: the published TRACE and MoRAM collators; prompt and answer
are joined without a separator, and the loss sees the answer and EOS only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
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


def fits(tokenizer: Any, task: Task, prompt: str) -> bool:
    """Whether ``encode_prompt`` would cut nothing away, and no special token either."""
    unlimited = replace(task, max_prompt_tokens=sys.maxsize)
    return len(encode_prompt(tokenizer, prompt, unlimited)) <= task.max_prompt_tokens


def answer_text(example: Example, task: Task) -> str:
    """The answer that is learned, as it stands right after the prompt."""
    return ("" if example.prompt[-1:].isspace() else task.separator) + example.references[0]


def encode_training(tokenizer: Any, example: Example, task: Task) -> Encoded:
    """Prompt, answer and EOS, cut to the task's lengths, with the answer marked.

    ``truncate_prompt == "left"``: prompt and answer are tokenised together and lose their head when
    too long; EOS and BOS are added where there is room. The answer is what differs from the prompt
    tokenised alone. (The published collator tokenises the answer alone to count it. With
    SentencePiece that may be one short, and the answer's beginning is not learned, or one too
    many; docs/log.md has how often.)
    ``"right"``: prompt and answer are tokenised apart, and the prompt's tail is cut so that the
    whole answer fits.
    """
    limit = task.max_prompt_tokens + task.max_answer_tokens
    prompt, answer = example.prompt, answer_text(example, task)
    if task.truncate_prompt == "right":
        room = max(task.max_answer_tokens + 2, 32)
        learned = [*plain(tokenizer, answer), tokenizer.eos_token_id][:room]
        asked = cut(plain(tokenizer, prompt), limit - len(learned) - 1, "right")
        tokens = _with_bos(tokenizer, [*asked, *learned], limit)
        return Encoded(example.id, tuple(tokens), len(learned))
    tokens = plain(tokenizer, prompt + answer)
    num_answer = len(tokens) - _common(plain(tokenizer, prompt), tokens)
    tokens = cut(tokens, limit, "left")
    if len(tokens) < limit:
        tokens = [*tokens, tokenizer.eos_token_id]
        num_answer += 1
    tokens = _with_bos(tokenizer, tokens, limit)
    return Encoded(example.id, tuple(tokens), min(num_answer, len(tokens) - 1))


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _with_bos(tokenizer: Any, tokens: list[int], limit: int) -> list[int]:
    if tokenizer.bos_token_id is None or len(tokens) >= limit:
        return tokens
    return [tokenizer.bos_token_id, *tokens]
