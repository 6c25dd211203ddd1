"""One DeepSpeed engine for the whole sequence, with a complete reset between tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.comm.lean import import_deepspeed
from moram_dist.comm.zero3 import use_own_linear, whole
from moram_dist.registry import InputError

BETAS = (0.9, 0.95)
"""From the published MoRAM and TRACE scripts."""


_REFUSALS = (ArithmeticError, AssertionError, ImportError, NotImplementedError, ValueError)
"""Builtin exceptions with which DeepSpeed refuses a setting; machine failures raise others."""


def make_engine(
    model: nn.Module,
    ds_config: dict[str, Any],
    *,
    weight_decay: float,
    betas: tuple[float, float] = BETAS,
) -> Any:
    """Wrap the model; only parameters that require a gradient are trained.

    A model without any (zero-shot) gets an engine without an optimizer.

    Raises:
        InputError: DeepSpeed refuses a value of the configuration that it reads only here.
    """
    deepspeed = import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    trainable = [p for p in model.parameters() if p.requires_grad]
    config = dict(ds_config)
    optimizer = None
    if trainable:
        optimizer = torch.optim.AdamW(trainable, lr=0.0, betas=betas, weight_decay=weight_decay)
    elif config["zero_optimization"]["stage"] < 3:
        # Stages 1 and 2 refuse to run without an optimizer, and would have nothing to shard.
        config["zero_optimization"] = {"stage": 0}
        config.pop("data_types", None)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except (DeepSpeedConfigError, ZeRORuntimeException, *_REFUSALS) as error:
        raise InputError(
            f"--ds_config: DeepSpeed refuses it: {error or type(error).__name__}"
        ) from error
    if engine.zero_optimization_partition_weights():
        use_own_linear()
    engine.set_gradient_accumulation_boundary(True)  # from here on the trainer sets it
    return engine


def trainable_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """Trainable parameters by full name, in the model's order; sharded under ZeRO-3."""
    return {n: p for n, p in engine.module.named_parameters() if p.requires_grad}


def inner_optimizer(engine: Any) -> Any:
    """The AdamW that ZeRO drives."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def start_fresh(engine: Any, values: Mapping[str, Tensor]) -> None:
    """Begin a task: set parameters to the given values and reset the optimizer.

    ZeRO keeps fp32 masters of the weights and overwrites the weights with them at each step, which
    would undo a reset of the weights alone. So this sets the weights, copies them to the masters,
    and clears moments, step counts and gradients.

    Args:
        engine: DeepSpeed engine at any stage, at a step's end.
        values: full parameter name to whole tensor, the same on all ranks; other parameters keep
            their weights, from which the masters of trainable ones restart.

    Raises:
        KeyError: a name is not a parameter.
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
