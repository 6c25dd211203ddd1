"""One forward pass in training: logits at the answers, and the loss over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moram_dist.adapters.prompts import asking
from moram_dist.comm import env
from moram_dist.comm.zero3 import aside
from moram_dist.data.stream import IGNORED, MicroBatch
from moram_dist.families import family_of_model
from moram_dist.methods.method import ForwardOutput

ROWS_TIMES_WORDS = 2**24
"""Number of logits that the loss processes at once: 64 MiB in float32."""


class Forward:
    """Runs the engine's model on a micro-batch."""

    def __init__(self, engine: Any, model: nn.Module, device: torch.device | None = None) -> None:
        """``device``: the model's; default: this rank's."""
        self.engine = engine
        self.model = model
        self.device = device or env.device()
        self.family = family_of_model(model)

    def __call__(self, batch: MicroBatch, weight: float = 1.0) -> ForwardOutput:
        """Run the model; ``weight`` is ``ForwardOutput.weight``."""
        device = self.device
        targets = batch.labels[:, 1:]
        places = (targets != IGNORED).nonzero()
        places = places if len(places) else torch.zeros(1, 2, dtype=torch.long)
        rows, columns = places.to(device).unbind(1)
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}

        def logits() -> Tensor:
            with asking(self.model, batch.prompts):
                return self.family.logits(self.engine, self.model, inputs, rows, columns)

        def again() -> Tensor:
            with torch.no_grad(), aside(self.engine):
                return logits()

        return ForwardOutput(
            logits_BPV=logits(),
            targets_BP=targets.to(device)[rows, columns][None],
            weight=weight,
            again=again,
        )


def answer_loss(seen: ForwardOutput) -> Tensor:
    """Cross-entropy over the answer tokens of the micro-batch, summed, in nats (float32)."""
    loss: Tensor = SummedCrossEntropy.apply(
        seen.logits_BPV.flatten(0, 1), seen.targets_BP.flatten()
    )
    return loss


class SummedCrossEntropy(torch.autograd.Function):
    """``F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")``.

    Processes some rows at a time, and computes their gradient together with the loss: with a
    vocabulary of 262,144 tokens, one float32 copy of the logits of 4,096 positions takes 4 GiB.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Logits of N positions, and their target tokens."""
        total = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
        wanted = ctx.needs_input_grad[0]
        gradient_NV = torch.empty_like(logits_NV) if wanted else None
        size = max(1, ROWS_TIMES_WORDS // logits_NV.shape[1])
        for start in range(0, len(logits_NV), size):
            rows = slice(start, start + size)
            log_p = logits_NV[rows].float().log_softmax(-1)
            total += F.nll_loss(log_p, targets_N[rows], ignore_index=IGNORED, reduction="sum")
            if gradient_NV is not None:
                answers_N1 = (targets_N[rows] != IGNORED)[:, None]
                p = log_p.exp_()
                p.scatter_add_(1, targets_N[rows].clamp(min=0)[:, None], -torch.ones_like(p[:, :1]))
                gradient_NV[rows] = p.mul_(answers_N1)
        if gradient_NV is not None:
            ctx.save_for_backward(gradient_NV)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Probabilities minus the one-hot targets."""
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV.mul_(upstream), None  # in place: autograd refuses a second backward
