"""MoRAM: a memory of rank-1 atoms that grows by some atoms a task and freezes the older ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.atoms import MemoryLinear, Routing, Together, put_together
from moram_dist.comm.zero3 import whole
from moram_dist.methods.method import METHODS, Method

KEYS, VALUES = "active_keys_RD", "active_values_RE"


@METHODS.register("moram")
class Moram(Method):
    """Incremental mixture of rank-1 associative memory atoms.

    Source: Lu et al. 2026, arXiv:2506.21035.
    """

    layers: dict[str, MemoryLinear]  # type: ignore[assignment]

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """Give the target linears an empty memory and room for one task's atoms."""
        config = self.config

        def make(name: str, base: nn.Linear) -> MemoryLinear:
            return MemoryLinear(
                base,
                routing=Routing(
                    top_k=config.top_k, temperature=config.temperature, threshold=config.threshold
                ),
                num_active=config.atoms_per_task,
                scale=config.alpha / config.atoms_per_task,
                dropout=self._dropout(name, base),
            )

        self._adapt(model, modules, make)
        self.banks = put_together(self.layers, self.placer)
        if self.placer.group.size > 1:
            model.register_forward_pre_hook(self._begin_pass, with_kwargs=True)

    @property
    def in_step(self) -> bool:
        """Whether atoms or tokens move in each forward pass."""
        return self.placer.in_step

    def memory_bytes(self, num_tasks: int) -> int:
        """Of the atoms of so many tasks, in the dtype in which they are asked."""
        atoms = num_tasks * self.config.atoms_per_task
        return sum(
            atoms * (layer.in_features + layer.out_features) * layer.base.weight.element_size()
            for layer in self.layers.values()
        )

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """New atoms: Kaiming-uniform keys (a = sqrt 5), zero values."""
        generator = self.generator(i)
        fresh: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            keys = torch.empty(self.config.atoms_per_task, layer.in_features)
            nn.init.kaiming_uniform_(keys, a=math.sqrt(5), generator=generator)
            fresh[f"{name}.{KEYS}"] = keys
            fresh[f"{name}.{VALUES}"] = torch.zeros(len(keys), layer.out_features)
            layer.learning = True
        return fresh

    def end_task(self, i: int, batches: Callable[[], Iterable[Any]]) -> dict[str, Tensor]:
        """Freeze the active atoms. Outputs of the model stay what they are."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            with whole([layer.active_keys_RD, layer.active_values_RE]):
                tensors[f"{name}.keys"] = layer.active_keys_RD.detach().clone()
                tensors[f"{name}.values"] = layer.stored_values(layer.active_values_RE.detach())
        self.load_task(i, tensors)
        return tensors

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Append task i's atoms to the memory."""
        for name, layer in self.layers.items():
            layer.grow(tensors[f"{name}.keys"], tensors[f"{name}.values"])
            layer.learning = False
