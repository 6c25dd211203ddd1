"""One LoRA for good: each task trains a copy that starts orthonormal, and is merged into it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from moram_dist.adapters.lora import Terms
from moram_dist.methods.method import METHODS, ExampleLosses, Linears
from moram_dist.methods.sequential_lora import SequentialLora


@METHODS.register("slao")
class Slao(SequentialLora):
    """After task i, from 1, which trained A_i and B_i: A = A_i, B = B + (B_i - B) / sqrt(i).

    Task i > 1 starts from the last task's trained B, and from the orthonormal rows that QR makes of
    its trained A; of the two signs of each row, the one with a positive diagonal in R.

    Source: SLAO, Qiao and Mahdavi 2025, arXiv:2512.23017.
    """

    trained: dict[str, Terms]
    """A and B as the last task's training left them, by full name of the layer."""

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """A new LoRA before the first task; later ones start from what the last one trained."""
        if i == 0:
            return self._fresh(i)
        fresh: dict[str, Tensor] = {}
        for name, (A, B) in self.trained.items():
            fresh[f"{name}.lora_A"] = orthonormal(A)
            fresh[f"{name}.lora_B"] = B
        return fresh

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """Merge what was trained; the file also holds B as it was trained, for the next task."""
        tensors = self._trained()
        for name in self.layers:
            trained = tensors[f"{name}.lora_B"]
            tensors[f"{name}.trained_B"] = trained
            if i > 0:
                tensors[f"{name}.lora_B"] = merged(self.merged[name], trained, i + 1)
        self.load_task(i, tensors)
        return tensors

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """A and B of each linear, and B as it was trained."""
        lora = super().shapes(i, linears)
        return lora | {f"{name}.trained_B": lora[f"{name}.lora_B"] for name in linears}

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        self.trained = {
            name: (tensors[f"{name}.lora_A"], tensors[f"{name}.trained_B"]) for name in self.layers
        }
        self.merged = {name: tensors[f"{name}.lora_B"] for name in self.layers}


def orthonormal(A: Tensor) -> Tensor:
    """Rows that span what those of A (R, in) span, in A's dtype; R at most ``in``."""
    q, r = torch.linalg.qr(A.double().T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    return (q * signs).T.contiguous().to(A)


def merged(before: Tensor, trained: Tensor, number: int) -> Tensor:
    """``before + (trained - before) / sqrt(number)``, for the ``number``-th task from 1."""
    return (before.double() + (trained.double() - before.double()) / math.sqrt(number)).to(before)
