"""A recall as an operation of autograd; ``recall_forward`` and ``recall_backward`` compute it.

One computation for every placement of the atoms. A memory is split into shards, each token is owned
by a rank, and everything is computed for pairs of an owner and a shard: scores, candidates, partial
sums. A placement says which pairs this rank works on and brings together what belongs to a token.
Sums over shards are taken in the order of shards. So a pair is the same product of the same
matrices on whichever rank, and placements agree to the last bit (but for K^T K, below).

Active atoms come after the frozen ones of the shard that they will be frozen into, so freezing
leaves these products, and with them the outputs, as they are. The gradients of their scores go to
the token's owner, which has what turns them into gradients of keys and values.

Linears that are asked together choose their atoms in one go: what belongs to the first one's tokens
comes first, then the next one's.

Shape letters: T tokens, R active atoms, D inputs, E outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moram_dist.atoms.recall_backward import backward
from moram_dist.atoms.recall_call import RecallCall
from moram_dist.atoms.recall_forward import forward
from moram_dist.atoms.recall_saved import Saved


class RecallFunction(torch.autograd.Function):
    """``recall_together`` on flat tokens: for each linear (T, D), keys, values to (T, E)."""

    @staticmethod
    def forward(ctx: Any, call: RecallCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``tensors``: all inputs, then all active keys, then all active values."""
        count = len(call.members)
        inputs, keys, values = (tensors[k * count :][:count] for k in range(3))
        keep = call.recorded and any(ctx.needs_input_grad)
        outputs, saved = forward(call, inputs, keys, values, keep=keep)
        if saved is not None:
            flat, ctx.layout = saved.tensors()
            ctx.call = call
            ctx.save_for_backward(*flat)
            ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the same, in the same order."""
        saved = Saved.of(ctx.saved_tensors, ctx.layout)
        wants_inputs = any(ctx.needs_input_grad[1 : 1 + len(grads)])
        found = backward(ctx.call, saved, grads, wants_inputs=wants_inputs)
        return (None, *found.inputs, *found.keys, *found.values)
