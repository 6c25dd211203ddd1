"""What is kept of a task's prompts: sums, from which every recogniser is made.

Sums of one task never change when another arrives, so they lie in a file of that task.

Shape letters: N prompts, D embedding size, M features of a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moram_dist.recognise.features import VIEWS
from moram_dist.registry import InputError

LEVELS = (0.9, 0.95, 0.99, 0.995, 1.0)
"""Quantiles that are kept of how far a task's own prompts are from the task."""

UNKNOWN = LEVELS.index(0.995)
"""A prompt that is further from its task than this quantile of the task's own belongs to none."""


@dataclass(frozen=True)
class Moments:
    """Sums over prompts of one view of their features, in float64."""

    sum_M: Tensor
    second: Tensor
    """Sum of squares, (M,), or of outer products, (M, M)."""


@dataclass(frozen=True)
class TaskStatistics:
    """Of one task's training prompts."""

    count: int
    moments: Mapping[str, Moments]
    """By name of the view: ``plain`` with squares, the others with outer products."""

    distances: Tensor
    """Of the task's own prompts to the task, each left out in turn: quantiles at ``LEVELS``."""

    @classmethod
    def of(cls, x_ND: Tensor) -> TaskStatistics:
        """From the features of all training prompts of a task, at least one."""
        moments = {}
        for name, view in VIEWS.items():
            seen_NM = view(x_ND.double())
            second = seen_NM.square().sum(0) if name == "plain" else seen_NM.T @ seen_NM
            moments[name] = Moments(seen_NM.sum(0), second)
        return cls(len(x_ND), moments, _left_out(x_ND.double(), moments["plain"]))

    def tensors(self) -> dict[str, Tensor]:
        """For the task's file; of outer products the upper triangle alone."""
        out = {"count": torch.tensor(self.count), "distances": self.distances}
        for name, moments in self.moments.items():
            second = moments.second
            if second.dim() == 2:
                rows, columns = torch.triu_indices(*second.shape)
                second = second[rows, columns]
            out[f"{name}.sum"] = moments.sum_M
            out[f"{name}.second"] = second
        return out

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], where: str | Path) -> TaskStatistics:
        """From the task's file. Raises InputError where it holds something else."""
        try:
            moments = {}
            for name in VIEWS:
                sum_M = tensors[f"{name}.sum"].double()
                second = tensors[f"{name}.second"].double()
                if second.shape != sum_M.shape:
                    rows, columns = torch.triu_indices(len(sum_M), len(sum_M))
                    whole = second.new_zeros(len(sum_M), len(sum_M))
                    whole[rows, columns] = whole[columns, rows] = second
                    second = whole
                moments[name] = Moments(sum_M, second)
            return cls(int(tensors["count"]), moments, tensors["distances"].double())
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{where} holds no statistics of prompts: {error}") from None

    @property
    def furthest(self) -> Tensor:
        """The largest distance at which a prompt still counts as one of the task's."""
        return self.distances[UNKNOWN]

    def distance(self, x_ND: Tensor) -> Tensor:
        """Mean over dimensions of the squared distance from the task's mean, in variances, (N,)."""
        plain = self.moments["plain"]
        return _distance(x_ND.double(), self.count, plain.sum_M, plain.second)


def _distance(x_ND: Tensor, count: Tensor | int, sum_D: Tensor, square_D: Tensor) -> Tensor:
    mean_D = sum_D / count
    variance_D = (square_D / count - mean_D.square()).clamp(min=0)
    # A dimension in which few prompts happen to agree must not decide alone.
    floor = variance_D.mean(-1, keepdim=True) / 10 + torch.finfo(x_ND.dtype).tiny
    return ((x_ND - mean_D).square() / (variance_D + floor)).mean(-1)


def _left_out(x_ND: Tensor, plain: Moments) -> Tensor:
    """Quantiles of each prompt's distance to the statistics of all others."""
    if len(x_ND) < 2:
        return torch.full((len(LEVELS),), torch.inf, dtype=torch.float64)
    found = _distance(x_ND, len(x_ND) - 1, plain.sum_M - x_ND, plain.second - x_ND.square())
    return torch.quantile(found, torch.tensor(LEVELS, dtype=torch.float64))
