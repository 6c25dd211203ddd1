"""How a task's own prompts compare with the task, measured without them: cross-validation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEVELS = (0.9, 0.95, 0.975, 0.99, 1.0)
"""Quantiles to keep of a measure over a task's own prompts."""

UNKNOWN = LEVELS.index(0.99)
"""Index of the quantile from which the limits of what counts as a task's own are made."""

FOLDS = 10
"""Parts of a task's prompts; each is measured against what all other parts give."""


def left_out(num_prompts: int, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Quantiles at ``LEVELS`` of a measure over all prompts; infinite if there are under two.

    Args:
        num_prompts: N.
        measure: from the prompts to learn from and those to measure, both as masks (N,), to one
            number for each of the latter.
    """
    if num_prompts < 2:
        return torch.full((len(LEVELS),), torch.inf, dtype=torch.float64)
    part_N = torch.arange(num_prompts) % FOLDS
    found = [measure(part_N != part, part_N == part) for part in part_N.unique()]
    return quantiles(torch.cat(found))


def quantiles(found_N: Tensor) -> Tensor:
    """At ``LEVELS``, of at least one number, in float64."""
    return torch.quantile(found_N, torch.tensor(LEVELS, dtype=torch.float64))
