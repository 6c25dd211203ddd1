"""One LoRA expert per task, and a learned router that picks some of them for each token.

Shape letters: N experts, R rank-1 terms of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moram_dist.adapters.growing_lora import GrowingLora
from moram_dist.adapters.prefix import Prefix
from moram_dist.adapters.routed import Routed, Take, Weights


class LoraExperts(GrowingLora, Routed):
    """``base(x) + sum_e g_e(x) scale * dropout(x) A_e^T B_e`` over the experts so far.

    The router reads x without dropout, as in Dou et al. 2023, arXiv:2312.09979.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        size: int,
        scale: float,
        dropout: nn.Module,
        prefix: Prefix,
        num_tasks: int,
        top: int,
    ) -> None:
        super().__init__(base, size=size, scale=scale, dropout=dropout, prefix=prefix)
        self.size = size
        self.top = top
        # ZeRO-3 cannot add parameters later, so rows of future experts exist from the start.
        self.router = nn.Parameter(self.like.new_zeros(num_tasks, self.in_features))
        self.routers: list[Tensor] = []
        """The router after each task, (task + 1, in), because later tasks train it further."""
        self._take: Take | None = None

    @property
    def num_experts(self) -> int:
        """N: the frozen experts, and the one being learned."""
        return len(self.older_A) // self.size + self.learning

    @property
    def task_ends(self) -> Sequence[int]:
        """One expert per task."""
        return range(len(self.ends))

    def watch(self, take: Take | None) -> None:
        """See ``Routed``."""
        self._take = take

    def whole_keys(self) -> Tensor:
        """The router after the last task."""
        none = self.like.new_zeros(0, self.in_features)
        return self.routers[-1].to(none.device) if self.routers else none

    def _update(self, x: Tensor, tasks: int | None) -> Tensor:
        A, B = self.terms(tasks)
        # Rows of future experts are not used.
        router = self.router[: self.num_experts]
        if tasks is not None:
            router = self.routers[tasks - 1].to(x.device) if tasks else router[:0]
        gate = gates(PreciseProduct.apply(x, router), self.top)
        if self._take is not None:
            self._take(_weights(gate))
        shares = gate.to(x.dtype).repeat_interleave(self.size, dim=-1)
        return ((self.dropout(x) @ A.T) * shares) @ B


class PreciseProduct(torch.autograd.Function):
    """``x.float() @ router.float().T``: routing is in float32 whatever the model's dtype.

    It keeps x for the backward pass as it is; a copy in float32 would take twice the memory of each
    linear's input in a bf16 model.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, router: Tensor) -> Tensor:
        """X (..., in) and router (N, in) to (..., N) in float32."""
        ctx.save_for_backward(x, router)
        return x.float() @ router.float().T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients in the dtypes of the arguments; products are in float32."""
        x, router = ctx.saved_tensors
        of_x = (grad @ router.float()).to(x.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None
        of_router = grad.flatten(0, -2).T @ x.flatten(0, -2).float()
        return of_x, of_router.to(router.dtype)


def _weights(gate: Tensor) -> Weights:
    """Gates (..., N) of all experts as weights; none is silenced."""
    gate_TN = gate.flatten(0, -2)
    index_TN = torch.arange(gate.shape[-1], device=gate.device).expand_as(gate_TN)
    return Weights(index_TN, gate_TN, gate_TN)


def gates(logits: Tensor, top: int) -> Tensor:
    """Softmax over the ``top`` largest of N logits, 0 for the others; over all if N <= top.

    Equals a softmax over all N whose ``top`` largest weights are renormalised.

    Args:
        logits: (..., N).
        top: experts that answer a token; ties go to the lower index.

    Returns:
        (..., N), summing to 1.

    Source: top-k gating of Shazeer et al. 2017, arXiv:1701.06538, without its noise.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order[..., :top], True)
    return logits.masked_fill(~kept, float("-inf")).softmax(dim=-1)
