"""ZeRO-3 parameters as whole tensors: for reading, for writing, and for generating text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from moram_dist.comm import env


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 holds this parameter in shards."""
    return hasattr(parameter, "ds_id")


def whole(parameters: Iterable[nn.Parameter], *, write: bool = False) -> Any:
    """Context in which parameters are whole on every rank. All ranks must enter it.

    Args:
        parameters: sharded or not.
        write: keep what the main rank writes to them, on all ranks. Only the weights that the
            forward pass uses change so; the optimizer's masters are another matter
            (``train.engine``).
    """
    sharded = [p for p in parameters if is_sharded(p)]
    if not sharded:
        return nullcontext()
    for parameter in sharded:
        # Left over from the last backward; gathering refuses parameters that look in use.
        parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None)


def linear() -> Any:
    """What ZeRO-3 replaces torch's linear function by: one that keeps its input."""
    env.choose_accelerator()
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    return zero3_linear_wrap


def release_leftovers(engine: Any) -> None:
    """Let go of what a backward pass that was not the engine's has gathered and left."""
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is not None:
        offload.release_backward_leftovers()


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """For a forward pass without gradient, between another forward pass and its backward.

    ZeRO-3 counts, for each module, inputs whose gradients are to come before it lets go of the
    module's parameters in backward. A forward pass starts the count anew, and then backward would
    keep the parameters of all layers until its end.
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
    """The engine's model with whole weights and no ZeRO-3 hooks.

    Ranks need not keep step inside, and generation runs about ten times faster than with hooks,
    which gather every layer for every token. Needs memory for the whole model on each rank.
    ``generate`` must be told ``synced_gpus=False`` here: under ZeRO-3 it keeps step by default.
    """
    parameters = [p for p in engine.module.parameters() if is_sharded(p)]
    if not parameters:
        yield engine.module
        return
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    # An engine without an optimizer (zero-shot) has the offload in its optimizer's place.
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    with whole(parameters):
        # DeepSpeed's own unwrap_model_for_generation leaves the hook at the start of a forward in
        # place. That one is a collective, so ranks with unlike work would wait for each other.
        offload._remove_module_hooks()
        offload.forward_hooks.clear()
        offload.backward_hooks.clear()
        try:
            yield engine.module
        finally:
            offload.setup_zero_stage3_hooks()
            FWD_MODULE_STACK.pop()  # the module stands there since the engine was made
