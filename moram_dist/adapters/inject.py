"""Find the linear layers that a user means, and put adapted ones in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.registry import InputError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q", "k", "v", "o")
"""Names in LLaMA, Mistral, Qwen and Gemma models, and most that follow them; and in T5."""


def find_linears(model: nn.Module, target_modules: str) -> list[str]:
    """Full names of the linears that ``target_modules`` means, in the model's order.

    Args:
        model: any Hugging Face language model.
        target_modules: ``attention`` (q, k, v, o), ``all-linear`` (all but the output head), last
            names joined by commas, or a regular expression that a full name must match whole.

    Raises:
        InputError: nothing matches, with the names that there are; or a bad regular expression.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = [
        name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head
    ]
    if target_modules == "all-linear":
        found = linears
    else:
        wanted = ATTENTION if target_modules == "attention" else tuple(target_modules.split(","))
        found = [name for name in linears if name.rpartition(".")[2] in wanted]
        if not found and target_modules != "attention":
            try:
                found = [name for name in linears if re.fullmatch(target_modules, name)]
            except re.error as error:
                raise InputError(
                    f"--target_modules {target_modules!r} is no regular expression: {error}"
                ) from None
    if not found:
        last_names = sorted({name.rpartition(".")[2] for name in linears})
        raise InputError(
            f"--target_modules {target_modules!r} matches no linear layer of "
            f"{type(model).__name__}; it has: {', '.join(last_names) or 'none'}"
        )
    return found


def adapt(
    model: nn.Module, names: Iterable[str], make: Callable[[str, nn.Linear], AdaptedLinear]
) -> dict[str, AdaptedLinear]:
    """Freeze the model, put ``make(name, linear)`` for each named linear; name -> new layer."""
    model.requires_grad_(False)
    layers: dict[str, AdaptedLinear] = {}
    for name in names:
        parent_name, _, last = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layers[name] = make(name, model.get_submodule(name))  # type: ignore[arg-type]
        setattr(parent, last, layers[name])
    return layers
