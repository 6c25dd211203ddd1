"""A linear layer with a memory: frozen atoms in buffers, the current task's atoms as parameters.

Frozen atoms are buffers because ZeRO-3 neither shards nor moves buffers: the memory can grow while
one engine serves the whole sequence. Active atoms are parameters that are reused from task to task.

Shape letters: N frozen atoms, R active atoms, D inputs, E outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.atoms.recall import recall


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How atoms are chosen for a token; see ``mixture_weights``."""

    top_k: int
    temperature: float
    threshold: float
    """At inference only."""


class MemoryLinear(AdaptedLinear):
    """``base(x) + recall(dropout(x))`` over frozen and active atoms together.

    Source: Lu et al. 2026, arXiv:2506.21035.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        routing: Routing,
        num_active: int,
        scale: float,
        dropout: nn.Module,
    ) -> None:
        super().__init__(base)
        self.routing = routing
        self.scale = scale
        self.dropout = dropout
        self.learning = False
        """Whether active atoms take part. They do from a task's beginning to its end."""
        like = base.weight

        def empty(rows: int, columns: int) -> Tensor:
            return torch.zeros(rows, columns, dtype=like.dtype, device=like.device)

        if num_active:
            self.active_keys_RD = nn.Parameter(empty(num_active, base.in_features))
            self.active_values_RE = nn.Parameter(empty(num_active, base.out_features))
        self.frozen_keys_ND: Tensor
        self.frozen_values_NE: Tensor
        self.register_buffer("frozen_keys_ND", empty(0, base.in_features), persistent=False)
        self.register_buffer("frozen_values_NE", empty(0, base.out_features), persistent=False)

    @property
    def num_frozen(self) -> int:
        """Atoms in the memory."""
        return len(self.frozen_keys_ND)

    def stored_values(self, active_values_RE: Tensor) -> Tensor:
        """Active values as they are frozen: with the scale alpha / R folded in."""
        return active_values_RE * self.scale

    def grow(self, keys_RD: Tensor, values_RE: Tensor) -> None:
        """Append frozen atoms, values as stored; they take on the layer's dtype and device."""
        self.frozen_keys_ND = torch.cat([self.frozen_keys_ND, keys_RD.to(self.frozen_keys_ND)])
        self.frozen_values_NE = torch.cat(
            [self.frozen_values_NE, values_RE.to(self.frozen_values_NE)]
        )

    def update(self, x: Tensor) -> Tensor:
        """(..., D) to (..., E)."""
        keys, values = self.frozen_keys_ND, self.frozen_values_NE
        if self.learning:
            # The same rows in the same order as after freezing, so freezing changes no output bit.
            keys = torch.cat([keys, self.active_keys_RD])
            values = torch.cat([values, self.stored_values(self.active_values_RE)])
        return recall(
            self.dropout(x),
            keys,
            values,
            top_k=self.routing.top_k,
            temperature=self.routing.temperature,
            threshold=0.0 if self.training else self.routing.threshold,
        )
