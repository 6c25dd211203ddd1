"""One LoRA per task, of which a single one is used: the newest, or that of the row's task."""

from __future__ import annotations

from torch import Tensor, nn

from moram_dist.adapters.lora import LoraLinear, Terms
from moram_dist.adapters.prefix import Prefix


class ChosenLora(LoraLinear):
    """``LoraLinear`` that keeps the terms of all tasks."""

    def __init__(
        self, base: nn.Module, *, size: int, scale: float, dropout: nn.Module, prefix: Prefix
    ) -> None:
        """``prefix`` gives each row a number of tasks; only the last of them answers the row."""
        super().__init__(base, size=size, scale=scale, dropout=dropout)
        self.prefix = prefix
        self.kept: list[Terms] = []
        """Terms of each completed task."""

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
