"""One low-rank update, the same for every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear


class LoraLinear(AdaptedLinear):
    """``base(x) + scale * dropout(x) A^T B``, A (R, in), B (R, out): rows are rank-1 terms.

    Source: Hu et al. 2021, arXiv:2106.09685; B is stored transposed, as the values of atoms are.
    """

    def __init__(self, base: nn.Linear, *, size: int, scale: float, dropout: nn.Module) -> None:
        super().__init__(base)
        self.scale = scale
        self.dropout = dropout
        like = base.weight
        self.lora_A = nn.Parameter(
            torch.zeros(size, base.in_features, dtype=like.dtype, device=like.device)
        )
        self.lora_B = nn.Parameter(
            torch.zeros(size, base.out_features, dtype=like.dtype, device=like.device)
        )

    def update(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return (self.dropout(x) @ self.lora_A.T) @ (self.lora_B * self.scale)
