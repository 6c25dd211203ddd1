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

from moram_dist.recognise.features import VIEWS, PromptFeatures
from moram_dist.registry import InputError

LEVELS = (0.9, 0.95, 0.975, 0.99, 1.0)
"""Quantiles that are kept of how far a task's own prompts are from the task."""

UNKNOWN = LEVELS.index(0.99)
"""A prompt that is further from its task than this quantile of the task's own belongs to none."""


DISTANCE = "projected"
"""The view in which a prompt is near to a task or far from it."""

SHRINK = 0.3
"""Share of a task's covariance there that is replaced by its mean variance."""

FOLDS = 10
"""Parts of a task's prompts, each measured against the statistics of all others."""


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
    """Of the task's own prompts to the task: quantiles at ``LEVELS``, of prompts that were left out
    in turn."""

    @classmethod
    def of(cls, prompts: PromptFeatures) -> TaskStatistics:
        """From the features of all training prompts of a task, at least one."""
        moments = {name: _moments(name, prompts.mean_ND) for name in VIEWS}
        return cls(len(prompts), moments, _left_out(prompts))

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

    def distance(self, prompts: PromptFeatures) -> Tensor:
        """How far prompts are from the task, (N,)."""
        return _distance(prompts, self.count, self.moments[DISTANCE])


def _moments(view: str, x_ND: Tensor) -> Moments:
    seen_NM = VIEWS[view](x_ND)
    second = seen_NM.square().sum(0) if view == "plain" else seen_NM.T @ seen_NM
    return Moments(seen_NM.sum(0), second)


def _distance(prompts: PromptFeatures, count: int, moments: Moments) -> Tensor:
    """Squared Mahalanobis distance from the mean, times the root of a prompt's tokens.

    The mean over a long text is near to that of any other, whatever they are about, so a distance
    counts for more there. The root is what told foreign texts best at all lengths (docs/log.md).
    """
    mean_M = moments.sum_M / count
    covariance_MM = moments.second / count - torch.outer(mean_M, mean_M)
    variance = covariance_MM.diagonal().mean().clamp(min=0)
    # Where all prompts are alike, what is left is rounding.
    floor = 1e-12 * moments.second.diagonal().mean() / count + torch.finfo(mean_M.dtype).tiny
    eye_MM = torch.eye(len(mean_M), dtype=mean_M.dtype)
    shrunk_MM = (1 - SHRINK) * covariance_MM + (SHRINK * variance + floor) * eye_MM
    off_NM = VIEWS[DISTANCE](prompts.mean_ND) - mean_M
    squares_N = (torch.linalg.solve(shrunk_MM, off_NM.T).T * off_NM).sum(1)
    return squares_N * prompts.tokens_N.sqrt()


def _left_out(prompts: PromptFeatures) -> Tensor:
    """Quantiles of each prompt's distance to the statistics of the other parts' prompts."""
    if len(prompts) < 2:
        return torch.full((len(LEVELS),), torch.inf, dtype=torch.float64)
    part_N = torch.arange(len(prompts)) % FOLDS
    found = []
    for part in part_N.unique():
        others = prompts.rows(part_N != part)
        moments = _moments(DISTANCE, others.mean_ND)
        found.append(_distance(prompts.rows(part_N == part), len(others), moments))
    return torch.quantile(torch.cat(found), torch.tensor(LEVELS, dtype=torch.float64))
