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
from moram_dist.recognise.left_out import UNKNOWN, left_out
from moram_dist.recognise.shared_tokens import SharedTokens
from moram_dist.registry import InputError

DISTANCE = "projected"
"""The view in which distances are measured."""

FURTHER = 1.25
"""How much further than 99 % of the task's own prompts a prompt may be that has its shared tokens.
They tell most; distances tell where texts have no instruction and share only frequent words."""

SHRINK = 0.3
"""Fraction of a task's covariance in this view that is replaced by its mean variance."""


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
    """Quantiles of the distances of the task's own prompts (``left_out``)."""

    shared: SharedTokens | None = None
    """None if prompts share too little, as pictures do, or if an earlier version read them."""

    @classmethod
    def of(cls, prompts: PromptFeatures) -> TaskStatistics:
        """Compute from the features of all training prompts of a task, at least one."""
        moments = {name: _moments(name, prompts.mean_ND) for name in VIEWS}
        shared = None if prompts.distinct is None else SharedTokens.of(prompts.distinct)
        if shared is not None and not shared.typical:
            shared = None
        return cls(len(prompts), moments, _distances(prompts), shared)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for the task's file; only the upper triangle of outer products."""
        out = {"count": torch.tensor(self.count), "distances": self.distances}
        if self.shared is not None:
            out |= self.shared.tensors()
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
            shared = SharedTokens.from_tensors(tensors) if "shared.own" in tensors else None
            return cls(int(tensors["count"]), moments, tensors["distances"].double(), shared)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{where} holds no statistics of prompts: {error}") from None

    def near(self, prompts: PromptFeatures) -> Tensor:
        """Whether prompts are near enough to be of the task, (N,)."""
        limit = self.distances[UNKNOWN] * (1 if self.shared is None else FURTHER)
        return _distance(prompts, self.count, self.moments[DISTANCE]) <= limit


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


def _distances(prompts: PromptFeatures) -> Tensor:
    def measure(others_N: Tensor, these_N: Tensor) -> Tensor:
        others = prompts.rows(others_N)
        return _distance(prompts.rows(these_N), len(others), _moments(DISTANCE, others.mean_ND))

    return left_out(len(prompts), measure)
