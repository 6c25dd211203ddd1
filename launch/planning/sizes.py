"""Bytes that DeepSpeed keeps on a rank, by the ZeRO stage and the settings in its file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FP32 = 4
MOMENTS = 2


@dataclass(frozen=True)
class Standing:
    """Bytes on the device between two steps, without frozen atoms, and what a step adds."""

    base: int
    """This rank's part of the base model, or all of it."""

    gathered: int
    """Whole layers of the base that are gathered during a forward or backward pass."""

    arriving: int
    """What ZeRO-3 gathers ahead: until it has arrived, it exists once more."""

    trained: int
    """Active atoms, their fp32 masters, moments and gradients."""

    bucket: int
    """Buffer in which gradients are sent. On a CPU it takes no memory before it is used."""

    @property
    def total(self) -> int:
        """During a forward or backward pass."""
        return self.base + self.gathered + self.arriving + self.trained + self.bucket


def standing(
    base: Sequence[int],
    trained: Sequence[int],
    *,
    ds_config: Mapping[str, Any],
    ranks: int,
    number_bytes: int,
    device: str,
) -> Standing:
    """Bytes that a rank holds.

    Args:
        base: number of elements of each frozen parameter.
        trained: number of elements of each trained parameter.
        ds_config: from ``ds_config.resolve``.
        ranks: number of ranks over which ZeRO shards.
        number_bytes: bytes of an element in the model's dtype.
        device: cpu or cuda.
    """
    zero = ds_config["zero_optimization"]
    stage = zero["stage"]
    offloaded = {name for name in ("param", "optimizer") if _offloads(zero, name, device)}
    sharded = stage == 3 and ranks > 1
    kept = number_bytes * (sum(math.ceil(n / ranks) for n in base) if sharded else sum(base))
    live = min(sum(base), int(zero.get("stage3_max_live_parameters", 1e9)))
    ahead = min(sum(base), int(zero.get("stage3_prefetch_bucket_size", 5e7)))
    numbers, part = sum(trained), sum(trained)
    if stage == 3:
        part = sum(math.ceil(n / ranks) for n in trained)
    elif stage > 0:
        part = math.ceil(numbers / ranks)
    optimizer = 0 if "optimizer" in offloaded else FP32 * (1 + MOMENTS) * part
    gradients = FP32 * (part if stage > 1 else numbers)
    bucket = int(zero.get("reduce_bucket_size", 5e8)) * number_bytes if stage > 1 else 0
    return Standing(
        base=0 if "param" in offloaded else kept,
        gathered=number_bytes * live if sharded or "param" in offloaded else 0,
        arriving=number_bytes * ahead if sharded else 0,
        trained=number_bytes * numbers + optimizer + gradients,
        bucket=bucket if device == "cuda" else 0,
    )


def _offloads(zero: Mapping[str, Any], name: str, device: str) -> bool:
    """Whether ``name`` is kept outside the GPU's memory."""
    where = (zero.get(f"offload_{name}") or {}).get("device", "none")
    return device == "cuda" and where in ("cpu", "nvme")
