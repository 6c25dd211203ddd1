"""One LoRA per task, each with a gate that weights it for a row, based on the row's prompt.

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
"""H, as in the paper."""

SHARPNESS = 4.0
"""Factor of the cosine in a gate, as in the authors' code."""


class GateWeights(NamedTuple):
    """Weights of one task's gate, in float32.

    Also used for the directions of their inputs in older tasks: orthonormal rows of the same sizes.
    """

    hidden: Tensor
    """(H, D)."""

    out: Tensor
    """(D, H)."""

    key: Tensor
    """(1, D)."""


class GateInputs(NamedTuple):
    """The input that each of a gate's weights multiplies: (B, D), (B, H) and (B, D)."""

    features: Tensor
    hidden: Tensor
    out: Tensor


def gate_inputs(features_BD: Tensor, weights: GateWeights) -> GateInputs:
    """Compute a gate up to the output that is compared with the key."""
    hidden_BH = F.silu(features_BD @ weights.hidden.T)
    return GateInputs(features_BD, hidden_BH, F.silu(hidden_BH @ weights.out.T))


def gate(features_BD: Tensor, weights: GateWeights) -> Tensor:
    """``|2 sigmoid(4 cos(out, key)) - 1|``, (B, 1), in [0, 0.97]."""
    out_BD = gate_inputs(features_BD, weights).out
    cosine_B1 = F.normalize(out_BD, dim=1) @ F.normalize(weights.key, dim=1).T
    return (2 * torch.sigmoid(SHARPNESS * cosine_B1) - 1).abs()


class PromptGates(nn.Module):
    """The gates of all tasks. The gate being learned is its starting weights plus a trained change.

    The change is projected off the directions of its inputs in older tasks, so that it has no
    effect on them. Projecting gradients would not suffice, because the optimizer's step does not
    preserve their direction; so the weights are projected here.
    """

    def __init__(self, size: int, like: Tensor) -> None:
        """``size`` is D; parameters get the dtype and device of ``like``."""
        super().__init__()
        self.hidden = nn.Parameter(like.new_zeros(HIDDEN, size))
        self.out = nn.Parameter(like.new_zeros(size, HIDDEN))
        self.key = nn.Parameter(like.new_zeros(1, size))
        self.learning = False
        self.start: GateWeights
        self.seen = GateWeights(*(torch.zeros(0, n) for n in (size, HIDDEN, size)))
        """Directions of each weight's inputs in older tasks."""
        self.tasks: list[GateWeights] = []
        """Gates of completed tasks."""

    def weights(self) -> GateWeights:
        """Weights of the gate being learned. Its parameters must be unsharded."""
        changes = self.hidden, self.out, self.key
        return GateWeights(
            *(
                start.to(change.device) + off(change.float(), seen.to(change.device))
                for start, change, seen in zip(self.start, changes, self.seen, strict=True)
            )
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """Gates (B, T) of the tasks so far, including the one being learned."""
        tasks = [*self.tasks, *([self.weights()] if self.learning else [])]
        if not tasks:
            return features_BD.new_zeros(len(features_BD), 0)
        here = [GateWeights(*(w.to(features_BD.device) for w in task)) for task in tasks]
        # One by one: the value of a gate must not depend on the number of gates.
        return torch.cat([gate(features_BD, task) for task in here], 1)


def off(change: Tensor, seen_KD: Tensor) -> Tensor:
    """``change (I - P)``, where P projects onto the orthonormal rows of ``seen_KD``."""
    return change - (change @ seen_KD.T) @ seen_KD


class RowGates:
    """Gates of the rows in the current forward pass; all layers of a model share one."""

    def __init__(self) -> None:
        self.now_BT: Tensor | None = None

    def of(self, x: Tensor, tasks: int | None) -> Tensor:
        """Gates (..., tasks) that broadcast over each row of ``x``; None: of all tasks.

        Raises:
            InputError: the rows of ``x`` are not a multiple of the prompts.
        """
        assert self.now_BT is not None, "no prompt was read before this layer"
        gates_BT = self.now_BT[:, :tasks]
        # Beams of a row are adjacent, and so are its tokens if a layer gets flattened rows.
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
