"""Write chats as text with the tokenizer's own template.

The last answer of a chat is learned and scored. Its prompt is the template's text of all turns
before it, up to the point where the model answers. The template also adds BOS.

With ``loss_turns`` all, training learns every turn of the assistant up to the end that the template
gives it, such as ``<|im_end|>``. Where a turn begins and ends is found from the texts of the chat's
beginnings, so the template must write a chat as it begins the longer one. With ``last``, only the
last answer is learned, and EOS ends it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Example, Task

TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""The date in templates that write today's, as LLaMA-3.2's does: the one that it falls back on. A
run that is resumed on another day must read the same text."""


def has_chats(benchmark: Benchmark) -> bool:
    """Whether any example is a chat, for which ``write_chats`` needs the tokenizer."""
    return any(e.turns for task in benchmark.tasks for e in (*task.train, *task.test))


def no_chats(benchmark: Benchmark) -> InputError:
    """The error for ``--loss_turns`` without chats."""
    return InputError(
        f"--loss_turns says which turns of chats are learned, and no task of {benchmark.name} has "
        "chats"
    )


def write_chats(
    benchmark: Benchmark, tokenizer: Any, loss_turns: str = "all", *, several: bool = True
) -> Benchmark:
    """The benchmark with every chat written by the tokenizer's template.

    Args:
        benchmark: as read.
        tokenizer: of the base.
        loss_turns: the assistant's turns that training learns, ``all`` or ``last``.
        several: whether the base can learn several answers of an example.

    Raises:
        InputError: a task mixes chats with other records, has more answers than can be learned, the
            tokenizer has no template, or the template fails on a chat or does not write its answers
            unchanged after their prompts.
    """
    if loss_turns == "all" and not several:
        _check_single(benchmark)
    tasks = tuple(_task(task, tokenizer, loss_turns == "all") for task in benchmark.tasks)
    return replace(benchmark, tasks=tasks)


def _check_single(benchmark: Benchmark) -> None:
    for task in benchmark.tasks:
        for example in task.train:
            if any(role == "assistant" for role, _ in example.turns):
                raise InputError(
                    f"task {task.name}, {example.id}: the assistant answers more than once, and "
                    "--model learns one answer per example; take --loss_turns last"
                )


def _task(task: Task, tokenizer: Any, all_turns: bool) -> Task:
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
    try:
        return _written(task, ChatTemplate(tokenizer), all_turns)
    except InputError:
        # Qwen3's, for one, writes an empty thought before an answer only if it may not think.
        if "enable_thinking" not in str(tokenizer.chat_template):
            raise
        return _written(task, ChatTemplate(tokenizer, may_think=False), all_turns)


def _written(task: Task, template: ChatTemplate, all_turns: bool) -> Task:
    train, test = (
        [_write(example, template, f"task {task.name}, {example.id}") for example in split]
        for split in (task.train, task.test)
    )
    _check_boundary(train[0] if train else test[0], template, task.name)
    gaps = {one.gap for one in (*train, *test)}
    if len(gaps) > 1:
        raise InputError(
            f"task {task.name}: the chat template does not always put the same white space between "
            "a prompt and its answer"
        )
    out = replace(task, separator=gaps.pop(), num_bos=0)
    out = replace(out, test=tuple(one.example for one in test))
    if not all_turns:
        return replace(out, train=tuple(one.example for one in train))
    endings = {one.ending for one in (*train, *test)}
    if len(endings) > 1:
        raise InputError(
            f"task {task.name}: the chat template does not end all answers alike: "
            f"{' and '.join(map(repr, sorted(endings)[:2]))}; take --loss_turns last"
        )
    learned = (
        replace(new.example, learned=_earlier_turns(old, new.example, template, task.name))
        for old, new in zip(task.train, train, strict=True)
    )
    return replace(out, train=tuple(learned), ending=endings.pop())


