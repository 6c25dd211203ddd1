"""Access to unsharded ZeRO-3 parameters: for reading, for writing, and for generating text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moram_dist.comm.lean import import_deepspeed


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 holds this parameter in shards."""
    return hasattr(parameter, "ds_id")


def whole(parameters: Iterable[nn.Parameter], *, write: bool = False) -> Any:
    """Context in which parameters are unsharded on every rank. All ranks must enter it.

    Args:
        parameters: sharded or not.
        write: keep the main rank's changes, on all ranks. This changes only the weights of the
            forward pass, not the optimizer's master copies (see ``train.engine``).
    """
    sharded = [p for p in parameters if is_sharded(p)]
    if not sharded:
        return nullcontext()
    for parameter in sharded:
        # Left over from the last backward: GatheredParameters rejects parameters marked as in use.
        parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None)


def linear() -> Callable[..., Tensor]:
    """The function to use under ZeRO-3 in place of torch's linear function.

    Torch's own would keep gathered weights. DeepSpeed's keeps the input instead, which only the
    gradient of a weight needs, so a frozen linear takes ours.
    """
    import_deepspeed()
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    def frozen_or_trained(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        is_trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        out: Tensor = (zero3_linear_wrap if is_trained else _FrozenLinear.apply)(
            input, weight, bias
        )
        return out

    return frozen_or_trained


def use_own_linear() -> None:
    """Put ``linear`` in place of the function that DeepSpeed puts into torch under ZeRO-3."""
    torch.nn.functional.linear = linear()


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b, of which only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        # Not torch's linear function: its result may be a view, to which nothing can be added.
        out = x.matmul(weight.t())
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        # As in DeepSpeed's: the weight is here, unless a module's parts are computed again.
        gathers = is_sharded(weight) and weight.ds_status.name == "NOT_AVAILABLE"
        if gathers:
            weight.all_gather()
        try:
            return grads[0].matmul(weight), None, None
        finally:
            if gathers:
                weight.partition()


def release_leftovers(engine: Any) -> None:
    """Release parameters that a backward pass outside of the engine gathered and left behind."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is not None:
        offload.release_backward_leftovers()


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """Context for a forward pass without gradient, between another forward pass and its backward.

    ZeRO-3 counts, for each module, the inputs whose gradients it awaits before it releases the
    module's parameters in backward. A forward pass resets that count, and then backward would keep
    the parameters of all layers until its end.
    """
    counts = {m: vars(m).get("ds_grads_remaining") for m in model.modules()}
    try:
        yield
    finally:
        for module, count in counts.items():
            if count is not None:
                module.ds_grads_remaining = count


@contextmanager
def without_hooks(engine: Any) -> Iterator[nn.Module]:
    """Context that gives the engine's model with unsharded weights and no ZeRO-3 hooks.

    Inside, ranks need not run in lockstep, and generation is about ten times faster than with
    hooks, which gather every layer for every token. Needs memory for the whole model on each rank.
    Pass ``synced_gpus=False`` to ``generate``: under ZeRO-3 it keeps ranks in lockstep by default.
    """
    parameters = [p for p in engine.module.parameters() if is_sharded(p)]
    if not parameters:
        yield engine.module
        return
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    # In an engine without an optimizer (zero-shot), ``optimizer`` is the offload itself.
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    with whole(parameters):
        # DeepSpeed's unwrap_model_for_generation does not remove the hook at the start of forward.
        # That hook is a collective, so ranks with different work would wait for each other.
        offload._remove_module_hooks()
        offload.forward_hooks.clear()
        offload.backward_hooks.clear()
        try:
            yield engine.module
        finally:
            offload.setup_zero_stage3_hooks()
            FWD_MODULE_STACK.pop()  # the second entry of the module: the engine made the first
