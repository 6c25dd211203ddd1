"""One LoRA for all tasks, distilled from its previous state: learning without forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from moram_dist.adapters.lora import Terms, standing_in
from moram_dist.data.stream import IGNORED
from moram_dist.methods.adapting import AdapterConfig
from moram_dist.methods.method import METHODS, ForwardOutput
from moram_dist.methods.sequential_lora import SequentialLora
from moram_dist.section import section


@section
class LwfConfig(AdapterConfig):
    """Settings of ``lwf``."""

    distill_weight: Annotated[float, Field(ge=0, le=1e12)] = 1.0
    """lwf: weight of the distance to the answers given before the task (published: 1)."""

    distill_temperature: Annotated[float, Field(gt=0, ge=1e-6, le=1_000_000)] = 2.0
    """lwf: temperature of both softmaxes in that distance (published: 2)."""


@METHODS.register("lwf")
class Lwf(SequentialLora):
    """``sequential_lora`` plus ``distill_weight`` times the divergence from the previous model.

    The previous model is the adapter at the end of the last task, without dropout. The divergence
    is the mean over answer tokens of the current task of KL(before || now), both at
    ``distill_temperature``. Its gradients equal those of the paper's cross-entropy with the old
    outputs, which differs by a constant; as there, they are not scaled by the temperature squared.

    Source: Li and Hoiem 2016, arXiv:1606.09282.
    """

    Config = LwfConfig
    config: LwfConfig

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """As ``sequential_lora``; the first task has no previous adapter."""
        super().build(model, modules)
        self.before: dict[str, Terms] = {}
        """The adapter at the end of the last task, by full name of the layer."""

    def penalty(self, seen: ForwardOutput) -> Tensor | float:
        """The divergence at answer tokens; 0 in the first task. Needs one more forward pass."""
        if not self.before:
            return 0.0
        with standing_in(self.layers, self.before):
            before_BPV = seen.again()
        answers = seen.targets_BP != IGNORED
        total = divergence(
            before_BPV[answers], seen.logits_BPV[answers], self.config.distill_temperature
        )
        return self.config.distill_weight * seen.weight * total

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep the adapter, from which the next task is distilled."""
        self.before = {
            name: (
                tensors[f"{name}.lora_A"].to(layer.lora_A),
                tensors[f"{name}.lora_B"].to(layer.lora_B),
            )
            for name, layer in self.layers.items()
        }


def divergence(before_NV: Tensor, now_NV: Tensor, temperature: float) -> Tensor:
    """``sum_n KL(softmax(before / T) || softmax(now / T))`` in nats, from logits, in float32."""
    before, now = (
        F.log_softmax(logits.float() / temperature, dim=-1) for logits in (before_NV, now_NV)
    )
    return F.kl_div(now, before, reduction="sum", log_target=True)
