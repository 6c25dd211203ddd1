"""A whole model whose linears have a memory, in each of the compared implementations.

Shape letters: N atoms, D inputs, E outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench import published
from bench.peft_lora import Rows
from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.inject import adapt
from moram_dist.atoms.layer import Memory
from moram_dist.families.targets import find_linears
from moram_dist.methods import METHODS
from moram_dist.methods.moram import MoramConfig

Atoms = Mapping[str, tuple[Rows, Rows]]
"""Full name of a linear -> its frozen and its active keys and values."""


def draw_atoms(
    model: nn.Module, config: MoramConfig, num_frozen: int, num_active: int, seed: int = 0
) -> dict[str, tuple[Rows, Rows]]:
    """Random atoms for the linears that a method adapts, as large as learned ones."""
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int, linear: Any) -> Rows:
        keys = torch.randn(count, linear.in_features, generator=generator)
        values = torch.randn(count, linear.out_features, generator=generator)
        drawn = keys / linear.in_features**0.5, values / 10
        return tuple(part.to(linear.weight) for part in drawn)  # type: ignore[return-value]

    return {
        name: (rows(num_frozen, linear), rows(num_active, linear))
        for name in find_linears(model, config.target_modules)
        for linear in [model.get_submodule(name)]
    }


class PublishedLinear(AdaptedLinear):
    """The published formulation."""

    def __init__(self, base: nn.Module, frozen: Rows, active: Rows, config: MoramConfig) -> None:
        super().__init__(base)
        self.config = config
        self.frozen_keys: Tensor
        self.frozen_values: Tensor
        self.register_buffer("frozen_keys", frozen[0].clone())
        self.register_buffer("frozen_values", frozen[1].clone())
        self.keys, self.values = (nn.Parameter(part.detach().clone()) for part in active)

    def update(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        y = published.recall(
            x.reshape(-1, x.shape[-1]),
            (self.frozen_keys, self.frozen_values),
            (self.keys, self.values),
            top_k=self.config.top_k,
            temperature=self.config.temperature,
        )
        return y.view(*x.shape[:-1], -1)


class PlainLora(AdaptedLinear):
    """The reference for PEFT's LoRA: y = B A x with all rows trained."""

    def __init__(self, base: nn.Module, frozen: Rows, active: Rows) -> None:
        super().__init__(base)
        self.num_active = len(active[0])
        self.keys, self.values = (
            nn.Parameter(torch.cat(pair).detach()) for pair in zip(frozen, active, strict=True)
        )

    def update(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        return (x @ self.keys.T) @ self.values


def put_published(model: nn.Module, atoms: Atoms, config: MoramConfig) -> dict[str, Tensor]:
    """Adapt in place. Returns the trained tensors by name."""
    layers: Any = adapt(
        model, atoms, lambda name, base: PublishedLinear(base, *atoms[name], config)
    )
    leaves: dict[str, Tensor] = {}
    for name, layer in layers.items():
        leaves |= {f"{name} active keys": layer.keys, f"{name} active values": layer.values}
    return leaves


def put_plain_lora(model: nn.Module, atoms: Atoms) -> dict[str, PlainLora]:
    """Adapt in place. Returns the new layers by name."""
    layers: Any = adapt(model, atoms, lambda name, base: PlainLora(base, *atoms[name]))
    return layers


def put_ours(
    model: nn.Module, atoms: Atoms, config: MoramConfig
) -> tuple[dict[tuple[str, ...], Memory], dict[str, Tensor]]:
    """Adapt in place, as the method does. Returns memories and trained tensors, each by name."""
    method: Any = METHODS["moram"](config, seed=0)
    method.build(model)
    leaves: dict[str, Tensor] = {}
    for names, memory in method.memories.items():
        memory.learning = True
        memory.grow([atoms[name][0] for name in names])
        for i, name in enumerate(names):
            for kind, parameter, given in zip(
                ("keys", "values"), memory.active(i), atoms[name][1], strict=True
            ):
                parameter.data = given.detach().clone()
                leaves[f"{name} active {kind}"] = parameter
    return method.memories, leaves


def put_learned(model: nn.Module, atoms: Atoms, config: MoramConfig) -> None:
    """Adapt in place with a memory that has learned all atoms, the active ones too."""

    def learned(frozen: Rows, active: Rows) -> tuple[Rows, Rows]:
        keys, values = (torch.cat(pair) for pair in zip(frozen, active, strict=True))
        room = config.atoms_per_task
        return (keys, values), (
            keys.new_zeros(room, keys.shape[1]),
            values.new_zeros(room, values.shape[1]),
        )

    memories, _ = put_ours(model, {name: learned(*rows) for name, rows in atoms.items()}, config)
    for memory in memories.values():
        memory.learning = False
