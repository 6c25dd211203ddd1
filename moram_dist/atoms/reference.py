"""The work on chosen atoms in plain torch: the reference for the kernels that run on CUDA.

``kernels.launch`` has the same functions with the same arguments; ``backend`` chooses between them.

Shape letters: T tokens, N atoms or rows of a shard, F features, K atoms kept per token, S pairs of
a token and a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.atoms.top_k import best

PAIRS_AT_ONCE = 2**26
"""Numbers to gather at a time for products of rows that torch has no operation for."""


def masked(number_TK: Tensor, here_TK: Tensor | None) -> Tensor:
    """``number_TK`` with 0 for rows of other shards; ``here_TK`` None: all are in this shard."""
    return number_TK if here_TK is None else number_TK * here_TK


def route(
    score_TN: Tensor,
    num_kept: int,
    *,
    shard: int = 0,
    num_shards: int = 1,
    num_atoms: int,
    listed_TN: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The best atoms of each token, among those of a shard or those in ``listed_TN``.

    Args:
        score_TN: float32 or float64.
        num_kept: how many; slots that cannot be filled get score -inf and index ``num_atoms``.
        shard: score i belongs to atom i * num_shards + shard of the memory.
        num_shards: number of shards of the memory; not used with ``listed_TN``.
        num_atoms: of the whole memory.
        listed_TN: the atoms that the scores belong to, int32, ascending.

    Returns:
        Sum of the squared scores (T, 1), None with ``listed_TN``; scores (T, num_kept); and atoms
        (T, num_kept) in int32, ascending.
    """
    place_TK = best(score_TN, min(num_kept, score_TN.shape[1]))
    score_TK = score_TN.gather(1, place_TK)
    if listed_TN is not None:
        return None, score_TK, listed_TN.gather(1, place_TK)
    squares_T1 = torch.linalg.vector_norm(score_TN, dim=-1, keepdim=True).square()
    index_TK = place_TK
    if shard or num_shards > 1:
        index_TK = place_TK * num_shards + shard
    if missing := num_kept - place_TK.shape[1]:
        score_TK = F.pad(score_TK, (0, missing), value=-torch.inf)
        index_TK = F.pad(index_TK, (0, missing), value=num_atoms)
    return squares_T1, score_TK, index_TK.int()


def norms(squares_T1: Tensor) -> Tensor:
    """Norms of tokens' scores from their squares, (T, 1); inf instead of 0."""
    norm_T1 = squares_T1.sqrt()
    return norm_T1.masked_fill(norm_T1 == 0, torch.inf)


def weigh(
    score_TK: Tensor, norm_T1: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance, weight, and weight with 0 for silenced atoms, (T, K) each."""
    relevance_TK = score_TK / norm_T1
    weight_TK = torch.softmax(relevance_TK / temperature, -1)
    weight_TK = weight_TK.masked_fill(norm_T1 == torch.inf, 0.0)
    spoken_TK = weight_TK
    if threshold > 0:
        spoken_TK = weight_TK * (relevance_TK >= threshold)
    return relevance_TK, weight_TK, spoken_TK


def sums(score_TK: Tensor, relevance_TK: Tensor, spoken_TK: Tensor, u_TK: Tensor) -> Tensor:
    """A and B of ``recall_backward`` over the atoms that u belongs to, (T, 2)."""
    wq_TK = spoken_TK * score_TK * u_TK
    return torch.stack([wq_TK.sum(-1), (wq_TK * relevance_TK).sum(-1)], -1)


def score_gradient(
    score_TK: Tensor,
    norm_T1: Tensor,
    relevance_TK: Tensor,
    weight_TK: Tensor,
    spoken_TK: Tensor,
    u_TK: Tensor,
    totals_T2: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gradient of scores, from u of some chosen atoms, and A and B over all atoms.

    Returns:
        The gradient of the scores that u belongs to, except through the norm, (T, K); and the
        factor by which every score is multiplied for its gradient through the norm, (T, 1).
    """
    A_T1, B_T1 = totals_T2.split(1, -1)
    speaks_TK = spoken_TK == weight_TK
    through_weights = weight_TK * (speaks_TK * score_TK * u_TK - A_T1)
    through_weights = through_weights / (temperature * norm_T1)
    gam_T1 = (B_T1 - A_T1 * (weight_TK * relevance_TK).sum(-1, keepdim=True)) / temperature
    return spoken_TK * u_TK + through_weights, -gam_T1 / norm_T1.square()


def mix(
    row_TK: Tensor,
    here_TK: Tensor | None,
    strength_TK: Tensor,
    rows_NF: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Sum of each token's rows, weighted by strength, (T, F) in ``dtype``, at least the rows'."""
    rows_NF, strength_TK = rows_NF.to(dtype), masked(strength_TK, here_TK).to(dtype)
    return F.embedding_bag(row_TK, rows_NF, mode="sum", per_sample_weights=strength_TK.contiguous())


def products(
    tokens_TF: Tensor,
    row_TK: Tensor,
    here_TK: Tensor | None,
    rows_NF: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Each token times its rows, (T, K); 0 for rows of other shards."""
    if rows_NF.device.type != "cpu":  # off the CPU, pairwise products are slow and lack bf16
        return pick(tokens_TF @ rows_NF.T, row_TK, here_TK, dtype)
    num_tokens, num_chosen = row_TK.shape
    token_S = torch.arange(num_tokens, dtype=row_TK.dtype).repeat_interleave(num_chosen)
    found_S = products_of_pairs(tokens_TF, rows_NF, token_S, row_TK.reshape(-1))
    return masked(found_S.view(num_tokens, num_chosen).to(dtype), here_TK)


def products_of_pairs(tokens_TF: Tensor, rows_NF: Tensor, token_S: Tensor, row_S: Tensor) -> Tensor:
    """Tokens times rows, pair by pair: (S,) in the tokens' dtype, from indices of both."""
    if tokens_TF.device.type == "cpu" and tokens_TF.dtype == rows_NF.dtype:
        # The gradient of embedding_bag with respect to its weights is exactly this.
        offsets = token_S.new_zeros(1)
        flat = torch.ops.aten._embedding_bag_per_sample_weights_backward
        return flat(tokens_TF.contiguous(), rows_NF, row_S, offsets, token_S, 0)
    at_once = max(1, PAIRS_AT_ONCE // tokens_TF.shape[1])
    parts = zip(token_S.split(at_once), row_S.split(at_once), strict=True)
    products = [(tokens_TF[t] * rows_NF[r].to(tokens_TF.dtype)).sum(-1) for t, r in parts]
    return torch.cat([tokens_TF.new_empty(0), *products])


def pick(number_TN: Tensor, row_TK: Tensor, here_TK: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The numbers at each token's rows, (T, K); 0 for rows of other shards."""
    return masked(number_TN.gather(1, row_TK.long()).to(dtype), here_TK)


def add(row_TK: Tensor, here_TK: Tensor | None, number_TK: Tensor, to_TN: Tensor) -> None:
    """Add each number to ``to_TN`` at its row, in place; rows of other shards are skipped."""
    to_TN.scatter_add_(1, row_TK.long(), masked(number_TK, here_TK).to(to_TN.dtype))
