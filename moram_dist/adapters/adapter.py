"""A frozen linear layer with something added to its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""A weight of another dtype is quantised: it is stored in one dtype and computed in another."""


def sizes(linear: Any) -> tuple[int, int]:
    """Inputs and outputs of an ``nn.Linear`` or of GPT-2's ``Conv1D``.

    Read off the layer, since a weight under ZeRO-3 has shape (0,) and a 4-bit one is packed.
    """
    if hasattr(linear, "in_features"):
        return linear.in_features, linear.out_features
    return linear.nx, linear.nf


class AdaptedLinear(nn.Module, ABC):
    """``base(x) + update(x)``. Subclasses own the parameters of the update.

    The base is an ``nn.Linear`` or GPT-2's ``Conv1D``, whose weight is transposed. Parameters are
    direct members of the module that uses them, since ZeRO-3 gathers a module's own when it is
    called.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base
        base.requires_grad_(False)
        self.is_quantised = base.weight.dtype not in COMPUTED_IN
        """Asked once: in a forward pass ZeRO-3 would gather the weight for the question."""

    @property
    def in_features(self) -> int:
        """Size of the input."""
        return sizes(self.base)[0]

    @property
    def out_features(self) -> int:
        """Size of the output."""
        return sizes(self.base)[1]

    @property
    def weight(self) -> Tensor:
        """Of the base: T5 asks its feed-forward's for the dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """Of the base, None where it has none."""
        return self.base.bias

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device that the update is to have.

        The base's weight; for a quantised base an empty tensor of its compute dtype, or of float32
        where the layer does not say.
        """
        weight: Tensor = self.base.weight
        if weight.dtype in COMPUTED_IN:
            return weight
        dtype = getattr(self.base, "compute_dtype", None)
        dtype = dtype if dtype in COMPUTED_IN else torch.float32
        return torch.empty(0, dtype=dtype, device=weight.device)

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """What is added to the output, (..., out_features), for x (..., in_features)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        out = self.base(x)
        if self.is_quantised:
            x = x.to(self.like.dtype)
        out += self.update(x)  # in place: a new tensor costs about a percent of a linear
        return out
