"""Replace linears of a frozen model by adapted ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from moram_dist.adapters.adapter import AdaptedLinear


def adapt(
    model: nn.Module, names: Iterable[str], make: Callable[[str, nn.Module], AdaptedLinear]
) -> dict[str, AdaptedLinear]:
    """Freeze the model, replace each named linear by ``make(name, linear)``; name -> new layer."""
    model.requires_grad_(False)
    layers: dict[str, AdaptedLinear] = {}
    for name in names:
        layers[name] = make(name, model.get_submodule(name))
        put(model, name, layers[name])
    return layers


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule with that full name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
