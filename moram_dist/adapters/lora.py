"""One low-rank update, the same for every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear

Terms = tuple[Tensor, Tensor]
"""A (R, in) and B (R, out) of one layer: rows are rank-1 terms."""


class LoraLinear(AdaptedLinear):
    """``base(x) + scale * dropout(x) A^T B``, A (R, in), B (R, out): rows are rank-1 terms.

    Source: Hu et al. 2021, arXiv:2106.09685; B is stored transposed, as the values of atoms are.
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
        self, x: Tensor | None, measure: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Tensor:
        """(..., in) to (..., out), or what ``measured`` asks for."""
        if measure is not None:
            return measure(self.lora_A, self.lora_B)
        assert x is not None
        return super().forward(x)

    def measured(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``measure(A, B)``, with gradients, of the whole parameters.

        ZeRO-3 makes a module's own parameters whole while that module is called, in backward too,
        and at no other time. All ranks call it together.
        """
        return self(None, measure)


@contextmanager
def standing_in(layers: Mapping[str, LoraLinear], terms: Mapping[str, Terms]) -> Iterator[None]:
    """Within it, layers compute with the given A and B, without dropout. Both by full name."""
    for name, layer in layers.items():
        layer.stand_in = terms[name]
    try:
        yield
    finally:
        for layer in layers.values():
            layer.stand_in = None
