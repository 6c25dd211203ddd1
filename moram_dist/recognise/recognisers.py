"""Recognisers: compute a score for each task from the statistics of the tasks so far.

Each is a closed-form function of sums over all tasks' prompts, so it does not depend on the order
in which the tasks were learned.

Shape letters: N prompts, T tasks, D embedding size, M features of a view.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moram_dist.recognise.features import VIEWS, PromptFeatures
from moram_dist.recognise.shared_tokens import alike
from moram_dist.recognise.statistics import TaskStatistics
from moram_dist.registry import Registry

SHRINK = 0.1
"""Fraction of a pooled covariance that is replaced by its mean variance: the covariance is singular
if there are fewer prompts than features."""

RIDGE = 1e-4
"""Ridge penalty, as a multiple of the mean eigenvalue of the second moments."""


@dataclass(frozen=True)
class Recognised:
    """A recogniser's result for a prompt."""

    task: int
    """The likeliest learned task."""

    known: bool
    """Whether the prompt resembles the task's training prompts."""

    def answered_by(self, learned: int, unknown: str) -> int | None:
        """How many of the first tasks answer; None: all learned tasks.

        Args:
            learned: number of learned tasks.
            unknown: who answers a prompt that resembles no task's: ``base``, ``all`` or
                ``likeliest``.
        """
        if not self.known and unknown != "likeliest":
            return 0 if unknown == "base" else None
        return None if self.task + 1 == learned else self.task + 1


class Recogniser(ABC):
    """Scores tasks for prompts. A new one is built after each task, from all tasks so far."""

    view: str
    """Name of the view of the features that it uses, in ``features.VIEWS``."""

    def __init__(self, tasks: Sequence[TaskStatistics], before: Recogniser | None = None) -> None:
        """Sum the tasks' statistics.

        Args:
            tasks: in the order of learning, at least one.
            before: the same kind of recogniser of the first of them, whose sums are reused;
                otherwise each new task would add up all tasks again. The bits are the same.
        """
        self.tasks = tuple(tasks)
        self.count_T = torch.tensor([float(t.count) for t in tasks], dtype=torch.float64)
        self.sum_TM = torch.stack([t.moments[self.view].sum_M for t in tasks])
        if before is None:
            self.second = torch.zeros_like(tasks[0].moments[self.view].second)
        else:
            self.second = before.second.clone()
        for task in tasks[0 if before is None else len(before.tasks) :]:
            self.second += self._second(task)

    def _second(self, task: TaskStatistics) -> Tensor:
        """What a task adds to ``second``."""
        return task.moments[self.view].second

    def of_first(self, count: int) -> Recogniser:
        """The recogniser after the first ``count`` tasks, at least one."""
        return type(self)(self.tasks[:count])

    @abstractmethod
    def _scores(self, seen_NM: Tensor) -> Tensor:
        """Scores (N, T) for the view's features (N, M)."""

    def scores(self, x_ND: Tensor) -> Tensor:
        """Scores (N, T) for prompts' features (N, D): higher for a likelier task."""
        return self._scores(VIEWS[self.view](x_ND.double()))

    def recognise(self, prompts: PromptFeatures) -> list[Recognised]:
        """The likeliest task of each prompt, and whether the prompt resembles it.

        If a prompt has the shared tokens of some tasks, these are the candidates, and tasks that
        keep none. Otherwise it is unknown, unless the likeliest of all tasks keeps none. In any
        case a prompt is unknown if it is too far from the likeliest. Ties go to the earliest task.
        """
        scores_NT = self.scores(prompts.mean_ND)
        keeping = {t: task.shared for t, task in enumerate(self.tasks) if task.shared is not None}
        lacks_NT = torch.zeros(len(prompts), len(self.tasks), dtype=torch.bool)
        if keeping:
            alike_NT = alike([*keeping.values()], prompts.distinct or ())
            lacks_NT[:, [*keeping]] = ~alike_NT
            excluded_NT = lacks_NT & alike_NT.any(1, keepdim=True)
            scores_NT = scores_NT.masked_fill(excluded_NT, -torch.inf)
        likeliest_N = scores_NT.argmax(1)
        known_N = ~lacks_NT.gather(1, likeliest_N[:, None])[:, 0]
        for t in likeliest_N.unique():
            mine_N = likeliest_N == t
            known_N[mine_N] &= self.tasks[int(t)].near(prompts.rows(mine_N))
        return [
            Recognised(*one) for one in zip(likeliest_N.tolist(), known_N.tolist(), strict=True)
        ]

    def _rounding(self) -> Tensor:
        """Rounding error of variances that are computed as differences of squares; above 0."""
        square = self.second if self.second.dim() == 1 else self.second.diagonal()
        machine = torch.finfo(torch.float64)
        return 16 * machine.eps * square.mean() / self.count_T.sum() + machine.tiny

    def _within(self) -> Tensor:
        """Pooled (co)variance within tasks, of the shape of ``second``."""
        mean_TM = self.sum_TM / self.count_T[:, None]
        outer = self.count_T[:, None] * mean_TM
        between = (outer * mean_TM).sum(0) if self.second.dim() == 1 else outer.T @ mean_TM
        return (self.second - between) / self.count_T.sum()


