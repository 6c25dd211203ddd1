"""The computations of one shard's atoms with the tokens at it, in as few operations as possible.

Chosen atoms are given as rows of the shard. If a shard has many more rows than a token chooses,
only the chosen rows are read; if it has few, a matrix product with all of them is faster. The
choice depends on sizes alone, so it is the same under every placement.

Linears that are queried together have separate matrices, but operations on per-atom numbers run
once on stacked rows: the first linear's tokens, then the next one's.

Shape letters: T tokens, L linears, B = L T tokens of all of them, N rows of the shard, D inputs, E
outputs, K atoms chosen per token, S pairs of a token and a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moram_dist.atoms import native
from moram_dist.atoms.backend import backend
from moram_dist.atoms.reference import masked

MIX_ALL = {"cpu": 2, "cuda": 100}
"""All rows are mixed if there are at most this many per chosen row: the cost of fetching a row over
its cost in a matrix product. Measured on a CPU; for CUDA from data sheets."""

MULTIPLY_ALL = {"cpu": 5, "cuda": 100}
"""The same for products with tokens."""

SHORT = (torch.bfloat16, torch.float16)


class Chosen(NamedTuple):
    """The rows of a shard that tokens have chosen."""

    row_TK: Tensor
    """int32; an arbitrary valid row if the atom is in another shard."""

    here_TK: Tensor | None
    """Whether the atom is in this shard; None if all are."""

    def since(self, first: int) -> Chosen:
        """The chosen rows from ``first`` on, counted from ``first``."""
        row_TK = self.row_TK - first
        return Chosen(row_TK.clamp(min=0), self._only(row_TK >= 0))

    def before(self, first: int) -> Chosen:
        """The chosen rows before ``first``."""
        return Chosen(self.row_TK, self._only(self.row_TK < first))

    def each(self, num_linears: int) -> list[Chosen]:
        """Split the stacked rows of linears that are queried together: one item per linear."""
        if num_linears == 1:
            return [self]
        rows = each(self.row_TK, num_linears)
        if self.here_TK is None:
            return [Chosen(row_TK, None) for row_TK in rows]
        here = each(self.here_TK, num_linears)
        return [Chosen(*both) for both in zip(rows, here, strict=True)]

    def _only(self, these_TK: Tensor) -> Tensor:
        return these_TK if self.here_TK is None else these_TK & self.here_TK

    def masked(self, numbers_TK: Tensor) -> Tensor:
        """``numbers_TK`` with 0 for atoms of other shards."""
        return masked(numbers_TK, self.here_TK)


def each(stacked_B: Tensor, num_linears: int) -> Sequence[Tensor]:
    """Split a stacked tensor (B, ...) into one part (T, ...) per linear."""
    if num_linears == 1:
        return [stacked_B]
    size = stacked_B.shape[0] // num_linears
    return stacked_B.view(num_linears, size, *stacked_B.shape[1:]).unbind()


def scored(tokens: Sequence[Tensor], keys: Sequence[Tensor], precise: torch.dtype) -> Tensor:
    """Each linear's tokens (T, D) times its keys (N, D): (B, N), in float32 or more.

    On CUDA, see ``product`` for bf16 and fp16.
    """
    x_TD, k_ND = tokens[0], keys[0]
    pairs = zip(tokens, keys, strict=True)
    if x_TD.is_cuda:
        return _stacked([product(x, k.T, precise) for x, k in pairs])
    out_BN = x_TD.new_empty(len(tokens) * x_TD.shape[0], k_ND.shape[0], dtype=precise)
    by_native = backend(out_BN) is native
    for (x, k), out_TN in zip(pairs, each(out_BN, len(tokens)), strict=True):
        if x.dtype != precise or k.dtype != precise:
            x, k = x.to(precise), k.to(precise)
        if by_native:
            native.score(x, k, out_TN)
        else:
            torch.mm(x, k.T, out=out_TN)
    return out_BN


def mixed(
    chosen: Chosen, strength_BK: Tensor, rows: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """For each linear, the sum of its tokens' chosen rows (N, F), weighted by strength: (T, F)."""
    num_linears, like_NF = len(rows), rows[0]
    precise = torch.promote_types(like_NF.dtype, dtype)
    if _few(like_NF, chosen, MIX_ALL):
        weight_BN = spread(chosen, strength_BK, like_NF.shape[0], precise)
        parts = each(weight_BN, num_linears)
        found = [
            product(weight_TN, r_NF, precise) for weight_TN, r_NF in zip(parts, rows, strict=True)
        ]
    else:
        mix = backend(like_NF).mix
        pieces = zip(chosen.each(num_linears), each(strength_BK, num_linears), rows, strict=True)
        found = [mix(*here, strength_TK, rows_NF, precise) for here, strength_TK, rows_NF in pieces]
    return [part if part.dtype == dtype else part.to(dtype) for part in found]


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix product a b in ``dtype``, which is at least as wide as those of a and b.

    A GPU multiplies bf16 matrices an order of magnitude faster than float32 ones, and can give the
    result in float32, in which products of two bf16 or fp16 numbers are exact. So if one matrix is
    bf16 and the other one float32, the latter is multiplied as a sum of two bf16 matrices, its
    rounded numbers and what rounding left, which keep 16 of its 24 bits. CPUs have no such product.
    """
    if a.dtype == b.dtype == dtype or not a.is_cuda or not a.numel() or not b.numel():
        return a.to(dtype) @ b.to(dtype)
    if a.dtype in SHORT and b.dtype == a.dtype:
        return torch.mm(a, b, out_dtype=dtype)
    if dtype == torch.float32 and torch.bfloat16 in (a.dtype, b.dtype):
        if a.dtype == torch.bfloat16:
            high, low = halves(b)
            return torch.addmm(torch.mm(a, high, out_dtype=dtype), a, low, out_dtype=dtype)
        high, low = halves(a)
        return torch.addmm(torch.mm(high, b, out_dtype=dtype), low, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def halves(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 numbers as the sum of two in bf16, to within 2^-17 of each."""
    high = numbers.to(torch.bfloat16)
    return high, torch.sub(numbers, high, out=torch.empty_like(high))  # rounded once


