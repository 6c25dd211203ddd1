"""How much each atom of a MoRAM memory answers on training data.

Shape letters: T tokens, N atoms, D inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.atoms.routing import Routing
from moram_dist.comm import env
from moram_dist.methods.moram import MoramConfig
from moram_dist.methods.restore import answered_by, config_of, load_memory
from moram_dist.models import language_model
from moram_dist.tasks import Benchmark
from moram_dist.use.approximate import mixture_weights
from moram_dist.use.source import MemorySource

EXAMPLES = 64
"""Most training examples of a task, spread evenly over them."""


@torch.no_grad()
def atom_use(source: MemorySource, benchmark: Benchmark) -> dict[str, Tensor]:
    """The sum over tokens of the length of what each atom adds to its linear's output.

    That is its weight in the mixture times ``|k x| |v|``. It was compared with the weight alone and
    with the number of tokens (docs/log.md, 2026-11-30). Tokens are those of prompts and answers.
    All tasks count, as older atoms answer newer tasks too. With recall ``all``, all atoms answer;
    with another one, those of the tasks up to an example's own, as right after that task.

    Args:
        source: a memory of ``moram``.
        benchmark: its tasks, in order.

    Returns:
        By full name of a linear, (N,) in float64.
    """
    config = config_of(source.manifest, source.files.path)
    assert isinstance(config, MoramConfig)
    routing = Routing(
        top_k=config.top_k, temperature=config.temperature, threshold=config.threshold
    )
    base = language_model.load(source.model)
    model = load_memory(base.model.to(env.device()), source.path, recall="all")
    files = [source.files.read(task) for task in source.manifest.tasks]
    linears = {
        name: _AtomUse(
            [tensors[f"{name}.keys"] for tensors in files],
            [tensors[f"{name}.values"] for tensors in files],
            routing,
        )
        for name in source.manifest.modules
    }
    for i, task in enumerate(benchmark.tasks):
        answering = None if source.recall == "all" else i + 1
        with (
            nullcontext() if answering is None else answered_by(model, [answering]),
            _watching(model, linears, answering),
        ):
            for example in task.train[:: 1 + (len(task.train) - 1) // EXAMPLES]:
                base.family.read(model, base.tokenizer, example, task)
    return {name: one.used_N.cpu() for name, one in linears.items()}


class _AtomUse:
    """The atoms of one linear."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], routing: Routing) -> None:
        """``keys`` and ``values`` of each task."""
        device = env.device()
        self.routing = routing
        self.ends = torch.tensor([0, *map(len, keys)]).cumsum(0).tolist()
        self.keys_ND = torch.cat(keys).to(device).float()
        self.lengths_N = torch.cat(values).to(device).float().norm(dim=-1)
        self.used_N = torch.zeros(len(self.keys_ND), dtype=torch.float64, device=device)

    def add(
        self, tasks: int | None, linear: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        """Count the tokens that the linear is called with, when the first ``tasks`` answer."""
        count = self.ends[-1 if tasks is None else tasks]
        x = inputs[0] if inputs else named["input"]
        x_TD = x.reshape(-1, x.shape[-1]).float()
        score_TN = x_TD @ self.keys_ND[:count].T
        weight_TN = mixture_weights(score_TN, self.routing)
        added_N = (weight_TN * score_TN.abs()).double().sum(0)
        self.used_N[:count] += added_N * self.lengths_N[:count].double()


@contextmanager
def _watching(model: nn.Module, linears: dict[str, _AtomUse], tasks: int | None) -> Iterator[None]:
    handles: list[Any] = [
        model.get_submodule(name).register_forward_pre_hook(
            partial(one.add, tasks), with_kwargs=True
        )
        for name, one in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
