"""Write chats as text with the tokenizer's own template.

The last answer of a chat is learned and scored. Its prompt is the template's text of all turns
before it, up to the point where the model answers. The template also adds BOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Example, Task


def has_chats(benchmark: Benchmark) -> bool:
    """Whether any example is a chat, for which ``write_chats`` needs the tokenizer."""
    return any(e.turns for task in benchmark.tasks for e in (*task.train, *task.test))


def write_chats(benchmark: Benchmark, tokenizer: Any) -> Benchmark:
    """The benchmark with every chat's prompt written by the tokenizer's template.

    Raises:
        InputError: a task mixes chats with other records, the tokenizer has no template, or the
            template fails on a chat or does not write its answer unchanged after the prompt.
    """
    return replace(benchmark, tasks=tuple(_task(task, tokenizer) for task in benchmark.tasks))


def _task(task: Task, tokenizer: Any) -> Task:
    chats = [bool(example.turns) for example in (*task.train, *task.test)]
    if not any(chats):
        return task
    if not all(chats):
        raise InputError(f"task {task.name}: some records are chats and some are not")
    if not tokenizer.chat_template:
        raise InputError(
            f"task {task.name} holds chats, and the tokenizer of --model has no chat template; "
            "write them as prompt and answer, or choose a base that was tuned on chats"
        )
    written = [
        [_write(example, tokenizer, f"task {task.name}, {example.id}") for example in split]
        for split in (task.train, task.test)
    ]
    gaps = {gap for split in written for _, gap in split}
    if len(gaps) > 1:
        raise InputError(
            f"task {task.name}: the chat template does not always put the same white space between "
            "a prompt and its answer"
        )
    train, test = (tuple(example for example, _ in split) for split in written)
    return replace(task, train=train, test=test, separator=gaps.pop(), num_bos=0)


def _write(example: Example, tokenizer: Any, where: str) -> tuple[Example, str]:
    """The example with its prompt written, and the white space between it and the answer."""
    turns = [{"role": role, "content": text} for role, text in example.turns]
    answer = example.references[0].strip()
    prompt = _rendered(tokenizer, turns, where, ask=True)
    whole = _rendered(
        tokenizer, [*turns, {"role": "assistant", "content": answer}], where, ask=False
    )
    if not whole.startswith(prompt):
        raise InputError(
            f"{where}: the tokenizer's chat template does not begin a chat with its answer as it "
            "begins the same chat without; such a template is not supported"
        )
    rest = whole[len(prompt) :]
    gap = rest[: len(rest) - len(rest.lstrip())]
    if not rest[len(gap) :].startswith(answer):
        raise InputError(
            f"{where}: the tokenizer's chat template puts {rest.strip()[:40]!r} where the answer "
            "should begin; such a template is not supported"
        )
    return replace(example, prompt=prompt, references=(answer,), turns=()), gap


def _rendered(tokenizer: Any, turns: Sequence[dict[str, str]], where: str, *, ask: bool) -> str:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: the tokenizer's chat template fails: {reason}") from None
