"""The learning rate over the steps of one task."""

from __future__ import annotations

import math


def learning_rate(
    step: int, total: int, *, peak: float, schedule: str, warmup_ratio: float
) -> float:
    """Rate of optimizer step ``step`` of ``total``, from 0.

    Linear warm-up over ``warmup_ratio`` of the steps, then constant, or linear or cosine towards 0.
    """
    warmup = round(total * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak
