"""A frozen linear layer with an update added to its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""A weight of any other dtype is quantised: it is stored in one dtype and computed in another."""


def sizes(linear: Any) -> tuple[int, int]:
    """Number of inputs and of outputs of an ``nn.Linear`` or of GPT-2's ``Conv1D``.

    Taken from the layer's attributes: under ZeRO-3 a weight has shape (0,), and a 4-bit weight is
    packed.
    """
    if hasattr(linear, "in_features"):
        return linear.in_features, linear.out_features
    return linear.nx, linear.nf


class AdaptedLinear(nn.Module, ABC):
    """``base(x) + update(x)``. Subclasses own the parameters of the update.

    The base is an ``nn.Linear`` or GPT-2's ``Conv1D``, whose weight is transposed. Parameters must
    be direct members of the module that uses them: ZeRO-3 gathers only those when a module is
    called.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base
        base.requires_grad_(False)
        self.is_quantised = base.weight.dtype not in COMPUTED_IN
        """Determined once: in a forward pass, ZeRO-3 would gather the weight to answer."""
        self.is_silent = False
        """Whether the update is left out, so that the model is the bare base."""

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
        """The base's weight: T5 reads the dtype of its feed-forward's weight."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias; None if it has none."""
        return self.base.bias

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and device that the update must have.

        The base's weight; for a quantised base an empty tensor of its compute dtype, or of float32
        if the layer does not name one.
        """
        weight: Tensor = self.base.weight
        if weight.dtype in COMPUTED_IN:
            return weight
        dtype = getattr(self.base, "compute_dtype", None)
        dtype = dtype if dtype in COMPUTED_IN else torch.float32
        return torch.empty(0, dtype=dtype, device=weight.device)

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """The update (..., out_features) to add to the output, for x (..., in_features)."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features); the argument is named as ``nn.Linear``'s."""
        x = input
        out = self.base(x)
        if self.is_silent:
            return out
        if self.is_quantised:
            x = x.to(self.like.dtype)
        out += self.update(x)  # in place: a new tensor costs about a percent of a linear
        return out


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Context in which a model computes as its base does, without the updates of its linears."""
    layers = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    for layer in layers:
        layer.is_silent = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_silent = False
