"""One LoRA per task, its input subspace kept orthogonal to earlier tasks'."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from moram_dist.methods.adapting import AdapterConfig
from moram_dist.methods.inc_lora import IncLora
from moram_dist.methods.method import METHODS, ForwardOutput
from moram_dist.section import section


@section
class OLoraConfig(AdapterConfig):
    """Settings of ``o_lora``."""

    orthogonal_weight: Annotated[float, Field(ge=0, le=1e12)] = 0.5
    """o_lora: weight of the overlap of new and old subspaces (published: 0.5)."""


@METHODS.register("o_lora")
class OLora(IncLora):
    """``inc_lora`` with ``orthogonal_weight * sum |A_old A^T|`` added to the loss.

    The sum is over all entries and layers, as in the authors' code (lambda_1 = 0.5 there); the
    paper's equation has squares. Their optional L2 term (lambda_2), which is 0 in most of their
    settings, is omitted.

    Source: Wang et al. 2023, arXiv:2310.14152.
    """

    Config = OLoraConfig
    penalty_is_of_parameters = True
    config: OLoraConfig

    def penalty(self, seen: ForwardOutput) -> Tensor | float:
        """Overlap of the new task's input subspace with older ones; 0 during the first task."""
        total: Tensor | float = 0.0
        for layer in self.layers.values():
            if len(layer.older_A):

                def measure(A: Tensor, B: Tensor, old: Tensor = layer.older_A) -> Tensor:
                    return overlap(old, A)

                total = total + layer.measured(measure)
        return self.config.orthogonal_weight * total


def overlap(old: Tensor, new: Tensor) -> Tensor:
    """``sum |old new^T|`` in float32, for rows (N, D) and (R, D)."""
    return (old.float() @ new.float().T).abs().sum()
