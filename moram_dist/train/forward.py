"""One forward pass in training: logits at the answers, and the loss over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from moram_dist.adapters.prompts import asking
from moram_dist.comm import env
from moram_dist.comm.zero3 import aside
from moram_dist.data.stream import IGNORED, MicroBatch
from moram_dist.families import family_of_model
from moram_dist.losses import cross_entropy
from moram_dist.methods.method import ForwardOutput


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
        # All copies to the device come first, and none of them waits for it.
        labels = batch.labels[:, 1:]
        places = (labels != IGNORED).nonzero()
        places = places if len(places) else torch.zeros(1, 2, dtype=torch.long)
        targets_P = env.sent(labels[tuple(places.unbind(1))], self.device)
        rows, columns = env.sent(places, self.device).unbind(1)
        inputs = {name: env.sent(tensor, self.device) for name, tensor in batch.inputs.items()}

        def logits() -> Tensor:
            with asking(self.model, batch.prompts):
                return self.family.logits(self.engine, self.model, inputs, rows, columns)

        def again() -> Tensor:
            with torch.no_grad(), aside(self.engine), without_dropout(self.model, graph=False):
                return logits()

        return ForwardOutput(
            logits_BPV=logits(),
            targets_BP=targets_P[None],
            weight=weight,
            again=again,
        )


@contextmanager
def without_dropout(model: nn.Module, *, graph: bool = True) -> Iterator[None]:
    """Context in which a model in training drops nothing.

    With ``graph``, for passes with gradients, it still recomputes layers that do: these stay in
    training, so the few that drop something themselves, and not by a module (OPT's), still do.
    """
    modules = [m for m in model.modules() if not (graph and _recomputes(m))]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _recomputes(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


def answer_loss(seen: ForwardOutput) -> Tensor:
    """Cross-entropy over the answer tokens of the micro-batch, summed, in nats (float32)."""
    return cross_entropy(seen.logits_BPV.flatten(0, 1), seen.targets_BP.flatten())
