"""A LoRA a task as an expert, and a learned router that picks some of them for each token.

Shape letters: N experts, R rank-1 terms of an expert, M experts that there will be at most.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moram_dist.adapters.growing_lora import GrowingLora
from moram_dist.adapters.prefix import Prefix


class LoraExperts(GrowingLora):
    """``base(x) + sum_e g_e(x) scale * dropout(x) A_e^T B_e`` over the experts so far.

    The router sees x without dropout, as in Dou et al. 2023, arXiv:2312.09979.
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
        # ZeRO-3 cannot add parameters later, so rows of experts to come are there from the start.
        self.router = nn.Parameter(self.like.new_zeros(num_tasks, self.in_features))
        self.routers: list[Tensor] = []
        """As the router was after each task, (task + 1, in): it goes on learning."""

    @property
    def num_experts(self) -> int:
        """N: the frozen ones, and the one that is learned."""
        return len(self.older_A) // self.size + self.learning

    def _update(self, x: Tensor, tasks: int | None) -> Tensor:
        A, B = self.terms(tasks)
        # Rows of experts to come take no part.
        router = self.router[: self.num_experts]
        if tasks is not None:
            router = self.routers[tasks - 1].to(x.device) if tasks else router[:0]
        # Routing is in float32 whatever the model is in.
        logits = x.float() @ router.float().T
        shares = gates(logits, self.top).to(x.dtype).repeat_interleave(self.size, dim=-1)
        return ((self.dropout(x) @ A.T) * shares) @ B


def gates(logits: Tensor, top: int) -> Tensor:
    """Softmax over the ``top`` largest of N logits, 0 for the others; all where N <= top.

    The same as a softmax over all N whose largest shares are divided by their sum.

    Args:
        logits: (..., N).
        top: experts that answer a token; of equal logits the lower index is chosen.

    Returns:
        (..., N), summing to 1.

    Source: top-k gating of Shazeer et al. 2017, arXiv:1701.06538, without its noise.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order[..., :top], True)
    return logits.masked_fill(~kept, float("-inf")).softmax(dim=-1)
