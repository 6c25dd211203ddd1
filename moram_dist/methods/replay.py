"""One LoRA, trained on each task together with a small buffer of examples of earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moram_dist.methods.adapting import AdapterConfig
from moram_dist.methods.method import METHODS
from moram_dist.methods.sequential_lora import SequentialLora
from moram_dist.section import Count, section
from moram_dist.tasks.task import Benchmark, Example, Task


@section
class ReplayConfig(AdapterConfig):
    """Settings of ``replay``."""

    replay_budget: Count = 200
    """replay: examples of earlier tasks, all together, that each task trains on again."""


@METHODS.register("replay")
class Replay(SequentialLora):
    """Experience replay: an epoch is the task's own examples and the whole buffer, shuffled.

    The buffer holds at most ``replay_budget`` examples, divided equally among the earlier tasks; as
    tasks are added, each keeps a smaller subset. Slots that a small task cannot fill stay empty.

    Source: Chaudhry et al. 2019, arXiv:1902.10486 (joint training on a tiny memory, divided
    equally). There half of each batch is memory; here each example is seen once per epoch.
    """

    Config = ReplayConfig
    config: ReplayConfig

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[tuple[Task, Example]]:
        """The task's own examples, then the buffer's examples of tasks 0 to i-1."""
        buffer = [
            (benchmark.tasks[j], replace(example, id=f"{benchmark.tasks[j].name}/{example.id}"))
            for j in range(i)
            for example in self.draw(benchmark, j, share(self.config.replay_budget, j, i))
        ]
        return [*super().training_data(benchmark, i), *buffer]


def share(budget: int, j: int, num_tasks: int) -> int:
    """Slots of task j, from 0, if ``num_tasks`` share the budget; earlier tasks get the remainder.

    Never grows with ``num_tasks``, so a discarded example is never needed again.
    """
    return budget // num_tasks + (j < budget % num_tasks)
