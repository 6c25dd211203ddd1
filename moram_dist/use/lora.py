"""What a memory adds to its base, as one LoRA: exact for methods that are one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from moram_dist.adapters.lora import Terms
from moram_dist.methods import METHODS
from moram_dist.methods.adapting import AdapterConfig
from moram_dist.methods.restore import config_of, linears_of
from moram_dist.registry import InputError
from moram_dist.use.source import MemorySource


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Terms of each linear by full name; the update is ``alpha / rank * x A^T B``."""

    terms: Mapping[str, Terms]
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rank-1 terms of each linear."""
        return len(next(iter(self.terms.values()))[0])


def exact_lora(source: MemorySource, upto: int, model: nn.Module) -> Lora:
    """The LoRA that the first ``upto`` tasks of a memory are.

    Args:
        source: the memory.
        upto: at least 1.
        model: the base or its skeleton, for names and sizes of its linears.

    Raises:
        InputError: the method's update is no LoRA, or a file is damaged.
    """
    kind = METHODS[source.manifest.method]
    if kind.as_lora is None:
        raise InputError(f"{source.path}: what {source.manifest.method} adds is no LoRA")
    config = config_of(source.manifest, source.path)
    linears = linears_of(model, source.manifest, source.path)
    method = kind(config, seed=0, num_tasks=len(source.tasks))
    first = upto - 1 if kind.as_lora == "newest" else 0
    tensors = []
    for i, task in enumerate(source.manifest.tasks[first:upto], start=first):
        source.files.check(task, method.stored_shapes(i, task, linears))
        tensors.append(source.files.read(task))
    terms = {
        name: (
            torch.cat([each[f"{name}.lora_A"] for each in tensors]),
            torch.cat([each[f"{name}.lora_B"] for each in tensors]),
        )
        for name in linears
    }
    assert isinstance(config, AdapterConfig)
    # The scale of a method that sums LoRAs is folded into B.
    count = upto - first
    alpha = config.alpha if kind.as_lora == "newest" else float(count * config.atoms_per_task)
    return Lora(terms=terms, alpha=alpha)
