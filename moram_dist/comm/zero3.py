"""Access to unsharded ZeRO-3 parameters: for reading, for writing, and for generating text."""

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


def linear() -> Any:
    """The function by which ZeRO-3 replaces torch's linear function; it keeps its input."""
    env.choose_accelerator()
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    return zero3_linear_wrap


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
