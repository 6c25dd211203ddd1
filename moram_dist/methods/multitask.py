"""One LoRA, trained on all tasks at once: the upper bound for learning in sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moram_dist.methods.method import METHODS
from moram_dist.methods.sequential_lora import SequentialLora
from moram_dist.tasks.task import Benchmark, Example, Task


@METHODS.register("multitask")
class Multitask(SequentialLora):
    """Learns everything as task 0; later tasks change nothing.

    Only the last row of its score matrix is comparable to a method that learns in sequence.

    Source: Caruana 1997, Machine Learning 28:41-75; MTL in Wang et al. 2023, arXiv:2310.14152.
    """

    learns_in_sequence = False

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[tuple[Task, Example]]:
        """All tasks' examples at task 0, none afterwards."""
        if i > 0:
            return ()
        return [
            (task, replace(example, id=f"{task.name}/{example.id}"))
            for task in benchmark.tasks
            for example in task.train
        ]

    def epochs(self, benchmark: Benchmark, i: int, batch_size: int) -> float:
        """Mean of the tasks' passes, weighted by examples: as many are seen as in sequence."""
        seen = sum(len(task.train) * task.passes(batch_size) for task in benchmark.tasks)
        return seen / sum(len(task.train) for task in benchmark.tasks)
