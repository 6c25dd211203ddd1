"""A LoRA a task, of which one acts: the newest, or the one that a row's task has."""

from __future__ import annotations

from torch import Tensor, nn

from moram_dist.adapters.lora import LoraLinear, Terms
from moram_dist.adapters.prefix import Prefix


class ChosenLora(LoraLinear):
    """``LoraLinear`` that keeps the terms of all its tasks."""

    def __init__(
        self, base: nn.Module, *, size: int, scale: float, dropout: nn.Module, prefix: Prefix
    ) -> None:
        """``prefix``: a row with so many tasks is answered by the last of them alone."""
        super().__init__(base, size=size, scale=scale, dropout=dropout)
        self.prefix = prefix
        self.kept: list[Terms] = []
        """Of each task that has ended."""

    def update(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self.prefix.each(x, lambda tasks: (self._update(x, tasks),))[0]

    def _update(self, x: Tensor, tasks: int | None) -> Tensor:
        if tasks is None:
            return super().update(x)
        if tasks == 0:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        A, B = (term.to(self.lora_A) for term in self.kept[tasks - 1])
        return (x @ A.T) @ (B * self.scale)