RECOGNISERS: Registry[type[Recogniser]] = Registry("recogniser")


@RECOGNISERS.register("means")
class Means(Recogniser):
    """The nearest task mean, with each dimension in units of its pooled standard deviation."""

    view = "plain"

    def _scores(self, seen_NM: Tensor) -> Tensor:
        variance_M = self._within().clamp(min=0)
        variance_M = variance_M + SHRINK * variance_M.mean() + self._rounding()
        scale_M = variance_M.rsqrt()
        mean_TM = self.sum_TM / self.count_T[:, None]
        return -torch.cdist(seen_NM * scale_M, mean_TM * scale_M).square()


@RECOGNISERS.register("discriminant")
class Discriminant(Recogniser):
    """Linear discriminant analysis: the nearest task mean under the pooled covariance.

    Source: Fisher 1936; covariance shrunk as in Friedman 1989; no priors.
    """

    view = "projected"

    def _scores(self, seen_NM: Tensor) -> Tensor:
        within_MM = self._within()
        mean_variance = within_MM.diagonal().mean().clamp(min=0) + self._rounding()
        eye_MM = torch.eye(len(within_MM), dtype=within_MM.dtype)
        shrunk_MM = (1 - SHRINK) * within_MM + SHRINK * mean_variance * eye_MM
        mean_TM = self.sum_TM / self.count_T[:, None]
        solved_MT = torch.linalg.solve(shrunk_MM, mean_TM.T)
        return seen_NM @ solved_MT - 0.5 * (mean_TM.T * solved_MT).sum(0)


@RECOGNISERS.register("ridge")
class Ridge(Recogniser):
    """Ridge regression of one-hot tasks on random features, with equal weight for each task.

    A task's sums are divided by its number of prompts, so that large tasks do not dominate.

    Source: the closed-form routers of Any-SSR (Tong et al. 2025) and RanPAC (arXiv:2307.02251).
    """

    view = "random"

    def _second(self, task: TaskStatistics) -> Tensor:
        return super()._second(task) / task.count

    def _scores(self, seen_NM: Tensor) -> Tensor:
        return seen_NM @ self.weights_MT()

    def weights_MT(self) -> Tensor:
        """``(sum_t F_t^T F_t / n_t + lambda I)^-1 [mean_1, ..., mean_T]``."""
        eye_MM = torch.eye(len(self.second), dtype=self.second.dtype)
        ridge = RIDGE * self.second.diagonal().mean() + torch.finfo(torch.float64).tiny
        mean_MT = (self.sum_TM / self.count_T[:, None]).T
        return torch.linalg.solve(self.second + ridge * eye_MM, mean_MT)
