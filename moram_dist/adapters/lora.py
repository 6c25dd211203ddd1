"""One low-rank update, the same for every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear

Terms = tuple[Tensor, Tensor]
"""A (R, in) and B (R, out) of one layer: row i of both forms a rank-1 term."""


class LoraLinear(AdaptedLinear):
    """``base(x) + scale * dropout(x) A^T B``, with A (R, in) and B (R, out).

    Source: Hu et al. 2021, arXiv:2106.09685; B is stored transposed, like the values of atoms.
    """

    def __init__(self, base: nn.Module, *, size: int, scale: float, dropout: nn.Module) -> None:
        super().__init__(base)
        self.scale = scale
        self.dropout = dropout
        self.stand_in: Terms | None = None
        """Used instead of the parameters, without dropout; see ``standing_in``."""
        like = self.like
        self.lora_A = nn.Parameter(
            torch.zeros(size, self.in_features, dtype=like.dtype, device=like.device)
        )
        self.lora_B = nn.Parameter(
            torch.zeros(size, self.out_features, dtype=like.dtype, device=like.device)
        )

    def update(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        A, B = self.stand_in or (self.lora_A, self.lora_B)
        x = x if self.stand_in else self.dropout(x)
        return (x @ A.T) @ (B * self.scale)

    def forward(
        self, input: Tensor | None, measure: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Tensor:
        """(..., in) to (..., out), or ``measure(A, B)`` for ``measured``."""
        if measure is not None:
            return measure(self.lora_A, self.lora_B)
        assert input is not None
        return super().forward(input)

    def measured(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``measure(A, B)`` of the unsharded parameters, with gradients.

        Calls this module, because ZeRO-3 gathers a module's parameters only while it is called, in
        backward too. All ranks must call it together.
        """
        return self(None, measure)


@contextmanager
def standing_in(layers: Mapping[str, LoraLinear], terms: Mapping[str, Terms]) -> Iterator[None]:
    """Context in which layers use the given A and B, without dropout. Both by full name."""
    for name, layer in layers.items():
        layer.stand_in = terms[name]
    try:
        yield
    finally:
        for layer in layers.values():
            layer.stand_in = None
