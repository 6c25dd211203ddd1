"""From generated tokens to the answer that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moram_dist.tasks.task import Task


def read_answers(
    tokenizer: Any, sequences: Sequence[Sequence[int]], num_prompt: int, task: Task
) -> list[str]:
    """The answers in what a decoder-only model generated.

    Args:
        tokenizer: the model's.
        sequences: (B, S) token ids, padding, prompt and new tokens.
        num_prompt: S of the padded prompts.
        task: ``answer_after`` says what of a text is the answer.

    Returns:
        The new text, special tokens removed. With ``task.answer_after``, what follows its last
        occurrence in prompt and new text together, stripped; empty where it does not occur.
    """
    start = 0 if task.answer_after else num_prompt
    texts = tokenizer.batch_decode(
        [row[start:] for row in sequences],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    if not task.answer_after:
        return texts
    parts = (text.rpartition(task.answer_after) for text in texts)
    return [answer.strip() if mark else "" for _, mark, answer in parts]
