"""Self-activation: which memory atoms answer a token, and how strongly.

Pure functions of tensors: no modules, no process groups, no config objects. If a bank is split into
shards, each shard offers candidates, which are then merged. So the location of the atoms changes
neither the choice nor the numbers computed from it.

Shape letters: T tokens, N atoms, C candidates, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from moram_dist import kernels
from moram_dist.atoms.backend import backend
from moram_dist.atoms.top_k import AT_ONCE


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How atoms are chosen for a token; see ``mixture``."""

    top_k: int
    temperature: float
    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError if top_k < 1 or temperature <= 0."""
        if self.top_k < 1 or self.temperature <= 0:
            raise ValueError(
                f"need top_k >= 1 and temperature > 0, got {self.top_k} and {self.temperature}"
            )


class ShardCandidates(NamedTuple):
    """The best atoms of one shard for each token."""

    squares_T1: Tensor
    """Sum of the squared scores of all atoms of the shard."""

    score_TC: Tensor
    """The shard's largest scores; -inf in slots that it has no atoms for."""

    index_TC: Tensor
    """Indices of these atoms in the whole memory, int32, ascending."""


class Mixture(NamedTuple):
    """The atoms that answer each token, in ascending order, and numbers for the backward pass."""

    index_TK: Tensor
    """int32."""

    score_TK: Tensor
    norm_T1: Tensor
    """||scores|| over all atoms; inf instead of 0, so that relevance and gradient are 0."""

    relevance_TK: Tensor
    """Scores over their norm, in [-1, 1]."""

    weight_TK: Tensor
    """Softmax weights before silencing; 0 for a token whose scores are all 0."""

    spoken_TK: Tensor
    """Weights; 0 for atoms whose relevance is below the threshold."""


def candidates(
    score_TN: Tensor, *, num_kept: int, shard: int, num_shards: int, num_atoms: int, first: int = 0
) -> ShardCandidates:
    """A shard's best atoms for each token.

    Args:
        score_TN: scores of the shard's atoms, from ``first`` on.
        num_kept: how many to offer; slots that the shard cannot fill get score -inf.
        shard: atom i of the shard is atom i * num_shards + shard of the memory.
        num_shards: number of shards of the memory.
        num_atoms: of the whole memory.
        first: the shard's atom to which the first score belongs.
    """
    found = backend(score_TN).route(
        score_TN,
        num_kept,
        shard=first * num_shards + shard,
        num_shards=num_shards,
        num_atoms=num_atoms,
    )
    return ShardCandidates(*found)


def of_all(score_TN: Tensor, routing: Routing) -> Mixture:
    """The mixture of each token from the scores of all atoms; see ``mixture``."""
    num_atoms = score_TN.shape[1]
    num_kept = min(routing.top_k, num_atoms)
    if kernels.serve(score_TN):  # in one kernel, if it can
        found = backend(score_TN).choose(
            score_TN, num_kept, temperature=routing.temperature, threshold=routing.threshold
        )
        if found is not None:
            return Mixture(*found)
    offer = candidates(score_TN, num_kept=num_kept, shard=0, num_shards=1, num_atoms=num_atoms)
    return mixture([offer], num_atoms=num_atoms, routing=routing)


def mixture(shards: Sequence[ShardCandidates], *, num_atoms: int, routing: Routing) -> Mixture:
    """Turn candidates of all shards into the mixture of each token.

    The ``top_k`` atoms with the highest scores (signed, so a strong negative match does not count)
    get softmax weights of their relevance (score over the L2 norm of all scores) at
    ``temperature``; an atom whose relevance is below ``threshold`` is then silenced. Weights are
    not renormalised afterwards, so a token that no atom knows gets almost no update. A token whose
    scores are all 0 gets no update and no gradient.

    Args:
        shards: in the order of shards, which is the order of sums. Routing has the precision of
            these scores: callers score in float32 or more.
        num_atoms: of the whole memory, >= 1.
        routing: all atoms are kept if there are fewer than ``top_k``.

    Source: Lu et al. 2026, arXiv:2506.21035 (self-activation, top-k, temperature, threshold).
    """
    found = shards[0]
    if len(shards) > 1:
        found = merged(shards, min(routing.top_k, num_atoms))
    norm_T1 = backend(found.squares_T1).norms(found.squares_T1)
    return weigh(found.index_TC, found.score_TC, norm_T1, routing)


def merged(shards: Sequence[ShardCandidates], num_kept: int) -> ShardCandidates:
    """Merge the candidates of all shards, given in order, into the ``num_kept`` best."""
    num_tokens = shards[0].index_TC.shape[0]
    size = max(1, AT_ONCE // sum(shard.index_TC.shape[1] for shard in shards))
    if num_tokens <= size:
        return _merged(shards, num_kept)
    some = [
        [ShardCandidates(*fields) for fields in zip(*(t.split(size) for t in shard), strict=True)]
        for shard in shards
    ]
    found = [_merged(of_shards, num_kept) for of_shards in zip(*some, strict=True)]
    return ShardCandidates(*map(torch.cat, zip(*found, strict=True)))


def _merged(shards: Sequence[ShardCandidates], num_kept: int) -> ShardCandidates:
    index_TC = torch.cat([shard.index_TC for shard in shards], -1)
    score_TC = torch.cat([shard.score_TC for shard in shards], -1)
    order = index_TC.argsort(-1)  # so that ties go to the lower index
    index_TC, score_TC = index_TC.gather(1, order), score_TC.gather(1, order)
    squares_T1 = in_order([shard.squares_T1 for shard in shards])
    _, score_TK, index_TK = backend(score_TC).route(
        score_TC, num_kept, num_atoms=num_kept, listed_TN=index_TC
    )
    return ShardCandidates(squares_T1, score_TK, index_TK)


def weigh(index_TK: Tensor, score_TK: Tensor, norm_T1: Tensor, routing: Routing) -> Mixture:
    """The mixture of the chosen atoms; recomputing it gives the same bits."""
    found = backend(score_TK).weigh(score_TK, norm_T1, routing.temperature, routing.threshold)
    return Mixture(index_TK, score_TK, norm_T1, *found)


def summed(parts_PTF: Tensor, precise: torch.dtype, dtype: torch.dtype) -> Tensor:
    """The sum of the parts of P shards, in ``precise``, as ``dtype``: (T, F)."""
    if len(parts_PTF) == 1:
        return parts_PTF[0] if parts_PTF.dtype == dtype else parts_PTF[0].to(dtype)
    return in_order(parts_PTF.to(precise).unbind()).to(dtype)


def in_order(terms: Sequence[Tensor]) -> Tensor:
    """Sum from the first to the last term, because rounding depends on the order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
