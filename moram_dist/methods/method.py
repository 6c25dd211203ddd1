"""What a continual-learning method is: nine hooks that the training loop calls.

    build(model)              put the method's layers into the frozen base
    training_data(bench, i)   examples that task i trains on, each with the task it belongs to
    epochs(bench, i)          passes over them
    prepare_task(i, look)     before it, unless the run was stopped within task i
    begin_task(i)             start of task i; values that parameters begin with
    penalty(seen)             added to the loss of each micro-batch
    before_step(engine)       after backward, before the optimizer step
    end_task(i, look)         fold in what was learned; what the task's memory file holds

The loop has no other way to tell methods apart. ``asked``, ``eval_rows``, ``recall``,
``recogniser`` and ``in_step`` are for the evaluation, ``metrics()`` for the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear, sizes
from moram_dist.adapters.dropout import TokenDropout, TokenKeys
from moram_dist.adapters.inject import adapt
from moram_dist.adapters.prefix import Prefix
from moram_dist.atoms import Placer
from moram_dist.config import MethodConfig, TrainConfig
from moram_dist.families.targets import find_linears
from moram_dist.registry import Registry
from moram_dist.tasks.task import Benchmark, Example, Task


@dataclass(frozen=True)
class ForwardOutput:
    """A micro-batch after its forward pass, at the places of its answers.

    B rows, P places, V words of the vocabulary. ``train.forward`` puts all places into one row.
    """

    logits_BPV: Tensor
    targets_BP: Tensor
    """``data.stream.IGNORED`` where a row has no answer token."""

    weight: float
    """A sum over the micro-batch's answer tokens, times this, makes a penalty that is the mean over
    all answer tokens of the step: over its micro-batches and ranks."""

    again: Callable[[], Tensor]
    """The logits once more, without gradient, from the model as it is at the call. All ranks call
    it or none does."""


Linears = Mapping[str, nn.Module]
"""Layers by full name, of which sizes are wanted."""

ExampleLosses = Callable[[int], tuple[int, Iterator[Tensor]]]
"""Called with a number, it draws so many of a task's training examples by seed, or all if there are
fewer: how many, over all ranks, and this rank's share of their losses.

