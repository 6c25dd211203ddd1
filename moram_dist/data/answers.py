"""From generated tokens to the answer that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moram_dist.data.encode import plain
from moram_dist.tasks.task import Task


def read_answers(
    tokenizer: Any, prompts: Sequence[Sequence[int]], new: Sequence[Sequence[int]], task: Task
) -> list[str]:
    """Extract the answers from generated tokens.

    Args:
        tokenizer: the model's.
        prompts: token ids of each prompt, without padding.
        new: the token ids generated after each prompt.
        task: ``answer_after`` says which part of a text is the answer.

    Returns:
        The new text without special tokens, up to ``task.ending``. With ``task.answer_after``, the
        text after its last occurrence in prompt and new text together, stripped; empty where it
        does not occur.
    """
    mark = task.answer_after
    if task.ending:
        return [_until(tokenizer, row, task.ending) for row in new]
    rows = [[*p, *n] for p, n in zip(prompts, new, strict=True)] if mark else new
    texts = tokenizer.batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    if not mark:
        return texts
    parts = (text.rpartition(mark) for text in texts)
    return [answer.strip() if found else "" for _, found, answer in parts]


def _until(tokenizer: Any, tokens: Sequence[int], ending: str) -> str:
    """The text of tokens before ``ending``, which may be or hold a token that decoding skips."""

    def text(some: Sequence[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    skipped = {token for token in plain(tokenizer, ending) if not text([token])}
    kept = next((tokens[:i] for i, token in enumerate(tokens) if token in skipped), tokens)
    return text(kept).partition(ending)[0]
