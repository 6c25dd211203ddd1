"""From generated tokens to the answer that is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moram_dist.tasks.task import Task


def read_answers(
    tokenizer: Any, prompts: Sequence[Sequence[int]], new: Sequence[Sequence[int]], task: Task
) -> list[str]:
    """The answers in what a model generated.

    Args:
        tokenizer: the model's.
        prompts: token ids of each prompt, without padding.
        new: those that were generated after each.
        task: ``answer_after`` says what of a text is the answer.

    Returns:
        The new text, special tokens removed. With ``task.answer_after``, what follows its last
        occurrence in prompt and new text together, stripped; empty where it does not occur.
    """
    mark = task.answer_after
    rows = [[*p, *n] for p, n in zip(prompts, new, strict=True)] if mark else new
    texts = tokenizer.batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    if not mark:
        return texts
    parts = (text.rpartition(mark) for text in texts)
    return [answer.strip() if found else "" for _, found, answer in parts]
