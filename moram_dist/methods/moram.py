"""MoRAM: a memory of rank-1 atoms that grows with each task and freezes the older atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from moram_dist.adapters.adapter import sizes
from moram_dist.adapters.directions import OlderInputs, direction_shapes
from moram_dist.atoms import (
    Memory,
    MemoryLinear,
    MemorySettings,
    Routing,
    by_input,
    give_memory,
)
from moram_dist.atoms.manifest import TaskFile
from moram_dist.comm.zero3 import whole
from moram_dist.families import Family, family_of_model
from moram_dist.methods.adapting import AdapterConfig, AdaptingMethod
from moram_dist.methods.method import METHODS, ExampleLosses, Linears
from moram_dist.registry import MachineError
from moram_dist.section import section


@section
class MoramConfig(AdapterConfig):
    """Settings of ``moram``."""

    top_k: Annotated[int, Field(ge=1, le=2**20)] = 8
    """Atoms that answer a token."""

    temperature: Annotated[float, Field(gt=0, ge=1e-6, le=1_000_000)] = 0.03
    """Softmax temperature in units of relevance (at most 1, so 0.03 is sharp)."""

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Relevance below which an atom is silent at inference, in [0, 1]; never used in training."""

    quiet_keys: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """moram: keeps new keys orthogonal to the directions that hold this part of the energy of older
    tasks' inputs, in [0, 1), so that new atoms hardly answer older tasks; 0 leaves keys free."""


@METHODS.register("moram")
class Moram(AdaptingMethod):
    """Incremental mixture of rank-1 associative memory atoms.

    With ``quiet_keys``, our addition, new keys are orthogonal to the leading directions of older
    tasks' inputs, so that new atoms hardly respond to older tasks. Each task adds the directions
    that its inputs need, as in gradient projection memory (Saha et al. 2021, arXiv:2103.09762).

    Source: Lu et al. 2026, arXiv:2506.21035.
    """

    keeps_prefixes = True
    keeps_apart = True
    routes = True
    Config = MoramConfig
    config: MoramConfig
    layers: dict[str, MemoryLinear]  # type: ignore[assignment]
    memories: dict[tuple[str, ...], Memory]
    """Full names of the linears that are queried together -> their memory."""

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """Give the target linears an empty memory and room for one task's atoms."""
        config = self.config
        self.model = model

        def make(name: str, base: nn.Module) -> MemoryLinear:
            return MemoryLinear(base, dropout=self._dropout(name, base))

        self._adapt(model, modules, make)
        settings = MemorySettings(
            routing=Routing(
                top_k=config.top_k, temperature=config.temperature, threshold=config.threshold
            ),
            num_active=config.atoms_per_task,
            scale=config.alpha / config.atoms_per_task,
            prefix=self.prefix,
        )
        self.memories = give_memory(self.layers, settings, self.placer)
        self.older: OlderInputs | None = None
        if config.quiet_keys:
            self.older = OlderInputs(self.layers, [*self.memories], config.quiet_keys)
        if self.in_step:
            self._announce_passes(model)

    @property
    def in_step(self) -> bool:
        """Whether ranks exchange atoms or tokens in each forward pass."""
        return self.placer.in_step

    def metrics(self) -> dict[str, float]:
        """Bytes received and calls of the memory's collectives, since the process started."""
        found: dict[str, float] = {}
        for name, traffic in self.placer.group.traffic.items():
            key = f"atoms/{name.replace(' ', '_')}"
            found |= {f"{key}_bytes": traffic.bytes, f"{key}_calls": traffic.calls}
        return found

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """New atoms: Kaiming-uniform keys (a = sqrt 5), zero values."""
        generator = self.generator(i)
        fresh: dict[str, Tensor] = {}
        for names, memory in self.memories.items():
            memory.learning = True
            if self.older:
                directions_KD = self.older.of(names)
                memory.directions_KD = directions_KD.to(memory.bank.shard_F.device)
            for one, (d, e) in enumerate(memory.bank.shapes):
                keys = torch.empty(self.config.atoms_per_task, d)
                nn.init.kaiming_uniform_(keys, a=math.sqrt(5), generator=generator)
                fresh[f"{names[0]}.memory.keys_{one}"] = keys
                fresh[f"{names[0]}.memory.values_{one}"] = torch.zeros(len(keys), e)
        return fresh

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """Freeze the active atoms. This does not change the model's outputs."""
        self._check_frozen()
        tensors: dict[str, Tensor] = {}
        for names, memory in self.memories.items():
            with whole(memory.parameters(recurse=False)), torch.no_grad():
                for one, name in enumerate(names):
                    keys, values = memory.stored(one)
                    tensors[f"{name}.keys"] = keys.detach().clone()
                    tensors[f"{name}.values"] = values
        self._grow(tensors)
        if self.older:
            tensors |= self.older.add_task(self.model, look)
        return tensors

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Shapes of a task's keys and values; with ``quiet_keys``, of its new directions too."""
        return self._shapes(self.config.atoms_per_task, linears)

    def stored_shapes(self, i: int, task: TaskFile, linears: Linears) -> dict[str, tuple[int, ...]]:
        """The same with as many atoms as a prune left."""
        return self._shapes(task.atoms or self.config.atoms_per_task, linears)

    def _shapes(self, num_atoms: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        out: dict[str, tuple[int, ...]] = {}
        for name, linear in linears.items():
            d, e = sizes(linear)
            out[f"{name}.keys"] = (num_atoms, d)
            out[f"{name}.values"] = (num_atoms, e)
        return out | (
            direction_shapes(linears, by_input(linears)) if self.config.quiet_keys else {}
        )

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Append task i's atoms to the memory."""
        self._grow(tensors)
        if self.older:
            self.older.load_task(tensors)

    def _grow(self, tensors: Mapping[str, Tensor]) -> None:
        for names, memory in self.memories.items():
            memory.grow([(tensors[f"{name}.keys"], tensors[f"{name}.values"]) for name in names])
            memory.learning = False

    def _check_frozen(self) -> None:
        """Raise MachineError if a frozen atom has changed."""
        for names, memory in self.memories.items():
            if not memory.bank.intact():
                raise MachineError(
                    f"frozen atoms of {names[0]} changed in this rank's memory since they were "
                    "frozen; published tasks are intact; rerun the same command to resume"
                )

    def _announce_passes(self, model: Any) -> None:
        """Register hooks that choose the placement before each forward pass of the model."""
        family = family_of_model(model)
        for names, memory in self.memories.items():
            memory.reads_source = family.reads_source(names[0])
        for module, is_source in family.towers(model):
            begin = partial(self._begin_pass, family, is_source)
            module.register_forward_pre_hook(begin, with_kwargs=True)

    def _begin_pass(
        self,
        family: Family,
        is_source: bool,
        module: nn.Module,
        arguments: Any,
        named: dict[str, Any],
    ) -> None:
        self.placer.begin(family.tokens_of(arguments, named), source=is_source)
