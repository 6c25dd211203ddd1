"""Which linears an example passes through, found by sending one through a model without weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

NUM_TOKENS = 8
"""Of a text that is sent."""


def unreached(skeleton: nn.Module, inputs: Mapping[str, Any]) -> set[str]:
    """Full names of the linears that a forward pass does not call.

    Args:
        skeleton: the whole model on the meta device, where nothing is computed. It stays as it is.
        inputs: arguments of the pass, on the meta device too.

    Returns:
        Empty where no pass comes to its end without numbers, as with experts that are called one by
        one: then nothing is known.
    """
    # In bf16 because the grouped product of experts exists in no other dtype without numbers.
    model: Any = copy.deepcopy(skeleton).to(torch.bfloat16).eval()
    called: set[str] = set()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    for name, linear in linears.items():
        linear.register_forward_hook(lambda *_, name=name: called.add(name))
    whole = [_passes(model, inputs, answer) for answer in (True, False)]
    return linears.keys() - called if any(whole) else set()


def _passes(model: Any, inputs: Mapping[str, Any], answer: bool) -> bool:
    """Whether a forward pass comes to its end, if all that is asked of numbers is answered so."""
    try:
        with torch.no_grad(), _Answers(answer):
            model(**inputs)
    except Exception:  # whatever a model's own code raises where it needs numbers
        return False
    return True


class _Answers(TorchDispatchMode):
    """Code that asks a tensor without numbers for one, as ``if mask.all()``, gets ``answer``."""

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer = answer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, but for the one that reads a number."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.answer
        return func(*args, **(kwargs or {}))
