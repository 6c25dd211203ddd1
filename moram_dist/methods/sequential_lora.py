"""One LoRA, trained on one task after the other: the baseline that forgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import sizes
from moram_dist.adapters.lora import LoraLinear
from moram_dist.comm.zero3 import whole
from moram_dist.methods.adapting import AdaptingMethod
from moram_dist.methods.method import METHODS, ExampleLosses, Linears


@METHODS.register("sequential_lora")
class SequentialLora(AdaptingMethod):
    """The usual lower baseline: one adapter for all tasks, a fresh optimizer for each task.

    Source: Hu et al. 2021, arXiv:2106.09685, trained in sequence as SeqLoRA in Wang et al. 2023,
    arXiv:2310.14152.
    """

    as_lora: Literal["newest", "sum"] | None = "newest"
    layers: dict[str, LoraLinear]  # type: ignore[assignment]

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """Put a LoRA on the target linears; its rank is ``atoms_per_task``."""
        size = self.config.atoms_per_task

        def make(name: str, base: nn.Module) -> LoraLinear:
            return self._layer(
                base, size=size, scale=self.config.alpha / size, dropout=self._dropout(name, base)
            )

        self._adapt(model, modules, make)

    def _layer(self, base: nn.Module, **settings: Any) -> LoraLinear:
        """The layer that replaces a linear; ``settings`` are the arguments of ``LoraLinear``."""
        return LoraLinear(base, **settings)

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """A new LoRA before the first task; later tasks continue to train it."""
        return self._fresh(i) if i == 0 else {}

    def _fresh(self, i: int) -> dict[str, Tensor]:
        """Initial terms for task i: A Kaiming-uniform, B zero."""
        generator = self.generator(i)
        fresh: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            A = torch.empty(self.config.atoms_per_task, layer.in_features)
            fresh[f"{name}.lora_A"] = nn.init.kaiming_uniform_(
                A, a=math.sqrt(5), generator=generator
            )
            fresh[f"{name}.lora_B"] = torch.zeros(len(A), layer.out_features)
        return fresh

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """The adapter after task i."""
        tensors = self._trained()
        self._keep(tensors)
        return tensors

    def _trained(self) -> dict[str, Tensor]:
        """The trained tensors, in the form of the task's memory file."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            with whole([layer.lora_A, layer.lora_B]):
                tensors[f"{name}.lora_A"] = layer.lora_A.detach().clone()
                tensors[f"{name}.lora_B"] = layer.lora_B.detach().clone()
        return tensors

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Shapes of A and B of each linear."""
        out: dict[str, tuple[int, ...]] = {}
        for name, linear in linears.items():
            num_in, num_out = sizes(linear)
            out[f"{name}.lora_A"] = (self.config.atoms_per_task, num_in)
            out[f"{name}.lora_B"] = (self.config.atoms_per_task, num_out)
        return out

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Set the adapter to the one after task i."""
        for name, layer in self.layers.items():
            with whole([layer.lora_A, layer.lora_B], write=True), torch.no_grad():
                layer.lora_A.copy_(tensors[f"{name}.lora_A"])
                layer.lora_B.copy_(tensors[f"{name}.lora_B"])
        self._keep(tensors)

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what later tasks need from a memory file; called when a task ends or is loaded."""
