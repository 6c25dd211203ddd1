"""Encode text for a causal model by a protocol's rules for length, BOS, EOS and the mask.

The rules are fields of the task. The default, TRACE, follows the published TRACE and MoRAM
collators; SAPT and O-LoRA follow theirs (docs/benchmarks.md). Only the task's separator comes
between prompt and answer, and the loss covers only the answer and EOS.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from moram_dist.tasks.task import Example, Task


class EncodedExample(Protocol):
    """A training example encoded by a model family, which may add further fields."""

    @property
    def id(self) -> str:
        """The example's id."""
        ...

    @property
    def num_answer(self) -> int:
        """Number of tokens that are learned."""
        ...

    @property
    def num_tokens(self) -> int:
        """Number of tokens that a model reads; the size of a micro-batch is limited in them."""
        ...


Span = tuple[int, int]
"""Indices of the first token and of the one after the last."""


@dataclass(frozen=True)
class Encoded:
    """One training example as token ids; the last ones are learned."""

    id: str
    tokens: tuple[int, ...]
    num_answer: int
    """Number of tokens that are learned."""

    earlier: tuple[Span, ...] = field(default=(), kw_only=True)
    """Tokens before the last ones that are learned too, in order."""

    @property
    def learned(self) -> tuple[Span, ...]:
        """All tokens that are learned."""
        end = len(self.tokens)
        last = self.num_answer - sum(b - a for a, b in self.earlier)
        return (*self.earlier, (end - last, end))

    @property
    def num_tokens(self) -> int:
        """Number of tokens that a model reads."""
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
    """The tokens from which generation starts: BOS and prompt in ``task.max_prompt_tokens``.

    With ``task.shared_limit``, BOS is added only if the prompt leaves room for it, as in the
    published TRACE collator; otherwise the prompt is cut to leave room for BOS.
    """
    return cut_prompt(tokenizer, plain(tokenizer, prompt), prompt, task)


def cut_prompt(tokenizer: Any, tokens: list[int], prompt: str, task: Task) -> list[int]:
    """BOS and the tokens of a prompt or of its beginning, cut as in ``encode_prompt``."""
    if task.shared_limit:
        tokens = cut(tokens, task.max_prompt_tokens, task.truncate_prompt)
        return _with_bos(tokenizer, tokens, task, task.max_prompt_tokens)
    return _bounded(tokenizer, tokens, prompt, task)


def answer_text(example: Example, task: Task) -> str:
    """The answer that is learned, with the separator where the prompt needs one, and the ending."""
    before = "" if example.prompt[-1:].isspace() else task.separator
    return before + example.references[0] + task.ending


def texts_of(example: Example, task: Task) -> list[str]:
    """The texts that ``encode_training`` tokenises."""
    answer = answer_text(example, task)
    joined = [example.prompt + answer] if task.joined else []
    ends = {end for span in example.learned for end in span}
    return [example.prompt, answer, *joined, *(example.prompt[:end] for end in sorted(ends))]


def encode_training(tokenizer: Any, example: Example, task: Task) -> Encoded:
    """Prompt, answer and EOS, cut to the task's lengths, with the answer marked.

    Without ``task.joined``, prompt and answer are tokenised separately. With it, they are tokenised
    as one text, and the answer begins at the first token that differs from the prompt alone. (The
    published collator counts the tokens of the answer alone. With SentencePiece this may be one too
    few, so that its beginning is not learned, or one too many; docs/log.md says how often.)

    With ``task.shared_limit`` and truncation on the left, prompt, answer and EOS together lose
    their head; EOS and BOS are added if there is room. With truncation on the right, the prompt
    loses its tail so that the whole answer fits. Without ``task.shared_limit``, the prompt is cut
    as in ``encode_prompt``, and answer and EOS to ``task.max_answer_tokens``.

    Parts of the prompt that are learned too begin where the answer would: at the first token that
    differs from the text before them alone. Only the default rules can have such parts.
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
        asked = cut(asked, max(0, limit - len(learned) - 1), "right")
        tokens = _with_bos(tokenizer, [*asked, *learned], task, limit)
        return Encoded(example.id, tuple(tokens), len(learned))
    spans = _learned_of_prompt(tokenizer, example, asked)
    tokens, num_answer = cut([*asked, *learned], limit, "left"), len(learned)
    if len(tokens) < limit:
        tokens = [*tokens, end]
        num_answer += 1
    tokens = _with_bos(tokenizer, tokens, task, limit)
    num_answer = min(num_answer, len(tokens) - 1)
    moved = len(tokens) - num_answer - len(asked)  # BOS minus what is cut
    # A row's first token is never predicted.
    earlier = tuple((max(a + moved, 1), b + moved) for a, b in spans if b + moved > 1)
    total = num_answer + sum(b - a for a, b in earlier)
    return Encoded(example.id, tuple(tokens), total, earlier=earlier)


def _learned_of_prompt(tokenizer: Any, example: Example, asked: list[int]) -> list[Span]:
    """The tokens of the prompt that are learned, as spans that do not touch the answer."""

    def index(end: int) -> int:
        return _common(plain(tokenizer, example.prompt[:end]), asked)

    spans = [(index(first), index(end)) for first, end in example.learned]
    return [(first, end) for first, end in spans if first < end]


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _bounded(tokenizer: Any, tokens: list[int], prompt: str, task: Task) -> list[int]:
    """BOS and a prompt's tokens in at most ``task.max_prompt_tokens``; the cue is kept."""
    bos = _bos(tokenizer, task)
    room = max(task.max_prompt_tokens - len(bos), 0)
    if len(tokens) <= room or not task.cue:
        return [*bos, *cut(tokens, room, task.truncate_prompt)]
    # The cue may be tokenised differently alone and at the end of a prompt.
    body = _common(plain(tokenizer, prompt.removesuffix(task.cue)), tokens)
    kept = cut(tokens[body:], room, "left")
    return [*bos, *cut(tokens[:body], room - len(kept), task.truncate_prompt), *kept]


def _bos(tokenizer: Any, task: Task) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id] * task.num_bos


def _with_bos(tokenizer: Any, tokens: list[int], task: Task, limit: int) -> list[int]:
    bos = _bos(tokenizer, task)
    return [*bos, *tokens] if len(bos) + len(tokens) <= limit else tokens
