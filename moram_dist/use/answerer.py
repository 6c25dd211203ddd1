"""Answer prompts with a memory as its run's evaluation does, one process and no DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from moram_dist.comm import env
from moram_dist.config import ModelConfig
from moram_dist.data.answers import read_answers
from moram_dist.decode import Room
from moram_dist.decode.cache import most_tokens
from moram_dist.decode.generate import greedy
from moram_dist.families import TextFamily, family_of
from moram_dist.methods import METHODS
from moram_dist.methods.restore import answered_by, load_memory, recogniser_of
from moram_dist.metrics import score
from moram_dist.models import language_model
from moram_dist.recognise import Recogniser
from moram_dist.registry import InputError, one_of
from moram_dist.tasks.task import Decoding, Example, Task
from moram_dist.use.source import MemorySource
from moram_dist.use.text_stream import TextStream

BATCH_TOKENS = 2**14
"""Tokens of prompts and answers that are generated together."""

BATCH_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a memory is asked."""

    upto: str | None = None
    recall: str | None = None
    task: str | None = None
    max_new_tokens: int | None = None
    is_chat: bool = False
    """Whether prompts are written by a chat template."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``Asked`` means for a memory; known before the base is loaded."""

    upto: int
    """How many tasks answer."""

    task: Task
    """The rules for prompts and answers."""

    recall: str


def plan(source: MemorySource, asked: Asked) -> Plan:
    """Read ``asked`` for a memory.

    Raises:
        InputError: no such task or recall.
    """
    upto = source.number(asked.upto)
    task = source.task(asked.task, upto)
    if asked.max_new_tokens is not None:
        task = replace(task, max_answer_tokens=asked.max_new_tokens)
    if asked.is_chat:
        task = replace(task, num_bos=0)  # the template writes BOS
    recall = asked.recall or source.recall
    if recall == "oracle":
        raise InputError(
            "the run's scores are those of --recall oracle, which is told each prompt's task; "
            "give --recall all or prefix"
        )
    one_of("recall", recall, ("all", "prefix"))
    return Plan(upto=upto, task=task, recall=recall)


def check_text(model: ModelConfig) -> None:
    """Raises InputError unless the base reads and writes text; reads its configuration only."""
    family = family_of(language_model.check(model))
    if not issubclass(type(family), TextFamily):
        raise InputError(
            f"--model {model.model}: reads pictures and chooses among classes, so it writes no "
            "text; its run's predictions hold its answers"
        )


class Answerer:
    """A base with a memory. Answers equal the predictions of the run up to rounding."""

    def __init__(self, source: MemorySource, asked: Asked) -> None:
        """Load the base and the memory.

        Raises:
            InputError: as ``load_memory``, no such task or recall, or a base that writes no text.
        """
        self.tasks = source.tasks
        found = plan(source, asked)
        self.upto, self.task, self.recall = found.upto, found.task, found.recall
        self.decoding: Decoding = source.decoding
        self.unknown = source.unknown
        check_text(source.model)
        self.recogniser: Recogniser | None = recogniser_of(
            source.files, source.manifest, self.upto, self.recall, source.recogniser
        )
        base = language_model.load(source.model)
        # ``recall`` all: here it is recognised before a batch is made, as batches are not fixed.
        self.model: nn.Module = load_memory(
            base.model.to(env.device()),
            source.path,
            self.upto,
            any_base=source.is_saved,
            recall="all",
        )
        self.tokenizer: Any = base.tokenizer
        assert isinstance(base.family, TextFamily)
        self.family: TextFamily = base.family
        self.keeps_prefixes = METHODS[source.manifest.method].keeps_prefixes

    def encoded(self, prompt: str) -> list[int]:
        """The tokens that the model reads.

        Raises:
            InputError: prompt and answer need more positions than the model has.
        """
        ids = self.family.encode_question(self.tokenizer, prompt, self.task)
        there = replace(self.family.positions(self.model), trained=None)
        new = self.task.max_answer_tokens
        if there.has_table and self.family.exceeds(there, len(ids), self.family.num_read(new)):
            raise InputError(
                f"a prompt of {len(ids)} tokens and {new} new ones exceed the model's "
                f"{self.family.describe(there)}; lower --max_new_tokens or shorten the prompt"
            )
        return ids

    def is_cut(self, prompt: str) -> bool:
        """Whether the rules of the task drop a part of the prompt."""
        return not self.family.question_fits(self.tokenizer, self.task, prompt)

    def recognised(self, prompts: Sequence[str]) -> list[tuple[int | None, str | None]]:
        """How many tasks answer each prompt, None for all, and the task that it was recognised as.

        The name is None for recall ``all``, and for a prompt that resembles no task's.
        """
        if self.recogniser is None:
            return [(None, None)] * len(prompts)
        features = self.family.features(self.model, self.tokenizer, _examples(prompts), self.task)
        return [
            (one.answered_by(self.upto, self.unknown), self.tasks[one.task] if one.known else None)
            for one in self.recogniser.recognise(features)
        ]

    def answers(
        self, prompts: Sequence[str], numbers: Sequence[int | None]
    ) -> Iterator[tuple[int, str]]:
        """Yield (index, answer) as each is complete; ``numbers`` are from ``recognised``."""
        examples = _examples(prompts)
        for number in sorted({*numbers}, key=lambda n: (n is not None, n)):
            mine = [i for i, own in enumerate(numbers) if own == number]
            mine.sort(key=lambda i: len(prompts[i]))
            with self._answered_by(number):
                yield from self._stream(mine, examples)

    def say(self, prompt: str, number: int | None, stream: TextStream | None = None) -> str:
        """The answer to one prompt; ``stream`` gets its tokens as they come."""
        ids = [self.encoded(prompt)]
        with self._answered_by(number):
            new_BT = greedy(
                self.model,
                self.tokenizer,
                ids,
                begin=self.family.begin,
                streamer=stream,
                max_new_tokens=self.task.max_answer_tokens,
                **asdict(self.decoding),
            )
        return read_answers(self.tokenizer, ids, new_BT.tolist(), self.task)[0]

    def mean_score(
        self, examples: Sequence[Example], numbers: Sequence[int | None] | None = None
    ) -> float:
        """The mean score, 0 to 100, of the answers to examples of ``task``.

        ``numbers``: as for ``answers``; default: as recognised.
        """
        prompts = [example.prompt for example in examples]
        if numbers is None:
            numbers = [number for number, _ in self.recognised(prompts)]
        texts = dict(self.answers(prompts, numbers))
        total = sum(
            score(
                self.task.metric,
                prompt=example.prompt,
                prediction=texts[i],
                references=example.references,
                labels=self.task.labels,
            )
            for i, example in enumerate(examples)
        )
        return total / len(examples)

    def _stream(self, mine: list[int], examples: Sequence[Example]) -> Iterator[tuple[int, str]]:
        if self.family.can_stream(self.model):
            asked = ((i, self.task, examples[i]) for i in mine)
            tokens = most_tokens(self.model, env.memory_bytes(), BATCH_TOKENS)
            room = Room(rows=BATCH_ROWS, tokens=tokens)
            yield from self.family.stream(self.model, self.tokenizer, asked, self.decoding, room)
            return
        for start in range(0, len(mine), BATCH_ROWS):
            batch = mine[start : start + BATCH_ROWS]
            texts = self.family.generate(
                self.model, self.tokenizer, [examples[i] for i in batch], self.task, self.decoding
            )
            yield from zip(batch, texts, strict=True)

    def _answered_by(self, number: int | None) -> AbstractContextManager[None]:
        return nullcontext() if number is None else answered_by(self.model, (number,))


def _examples(prompts: Sequence[str]) -> list[Example]:
    return [Example(str(i), prompt, ("",)) for i, prompt in enumerate(prompts)]
