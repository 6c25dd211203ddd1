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

import numpy as np
import torch
from torch import Tensor

from moram_dist.atoms import kernels

COLUMNS = 256
"""So many columns a long row of scores is laid out in: the longest rows that numpy sorts fast."""


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


def best(score_TN: Tensor, num_kept: int) -> Tensor:
    """Indices of the ``num_kept`` largest of each row, (T, K) ascending; ties go to the lower one.

    torch.topk leaves the order among ties open and its backends differ in it: it only supplies the
    k-th value. On a CPU, where looking costs nothing, a faster way is taken if no row has a tie at
    the k-th place. num_kept must be at most N.
    """
    num_tokens, num_atoms = score_TN.shape
    if num_kept >= num_atoms:
        everything = torch.arange(num_atoms, device=score_TN.device)
        return everything.expand(num_tokens, num_atoms)
    if score_TN.device.type == "cpu" and num_kept <= COLUMNS // 4:
        found_TK = _best_without_ties(score_TN, num_kept)
        if found_TK is not None:
            return found_TK
    return _best_among_ties(score_TN, num_kept)


def _best_without_ties(score_TN: Tensor, num_kept: int) -> Tensor | None:
    """``best`` on a CPU, or None where a row has a tie at the k-th place, or no number.

    numpy partitions short rows several times as fast as torch. A long row is laid out in columns:
    its best are in the columns whose largest scores are best, and those are a short row again.
    """
    num_tokens, num_atoms = score_TN.shape
    if num_atoms <= 2 * COLUMNS:
        place = num_atoms - num_kept
        scores = score_TN.detach().numpy()
        last_T = np.partition(scores, place, axis=1)[:, place]
        flat = np.flatnonzero(scores >= last_T[:, None])
        if len(flat) != num_tokens * num_kept:
            return None
        start_T1 = np.arange(num_tokens)[:, None] * num_atoms
        index_TK = flat.reshape(num_tokens, num_kept) - start_T1
        in_row = (index_TK[:, 0] >= 0).all() and (index_TK[:, -1] < num_atoms).all()
        return torch.from_numpy(index_TK) if in_row else None
    num_rows, rest = divmod(num_atoms, COLUMNS)
    whole_TN, rest_TN = score_TN.split([num_atoms - rest, rest], -1)
    largest_TC = whole_TN.unflatten(1, (num_rows, COLUMNS)).amax(1)
    torch.maximum(largest_TC[:, :rest], rest_TN, out=largest_TC[:, :rest])
    column_TK = _best_without_ties(largest_TC, num_kept)
    if column_TK is None:
        return None
    row_R1 = torch.arange(num_rows + 1)[:, None] * COLUMNS
    index_TC = (column_TK[:, None] + row_R1).flatten(1)
    found_TC = score_TN.gather(1, index_TC.clamp(max=num_atoms - 1))
    found_TC = found_TC.masked_fill(index_TC >= num_atoms, -torch.inf)
    place_TK = _best_without_ties(found_TC, num_kept)
    return None if place_TK is None else index_TC.gather(1, place_TK)


def _best_among_ties(score_TN: Tensor, num_kept: int) -> Tensor:
    """``best`` without a look at what the scores are."""
    num_tokens, num_atoms = score_TN.shape
    last_kept_T1 = score_TN.topk(num_kept, dim=-1).values[:, -1:]
    above = score_TN > last_kept_T1
    tied = score_TN == last_kept_T1
    places_left_T1 = num_kept - above.sum(-1, keepdim=True)
    keep = above | (tied & (tied.cumsum(-1) <= places_left_T1))
    # The i-th kept atom goes to place i; the others share a last place, which is cut off. Rows of
    # NaN keep nothing, and their places stay 0, a valid index.
    place = torch.where(keep, keep.cumsum(-1) - 1, num_kept)
    index = torch.zeros(num_tokens, num_kept + 1, dtype=torch.long, device=score_TN.device)
    everything = torch.arange(num_atoms, device=score_TN.device).expand(num_tokens, num_atoms)
    return index.scatter_(1, place, everything)[:, :num_kept]


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
    if kernels.serve(score_TN) and kernels.routes(score_TN.shape[1], num_kept):
        found = kernels.route(
            score_TN,
            num_kept,
            shard=first * num_shards + shard,
            num_shards=num_shards,
            num_atoms=num_atoms,
        )
        return ShardCandidates(*found)
    local = best(score_TN, min(num_kept, score_TN.shape[1]))
    squares_T1 = torch.linalg.vector_norm(score_TN, dim=-1, keepdim=True).square()
    score_TC, index_TC = score_TN.gather(1, local), local
    if first or num_shards > 1:
        index_TC = (local + first) * num_shards + shard
    if lacking := num_kept - local.shape[1]:
        score_TC = torch.nn.functional.pad(score_TC, (0, lacking), value=-torch.inf)
        index_TC = torch.nn.functional.pad(index_TC, (0, lacking), value=num_atoms)
    return ShardCandidates(squares_T1, score_TC, index_TC.int())


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
    if kernels.serve(score_TC) and kernels.routes(score_TC.shape[1], num_kept):
        _, score_TK, index_TK = kernels.route(
            score_TC, num_kept, num_atoms=num_kept, listed_TN=index_TC
        )
        return ShardCandidates(squares_T1, score_TK, index_TK)
    kept = best(score_TC, num_kept)
    return ShardCandidates(squares_T1, score_TC.gather(1, kept), index_TC.gather(1, kept))


def weigh(index_TK: Tensor, score_TK: Tensor, norm_T1: Tensor, routing: Routing) -> Mixture:
    """The mixture of the atoms that were chosen; the same bits whenever it is asked again."""
    if kernels.serve(score_TK):
        found = kernels.weigh(score_TK, norm_T1, routing.temperature, routing.threshold)
        return Mixture(index_TK, score_TK, norm_T1, *found)
    relevance_TK = score_TK / norm_T1
    weight_TK = torch.softmax(relevance_TK / routing.temperature, -1)
    weight_TK = weight_TK.masked_fill(norm_T1 == torch.inf, 0.0)
    spoken_TK = weight_TK
    if routing.threshold > 0:
        spoken_TK = weight_TK * (relevance_TK >= routing.threshold)
    return Mixture(index_TK, score_TK, norm_T1, relevance_TK, weight_TK, spoken_TK)


def in_order(terms: Sequence[Tensor]) -> Tensor:
    """Their sum from the first to the last: the order is part of the result."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
