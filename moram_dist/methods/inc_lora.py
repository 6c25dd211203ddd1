"""A new LoRA for each task; older ones are frozen, and all are summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from moram_dist.adapters.growing_lora import GrowingLora
from moram_dist.comm.zero3 import whole
from moram_dist.methods.method import METHODS
from moram_dist.methods.sequential_lora import SequentialLora


@METHODS.register("inc_lora")
class IncLora(SequentialLora):
    """Old LoRAs are never overwritten, but nothing prevents a new one from cancelling them.

    Source: IncLoRA in Wang et al. 2023, arXiv:2310.14152.
    """

    keeps_prefixes = True
    keeps_apart = True
    as_lora: Literal["newest", "sum"] | None = "sum"
    layers: dict[str, GrowingLora]  # type: ignore[assignment]

    def _layer(self, base: nn.Module, **settings: Any) -> GrowingLora:
        return GrowingLora(base, **settings, prefix=self.prefix)

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """New terms, which are added to the frozen ones."""
        for layer in self.layers.values():
            layer.learning = True
        return self._fresh(i)

    def _trained(self) -> dict[str, Tensor]:
        """The task's terms; B includes the scale, so that freezing does not change outputs."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            with whole([layer.lora_A, layer.lora_B]):
                A, B = layer.stored()
                tensors[f"{name}.lora_A"] = A.detach().clone()
                tensors[f"{name}.lora_B"] = B.detach()
        return tensors

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Append task i's terms to the frozen ones."""
        self._keep(tensors)

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        for name, layer in self.layers.items():
            layer.grow(tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"])
            layer.learning = False
