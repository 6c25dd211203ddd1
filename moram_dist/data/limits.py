"""Whether a benchmark's texts fit a model: ids among its rows, lengths among its positions.

Looked at before any work, since a token beyond either is an error in the middle of a run. Texts are
tokenised only where they might not fit.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from moram_dist.data.candidates import encode_candidates
from moram_dist.data.encode import answer_text, encode_question, encode_training
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Example, Task

SPECIAL = 8
"""More tokens than a text's own: BOS, EOS, a decoder's start, and what a tokenizer puts before a
word."""

LEAST_ANSWER = 34
"""What ``encode_training`` leaves to answers, however few tokens they may have, and EOS and BOS."""

TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class LengthRules:
    """How a benchmark is put to a model."""

    benchmark: Benchmark
    """With the prompts that the model gets."""

    trained: bool
    """Whether the training examples are read at all."""

    generated: Callable[[Task], bool]
    """Whether answers to a task's test examples are generated freely."""

    chosen: bool
    """Whether labels, where a task has any, stand behind its prompts."""

    room: bool = True
    """Whether generated answers count with the tokens that they may have, or not at all."""


@dataclass(frozen=True)
class Need:
    """How many tokens of an example a model reads."""

    prompt: int
    answer: int
    where: str = ""
    """Which example of which task, for people."""


def check_ids(tokenizer: Any, benchmark: Benchmark, rows: int, name: str) -> None:
    """Whether the model has a row for every token of the benchmark.

    Raises:
        InputError: it has none for a special token that is used, or for a token of an example.
    """
    special = {"eos_token": tokenizer.eos_token_id, "pad_token": tokenizer.pad_token_id}
    if any(task.num_bos for task in benchmark.tasks):
        special["bos_token"] = tokenizer.bos_token_id
    for kind, token in special.items():
        if token is not None and token >= rows:
            raise InputError(
                f"--model {name}: its tokenizer's {kind} is token {token}, and the model has rows "
                f"0 to {rows - 1}; tokenizer and model do not go together"
            )
    beyond = {word for word, token in tokenizer.get_vocab().items() if token >= rows}
    if not beyond - {tokenizer.unk_token}:
        return
    for where, texts in _texts(benchmark):
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            if max(ids, default=0) >= rows:
                raise InputError(
                    f"--model {name}: {where} holds token {max(ids)} "
                    f"({tokenizer.convert_ids_to_tokens(max(ids))!r}), and the model has rows 0 to "
                    f"{rows - 1}; tokenizer and model do not go together"
                )


def _texts(benchmark: Benchmark) -> Iterator[tuple[str, list[str]]]:
    """All texts, some at a time, with words for where they are."""
    for task in benchmark.tasks:
        for split, examples in (("training", task.train), ("test", task.test)):
            for start in range(0, len(examples), TEXTS_AT_ONCE):
                some = examples[start : start + TEXTS_AT_ONCE]
                texts = [text for e in some for text in (e.prompt, *e.references)]
                yield f"a {split} example of task {task.name}", texts
        if task.labels:
            yield f"a label of task {task.name}", [*task.labels]


def first_beyond(
    tokenizer: Any, asked: LengthRules, start: int | None, *, source: float, tokens: float
) -> Need | None:
    """The first example that takes more positions than there are; None: all fit.

    Args:
        tokenizer: of the model.
        asked: what the model reads.
        start: ``Base.decoder_start``.
        source: positions of an encoder.
        tokens: positions of a causal model, for prompt and answer, or of a decoder.
    """

    def beyond(need: Need) -> bool:
        if start is None:
            return need.prompt + need.answer > tokens
        return need.prompt > source or need.answer > tokens

    for task in asked.benchmark.tasks:
        behind = max((_at_most(label) for label in task.labels), default=0)
        most = max(task.max_answer_tokens + 2, LEAST_ANSWER, behind)
        if not beyond(Need(task.max_prompt_tokens, most)):
            continue
        for need, measured in _needs(tokenizer, asked, task, start, behind):
            if beyond(need) and beyond(found := measured()):
                return found
    return None


def _needs(
    tokenizer: Any, asked: LengthRules, task: Task, start: int | None, behind: int
) -> Iterator[tuple[Need, Callable[[], Need]]]:
    """For each example what it takes at most, and how to find out what it takes."""
    for example in task.train if asked.trained else ():
        answer = _at_most(answer_text(example, task))
        measure = partial(_training, tokenizer, task, example, start)
        yield Need(_at_most(example.prompt), answer), measure
    for example in task.test:
        prompt = min(_at_most(example.prompt), task.max_prompt_tokens)
        if asked.generated(task):
            answer = task.max_answer_tokens if asked.room else 1
            yield Need(prompt, answer), partial(_generated, tokenizer, task, example, start, answer)
        if task.labels and asked.chosen:
            yield Need(prompt, behind), partial(_labelled, tokenizer, task, example, start)


def _at_most(text: str) -> int:
    """No text has more tokens than bytes, as it is or as a tokenizer may normalise it."""
    forms = (text, unicodedata.normalize("NFKC", text))
    return SPECIAL + max(len(form.encode(errors="replace")) for form in forms)


def _training(tokenizer: Any, task: Task, example: Example, start: int | None) -> Need:
    encoded = encode_training(tokenizer, example, task, start)
    where = f"training example {example.id} of task {task.name}"
    if encoded.source is not None:
        return Need(len(encoded.source), len(encoded.tokens), where)
    return Need(len(encoded.tokens) - encoded.num_answer, encoded.num_answer, where)


def _generated(
    tokenizer: Any, task: Task, example: Example, start: int | None, answer: int
) -> Need:
    prompt = len(encode_question(tokenizer, example.prompt, task, start))
    # A token that is generated last is read by nothing; a decoder reads its start instead.
    return Need(prompt, answer - (start is None), f"test example {example.id} of task {task.name}")


def _labelled(tokenizer: Any, task: Task, example: Example, start: int | None) -> Need:
    choices = encode_candidates(tokenizer, example, task, start)
    answer = max(len(tail) for tail in choices.tails) - (start is None)
    where = f"test example {example.id} of task {task.name}, with its longest label"
    return Need(len(choices.prefix), answer, where)
