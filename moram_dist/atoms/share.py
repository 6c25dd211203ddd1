"""What one share of the atoms does for the tokens of one home, in as few passes as possible.

Chosen atoms are given as their rows in the share. Where a share has many more rows than a token
chooses, only the chosen rows are touched; where it has few, a matrix product over all of them is
faster. The choice depends on sizes alone, so it is the same wherever the atoms are.

Shape letters: T tokens, N rows of the share, D inputs, E outputs, K atoms chosen per token, S
pairs of a token and a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.atoms import kernels

MIX_ALL = {"cpu": 2, "cuda": 100}
"""Up to so many rows for each chosen one, all rows are mixed: what fetching a row costs, over its
part in a matrix product. Measured on a CPU; for CUDA from data sheets."""

MULTIPLY_ALL = {"cpu": 5, "cuda": 100}
"""The same for products with tokens."""

PAIRS_AT_ONCE = 2**26
"""So many numbers are fetched at a time for products that have no kernel of their own."""


HALVES = (torch.bfloat16, torch.float16)


class Chosen(NamedTuple):
    """The rows of a share that tokens have chosen."""

    row_TK: Tensor
    """int32; any valid row where the atom is in another share."""

    here_TK: Tensor | None
    """Whether the atom is in this share; None where all are."""

    def since(self, first: int) -> Chosen:
        """Those among the rows from ``first`` on, as rows of these."""
        row_TK = self.row_TK - first
        return Chosen(row_TK.clamp(min=0), self._only(row_TK >= 0))

    def before(self, first: int) -> Chosen:
        """Those among the rows before ``first``."""
        return Chosen(self.row_TK, self._only(self.row_TK < first))

    def _only(self, these_TK: Tensor) -> Tensor:
        return these_TK if self.here_TK is None else these_TK & self.here_TK

    def masked(self, numbers_TK: Tensor) -> Tensor:
        """With 0 for atoms of other shares."""
        return numbers_TK if self.here_TK is None else numbers_TK * self.here_TK


def scored(tokens_TD: Tensor, keys_ND: Tensor, precise: torch.dtype) -> Tensor:
    """Each token times each key, (T, N), summed and returned in float32 or more.

    Products of two bf16 or fp16 numbers are exact in float32, so on CUDA their own matrix product,
    asked for a float32 result, is as precise as that of float32 copies. CPUs have no such product.
    """
    halves = tokens_TD.dtype in HALVES and keys_ND.dtype == tokens_TD.dtype
    if tokens_TD.is_cuda and halves and tokens_TD.numel() and keys_ND.numel():
        return torch.mm(tokens_TD, keys_ND.T, out_dtype=precise)
    return tokens_TD.to(precise) @ keys_ND.to(precise).T


def mixed(chosen: Chosen, strength_TK: Tensor, rows_NF: Tensor) -> Tensor:
    """Sum of each token's chosen rows by their strengths, (T, F)."""
    if _few(rows_NF, chosen, MIX_ALL):
        return spread(chosen, strength_TK, len(rows_NF), rows_NF.dtype) @ rows_NF
    if kernels.serve(rows_NF):
        return kernels.mix(*chosen, strength_TK, rows_NF)
    strength_TK = chosen.masked(strength_TK).to(rows_NF.dtype)
    return F.embedding_bag(
        chosen.row_TK, rows_NF, mode="sum", per_sample_weights=strength_TK.contiguous()
    )


def spread(chosen: Chosen, numbers_TK: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Each number at its row, 0 elsewhere, (T, num_rows)."""
    return add(chosen, numbers_TK, numbers_TK.new_zeros(len(numbers_TK), num_rows, dtype=dtype))


def add(chosen: Chosen, numbers_TK: Tensor, to_TN: Tensor) -> Tensor:
    """Add each number at its row, in place; those of other shares are left out."""
    if not to_TN.shape[1]:
        return to_TN
    if kernels.serve(to_TN):
        kernels.add(*chosen, numbers_TK, to_TN)
        return to_TN
    numbers_TK = chosen.masked(numbers_TK).to(to_TN.dtype)
    return to_TN.scatter_add_(1, chosen.row_TK.long(), numbers_TK)


def products(tokens_TF: Tensor, rows_NF: Tensor, chosen: Chosen, precise: torch.dtype) -> Tensor:
    """Each token times its chosen rows, (T, K)."""
    tokens_TF = tokens_TF.to(rows_NF.dtype)
    if not len(rows_NF):
        return tokens_TF.new_zeros(chosen.row_TK.shape, dtype=precise)
    if _few(rows_NF, chosen, MULTIPLY_ALL):
        found_TN = tokens_TF @ rows_NF.T
        if kernels.serve(found_TN):
            return kernels.pick(found_TN, *chosen, precise)
        found_TK = found_TN.gather(1, chosen.row_TK.long())
    elif kernels.serve(rows_NF):
        return kernels.products(tokens_TF, *chosen, rows_NF, precise)
    elif rows_NF.device.type != "cpu":  # there the op below is slow, and has no bf16
        found_TK = (tokens_TF @ rows_NF.T).gather(1, chosen.row_TK.long())
    else:
        found_TK = _products_of_rows(tokens_TF, rows_NF, chosen.row_TK)
    return chosen.masked(found_TK.to(precise))


def _products_of_rows(tokens_TF: Tensor, rows_NF: Tensor, row_TK: Tensor) -> Tensor:
    """The same without the other rows."""
    num_tokens, num_chosen = row_TK.shape
    token_S = torch.arange(num_tokens, dtype=row_TK.dtype).repeat_interleave(num_chosen)
    found_S = products_of_pairs(tokens_TF, rows_NF, token_S, row_TK.reshape(-1))
    return found_S.view(num_tokens, num_chosen)


def products_of_pairs(tokens_TF: Tensor, rows_NF: Tensor, token_S: Tensor, row_S: Tensor) -> Tensor:
    """Tokens times rows, pair by pair: (S,) in the tokens' dtype, from indices of both."""
    if tokens_TF.device.type == "cpu" and tokens_TF.dtype == rows_NF.dtype:
        # What autograd of embedding_bag does for its weights.
        offsets = token_S.new_zeros(1)
        flat = torch.ops.aten._embedding_bag_per_sample_weights_backward
        return flat(tokens_TF.contiguous(), rows_NF, row_S, offsets, token_S, 0)
    at_once = max(1, PAIRS_AT_ONCE // tokens_TF.shape[1])
    parts = zip(token_S.split(at_once), row_S.split(at_once), strict=True)
    products = [(tokens_TF[t] * rows_NF[r].to(tokens_TF.dtype)).sum(-1) for t, r in parts]
    return torch.cat([tokens_TF.new_empty(0), *products])


def _few(rows_NF: Tensor, chosen: Chosen, per_chosen: Mapping[str, int]) -> bool:
    limit = per_chosen.get(rows_NF.device.type, 1)
    return len(rows_NF) <= limit * chosen.row_TK.shape[1]
