"""Features of a prompt for recognisers: its tokens, and their mean input embedding in three views.

No forward pass is needed. The views do not depend on data, so a task's statistics never change when
later tasks arrive.

Shape letters: N prompts, D embedding size, M features of a view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

PROJECTED = 256
"""Largest number of features of ``projected``: a task's second moments then take 0.25 MB."""

RANDOM = 256
"""Features of ``random``, not counting the constant."""


@dataclass(frozen=True)
class PromptFeatures:
    """Features of N prompts."""

    mean_ND: Tensor
    """Mean input embeddings, in float64 on the CPU."""

    tokens_N: Tensor
    """Number of tokens of each, in float64."""

    distinct: tuple[Tensor, ...] | None = None
    """Distinct tokens of each, ascending, in int32 on the CPU; None if prompts are no texts."""

    def __len__(self) -> int:
        """N."""
        return len(self.tokens_N)

    def rows(self, which: Tensor | slice) -> PromptFeatures:
        """The features of some of the prompts."""
        distinct = self.distinct
        if distinct is not None:
            distinct = tuple(distinct[i] for i in torch.arange(len(self))[which].tolist())
        return PromptFeatures(self.mean_ND[which], self.tokens_N[which], distinct)


def prompt_features(
    embedding_VD: Tensor, prompts: Iterable[Sequence[int] | Tensor]
) -> PromptFeatures:
    """Mean input embedding, length and distinct tokens of each prompt.

    Each prompt is summed separately, in the order of its tokens, so that its features do not depend
    on the other prompts. The features of an empty prompt are 0.

    Args:
        embedding_VD: the base's full input embedding, vocabulary size V, on any device.
        prompts: token ids of each.
    """
    rows, lengths = [torch.zeros(0, embedding_VD.shape[1], dtype=torch.float64)], []
    distinct = []
    for prompt in prompts:
        given = torch.as_tensor(prompt, dtype=torch.int64)
        distinct.append(given.cpu().unique().int())
        lengths.append(len(given))
        ids = given.to(embedding_VD.device)
        sum_1D = F.embedding(ids, embedding_VD).double().sum(0, keepdim=True)
        rows.append(sum_1D.cpu() / max(1, len(ids)))
    length_N = torch.tensor(lengths, dtype=torch.float64)
    return PromptFeatures(torch.cat(rows), length_N, tuple(distinct))


def plain(x_ND: Tensor) -> Tensor:
    """The features, unchanged."""
    return x_ND


def projected(x_ND: Tensor) -> Tensor:
    """Project onto fixed random directions, (N, min(D, ``PROJECTED``)).

    The projection preserves squared distances in expectation (Johnson and Lindenstrauss 1984).
    """
    size = x_ND.shape[1]
    if size <= PROJECTED:
        return x_ND
    return x_ND @ _gaussian(size, PROJECTED).to(x_ND) / math.sqrt(PROJECTED)


def random(x_ND: Tensor) -> Tensor:
    """``relu`` of fixed random projections of the normalised features, and a constant, (N, M).

    Source: the random projection of RanPAC, McDonnell et al. 2023, arXiv:2307.02251.
    """
    unit_ND = F.normalize(x_ND, dim=1)
    hidden_NM = (unit_ND @ _gaussian(x_ND.shape[1], RANDOM).to(x_ND)).relu()
    return torch.cat([hidden_NM, hidden_NM.new_ones(len(hidden_NM), 1)], 1)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": plain,
    "projected": projected,
    "random": random,
}
"""Name -> (N, D) to (N, M)."""


@cache
def _gaussian(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)
