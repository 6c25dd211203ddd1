"""One DeepSpeed engine for the whole sequence, and its complete reset between tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.comm.zero3 import whole
from moram_dist.registry import InputError

BETAS = (0.9, 0.95)
"""Of the published MoRAM and TRACE scripts."""


_REFUSALS = (ArithmeticError, AssertionError, ImportError, NotImplementedError, ValueError)
"""How DeepSpeed refuses a setting, beside exceptions of its own; a machine raises others."""


def make_engine(model: nn.Module, ds_config: dict[str, Any], *, weight_decay: float) -> Any:
    """Wrap the model; only parameters that require a gradient are trained.

    A model without any (zero-shot) gets an engine without an optimizer.

    Raises:
        InputError: DeepSpeed refuses a value of the configuration that it meets only here.
    """
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    trainable = [p for p in model.parameters() if p.requires_grad]
    config = dict(ds_config)
    optimizer = None
    if trainable:
        optimizer = torch.optim.AdamW(trainable, lr=0.0, betas=BETAS, weight_decay=weight_decay)
    elif config["zero_optimization"]["stage"] < 3:
        # Stages 1 and 2 shard nothing but an optimizer's state, and refuse to run without one.
        config["zero_optimization"] = {"stage": 0}
        config.pop("data_types", None)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except (DeepSpeedConfigError, ZeRORuntimeException, *_REFUSALS) as error:
        raise InputError(
            f"--ds_config: DeepSpeed refuses it: {error or type(error).__name__}"
        ) from error
    engine.set_gradient_accumulation_boundary(True)  # from here on whoever trains says where it is
    return engine


def trainable_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """By full name, in the model's order; sharded under ZeRO-3."""
    return {n: p for n, p in engine.module.named_parameters() if p.requires_grad}


def inner_optimizer(engine: Any) -> Any:
    """The AdamW that ZeRO drives."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """For the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def start_fresh(engine: Any, values: Mapping[str, Tensor]) -> None:
    """Begin a task: given values into parameters, and an optimizer as though it were new.

    ZeRO keeps fp32 masters beside the weights and writes them back at each step, so a reset that
    changes weights alone is undone by the next one. Here the weights are written, the masters are
    taken from them, and moments, step counts and gradients are cleared.

    Args:
        engine: DeepSpeed engine at any stage, at a step's end.
        values: full parameter name to whole tensor, the same on all ranks; other parameters keep
            their weights, and the masters of trainable ones restart from those.

    Raises:
        KeyError: a name that is no parameter.
        RuntimeError: called in the middle of gradient accumulation.
    """
    if not trainable_parameters(engine):
        return
    if not engine.is_gradient_accumulation_boundary():
        raise RuntimeError("a task cannot begin in the middle of an accumulated step")
    parameters = dict(engine.module.named_parameters())
    for name, value in values.items():
        parameter = parameters[name]
        with whole([parameter], write=True), torch.no_grad():
            parameter.copy_(value)
    if hasattr(engine.optimizer, "refresh_fp32_params"):
        engine.optimizer.refresh_fp32_params()
    engine.optimizer.zero_grad()
    inner = inner_optimizer(engine)
    for group in inner.param_groups:
        if "step" in group:
            group["step"] = 0
    for state in inner.state.values():
        for key, entry in state.items():
            if torch.is_tensor(entry):
                entry.zero_()
            elif key == "step":
                state[key] = 0
