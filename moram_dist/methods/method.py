"""What a continual-learning method is: six hooks that the training loop calls.

    build(model)              put the method's layers into the frozen base
    training_data(bench, i)   examples that task i trains on
    begin_task(i)             start of task i; values that parameters begin with
    penalty()                 added to the loss of each micro-batch
    before_step(engine)       after backward, before the optimizer step
    end_task(i, batches)      fold in what was learned; what the task's memory file holds

The loop has no other way to tell methods apart. ``in_step`` is for the evaluation, ``metrics()``
for the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.dropout import TokenDropout, TokenKeys
from moram_dist.adapters.inject import adapt, find_linears
from moram_dist.atoms import Placer
from moram_dist.config import MethodConfig
from moram_dist.registry import Registry
from moram_dist.tasks.task import Benchmark, Example


class Method:
    """Base of all methods: adapts nothing, trains on the task's own examples."""

    def __init__(self, config: MethodConfig, seed: int, placer: Placer | None = None) -> None:
        """``placer`` says where frozen atoms are, for methods that have any; default: here."""
        self.config = config
        self.seed = seed
        self.placer = placer or Placer()
        self.token_keys = TokenKeys()
        """Who the tokens of a micro-batch are, for dropout; set before each training pass."""
        self.layers: dict[str, AdaptedLinear] = {}
        """Adapted linears by full name, in the model's order."""

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """Put the method's layers into ``model``.

        Args:
            model: any Hugging Face causal language model, frozen.
            modules: full names to adapt; default: what the configuration's target modules match.
        """

    def _adapt(
        self,
        model: nn.Module,
        modules: Sequence[str] | None,
        make: Callable[[str, nn.Linear], AdaptedLinear],
    ) -> None:
        """What most ``build`` are: ``make(name, linear)`` for each linear that is meant."""
        self.layers = adapt(model, modules or find_linears(model, self.config.target_modules), make)

    def _dropout(self, name: str, base: nn.Linear) -> TokenDropout:
        """On the input of the adapted linear ``name``."""
        return TokenDropout(self.config.dropout, self.token_keys, name=name, size=base.in_features)

    @property
    def in_step(self) -> bool:
        """Whether ranks must make equally many forward passes, apart from what ZeRO asks."""
        return False

    def metrics(self) -> dict[str, float]:
        """What to log beside the loss, from this rank."""
        return {}

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[Example]:
        """Examples that task i trains on; none means that the task is not trained."""
        return benchmark.tasks[i].train

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """Values that parameters start task i with, by full name; others keep theirs.

        Same on all ranks. The optimizer starts fresh in any case.
        """
        return {}

    def penalty(self) -> Tensor | float:
        """Scalar to add to the loss of a micro-batch."""
        return 0.0

    def before_step(self, engine: Any) -> None:
        """Between the last backward of a step and the step."""

    def end_task(self, i: int, batches: Callable[[], Iterable[Any]]) -> dict[str, Tensor]:
        """Fold in what was learned; tensors for the task's memory file, whole on every rank.

        Args:
            i: the task.
            batches: makes the task's steps again, for methods that look at the data once more.
        """
        return {}

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Take in what ``end_task(i)`` gave, as though the task had just been learned."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a restart in the middle of a task needs beyond parameters and memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take in a ``state_dict``."""

    def generator(self, i: int) -> torch.Generator:
        """Random numbers that depend on the seed and the task only, on the CPU."""
        seed = np.random.SeedSequence([self.seed, i]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed) >> 1)


METHODS: Registry[type[Method]] = Registry("method")
