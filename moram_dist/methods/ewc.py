"""One LoRA for all tasks, with a penalty on changing weights that older tasks need: EWC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from moram_dist.adapters.lora import Terms, standing_in
from moram_dist.comm import env
from moram_dist.methods.adapting import AdapterConfig
from moram_dist.methods.method import METHODS, ExampleLosses, ForwardOutput, Linears
from moram_dist.methods.sequential_lora import SequentialLora
from moram_dist.section import section

FISHER_EXAMPLES = 64
"""Examples of a task from which its Fisher information is estimated. Each needs a separate pass,
because the gradients of single examples are squared."""


@section
class EwcConfig(AdapterConfig):
    """Settings of ``ewc``."""

    ewc_weight: Annotated[float, Field(ge=0, le=1e12)] = 400.0
    """ewc: weight of the penalty for moving away from older tasks (published for TRACE: 400)."""


@METHODS.register("ewc")
class Ewc(SequentialLora):
    """``sequential_lora`` with the penalty ``ewc_weight / 2 * sum_i F_i (theta_i - anchor_i)^2``.

    F is the diagonal of the empirical Fisher information of the adapter: the mean over examples of
    the squared gradient of log p(answer | prompt), computed at the end of each task, and summed
    over tasks. The anchor is the adapter after the last task. (The paper has one quadratic with a
    separate anchor for each task; one anchor suffices, see Huszar 2018, arXiv:1712.03847.)

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796. Weight: TRACE's published EWC.
    """

    Config = EwcConfig
    penalty_is_of_parameters = True
    config: EwcConfig

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """As ``sequential_lora``; the first task has no penalty."""
        super().build(model, modules)
        self.fisher: dict[str, Terms] = {}
        """Fisher information of A and B, summed over tasks, in float32, by layer's full name."""
        self.anchor: dict[str, Terms] = {}

    def penalty(self, seen: ForwardOutput) -> Tensor | float:
        """The quadratic penalty; 0 during the first task."""
        total: Tensor | float = 0.0
        for name, fisher in self.fisher.items():
            anchor = self.anchor[name]

            def pull(
                A: Tensor, B: Tensor, fisher: Terms = fisher, anchor: Terms = anchor
            ) -> Tensor:
                return quadratic((A, B), fisher, anchor)

            total = total + self.layers[name].measured(pull)
        return self.config.ewc_weight / 2 * total

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """The adapter after task i, and the Fisher information of task i alone."""
        tensors = self._trained()
        terms = {
            name: (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]) for name in self.layers
        }
        for name, (A, B) in self._fisher(terms, look).items():
            tensors[f"{name}.fisher_A"], tensors[f"{name}.fisher_B"] = A, B
        self._keep(tensors)
        return tensors

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Shapes of A, B, and their Fisher information."""
        lora = super().shapes(i, linears)
        return lora | {name.replace(".lora_", ".fisher_"): size for name, size in lora.items()}

    def _fisher(self, terms: Mapping[str, Terms], look: ExampleLosses) -> dict[str, Terms]:
        """Mean squared gradient of single examples' log-likelihood, in float32."""
        # Gradients of sharded parameters are summed over ranks, and so over examples. Unsharded
        # copies of the adapter replace them here: their gradients stay local to this rank.
        leaves = {
            name: (A.clone().requires_grad_(), B.clone().requires_grad_())
            for name, (A, B) in terms.items()
        }
        flat = [leaf for pair in leaves.values() for leaf in pair]
        sums = [torch.zeros_like(leaf, dtype=torch.float32, requires_grad=False) for leaf in flat]
        count, losses = look(FISHER_EXAMPLES)
        with standing_in(self.layers, leaves):
            for loss in losses:
                for total, gradient in zip(sums, torch.autograd.grad(loss, flat), strict=True):
                    total += gradient.float() ** 2
        for total in sums:
            env.sum_(total)
            total /= count
        return dict(zip(leaves, zip(sums[::2], sums[1::2], strict=True), strict=True))

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Make a task's adapter the anchor, and add its Fisher information."""
        for name, layer in self.layers.items():
            A, B = (tensors[f"{name}.fisher_{k}"].to(layer.lora_A.device) for k in "AB")
            if name in self.fisher:
                A, B = A + self.fisher[name][0], B + self.fisher[name][1]
            self.fisher[name] = A, B
            A, B = (tensors[f"{name}.lora_{k}"].to(layer.lora_A) for k in "AB")
            self.anchor[name] = A, B


def quadratic(now: Terms, fisher: Terms, anchor: Terms) -> Tensor:
    """``sum_i F_i (theta_i - anchor_i)^2`` in float32, over A and B."""
    parts = zip(now, fisher, anchor, strict=True)
    return torch.stack([(F * (x.float() - x0.float()) ** 2).sum() for x, F, x0 in parts]).sum()
