"""Find the linears that an example passes through, by running a model without weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

NUM_TOKENS = 8
"""Length of the text that is run through the model."""


def unreached(skeleton: nn.Module, inputs: Mapping[str, Any]) -> set[str]:
    """Full names of the linears that a forward pass does not call.

    Args:
        skeleton: the whole model on the meta device, where nothing is computed. It is not changed.
        inputs: arguments of the pass, also on the meta device.

    Returns:
        Empty if no pass completes without numbers, as with experts that are called one by one: then
        nothing is known.
    """
    # In bf16, the only dtype for which the meta device has the grouped product of experts.
    model: Any = copy.deepcopy(skeleton).to(torch.bfloat16).eval()
    called: set[str] = set()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    for name, linear in linears.items():
        linear.register_forward_hook(lambda *_, name=name: called.add(name))
    whole = [_passes(model, inputs, answer) for answer in (True, False)]
    return linears.keys() - called if any(whole) else set()


def _passes(model: Any, inputs: Mapping[str, Any], answer: bool) -> bool:
    """Whether a forward pass completes if every number read from a tensor is ``answer``."""
    try:
        with torch.no_grad(), _Answers(answer):
            model(**inputs)
    except Exception:  # a model's code may raise anything if it needs numbers
        return False
    return True


class _Answers(TorchDispatchMode):
    """Gives ``answer`` to code that reads a number from a meta tensor, as in ``if mask.all()``."""

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer = answer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run any operation except reading a number, which gives ``answer``."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.answer
        return func(*args, **(kwargs or {}))