def spread(chosen: Chosen, numbers_TK: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Place each number at its row, 0 elsewhere: (T, num_rows)."""
    to_TN = numbers_TK.new_zeros(numbers_TK.shape[0], num_rows, dtype=dtype)
    return add(chosen, numbers_TK, to_TN)


def add(chosen: Chosen, numbers_TK: Tensor, to_TN: Tensor) -> Tensor:
    """Add each number to ``to_TN`` at its row, in place; rows of other shards are skipped."""
    if not to_TN.shape[1]:
        return to_TN
    backend(to_TN).add(*chosen, numbers_TK, to_TN)
    return to_TN


def products(
    tokens: Sequence[Tensor], rows: Sequence[Tensor], chosen: Chosen, precise: torch.dtype
) -> Tensor:
    """Each linear's tokens (T, F) times their chosen rows (N, F): (B, K)."""
    num_linears, like_NF = len(rows), rows[0]
    if tokens[0].dtype != like_NF.dtype:
        tokens = [token_TF.to(like_NF.dtype) for token_TF in tokens]
    if not like_NF.shape[0]:
        return tokens[0].new_zeros(chosen.row_TK.shape, dtype=precise)
    if _few(like_NF, chosen, MULTIPLY_ALL):
        found = [token_TF @ rows_NF.T for token_TF, rows_NF in zip(tokens, rows, strict=True)]
        return backend(found[0]).pick(_stacked(found), *chosen, precise)
    of_rows = backend(like_NF).products
    pieces = zip(tokens, chosen.each(num_linears), rows, strict=True)
    return _stacked([of_rows(x_TF, *here, rows_NF, precise) for x_TF, here, rows_NF in pieces])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Undo ``each``: stack one part (T, ...) per linear into (B, ...)."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts])


def _few(rows_NF: Tensor, chosen: Chosen, per_chosen: Mapping[str, int]) -> bool:
    limit = per_chosen.get(rows_NF.device.type, 1)
    return rows_NF.shape[0] <= limit * chosen.row_TK.shape[1]
