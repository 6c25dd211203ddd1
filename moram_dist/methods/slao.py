"""One merged LoRA: each task trains a copy with orthonormal initial A, which is merged into it."""

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
    """Task i, from 1, trains A_i and B_i; then A = A_i, B = B + (B_i - B) / sqrt(i).

    Task i > 1 starts from the last task's trained B, and from its trained A made orthonormal by QR;
    the signs of rows are chosen so that R has a positive diagonal.

    Source: SLAO, Qiao and Mahdavi 2025, arXiv:2512.23017.
    """

    trained: dict[str, Terms]
    """A and B as the last task trained them, before merging, by full name of the layer."""

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """A new LoRA for the first task; later tasks start from the last trained A and B."""
        if i == 0:
            return self._fresh(i)
        fresh: dict[str, Tensor] = {}
        for name, (A, B) in self.trained.items():
            fresh[f"{name}.lora_A"] = orthonormal(A)
            fresh[f"{name}.lora_B"] = B
        return fresh

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """Merge the trained LoRA; the file also holds the unmerged B, for the next task."""
        tensors = self._trained()
        for name in self.layers:
            trained = tensors[f"{name}.lora_B"]
            tensors[f"{name}.trained_B"] = trained.clone()  # files refuse shared memory
            if i > 0:
                tensors[f"{name}.lora_B"] = merged(self.merged[name], trained, i + 1)
        self.load_task(i, tensors)
        return tensors

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Shapes of A, B and the unmerged B of each linear."""
        lora = super().shapes(i, linears)
        return lora | {f"{name}.trained_B": lora[f"{name}.lora_B"] for name in linears}

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        self.trained, self.merged = {}, {}
        for name, layer in self.layers.items():
            parts = ("lora_A", "trained_B", "lora_B")
            # Those of a file are on the CPU.
            A, B, merged_B = (tensors[f"{name}.{part}"].to(layer.lora_A.device) for part in parts)
            self.trained[name], self.merged[name] = (A, B), merged_B


def orthonormal(A: Tensor) -> Tensor:
    """Orthonormal rows with the same span as the rows of A (R, in), in A's dtype; R <= ``in``."""
    q, r = torch.linalg.qr(A.double().T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    return (q * signs).T.contiguous().to(A)


def merged(before: Tensor, trained: Tensor, number: int) -> Tensor:
    """``before + (trained - before) / sqrt(number)``, for the ``number``-th task from 1."""
    return (before.double() + (trained.double() - before.double()) / math.sqrt(number)).to(before)
