"""The unchanged base model: the reference for every other method."""

from __future__ import annotations

from collections.abc import Sequence

from moram_dist.methods.method import METHODS, Method
from moram_dist.tasks.task import Benchmark, Example, Task


@METHODS.register("zero_shot")
class ZeroShot(Method):
    """Adapts nothing and trains on nothing."""

    trains = False
    reads_training_split = False

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[tuple[Task, Example]]:
        """No examples."""
        return ()
