"""PEFT's LoRA with given rows, the closest that PEFT offers to a memory.

PEFT cannot freeze some rows of an adapter and train others. Two adapters that are active together,
one of them frozen, compute the same, with one pass over each. Dropout is 0, and the scale
lora_alpha / r is 1.

Shape letters: N rows, D inputs, E outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor]
"""Keys (N, D) and values (N, E): the rows of A, and the columns of B."""

ALL, FROZEN, ACTIVE = "all", "frozen", "active"


def peft_lora(
    model: nn.Module, rows: Mapping[str, tuple[Rows, Rows]], *, apart: bool
) -> dict[str, nn.Module]:
    """Give linears of a model their frozen and active rows. Returns full name -> PEFT's layer.

    Args:
        model: changed in place; afterwards only rows are trained.
        rows: full name of a linear -> its frozen rows and its active ones.
        apart: whether frozen rows are a separate adapter that is not trained; otherwise all rows
            are one trained adapter.
    """
    from peft.tuners.lora import LoraConfig, LoraModel  # the others are compared without it, too

    frozen, active = next(iter(rows.values()))
    sizes = {FROZEN: len(frozen[0]), ACTIVE: len(active[0])}
    if not apart:
        sizes = {ALL: sum(sizes.values())}
    configs = {
        name: LoraConfig(r=r, lora_alpha=r, lora_dropout=0.0, target_modules=list(rows))
        for name, r in sizes.items()
    }
    first, *others = configs
    tuner: Any = LoraModel(model, configs[first], first)
    for name in others:
        tuner.peft_config[name] = configs[name]
        tuner.inject_adapter(model, name)
    tuner.set_adapter(list(configs))
    if apart:
        tuner.set_requires_grad(FROZEN, False)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in rows}
    for name, (frozen, active) in rows.items():
        together = tuple(torch.cat(pair) for pair in zip(frozen, active, strict=True))
        given = {FROZEN: frozen, ACTIVE: active, ALL: together}
        for adapter in configs:
            keys, values = (part.detach() for part in given[adapter])
            layers[name].lora_A[adapter].weight.data = keys.clone()
            layers[name].lora_B[adapter].weight.data = values.T.contiguous()
    return layers


def peft_leaves(layer: Any, prefix: str = "") -> dict[str, Tensor]:
    """The trained tensors of a layer, by the names that references use."""
    adapter = ALL if ALL in layer.lora_A else ACTIVE
    return {
        f"{prefix}{adapter} keys": layer.lora_A[adapter].weight,
        f"{prefix}{adapter} values^T": layer.lora_B[adapter].weight,
    }