def _check_boundary(chat: _Chat, template: ChatTemplate, task: str) -> None:
    """Refuse a prompt whose tokens are others once an answer follows.

    Many tokenizers join a space to the word behind it. A model that has learned to answer after
    "assistant:" with " yes" would be asked after "assistant: ", which it has never seen.
    """
    prompt = chat.example.prompt
    whole = f"{prompt}{chat.gap}{chat.example.references[0]}"
    asked, learned = (
        template.tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, whole)
    )
    if prompt[-1:].isspace() and learned[: len(asked)] != asked:
        raise InputError(
            f"task {task}: the chat template ends a prompt with {prompt[-1]!r}, which the "
            "tokenizer joins to the answer, so the model would be asked otherwise than it "
            "learned; remove it from the end of the template's generation prompt"
        )


@dataclass(frozen=True)
class _Chat:
    """A chat that a template has written."""

    example: Example
    gap: str
    """White space between the prompt and the answer."""

    ending: str
    """What the template writes after the answer and before EOS."""


def _write(example: Example, template: ChatTemplate, where: str) -> _Chat:
    answer = example.references[0].strip()
    prompt = template.asking(example.turns, where)
    whole = template.text([*example.turns, ("assistant", answer)], where)
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
    ending = rest[len(gap) + len(answer) :].partition(template.eos)[0].rstrip()
    return _Chat(replace(example, prompt=prompt, references=(answer,), turns=()), gap, ending)


def _earlier_turns(
    chat: Example, written: Example, template: ChatTemplate, task: str
) -> tuple[tuple[int, int], ...]:
    """The assistant's turns before the last, as parts of the written prompt."""
    spans = []
    for index, (role, _) in enumerate(chat.turns):
        if role != "assistant":
            continue
        where = f"task {task}, {chat.id}, turn {index}"
        asked = template.asking(chat.turns[:index], where)
        answered = template.text(chat.turns[: index + 1], where).rstrip()
        if not written.prompt.startswith(answered):  # Phi-3's, for one, ends every text with EOS
            answered = answered.removesuffix(template.eos).rstrip()
        if not (answered.startswith(asked) and written.prompt.startswith(answered)):
            raise InputError(
                f"{where}: the tokenizer's chat template does not begin the chat as it writes its "
                "beginning, so the turns that are learned cannot be found; take --loss_turns last"
            )
        spans.append((len(asked), len(answered)))
    return tuple(spans)


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template."""

    tokenizer: Any
    may_think: bool = True
    """False: the model answers at once, in templates that know the difference."""

    @classmethod
    def for_answers(cls, tokenizer: Any) -> ChatTemplate:
        """The template as training uses it, for a chat whose answer is not known."""
        template = cls(tokenizer)
        try:
            _write(Example("", "", ("b",), turns=(("user", "a"),)), template, "a chat")
        except InputError:
            return cls(tokenizer, may_think="enable_thinking" not in str(tokenizer.chat_template))
        return template

    @property
    def eos(self) -> str:
        """The text of the end-of-sequence token."""
        return str(self.tokenizer.eos_token)

    @property
    def source(self) -> str:
        """The template's text, with what is fixed in front: the date, and whether it may think."""
        own = str(self.tokenizer.get_chat_template())
        date = TODAY if "strftime_now" in own else ""
        return ("" if self.may_think else "{% set enable_thinking = false %}") + date + own

    def asking(self, turns: Sequence[tuple[str, str]], where: str) -> str:
        """The text of a chat up to the point where the assistant answers."""
        return self._text(turns, where, ask=True)

    def text(self, turns: Sequence[tuple[str, str]], where: str) -> str:
        """The text of a chat."""
        return self._text(turns, where, ask=False)

    def _text(self, turns: Sequence[tuple[str, str]], where: str, *, ask: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns],
                tokenize=False,
                add_generation_prompt=ask,
                chat_template=self.source,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            hint = ""
            if any(role == "system" for role, _ in turns) and "system" in reason.lower():
                hint = "; write what the system says into the user's first turn"
            raise InputError(
                f"{where}: the tokenizer's chat template fails: {reason}{hint}"
            ) from None
        return text
