"""One forward pass in training: logits where there are answers, and the loss over them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moram_dist.comm import env
from moram_dist.comm.zero3 import aside
from moram_dist.data.stream import IGNORED, MicroBatch
from moram_dist.methods.method import Seen


class Forward:
    """Callable on a micro-batch; the engine runs the model."""

    def __init__(self, engine: Any, model: nn.Module, device: torch.device | None = None) -> None:
        """``device``: where the model is; default: where this rank computes."""
        self.engine = engine
        self.device = device or env.device()
        # Nearly all causal language models of transformers can leave out logits; xLSTM cannot.
        self.keeps_logits = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    def __call__(self, batch: MicroBatch, weight: float = 1.0) -> Seen:
        """Run the model; ``weight`` is ``Seen.weight``."""
        device = self.device
        targets = batch.labels[:, 1:]
        # Logits only where some row has a target: most positions are prompt, and the head is wide.
        places = (targets != IGNORED).any(0).nonzero().flatten()
        places = places if len(places) else torch.zeros(1, dtype=torch.long)
        places = places.to(device)
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs().items()}

        def logits() -> Tensor:
            if self.keeps_logits:
                return self.engine(**inputs, use_cache=False, logits_to_keep=places).logits
            return self.engine(**inputs, use_cache=False).logits[:, places]

        def again() -> Tensor:
            with torch.no_grad(), aside(self.engine):
                return logits()

        return Seen(
            logits_BPV=logits(),
            targets_BP=targets.to(device)[:, places],
            weight=weight,
            again=again,
        )


def answer_loss(seen: Seen) -> Tensor:
    """Cross-entropy over the answer tokens of the micro-batch, summed, in nats (float32)."""
    return F.cross_entropy(
        seen.logits_BPV.flatten(0, 1).float(),
        seen.targets_BP.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
