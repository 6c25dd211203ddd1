"""Text to a causal model's tokens, by a protocol's rules for length, BOS, EOS and the mask.

The rules are fields of the task. Those of TRACE, the default, come from the published TRACE and
MoRAM collators, those of SAPT and O-LoRA from theirs (docs/benchmarks.md). Nothing stands between
prompt and answer but the task's separator, and the loss sees the answer and EOS only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, Protocol

from moram_dist.tasks.task import Example, Task


class EncodedExample(Protocol):
    """A training example as a model family encodes it, whatever else the family keeps of it."""

    @property
    def id(self) -> str:
        """That of the example."""
        ...

    @property
    def num_answer(self) -> int:
        """How many tokens of it are learned."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many a model reads: what a micro-batch may hold is counted in them."""
        ...


@dataclass(frozen=True)
class Encoded:
    """One training example as token ids; the last ``num_answer`` of them are learned."""

    id: str
    tokens: tuple[int, ...]
    num_answer: int

    @property
    def num_tokens(self) -> int:
        """That a model reads."""
        return len(self.tokens)


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

    Where the task's lengths are shared, BOS is there only if the prompt left room for it, as in the
    published TRACE collator; else BOS stays and the prompt is cut to what it leaves.
    """
    return cut_prompt(tokenizer, plain(tokenizer, prompt), prompt, task)


def cut_prompt(tokenizer: Any, tokens: list[int], prompt: str, task: Task) -> list[int]:
    """BOS and the tokens of a prompt, or of its beginning, as ``encode_prompt`` cuts them."""
    if task.shared_limit:
        tokens = cut(tokens, task.max_prompt_tokens, task.truncate_prompt)
        return _with_bos(tokenizer, tokens, task, task.max_prompt_tokens)
    return _bounded(tokenizer, tokens, prompt, task)


def fits(tokenizer: Any, task: Task, prompt: str) -> bool:
    """Whether ``encode_prompt`` would cut nothing away, and no special token either."""
    unlimited = replace(task, max_prompt_tokens=sys.maxsize)
    return len(encode_prompt(tokenizer, prompt, unlimited)) <= task.max_prompt_tokens


def answer_text(example: Example, task: Task) -> str:
    """The answer that is learned, as it stands right after the prompt."""
    return ("" if example.prompt[-1:].isspace() else task.separator) + example.references[0]


def encode_training(tokenizer: Any, example: Example, task: Task) -> Encoded:
    """Prompt, answer and EOS, cut to the task's lengths, with the answer marked.

    ``task.joined``: prompt and answer are tokenised as one text. The answer is what differs from
    the prompt tokenised alone. (The published collator tokenises the answer alone to count it. With
    SentencePiece that may be one short, and the answer's beginning is not learned, or one too
    many; docs/log.md has how often.) Else each is tokenised alone.

    ``task.shared_limit``, with the head cut: prompt, answer and EOS lose their head when too long
    together; EOS and BOS are added where there is room. With the tail cut: the prompt's tail goes
    so that the whole answer fits. Without it, the prompt is cut as ``encode_prompt`` does, and
    answer and EOS to ``task.max_answer_tokens``.
    """
    prompt, answer = example.prompt, answer_text(example, task)
    asked, learned = plain(tokenizer, prompt), plain(tokenizer, answer)
    if task.joined:
        tokens = plain(tokenizer, prompt + answer)
        start = _common(asked, tokens)
        asked, learned = tokens[:start], tokens[start:]
    end = tokenizer.eos_token_id
    if not task.shared_limit:
        learned = [*learned, end][: task.max_answer_tokens]
        asked = _bounded(tokenizer, asked, prompt, task)
        return Encoded(example.id, (*asked, *learned), len(learned))
    limit = task.max_prompt_tokens + task.max_answer_tokens
    if task.truncate_prompt == "right":
        learned = [*learned, end][: max(task.max_answer_tokens + 2, 32)]
        asked = cut(asked, limit - len(learned) - 1, "right")
        tokens = _with_bos(tokenizer, [*asked, *learned], task, limit)
        return Encoded(example.id, tuple(tokens), len(learned))
    tokens, num_answer = cut([*asked, *learned], limit, "left"), len(learned)
    if len(tokens) < limit:
        tokens = [*tokens, end]
        num_answer += 1
    tokens = _with_bos(tokenizer, tokens, task, limit)
    return Encoded(example.id, tuple(tokens), min(num_answer, len(tokens) - 1))


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _bounded(tokenizer: Any, tokens: list[int], prompt: str, task: Task) -> list[int]:
    """BOS and a prompt's tokens in at most ``task.max_prompt_tokens``, the cue left in place."""
    bos = _bos(tokenizer, task)
    room = max(task.max_prompt_tokens - len(bos), 0)
    if len(tokens) <= room or not task.cue:
        return [*bos, *cut(tokens, room, task.truncate_prompt)]
    # Tokenised alone, the cue may be other tokens than at the prompt's end.
    body = _common(plain(tokenizer, prompt.removesuffix(task.cue)), tokens)
    kept = cut(tokens[body:], room, "left")
    return [*bos, *cut(tokens[:body], room - len(kept), task.truncate_prompt), *kept]


def _bos(tokenizer: Any, task: Task) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id] * task.num_bos


def _with_bos(tokenizer: Any, tokens: list[int], task: Task, limit: int) -> list[int]:
    bos = _bos(tokenizer, task)
    return [*bos, *tokens] if len(bos) + len(tokens) <= limit else tokens
