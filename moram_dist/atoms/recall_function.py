"""A recall as an autograd function; ``recall_forward`` and ``recall_backward`` compute it.

The computation is the same for every placement. A rank computes scores, candidates and partial sums
of one shard of the atoms for all tokens at it: all ranks' tokens, or only its own if the shard is
the whole memory, so that results do not depend on the number of ranks. The placement sends them to
the tokens' owners. Sums over several shards are taken in the order of shards.

Active atoms come after the frozen ones of the shard that they will be frozen into, so freezing
changes neither these products nor the outputs. The gradients of their scores are sent to the
token's owner, which turns them into gradients of keys and values.

Linears that are queried together choose their atoms in one operation on stacked rows: the first
linear's tokens, then the next one's.

Shape letters: T tokens, R active atoms, D inputs, E outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moram_dist.atoms.recall_backward import backward
from moram_dist.atoms.recall_call import RecallCall
from moram_dist.atoms.recall_forward import forward
from moram_dist.atoms.recall_saved import Saved


class RecallFunction(torch.autograd.Function):
    """``recall_together`` on flat tokens: inputs (T, D), keys and values to outputs (T, E)."""

    @staticmethod
    def forward(ctx: Any, call: RecallCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``tensors``: all inputs, then all active keys, then all active values."""
        count = len(call.members)
        inputs, keys, values = (tensors[k * count :][:count] for k in range(3))
        keep = call.recorded and any(ctx.needs_input_grad)
        outputs, saved = forward(call, call.dropped(inputs), keys, values, keep=keep)
        if saved is not None:
            if call.masks:  # what they leave is computed again: linears may share one input
                saved = replace(saved, inputs=inputs)
            ctx.call = call
            ctx.save_for_backward(*saved.tensors())
            ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of ``forward``, in the same order."""
        saved = Saved.of(ctx.saved_tensors, len(grads))
        if ctx.call.masks:
            saved = replace(saved, inputs=ctx.call.dropped(saved.inputs))
        wants_inputs = any(ctx.needs_input_grad[1 : 1 + len(grads)])
        found = backward(ctx.call, saved, grads, wants_inputs=wants_inputs)
        return (None, *ctx.call.dropped(found.inputs), *found.keys, *found.values)
