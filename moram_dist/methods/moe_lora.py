"""A LoRA expert for each task and a learned router: the design that MoRAM argues against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from moram_dist.adapters.adapter import sizes
from moram_dist.adapters.lora_experts import LoraExperts
from moram_dist.comm.zero3 import whole
from moram_dist.methods.adapting import AdapterConfig
from moram_dist.methods.inc_lora import IncLora
from moram_dist.methods.method import METHODS, Linears
from moram_dist.registry import InputError
from moram_dist.section import section


@section
class MoeLoraConfig(AdapterConfig):
    """Settings of ``moe_lora``."""

    top_experts: Annotated[int, Field(le=2**20)] = 2
    """moe_lora: experts that answer a token (published: 2)."""

    def __post_init__(self) -> None:
        """Raises InputError on fewer than two experts."""
        if self.top_experts < 2:
            raise InputError(
                f"--top_experts must be >= 2, got {self.top_experts}: the weight of a single "
                "expert is always 1, so the router would learn nothing"
            )


@METHODS.register("moe_lora")
class MoeLora(IncLora):
    """Each task adds an expert and freezes the older ones; the router keeps training.

    A router at each adapted linear sends every token to ``top_experts`` of the experts so far, with
    weights. Its rows for old experts train on every task, so older tasks' routing changes.

    Source: the incremental mixture of LoRA experts of Yu et al. 2024, arXiv:2403.11549: a
    bias-free router that starts at 0, softmax over the two largest logits, frozen experts. Theirs
    has one router per task, chosen by an auto-encoder, which routes one token of each image, noise
    in training, and a fixed set of experts of which the most used are frozen. Here one router for
    all tasks routes each token, without noise, and each expert belongs to one task.
    """

    routes = True
    keeps_apart = False  # one router for all experts
    Config = MoeLoraConfig
    config: MoeLoraConfig
    as_lora = None  # what is added depends on the input
    layers: dict[str, LoraExperts]  # type: ignore[assignment]

    def _layer(self, base: nn.Module, **settings: Any) -> LoraExperts:
        return LoraExperts(
            base,
            **settings,
            prefix=self.prefix,
            num_tasks=self.num_tasks,
            top=self.config.top_experts,
        )

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """A new expert. Its row of the router is 0, as it has been since the first task."""
        fresh = super().begin_task(i)
        if i == 0:
            for name, layer in self.layers.items():
                fresh[f"{name}.router"] = torch.zeros(self.num_tasks, layer.in_features)
        return fresh

    def _trained(self) -> dict[str, Tensor]:
        """The task's expert, and the router's rows of the experts so far."""
        tensors = super()._trained()
        for name, layer in self.layers.items():
            with whole([layer.router]):
                tensors[f"{name}.router"] = layer.router[: layer.num_experts].detach().clone()
        return tensors

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Shapes of the expert's A and B, and of the router's rows so far."""
        routers = {f"{n}.router": (i + 1, sizes(linear)[0]) for n, linear in linears.items()}
        return super().shapes(i, linears) | routers

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Append task i's expert, and restore the router after task i."""
        super().load_task(i, tensors)
        for name, layer in self.layers.items():
            with whole([layer.router], write=True), torch.no_grad():
                layer.router[: i + 1].copy_(tensors[f"{name}.router"])

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        super()._keep(tensors)
        for name, layer in self.layers.items():
            # Only earlier states read it; all of them together grow as the tasks squared.
            layer.routers.append(tensors[f"{name}.router"].cpu())
