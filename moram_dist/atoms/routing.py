"""Self-activation: which memory atoms answer a token, and how strongly.

Pure functions of tensors: no modules, no process groups, no config objects. A bank that is split
into shards makes candidates of each shard and merges them, so that where the atoms live never
changes which of them are chosen, nor the numbers that follow.

Shape letters in this file: T tokens, N atoms, C candidates, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from moram_dist.atoms.backend import backend


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How atoms are chosen for a token; see ``mixture``."""

    top_k: int
    temperature: float
    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError on values that choose nothing."""
        if self.top_k < 1 or self.temperature <= 0:
            raise ValueError(
                f"need top_k >= 1 and temperature > 0, got {self.top_k} and {self.temperature}"
            )


class ShardCandidates(NamedTuple):
    """What one shard of the atoms has to offer to each token."""

    squares_T1: Tensor
    """Sum of the squared scores of all atoms of the shard."""

    score_TC: Tensor
    """The shard's largest scores, -inf where it has fewer atoms."""

    index_TC: Tensor
    """Which atoms they are, as indices into the whole memory, int32, ascending."""


class Mixture(NamedTuple):
    """The atoms that answer each token, in ascending order, and what the backward pass needs."""

    index_TK: Tensor
    """int32."""

    score_TK: Tensor
    norm_T1: Tensor
    """||scores|| over all atoms; infinite where it is 0, so that relevance and gradient are 0."""

    relevance_TK: Tensor
    """Scores over their norm, in [-1, 1]."""

    weight_TK: Tensor
    """Softmax weights before silencing; 0 for a token whose scores are all 0."""

    spoken_TK: Tensor
    """Weights, 0 for atoms whose relevance is under the threshold."""


def candidates(
    score_TN: Tensor, *, num_kept: int, shard: int, num_shards: int, num_atoms: int, first: int = 0
) -> ShardCandidates:
    """A shard's best atoms for each token.

    Args:
        score_TN: scores of the shard's own atoms.
        num_kept: how many to offer; places that the shard cannot fill get score -inf.
        shard: atom i of the shard is atom i * num_shards + shard of the memory.
        num_shards: into how many the memory is split.
        num_atoms: of the whole memory.
        first: which atom of the shard the scores begin with.
    """
    found = backend(score_TN).route(
        score_TN,
        num_kept,
        shard=first * num_shards + shard,
        num_shards=num_shards,
        num_atoms=num_atoms,
    )
    return ShardCandidates(*found)


def mixture(shards: Sequence[ShardCandidates], *, num_atoms: int, routing: Routing) -> Mixture:
    """Turn candidates of all shards into the mixture of each token.

    The ``top_k`` best scored atoms (signed, so a strong negative match does not fire) share a
    softmax of their relevance (score over the L2 norm of all scores) at ``temperature``; an atom
    whose relevance is under ``threshold`` is then silenced. Weights are not renormalised
    afterwards, so a token that no atom knows gets almost no update. A token whose scores are all
    0 gets none, and no gradient.

    Args:
        shards: in the order of shards, which is the order of sums. Their precision is the
            precision of the routing: callers score in float32 or more.
        num_atoms: of the whole memory, >= 1.
        routing: all atoms are kept where there are fewer than ``top_k``.

    Source: Lu et al. 2026, arXiv:2506.21035 (self-activation, top-k, temperature, threshold).
    """
    found = shards[0]
    if len(shards) > 1:
        found = merged(shards, min(routing.top_k, num_atoms))
    norm_T1 = found.squares_T1.sqrt()
    norm_T1 = norm_T1.masked_fill(norm_T1 == 0, torch.inf)
    return weigh(found.index_TC, found.score_TC, norm_T1, routing)


def merged(shards: Sequence[ShardCandidates], num_kept: int) -> ShardCandidates:
    """The best of what all shards offer, in the order of shards, as one offer."""
    index_TC = torch.cat([shard.index_TC for shard in shards], -1)
    score_TC = torch.cat([shard.score_TC for shard in shards], -1)
    order = index_TC.argsort(-1)  # so that among ties the lower atom comes first
    index_TC, score_TC = index_TC.gather(1, order), score_TC.gather(1, order)
    squares_T1 = in_order([shard.squares_T1 for shard in shards])
    _, score_TK, index_TK = backend(score_TC).route(
        score_TC, num_kept, num_atoms=num_kept, listed_TN=index_TC
    )
    return ShardCandidates(squares_T1, score_TK, index_TK)


def weigh(index_TK: Tensor, score_TK: Tensor, norm_T1: Tensor, routing: Routing) -> Mixture:
    """The mixture of the atoms that were chosen; the same bits whenever it is asked again."""
    found = backend(score_TK).weigh(score_TK, norm_T1, routing.temperature, routing.threshold)
    return Mixture(index_TK, score_TK, norm_T1, *found)


def in_order(terms: Sequence[Tensor]) -> Tensor:
    """Their sum from the first to the last: the order is part of the result."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
