"""Each kernel as a function of tensors: shapes, grids, limits.

Kernels take contiguous tensors of numbers in float32 or float64, and rows in any floating type. The
result for a token does not depend on the other tokens. As with matrix products, it may depend on
whether rows start at multiples of 16 bytes.

Shape letters: T tokens, N atoms or rows of a shard, F features, B blocks, C candidates, K atoms
kept per token.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from moram_dist import kernels
from moram_dist.atoms import reference
from moram_dist.atoms.kernels import mixture, routing, rows

BLOCK = 4096
"""Scores that one program reads. A longer row is split into blocks, whose candidates are merged."""


def routes(num_scores: int, num_kept: int) -> bool:
    """Whether the kernel can do it: the candidates of all blocks must fit into one block."""
    num_blocks = triton.cdiv(num_scores, BLOCK)
    return max(num_kept, num_blocks * num_kept if num_blocks > 1 else 0) <= BLOCK


def route(
    score_TN: Tensor,
    num_kept: int,
    *,
    shard: int = 0,
    num_shards: int = 1,
    num_atoms: int,
    listed_TN: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``reference.route``.

    Args:
        score_TN: float32 or float64.
        num_kept: how many; torch does it if ``routes`` says no. Slots that cannot be filled get
            score -inf and index ``num_atoms``.
        shard: as for ``reference.route``, like the next two.
        num_shards: not used with ``listed_TN``.
        num_atoms: of the whole memory.
        listed_TN: the atoms that the scores belong to, int32, ascending.

    Returns:
        Sum of the squared scores (T, 1), scores (T, num_kept), and atoms (T, num_kept) in int32,
        ascending. A row of NaN gets valid and distinct atoms.
    """
    num_tokens, num_scores = score_TN.shape
    if not routes(num_scores, num_kept):
        return reference.route(
            score_TN,
            num_kept,
            shard=shard,
            num_shards=num_shards,
            num_atoms=num_atoms,
            listed_TN=listed_TN,
        )
    num_blocks = max(1, triton.cdiv(num_scores, BLOCK))
    width = BLOCK if num_blocks > 1 else max(16, triton.next_power_of_2(num_scores))
    squares_TB = None if listed_TN is not None else score_TN.new_empty(num_tokens, num_blocks)
    best_TC = score_TN.new_empty(num_tokens, num_blocks * num_kept)
    index_TC = torch.empty_like(best_TC, dtype=torch.int32)
    kernels.launch(
        routing.route,
        (num_tokens, num_blocks),
        score_TN.contiguous(),
        listed_TN,
        squares_TB,
        best_TC,
        index_TC,
        num_scores,
        num_kept,
        shard,
        num_shards,
        num_atoms,
        BLOCK=width,
        PLACES=triton.next_power_of_2(num_kept),
        num_warps=max(1, width // 512),  # 16 scores a thread
    )
    if num_blocks == 1:
        return squares_TB, best_TC, index_TC
    # Blocks are in the order of atoms, so are their candidates, and empty slots come last.
    _, best_TK, index_TK = route(best_TC, num_kept, num_atoms=num_atoms, listed_TN=index_TC)
    squares_T1 = None if squares_TB is None else squares_TB.sum(-1, keepdim=True)
    return squares_T1, best_TK, index_TK


def choose(
    score_TN: Tensor, num_kept: int, *, temperature: float, threshold: float
) -> tuple[Tensor, ...] | None:
    """``route``, ``norms`` and ``weigh`` in one: the fields of a mixture, in their order.

    None if a token has more scores than one program reads. Weights may differ from those of
    ``weigh`` by rounding, because sums have another order.
    """
    num_tokens, num_scores = score_TN.shape
    if num_scores > BLOCK:
        return None
    width = max(16, triton.next_power_of_2(num_scores))
    numbers = [score_TN.new_empty(num_tokens, num_kept) for _ in range(4)]
    index_TK = torch.empty_like(numbers[0], dtype=torch.int32)
    norm_T1 = score_TN.new_empty(num_tokens, 1)
    score_TK, *weights = numbers
    out = (index_TK, score_TK, norm_T1, *weights)
    kernels.launch(
        routing.choose,
        (num_tokens,),
        score_TN.contiguous(),
        *out,
        num_scores,
        num_kept,
        TEMPERATURE=temperature,
        THRESHOLD=threshold,
        BLOCK=width,
        num_warps=max(1, width // 256),  # 8 scores a thread, for their weights
    )
    return out


norms = reference.norms


def weigh(
    score_TK: Tensor, norm_T1: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance, weight, and weight with 0 for silenced atoms, (T, K), as ``reference.weigh``."""
    relevance_TK, weight_TK, spoken_TK = (score_TK.new_empty(score_TK.shape) for _ in range(3))
    out = relevance_TK, weight_TK, spoken_TK
    constants = {"TEMPERATURE": temperature, "THRESHOLD": threshold}
    _launch_tiles(mixture.weigh, score_TK, (score_TK, norm_T1, *out), **constants)
    return out


def sums(score_TK: Tensor, relevance_TK: Tensor, spoken_TK: Tensor, u_TK: Tensor) -> Tensor:
    """A and B of ``recall_backward``, (T, 2)."""
    out_T2 = score_TK.new_empty(len(score_TK), 2)
    _launch_tiles(mixture.sums, score_TK, (score_TK, relevance_TK, spoken_TK, u_TK, out_T2))
    return out_T2


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
    """Gradient of chosen scores (T, K), and each token's factor (T, 1), as the reference."""
    given = (score_TK, norm_T1, relevance_TK, weight_TK, spoken_TK, u_TK, totals_T2)
    out = score_TK.new_empty(score_TK.shape), norm_T1.new_empty(norm_T1.shape)
    _launch_tiles(mixture.score_gradient, score_TK, given + out, TEMPERATURE=temperature)
    return out


def mix(
    row_TK: Tensor,
    here_TK: Tensor | None,
    strength_TK: Tensor,
    rows_NF: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Sum of each token's rows, weighted by strength, (T, F) in ``dtype``, at least the rows'."""
    (num_tokens, num_chosen), num_features = row_TK.shape, rows_NF.shape[1]
    out_TF = rows_NF.new_empty(num_tokens, num_features, dtype=dtype)
    width = min(1024, triton.next_power_of_2(num_features))
    kernels.launch(
        rows.mix,
        (num_tokens, triton.cdiv(num_features, width)),
        row_TK.contiguous(),
        here_TK,
        strength_TK.to(torch.promote_types(strength_TK.dtype, rows_NF.dtype)).contiguous(),
        rows_NF.contiguous(),
        out_TF,
        num_features,
        K=num_chosen,
        BLOCK=width,
        num_warps=4,
    )
    return out_TF


def products(
    tokens_TF: Tensor,
    row_TK: Tensor,
    here_TK: Tensor | None,
    rows_NF: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Each token times its rows, (T, K); 0 for rows of other shards."""
    num_tokens, num_chosen = row_TK.shape
    out_TK = torch.empty(num_tokens, num_chosen, dtype=dtype, device=rows_NF.device)
    places = min(16, triton.next_power_of_2(num_chosen))
    kernels.launch(
        rows.products,
        (num_tokens, triton.cdiv(num_chosen, places)),
        tokens_TF.contiguous(),
        row_TK.contiguous(),
        here_TK,
        rows_NF.contiguous(),
        out_TK,
        rows_NF.shape[1],
        K=num_chosen,
        PLACES=places,
        BLOCK=256,
        num_warps=4,
    )
    return out_TK


def pick(number_TN: Tensor, row_TK: Tensor, here_TK: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The numbers at each token's rows, (T, K); 0 for rows of other shards."""
    out_TK = torch.empty(row_TK.shape, dtype=dtype, device=row_TK.device)
    given = (number_TN, row_TK, here_TK, out_TK)
    _launch_tiles(rows.pick, row_TK, given, number_TN.shape[1])
    return out_TK


def add(row_TK: Tensor, here_TK: Tensor | None, number_TK: Tensor, to_TN: Tensor) -> None:
    """Add each number to ``to_TN`` at its row, in place; rows of other shards are skipped.

    The rows of a token in this shard must be distinct. Raises RuntimeError if ``to_TN`` is not
    contiguous.
    """
    if not to_TN.is_contiguous():
        raise RuntimeError("numbers are added to a contiguous tensor only")
    _launch_tiles(rows.add, row_TK, (row_TK, here_TK, number_TK, to_TN), to_TN.shape[1])


def _launch_tiles(
    kernel: Any, like_TK: Tensor, given: tuple[Tensor | None, ...], *sizes: int, **constants: float
) -> None:
    """Launch a kernel on (T, K) numbers: each program gets some tokens with all their slots."""
    num_tokens, num_chosen = like_TK.shape
    places = triton.next_power_of_2(num_chosen)
    tokens = max(1, 512 // places)
    kernels.launch(
        kernel,
        (triton.cdiv(num_tokens, tokens),),
        *(None if tensor is None else tensor.contiguous() for tensor in given),
        num_tokens,
        *sizes,
        **constants,
        K=num_chosen,
        TOKENS=tokens,
        PLACES=places,
        num_warps=4,
    )
