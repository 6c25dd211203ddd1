"""Statistics of a task's prompts: sums from which every recogniser is built.

A task's sums never change when other tasks arrive, so they are stored in a file of that task.

Shape letters: N prompts, D embedding size, M features of a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moram_dist.recognise.features import VIEWS, PromptFeatures
from moram_dist.registry import InputError

LEVELS = (0.9, 0.95, 0.975, 0.99, 1.0)
"""Quantiles to keep of the distances of a task's own prompts to the task."""

UNKNOWN = LEVELS.index(0.99)
"""Index of the limit: a prompt further from its task than this quantile belongs to no task."""


DISTANCE = "projected"
"""The view in which distances are measured."""

SHRINK = 0.3
"""Fraction of a task's covariance in this view that is replaced by its mean variance."""

FOLDS = 10
"""Parts of a task's prompts; each is measured against the statistics of all other parts."""


@dataclass(frozen=True)
class Moments:
    """Sums of one view of the features over prompts, in float64."""

    sum_M: Tensor
    second: Tensor
    """Sum of squares, (M,), or of outer products, (M, M)."""


@dataclass(frozen=True)
class TaskStatistics:
    """Statistics of one task's training prompts."""

    count: int
    moments: Mapping[str, Moments]
    """By view name: ``plain`` with squares, the others with outer products."""

    distances: Tensor
    """Quantiles at ``LEVELS`` of the distances of the task's own prompts, by cross-validation."""

    @classmethod
    def of(cls, prompts: PromptFeatures) -> TaskStatistics:
        """Compute from the features of all training prompts of a task, at least one."""
        moments = {name: _moments(name, prompts.mean_ND) for name in VIEWS}
        return cls(len(prompts), moments, _left_out(prompts))

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for the task's file; only the upper triangle of outer products."""
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
        """Rebuild from the task's file. Raises InputError if it holds something else."""
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

    def distance(self, prompts: PromptFeatures) -> Tensor:
        """Distances (N,) of prompts to the task."""
        return _distance(prompts, self.count, self.moments[DISTANCE])


def _moments(view: str, x_ND: Tensor) -> Moments:
    seen_NM = VIEWS[view](x_ND)
    second = seen_NM.square().sum(0) if view == "plain" else seen_NM.T @ seen_NM
    return Moments(seen_NM.sum(0), second)


def _distance(prompts: PromptFeatures, count: int, moments: Moments) -> Tensor:
    """Squared Mahalanobis distance from the mean, times the square root of a prompt's length.

    The mean embeddings of long texts are close to each other whatever they are about, so the same
    distance counts for more there. The square root recognised foreign texts best at all lengths
    (docs/log.md).
    """
    mean_M = moments.sum_M / count
    covariance_MM = moments.second / count - torch.outer(mean_M, mean_M)
    variance = covariance_MM.diagonal().mean().clamp(min=0)
    # If all prompts are equal, only rounding errors remain.
    floor = 1e-12 * moments.second.diagonal().mean() / count + torch.finfo(mean_M.dtype).tiny
    eye_MM = torch.eye(len(mean_M), dtype=mean_M.dtype)
    shrunk_MM = (1 - SHRINK) * covariance_MM + (SHRINK * variance + floor) * eye_MM
    off_NM = VIEWS[DISTANCE](prompts.mean_ND) - mean_M
    squares_N = (torch.linalg.solve(shrunk_MM, off_NM.T).T * off_NM).sum(1)
    return squares_N * prompts.tokens_N.sqrt()


def _left_out(prompts: PromptFeatures) -> Tensor:
    """Quantiles of each prompt's distance to the task, computed from the other parts' prompts."""
    if len(prompts) < 2:
        return torch.full((len(LEVELS),), torch.inf, dtype=torch.float64)
    part_N = torch.arange(len(prompts)) % FOLDS
    found = []
    for part in part_N.unique():
        others = prompts.rows(part_N != part)
        moments = _moments(DISTANCE, others.mean_ND)
        found.append(_distance(prompts.rows(part_N == part), len(others), moments))
    return torch.quantile(torch.cat(found), torch.tensor(LEVELS, dtype=torch.float64))
