"""A frozen linear layer with something added to its output."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class AdaptedLinear(nn.Module, ABC):
    """``base(x) + update(x)``. Subclasses own the parameters of the update.

    Those parameters are direct members of the module that uses them, since ZeRO-3 gathers a
    module's own when it is called.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        base.requires_grad_(False)

    @property
    def in_features(self) -> int:
        """Size of the input. Read off the layer, since a ZeRO-3 weight has shape (0,)."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Size of the output."""
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        """Of the base: T5 asks its feed-forward's for the dtype."""
        return self.base.weight

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """What is added to the output, (..., out_features), for x (..., in_features)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        out = self.base(x)
        out += self.update(x)  # in place: a new tensor costs about a percent of a linear
        return out
