"""A training step of a model, as the trainer takes it, with a plain optimizer for DeepSpeed's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.models import Atoms
from bench.peft_lora import peft_lora
from moram_dist.data.stream import IGNORED, MicroBatch
from moram_dist.families.causal import one_row_each
from moram_dist.methods import METHODS
from moram_dist.train.forward import Forward
from tools.gpu import models
from tools.gpu.models import Shape
from tools.gpu.record import How

Step = Callable[[], None]


def micro_batch(rows: int, length: int, shape: Shape) -> MicroBatch:
    """Rows of random tokens, on the host, of which the last quarter is learned."""
    cpu = How("cpu", tiny=True, began=0, until=0)
    ids_BT = models.tokens(rows, length, shape, cpu)
    labels_BT = ids_BT.clone()
    labels_BT[:, : -length // 4] = IGNORED
    return one_row_each(ids_BT, labels_BT, tuple(range(rows)))


def bare_step(model: nn.Module, batch: MicroBatch, how: How) -> Step:
    """Forward and backward to the embeddings, which every adapter needs as well."""
    return _step(model, batch, how, None)


def peft_step(model: nn.Module, atoms: Atoms, batch: MicroBatch, how: How) -> Step:
    """With PEFT's LoRA: one adapter frozen, one trained."""
    peft_lora(model, atoms, apart=True)
    return _step(model, batch, how, None)


def our_step(
    model: nn.Module, atoms: Atoms, batch: MicroBatch, how: How, *, dropout: float
) -> Step:
    """With a memory whose active atoms are trained."""
    method: Any = METHODS["moram"](models.method_config(dropout), seed=0)
    method.build(model)
    model.to(how.device)  # the hashes of dropout are made on the host
    with torch.no_grad():
        for names, memory in method.memories.items():
            memory.learning = True
            memory.grow([atoms[name][0] for name in names])
            memory.learning = True
            for i, name in enumerate(names):
                for parameter, value in zip(memory.active(i), atoms[name][1], strict=True):
                    parameter.copy_(value)
    return _step(model, batch, how, method)


def _step(model: nn.Module, batch: MicroBatch, how: How, method: Any) -> Step:
    device = torch.device(how.device)
    model.train()
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    embeddings.register_forward_hook(_needs_gradient)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    forward = Forward(model, model, device)
    num_learned = int((batch.labels[:, 1:] != IGNORED).sum())

    def step() -> None:
        if method is not None:
            method.token_keys.set(list(batch.rows), batch.lengths, device)
        seen = forward(batch)
        loss = forward.family.loss(seen.logits_BPV, seen.targets_BP, batch, num_learned)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _needs_gradient(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return out.requires_grad_()
