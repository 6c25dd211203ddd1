"""Compare a memory with a LoRA on the answers of a task's examples.

Shape letters: P answer tokens, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.inject import put
from moram_dist.adapters.lora import LoraLinear
from moram_dist.comm import env
from moram_dist.data.stream import IGNORED
from moram_dist.families import TextFamily
from moram_dist.tasks.task import Example, Task
from moram_dist.train.forward import Forward
from moram_dist.use.lora import Lora


class SeenAnswer(NamedTuple):
    """What a model gives at the answer tokens of an example, on the CPU."""

    logits_PV: Tensor
    """float32."""

    targets_P: Tensor


@torch.no_grad()
def see_answers(
    model: nn.Module, tokenizer: Any, family: TextFamily, task: Task, examples: Sequence[Example]
) -> Iterator[SeenAnswer]:
    """Read each example with its answer, as in training, one after the other."""
    forward = Forward(model, model, env.device())
    for example in examples:
        encoded = family.encode_training(tokenizer, example, task)
        seen = forward(family.collate([encoded], tokenizer.pad_token_id))
        is_answer = seen.targets_BP[0] != IGNORED
        yield SeenAnswer(
            seen.logits_BPV[0][is_answer].float().cpu(), seen.targets_BP[0][is_answer].cpu()
        )


class AnswerMeans:
    """Means over answer tokens, in nats.

    Answers are added one at a time, since the logits of many do not fit a host's memory.
    """

    def __init__(self) -> None:
        self._loss = self._divergence = 0.0
        self._count = 0

    def add(self, of: SeenAnswer, to: SeenAnswer) -> None:
        """Count an answer: the loss of ``to``, and its divergence from ``of``."""
        p, q = (seen.logits_PV.log_softmax(-1) for seen in (of, to))
        self._divergence += float(F.kl_div(q, p, reduction="sum", log_target=True))
        self._loss += float(F.nll_loss(q, to.targets_P, reduction="sum"))
        self._count += len(to.targets_P)

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self._loss / self._count

    @property
    def divergence(self) -> float:
        """Mean KL; rounding could make it negative."""
        return max(0.0, self._divergence / self._count)


@contextmanager
def replaced(model: nn.Module, lora: Lora) -> Iterator[None]:
    """Context in which the model has the LoRA instead of its memory.

    A linear that the LoRA leaves alone is that of the base.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, AdaptedLinear)}
    for name, layer in layers.items():
        if name not in lora.terms:
            put(model, name, layer.base)
            continue
        A, B = (term.to(layer.like) for term in lora.terms[name])
        one = LoraLinear(
            layer.base, size=len(A), scale=lora.alpha / lora.rank, dropout=nn.Identity()
        )
        one.lora_A.data, one.lora_B.data = A, B
        put(model, name, one.eval())
    try:
        yield
    finally:
        for name, layer in layers.items():
            put(model, name, layer)
