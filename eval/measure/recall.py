"""Choose which tasks of a memory answer which prompts of a cell (``EvalConfig.recall``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.comm import env
from moram_dist.config import EvalConfig
from moram_dist.models.language_model import Base
from moram_dist.recognise import (
    RECOGNISERS,
    PromptFeatures,
    Recognised,
    Recogniser,
    TaskStatistics,
)
from moram_dist.tasks.task import Benchmark
from moram_dist.train.recognition import features_of


@dataclass(frozen=True)
class Portion:
    """Examples of a cell that are answered by the same tasks."""

    column: int
    recall: str
    tasks: int | None
    """How many tasks answer, from the first; None: all learned so far."""

    examples: tuple[int, ...]
    """Their indices in the test set."""

    def state(self, row: int) -> int:
        """How many tasks answer in a row; equal numbers mean the same state of the memory."""
        return row + 1 if self.tasks is None else self.tasks


class PrefixAssignment:
    """Assigns the examples of a cell to prefixes: the first tasks of a memory.

    All ranks call it together.
    """

    def __init__(
        self, config: EvalConfig, benchmark: Benchmark, base: Base, memory: MemoryFiles
    ) -> None:
        """``benchmark``: with the prompts that the model gets (``Method.asked``)."""
        self.config = config
        self.benchmark = benchmark
        self.base = base
        self.memory = memory
        self._statistics: list[TaskStatistics] = []
        """Of the first tasks, as many as were needed so far."""
        self._recognisers: dict[int, Recogniser] = {}
        """Of the row being measured: its statistics are summed over all tasks."""
        self._features: dict[int, PromptFeatures] = {}
        """Of this rank's share of a column, where they cost a pass; they never change."""

    def portions(
        self, row: int, column: int, recall: str
    ) -> tuple[list[Portion], Mapping[int, Recognised]]:
        """The portions of a cell, and for ``prefix`` the recognised task of each example.

        No prefix is set if nothing was learned yet or all learned tasks answer: the unchanged model
        does that.
        """
        every = tuple(range(len(self.benchmark.tasks[column].test)))
        if recall == "all" or row < 0:
            return [Portion(column, recall, None, every)], {}
        if recall == "oracle":
            tasks = None if column >= row else column + 1
            return [Portion(column, recall, tasks, every)], {}
        found = self._recognised(row, column)
        by_tasks: dict[int | None, list[int]] = {}
        for i in every:
            tasks = found[i].answered_by(row + 1, self.config.unknown)
            by_tasks.setdefault(tasks, []).append(i)
        # None, which means all tasks, comes first, then the longest prefix.
        order = sorted(by_tasks, key=lambda tasks: -(row + 1 if tasks is None else tasks))
        return [Portion(column, recall, tasks, tuple(by_tasks[tasks])) for tasks in order], found

    def _recognised(self, row: int, column: int) -> dict[int, Recognised]:
        recogniser = self._recogniser(row)
        task = self.benchmark.tasks[column]
        mine = range(env.rank(), len(task.test), env.world_size())
        prompts = self._features.get(column)
        if prompts is None:
            prompts = features_of(self.base, task, [task.test[i] for i in mine])
        if self.base.family.reads_pictures:
            self._features[column] = prompts
        share = dict(zip(mine, recogniser.recognise(prompts), strict=True))
        return {i: one for part in env.gather_objects(share) for i, one in part.items()}

    def _recogniser(self, row: int) -> Recogniser:
        known = len(self._statistics)
        if known <= row:
            self._statistics += env.from_main(self._read(known, row) if env.is_main() else None)
        if row not in self._recognisers:
            kind = RECOGNISERS[self.config.recogniser]
            last = next(iter(self._recognisers.values()), None)
            before = last if last is not None and len(last.tasks) <= row else None
            self._recognisers = {row: kind(self._statistics[: row + 1], before)}
        return self._recognisers[row]

    def _read(self, first: int, last: int) -> list[TaskStatistics]:
        manifest = self.memory.manifest()
        assert manifest is not None  # task ``last`` is published before it is measured
        return [self.memory.statistics(task) for task in manifest.tasks[first : last + 1]]
