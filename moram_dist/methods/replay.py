"""One LoRA, trained on each task together with a small buffer of examples of earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moram_dist.methods.method import METHODS
from moram_dist.methods.sequential_lora import SequentialLora
from moram_dist.tasks.task import Benchmark, Example, Task


@METHODS.register("replay")
class Replay(SequentialLora):
    """Experience replay: an epoch is the task's own examples and the whole buffer, shuffled.

    The buffer holds ``replay_budget`` examples at most, shared out equally over the earlier tasks;
    as tasks come, each keeps fewer of the same ones. What a small task cannot fill stays empty.

    Source: Chaudhry et al. 2019, arXiv:1902.10486 (joint training on a tiny memory with equal
    shares). There every batch is half memory; here memory and task are seen equally often.
    """

    settings = SequentialLora.settings | {"replay_budget"}

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[tuple[Task, Example]]:
        """The task's own examples, then what the buffer holds of tasks 0 to i-1."""
        buffer = [
            (benchmark.tasks[j], replace(example, id=f"{benchmark.tasks[j].name}/{example.id}"))
            for j in range(i)
            for example in self.draw(benchmark, j, share(self.config.replay_budget, j, i))
        ]
        return [*super().training_data(benchmark, i), *buffer]


def share(budget: int, j: int, num_tasks: int) -> int:
    """Places of task j, from 0, where ``num_tasks`` share the budget; earlier ones get the rest.

    Never grows with ``num_tasks``, so that no example is needed that was given up before.
    """
    return budget // num_tasks + (j < budget % num_tasks)
