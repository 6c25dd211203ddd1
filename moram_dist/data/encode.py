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
    """Prompt and answer; for an encoder-decoder model the decoder's: its start, and the answer."""

    num_answer: int
    source: tuple[int, ...] | None = None
    """What an encoder reads; None for a causal model."""

    @property
    def num_tokens(self) -> int:
        """That a model reads."""
        return len(self.tokens) + len(self.source or ())


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


def encode_training(
    tokenizer: Any, example: Example, task: Task, decoder_start: int | None = None
) -> Encoded:
    """Prompt, answer and EOS, cut to the task's lengths, with the answer marked.

    With ``decoder_start``, for an encoder-decoder model: see ``encode_pair``. Else joined:

    ``truncate_prompt == "left"``: prompt and answer are tokenised together and lose their head when
    too long; EOS and BOS are added where there is room. The answer is what differs from the prompt
    tokenised alone. (The published collator tokenises the answer alone to count it. With
    SentencePiece that may be one short, and the answer's beginning is not learned, or one too
    many; docs/log.md has how often.)
    ``"right"``: prompt and answer are tokenised apart, and the prompt's tail is cut so that the
    whole answer fits.
    """
    if decoder_start is not None:
        return encode_pair(tokenizer, example, task, decoder_start)
    limit = task.max_prompt_tokens + task.max_answer_tokens
    prompt, answer = example.prompt, example.references[0]
    if not prompt[-1:].isspace():
        answer = task.separator + answer
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


def encode_source(tokenizer: Any, prompt: str, task: Task) -> list[int]:
    """What an encoder reads: the prompt and EOS, ``task.max_prompt_tokens`` at most.

    Where the tail of a long prompt is cut away, the tokens that are kept go through text once more,
    as in the published collators of SAPT and O-LoRA (Tk-Instruct's): the pieces that come of it may
    be others than those that were cut.
    """
    limit = task.max_prompt_tokens
    tokens = plain(tokenizer, prompt)
    if len(tokens) >= limit and task.truncate_prompt == "right":
        text = tokenizer.decode(
            tokens[:limit], skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        tokens = plain(tokenizer, text)
    return [*cut(tokens, limit - 1, task.truncate_prompt), tokenizer.eos_token_id]


def encode_pair(tokenizer: Any, example: Example, task: Task, decoder_start: int) -> Encoded:
    """For an encoder-decoder model: the prompt as its source, and the answer with EOS to learn.

    Args:
        tokenizer: one that ends a text with EOS and adds no other token, such as T5's.
        example: its first reference is learned.
        task: how long both may be, EOS included. Its separator has nothing to stand between.
        decoder_start: the token that the decoder starts from.
    """
    answer = plain(tokenizer, example.references[0])[: task.max_answer_tokens - 1]
    return Encoded(
        example.id,
        (decoder_start, *answer, tokenizer.eos_token_id),
        num_answer=len(answer) + 1,
        source=tuple(encode_source(tokenizer, example.prompt, task)),
    )


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _with_bos(tokenizer: Any, tokens: list[int], limit: int) -> list[int]:
    if tokenizer.bos_token_id is None or len(tokens) >= limit:
        return tokens
    return [tokenizer.bos_token_id, *tokens]
