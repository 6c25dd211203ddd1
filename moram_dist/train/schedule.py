"""The learning rate over the steps of one task."""

from __future__ import annotations

import math


def learning_rate(
    step: int, total: int, *, peak: float, schedule: str, warmup_ratio: float
) -> float:
    """Learning rate of optimizer step ``step``, counted from 0, of ``total``.

    Linear warm-up over ``warmup_ratio`` of the steps, then constant, or linear or cosine to 0.
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
