"""What a benchmark is: tasks in an order, each with its examples and the rules it is run by.

Plain data, no torch and no tokenizer. Readers make these objects, ``data`` turns examples into
tokens, ``eval`` scores what the model answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moram_dist.registry import Registry


@dataclass(frozen=True)
class Example:
    """One question. ``id`` is stable across runs: ``<split>-<index in the file>``."""

    id: str
    prompt: str
    references: tuple[str, ...]
    """Accepted answers, at least one. Training uses the first; a score is the best over all."""

    turns: tuple[tuple[str, str], ...] = ()
    """Of a chat: (role, text) of each turn before the answer. ``data.chat`` makes the prompt of
    them, by the tokenizer's template."""


def digest(examples: Iterable[Example]) -> str:
    """sha256 of examples, hex: equal for equal data, whatever file it came from."""
    content = [[e.prompt, *e.references] for e in examples]
    text = json.dumps(content, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TaskRules:
    """How a task is asked, trained and scored: all of a task but its name and examples.

    Lengths are in tokens. How the fields become tokens: ``moram_dist.data.encode``.
    """

    metric: str
    """A name in ``moram_dist.metrics.METRICS``."""

    labels: tuple[str, ...] = ()
    """The closed answer set, where there is one."""

    epochs: float = 1
    max_prompt_tokens: int = 1024
    max_answer_tokens: int = 512
    """Also the most new tokens that evaluation generates."""

    separator: str = ""
    """Stands between prompt and answer in training, where the prompt does not end in white space.
    Evaluation leaves it to the model to generate."""

    truncate_prompt: str = "left"
    """Which end of a prompt that is too long is cut away: ``left`` keeps its tail."""

    cue: str = ""
    """How every prompt ends, where truncation must leave that end in place."""

    joined: bool = True
    """Training tokenises prompt and answer as one text; else each alone, and the prompt's tokens
    are those of evaluation."""

    shared_limit: bool = True
    """Training cuts prompt and answer to the sum of both lengths, and BOS and EOS are there only
    where that leaves room; else each is cut to its own length, with BOS and EOS within."""

    num_bos: int = 1
    """BOS tokens before a prompt, where the tokenizer has one."""

    answer_after: str = ""
    """A prediction is what follows the last of this in prompt and generated text together,
    stripped, and empty where truncation has cut it from the prompt. Default: all that is new."""


@dataclass(frozen=True, kw_only=True)
class Task(TaskRules):
    """One task of a sequence."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    """The examples that the score matrix is measured on."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are generated: greedy, with these two repetition rules (1.0 and 0 are off)."""

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Tasks in the order in which they are learned."""

    name: str
    order: str
    protocol: str
    tasks: tuple[Task, ...]
    decoding: Decoding = field(default_factory=Decoding)
    learning_rate: float = 5e-4
    """Where the user names none. Published for MoRAM on TRACE (runner script)."""

    batch_size: int = 32
    """Examples in an optimizer step where the user names none. Source: as above."""

    notes: tuple[str, ...] = ()
    """What differs from the published protocol, for the run record (a split that was replaced)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a benchmark's files are, and which part of them to take. Same fields as DataConfig."""

    data_dir: Path | None = None
    order: str | None = None
    protocol: str | None = None
    limit_train: int | None = None
    limit_eval: int | None = None
    splits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Per task, a split's replacement: ``{"MeetingBank": {"train": "eval"}}``; the value is another
    split's name or a file path."""

    seed: int = 0
    """For generated benchmarks only."""


BENCHMARKS: Registry[Callable[[Source], Benchmark]] = Registry("benchmark")
