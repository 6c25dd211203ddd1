"""How much each atom of a memory answers on the training data of its tasks."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from eval.measure.observe import Tally
from moram_dist.adapters.routed import Weights, routed_linears, watching
from moram_dist.comm import env
from moram_dist.methods.restore import answered_by, load_memory
from moram_dist.models import language_model
from moram_dist.tasks import Benchmark
from moram_dist.use.source import MemorySource

EXAMPLES = 64
"""Most training examples of a task, spread evenly over them."""


@torch.no_grad()
def used_weights(source: MemorySource, benchmark: Benchmark) -> dict[str, Tensor]:
    """The sum of each atom's weights in the mixtures of prompts' and answers' tokens.

    All tasks count, as older atoms answer newer tasks too. With recall ``all``, all atoms answer;
    with another one, the tasks up to an example's own, as right after that task.

    Args:
        source: a memory of a method with atoms.
        benchmark: its tasks, in order.

    Returns:
        By full name of a linear, (N,) as integers in units of ``observe.UNIT``.
    """
    base = language_model.load(source.model)
    model = load_memory(base.model.to(env.device()), source.path, recall="all")
    linears = routed_linears(model)
    tallies = {name: Tally(linear.task_ends, 1, env.device()) for name, linear in linears.items()}

    def take(name: str, weights: Weights) -> None:
        tallies[name].add(0, weights)

    for i, task in enumerate(benchmark.tasks):
        prefix = nullcontext() if source.recall == "all" else answered_by(model, [i + 1])
        with watching(linears, take), prefix:
            for example in task.train[:: 1 + (len(task.train) - 1) // EXAMPLES]:
                base.family.read(model, base.tokenizer, example, task)
    return {name: tally.used_N.cpu() for name, tally in tallies.items()}
