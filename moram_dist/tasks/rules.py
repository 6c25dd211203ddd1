"""How the tasks of a published benchmark are run and scored, apart from their examples.

A benchmark with fixed tasks registers its protocols here, so that predictions can be scored again
without the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moram_dist.registry import Registry, unknown
from moram_dist.tasks.samples import Sample
from moram_dist.tasks.task import Decoding, TaskRules


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to run a benchmark's tasks."""

    tasks: Mapping[str, TaskRules]
    """By task name."""

    ask: Callable[[str, Sample], tuple[str, tuple[str, ...]]]
    """Takes a task's name and a record of its files; returns the prompt and the accepted answers.
    Raises InputError if the protocol has no template for the record's shape."""

    first_reference: bool = False
    """Only the first of several accepted answers counts, not the best."""

    drop_silent: bool = False
    """Answers without a letter or a digit, such as ``-`` for unlabelled, do not count. An example
    with no other answers is left out, with a note."""

    decoding: Decoding = field(default_factory=Decoding)
    learning_rate: float = 5e-4
    """The defaults of learning rate and batch size are MoRAM's on TRACE (runner script)."""

    batch_size: int = 32
    notes: tuple[str, ...] = ()
    """Differences from the published code."""


RULES: Registry[Mapping[str, Protocol]] = Registry("benchmark with fixed rules")
"""Per benchmark, its protocols by name; the first is the default."""


def choose_protocol(benchmark: str, name: str | None) -> tuple[str, Protocol]:
    """A protocol and its name; None is the default. Raises InputError for an unknown one."""
    protocols = RULES[benchmark]
    name = next(iter(protocols)) if name is None else name
    if name not in protocols:
        raise unknown(f"protocol of {benchmark}", name, protocols)
    return name, protocols[name]
