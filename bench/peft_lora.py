"""PEFT's own LoRA with given rows, as far as it offers what a memory is.

PEFT has no rows of one adapter that are frozen while others are trained. Two adapters that are
active together, one of them frozen, compute the same: a pass over each. Dropout is 0, and the scale
lora_alpha / r is 1.

Shape letters: N rows, D inputs, E outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraConfig, LoraModel
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor]
"""Keys (N, D) and values (N, E): the rows of A, and the columns of B."""

ALL, FROZEN, ACTIVE = "all", "frozen", "active"


def peft_lora(
    model: nn.Module, rows: Mapping[str, tuple[Rows, Rows]], *, apart: bool
) -> dict[str, nn.Module]:
    """Give linears of a model their frozen and active rows; full name to PEFT's layer.

    Args:
        model: changed in place; nothing of it is trained afterwards but rows.
        rows: full name of a linear to its frozen rows and its active ones.
        apart: whether frozen rows are an adapter of their own that is not trained; else all are
            one that is.
    """
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
    """What is trained of a layer, by the names of references."""
    adapter = ALL if ALL in layer.lora_A else ACTIVE
    return {
        f"{prefix}{adapter} keys": layer.lora_A[adapter].weight,
        f"{prefix}{adapter} values^T": layer.lora_B[adapter].weight,
    }
