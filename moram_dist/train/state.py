"""The trainable state of a DeepSpeed engine as whole tensors, at any stage and number of ranks.

The optimizer holds the trainable state: fp32 masters, both moments of Adam, its step count. Each
rank has a part of them; this module knows how each stage divides them. DeepSpeed's own functions
for this (``safe_set_full_*``) fail if a parameter's size is not a multiple of the number of ranks,
and do not support stage 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.comm import env
from moram_dist.train.engine import inner_optimizer, start_fresh, trainable_parameters

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Part:
    """The part of one parameter in this rank's optimizer: elements [start, start + length)."""

    start: int
    length: int
    owner: Tensor
    """The optimizer's tensor with the masters, flat or not; also the key of its state."""

    offset: int
    """Offset of the part in ``owner``."""

    def of(self, tensor: Tensor) -> Tensor:
        """A view of the part in a tensor with the same layout as ``owner``."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)


def read_state(engine: Any) -> tuple[dict[str, Tensor], int]:
    """Read masters, moments and Adam's step count. All ranks call it together.

    At least one step of the task must be done; accumulated gradients do not matter.

    Returns:
        ``<parameter>/master``, ``/exp_avg`` and ``/exp_avg_sq`` to whole float32 tensors on the
        CPU, on every rank; and Adam's number of steps.
    """
    states = inner_optimizer(engine).state
    whole: dict[str, Tensor] = {}
    steps = 0
    for name, parameter in trainable_parameters(engine).items():
        part = _part(engine, parameter)
        if part is not None:
            steps = max(steps, int(states[part.owner]["step"]))
        for kind in (MASTER, *MOMENTS):
            tensor = None
            if part is not None:
                tensor = part.of(part.owner if kind == MASTER else states[part.owner][kind])
            whole[f"{name}/{kind}"] = _assemble(parameter, part, tensor)
    return whole, max(env.gather_objects(steps))


def write_state(engine: Any, whole: Mapping[str, Tensor], steps: int) -> None:
    """Restore the state from ``read_state`` in an engine, including the model's weights.

    The engine must be at a step's end. Clears gradients. Raises KeyError if a tensor is missing.
    """
    parameters = trainable_parameters(engine)
    # Weights first: as after every step, they are the rounded masters.
    start_fresh(engine, {name: whole[f"{name}/{MASTER}"] for name in parameters})
    states = inner_optimizer(engine).state
    for name, parameter in parameters.items():
        part = _part(engine, parameter)
        if part is None:
            continue
        state = states[part.owner]
        if not state:  # create it as torch's AdamW does at its first step
            state["step"] = torch.tensor(0.0)
            state.update({kind: torch.zeros_like(part.owner) for kind in MOMENTS})
        state["step"].fill_(steps)
        for kind in (MASTER, *MOMENTS):
            value = whole[f"{name}/{kind}"].view(-1).narrow(0, part.start, part.length)
            part.of(part.owner if kind == MASTER else state[kind]).copy_(value)


def _assemble(parameter: nn.Parameter, part: _Part | None, tensor: Tensor | None) -> Tensor:
    """The whole tensor from the ranks' parts: a sum to which all but one rank add zero.

    It sums bit patterns, because -0.0 + 0.0 would change the bits.
    """
    shape = getattr(parameter, "ds_shape", parameter.shape)
    bits = torch.zeros(shape.numel(), dtype=torch.int32, device=env.device())
    if part is not None and tensor is not None:
        bits.narrow(0, part.start, part.length).copy_(tensor.float().view(torch.int32))
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        env.sum_(bits)
    return bits.view(torch.float32).view(shape).cpu()


def _part(engine: Any, parameter: Any) -> _Part | None:
    """This rank's part of a parameter; None if it has none."""
    optimizer = engine.optimizer
    if hasattr(parameter, "ds_id"):  # stage 3: equal parts of each parameter, the last one padded
        size = parameter.partition_numel()
        start = env.rank() * size
        length = min(size, parameter.ds_numel - start)
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        owner = optimizer.fp32_partitioned_groups_flat[group]
        return _Part(start, length, owner, offset) if length > 0 else None
    if hasattr(parameter, "_hp_mapping"):  # stages 1, 2: equal parts of all parameters concatenated
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
        (owner,) = inner_optimizer(engine).param_groups[mapping.param_group_index]["params"]
        return _Part(low.start, low.numel, owner, high.start)
    owner = parameter  # stage 0: the whole parameter; in fp32 it is its own master
    for low_group, high_group in zip(
        getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True
    ):
        for low, high in zip(low_group, high_group, strict=True):
            owner = high if low is parameter else owner
    return _Part(0, owner.numel(), owner, 0)
