"""A LoRA a task, each with a gate: how far it acts on a row, told from the row's prompt.

Shape letters: B rows, T tasks, D size of a prompt's features, H hidden units of a gate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moram_dist.adapters.growing_lora import GrowingLora
from moram_dist.adapters.prefix import Prefix
from moram_dist.registry import InputError

HIDDEN = 100
"""H, as published."""

SHARPNESS = 4.0
"""Of a gate, as in the authors' code."""


class GateWeights(NamedTuple):
    """Of one task's gate, in float32.

    Or what these were multiplied with in older tasks, as orthonormal rows of the same sizes.
    """

    hidden: Tensor
    """(H, D)."""

    out: Tensor
    """(D, H)."""

    key: Tensor
    """(1, D)."""


class GateInputs(NamedTuple):
    """What each of a gate's weights is multiplied by: (B, D), (B, H) and (B, D)."""

    features: Tensor
    hidden: Tensor
    out: Tensor


def gate_inputs(features_BD: Tensor, weights: GateWeights) -> GateInputs:
    """Up to the output that is compared with the key."""
    hidden_BH = F.silu(features_BD @ weights.hidden.T)
    return GateInputs(features_BD, hidden_BH, F.silu(hidden_BH @ weights.out.T))


def gate(features_BD: Tensor, weights: GateWeights) -> Tensor:
    """``|2 sigmoid(4 cos(out, key)) - 1|``, (B, 1), in [0, 0.97]."""
    out_BD = gate_inputs(features_BD, weights).out
    cosine_B1 = F.normalize(out_BD, dim=1) @ F.normalize(weights.key, dim=1).T
    return (2 * torch.sigmoid(SHARPNESS * cosine_B1) - 1).abs()


class PromptGates(nn.Module):
    """The gates of all tasks. The one that is learned: where it started, and a trained change.

    A change is projected off the directions that its input had in older tasks, so that on those it
    is none. What the optimizer makes of a gradient keeps no direction, so the projection is here
    and not in its step.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        """``size`` is D; parameters have dtype and device of ``like``."""
        super().__init__()
        self.hidden = nn.Parameter(like.new_zeros(HIDDEN, size))
        self.out = nn.Parameter(like.new_zeros(size, HIDDEN))
        self.key = nn.Parameter(like.new_zeros(1, size))
        self.learning = False
        self.start: GateWeights
        self.seen = GateWeights(*(torch.zeros(0, n) for n in (size, HIDDEN, size)))
        """Directions of older tasks."""
        self.tasks: list[GateWeights] = []
        """Of each task that has ended."""

    def weights(self) -> GateWeights:
        """Of the gate that is learned. Parameters must be whole."""
        changes = self.hidden, self.out, self.key
        return GateWeights(
            *(
                start.to(change.device) + off(change.float(), seen.to(change.device))
                for start, change, seen in zip(self.start, changes, self.seen, strict=True)
            )
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """(B, T), of the tasks so far and of the one that is learned."""
        tasks = [*self.tasks, *([self.weights()] if self.learning else [])]
        if not tasks:
            return features_BD.new_zeros(len(features_BD), 0)
        here = [GateWeights(*(w.to(features_BD.device) for w in task)) for task in tasks]
        # One by one: what a task's gate gives must not depend on how many there are.
        return torch.cat([gate(features_BD, task) for task in here], 1)


def off(change: Tensor, seen_KD: Tensor) -> Tensor:
    """``change (I - P)``, for rows of D elements and P onto the orthonormal rows of ``seen_KD``."""
    return change - (change @ seen_KD.T) @ seen_KD


class RowGates:
    """The gates of the rows of a forward pass; the layers of a model share one."""

    def __init__(self) -> None:
        self.now_BT: Tensor | None = None

    def of(self, x: Tensor, tasks: int | None) -> Tensor:
        """(..., tasks), to be multiplied with what is made of each row of ``x``.

        Raises:
            InputError: ``x`` is no whole number of rows for each prompt.
        """
        assert self.now_BT is not None, "no prompt was read before this layer"
        gates_BT = self.now_BT[:, :tasks]
        # Beams of a row follow each other, and so do tokens where a layer gets no rows.
        times, left = divmod(len(x), len(gates_BT))
        if left:
            raise InputError(
                f"{len(x)} rows for {len(gates_BT)} prompts: this model has layers that do not see "
                "a batch as rows"
            )
        if times > 1:
            gates_BT = gates_BT.repeat_interleave(times, 0)
        return gates_BT.view(len(x), *[1] * (x.dim() - 2), gates_BT.shape[1])


class GatedLora(GrowingLora):
    """``base(x) + sum_t gate_t(prompt) scale * dropout(x) A_t^T B_t`` over the tasks so far."""

    def __init__(
        self,
        base: nn.Module,
        *,
        size: int,
        scale: float,
        dropout: nn.Module,
        prefix: Prefix,
        gates: RowGates,
    ) -> None:
        super().__init__(base, size=size, scale=scale, dropout=dropout, prefix=prefix)
        self.size = size
        self.gates = gates

    def _update(self, x: Tensor, tasks: int | None) -> Tensor:
        A, B = self.terms(tasks)
        if not len(A):
            return super()._update(x, tasks)
        shares = self.gates.of(x, tasks).to(x.dtype).repeat_interleave(self.size, dim=-1)
        return ((self.dropout(x) @ A.T) * shares) @ B