A loss is that of one example, -log p(answer | prompt) in nats, with its graph. All ranks take
gradients of equally many; where a rank lacks an example the loss is 0. Gradients are taken by
``torch.autograd.grad`` of tensors that are no parameters of the model."""


class Method:
    """Base of all methods: adapts nothing, trains on the task's own examples."""

    eval_rows: str | None = None
    """What is measured whatever ``EvalConfig.eval_rows`` says; None: what it says."""

    recall: str | None = None
    """Which tasks answer whatever ``EvalConfig.recall`` says; None: those that it says."""

    recogniser: str | None = None
    """What recognises tasks whatever ``EvalConfig.recogniser`` says; None: what it says."""

    keeps_prefixes = False
    """Whether the model after an earlier task is still at hand: ``prefix`` has it answer."""

    settings: frozenset[str] = frozenset()
    """Fields of ``MethodConfig`` that its results depend on. A run whose other fields changed is
    the same run."""

    trains: bool = True
    """Whether it takes steps, so that its results depend on ``TrainConfig``."""

    reads_training_split: bool = True
    """Whether its results depend on the tasks' training examples."""

    @classmethod
    def unused_settings(cls) -> frozenset[str]:
        """Dotted names of settings that are another method's business."""
        unused = {f"method.{f.name}" for f in fields(MethodConfig) if f.name not in cls.settings}
        if not cls.trains:
            unused |= {f"train.{f.name}" for f in fields(TrainConfig)} - {"train.seed"}
        return frozenset(unused - {"method.method"})

    def __init__(
        self, config: MethodConfig, seed: int, placer: Placer | None = None, num_tasks: int = 1
    ) -> None:
        """Nothing of the model is touched yet.

        Args:
            config: settings of all methods.
            seed: of initial values, and of whatever else the method draws.
            placer: where frozen atoms are, for methods that have any; default: here.
            num_tasks: how many the whole sequence has.
        """
        self.config = config
        self.seed = seed
        self.num_tasks = num_tasks
        self.placer = placer or Placer()
        self.token_keys = TokenKeys()
        """Who the tokens of a micro-batch are, for dropout; set before each training pass."""
        self.prefix = Prefix()
        """How many tasks answer each row, where ``keeps_prefixes``."""
        self.layers: dict[str, AdaptedLinear] = {}
        """Adapted linears by full name, in the model's order."""

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """Put the method's layers into ``model``.

        Args:
            model: any Hugging Face language model, frozen.
            modules: full names to adapt; default: what the configuration's target modules match.
        """

    def _adapt(
        self,
        model: nn.Module,
        modules: Sequence[str] | None,
        make: Callable[[str, nn.Module], AdaptedLinear],
    ) -> None:
        """What most ``build`` are: ``make(name, linear)`` for each linear that is meant."""
        self.layers = adapt(model, modules or find_linears(model, self.config.target_modules), make)

    def _dropout(self, name: str, base: nn.Module) -> TokenDropout:
        """On the input of the adapted linear ``name``."""
        return TokenDropout(self.config.dropout, self.token_keys, name=name, size=sizes(base)[0])

    @property
    def in_step(self) -> bool:
        """Whether ranks must make equally many forward passes, apart from what ZeRO asks."""
        return False

    def metrics(self) -> dict[str, float]:
        """What to log beside the loss, from this rank."""
        return {}

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[tuple[Task, Example]]:
        """Examples that task i trains on, each with the task by whose rules it is encoded.

        None means that the task is not trained: the model is the one before it, and so are scores.
        """
        task = benchmark.tasks[i]
        return [(task, example) for example in task.train]

    def epochs(self, benchmark: Benchmark, i: int) -> float:
        """Passes over ``training_data``, where the user does not say."""
        return benchmark.tasks[i].epochs

    def asked(self, benchmark: Benchmark, fits: Callable[[Task, str], bool]) -> Benchmark:
        """The benchmark as the model is asked it in evaluation: same test examples, in their order.

        Only prompts may differ. A note that is added to the benchmark's is shown and recorded.

        Args:
            benchmark: as it is scored, and as predictions show it.
            fits: whether a prompt of a task would be encoded whole.
        """
        return benchmark

    def prepare_task(self, i: int, look: ExampleLosses) -> None:
        """For methods that look at the task's data before it is learned.

        Where a run is resumed within task i, ``load_state_dict`` brings back what came of it.
        """

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """Values that parameters start task i with, by full name; others keep theirs.

        Same on all ranks. The optimizer starts fresh in any case.
        """
        return {}

    def penalty(self, seen: ForwardOutput) -> Tensor | float:
        """Scalar to add to the loss; a step's is the mean over its micro-batches and ranks."""
        return 0.0

    def before_step(self, engine: Any) -> None:
        """Between the last backward of a step and the step."""

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """Fold in what was learned; tensors for the task's memory file, whole on every rank.

        Args:
            i: the task.
            look: for methods that look at the task's data once more.
        """
        return {}

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what ``end_task(i)`` gives and ``load_task`` takes; -1: any number.

        Args:
            i: the task.
            linears: the adapted ones by full name, before or after they are adapted.
        """
        return {}

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Take in what ``end_task(i)`` gave, as though the task had just been learned."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a restart in the middle of a task needs beyond parameters and memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take in a ``state_dict``."""

    def draw(self, benchmark: Benchmark, i: int, count: int) -> list[Example]:
        """``count`` of task i's training examples, or all; fewer are the first ones of more."""
        train = benchmark.tasks[i].train
        order = torch.randperm(len(train), generator=self.generator(i))
        return [train[k] for k in order[:count].tolist()]

    def generator(self, i: int) -> torch.Generator:
        """Random numbers that depend on the seed and the task only, on the CPU."""
        seed = np.random.SeedSequence([self.seed, i]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed) >> 1)


METHODS: Registry[type[Method]] = Registry("method")
