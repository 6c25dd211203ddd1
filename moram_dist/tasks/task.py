"""What a benchmark is: tasks in an order, each with its examples and the rules it is run by.

Plain data, no torch and no tokenizer. Readers make these objects, ``data`` turns examples into
tokens, ``eval`` scores what the model answered.
"""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a sequence."""

    name: str
    metric: str
    """A name in ``moram_dist.metrics.METRICS``."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    """The examples that the score matrix is measured on."""

    labels: tuple[str, ...] = ()
    """The closed answer set, where there is one."""

    epochs: int = 1
    max_prompt_tokens: int = 1024
    max_answer_tokens: int = 512
    """Also the most new tokens that evaluation generates."""

    truncate_prompt: str = "left"
    """Which end of a prompt that is too long is cut away: ``left`` keeps its tail."""


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
