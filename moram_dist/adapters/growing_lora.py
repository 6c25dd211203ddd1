"""One LoRA per task: those of older tasks are frozen, and all are summed.

Shape letters: N rank-1 terms of older tasks, R of the task being learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moram_dist.adapters.directions import off
from moram_dist.adapters.lora import LoraLinear, Terms
from moram_dist.adapters.prefix import Prefix


class GrowingLora(LoraLinear):
    """``base(x) + dropout(x) [A_old; A]^T [B_old; scale B]``.

    Frozen terms are buffers, which can grow under ZeRO-3; the scale is folded into them. Frozen and
    active terms are multiplied in one product, so that freezing changes no bit of the output.
    """

    older_A: Tensor
    older_B: Tensor

    def __init__(
        self, base: nn.Module, *, size: int, scale: float, dropout: nn.Module, prefix: Prefix
    ) -> None:
        """``prefix`` gives the number of tasks that answer each row."""
        super().__init__(base, size=size, scale=scale, dropout=dropout)
        self.learning = False
        """Whether the active terms contribute: true from the start of a task to its end."""
        self.directions_KD: Tensor | None = None
        """Orthonormal rows that the active A is kept off; None: it is free."""
        self.prefix = prefix
        self.ends = [0]
        """``ends[n]``: frozen terms after n tasks."""
        for name in ("A", "B"):
            empty = getattr(self, f"lora_{name}").detach()[:0].clone()
            self.register_buffer(f"older_{name}", empty, persistent=False)

    def stored(self) -> Terms:
        """Active terms as they are used and later frozen: with the scale folded in."""
        return off(self.lora_A, self.directions_KD), self.lora_B * self.scale

    def grow(self, A: Tensor, B: Tensor) -> None:
        """Append ``stored`` terms as frozen, in this dtype and device. RuntimeError: wrong size."""
        self.older_A = torch.cat([self.older_A, A.to(self.older_A)])
        self.older_B = torch.cat([self.older_B, B.to(self.older_B)])
        self.ends.append(len(self.older_A))

    def terms(self, tasks: int | None = None) -> Terms:
        """All terms in use, or those of the first ``tasks``: (N + R, in) and (N + R, out)."""
        if tasks is not None:
            return self.older_A[: self.ends[tasks]], self.older_B[: self.ends[tasks]]
        if not self.learning:
            return self.older_A, self.older_B
        A, B = self.stored()
        return torch.cat([self.older_A, A]), torch.cat([self.older_B, B])

    def update(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self.prefix.each(x, lambda tasks: (self._update(x, tasks),))[0]

    def _update(self, x: Tensor, tasks: int | None) -> Tensor:
        A, B = self.terms(tasks)
        return (self.dropout(x) @ A.T) @ B
