"""How one task of a benchmark is run and scored, apart from its examples.

A benchmark whose tasks are known beforehand registers its table here, so that predictions can be
scored again where the data are not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from moram_dist.registry import Registry
from moram_dist.tasks.task import Example, Task


@dataclass(frozen=True, kw_only=True)
class TaskRules:
    """The fields of ``Task`` other than its name and examples, with the same meaning."""

    metric: str
    labels: tuple[str, ...] = ()
    epochs: int = 1
    max_prompt_tokens: int = 1024
    max_answer_tokens: int = 512
    separator: str = ""
    truncate_prompt: str = "left"

    def task(self, name: str, *, train: tuple[Example, ...], test: tuple[Example, ...]) -> Task:
        """The task that these rules make of examples."""
        return Task(name=name, train=train, test=test, **asdict(self))


RULES: Registry[Mapping[str, TaskRules]] = Registry("benchmark with fixed rules")
"""Per benchmark, each task's rules by task name."""
