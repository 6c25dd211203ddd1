"""Kernels on chosen rows: mix, multiply, pick, add to them.

``here_TK`` says which of the chosen rows are in this shard; None if all are. Other rows are not
read. Sums are in the dtype of the numbers, float32 or float64, whatever the dtype of the rows.

Tensor arguments are pointers to contiguous tensors. Shape letters: T tokens, N rows, F features, K
rows chosen.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moram_dist.atoms.kernels.mixture import tile


@triton.jit
def mix(
    row_TK,
    here_TK,
    strength_TK,
    rows_NF,
    out_TF,
    num_features,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For one token and one block of features, sum its rows in order, weighted by strength."""
    token = tl.program_id(0).to(tl.int64)
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < num_features
    total = tl.zeros((BLOCK,), strength_TK.dtype.element_ty)
    for k in range(K):
        wanted = inside
        if here_TK is not None:
            wanted = inside & tl.load(here_TK + token * K + k)
        row = tl.load(row_TK + token * K + k).to(tl.int64)
        strength = tl.load(strength_TK + token * K + k)
        value = tl.load(rows_NF + row * num_features + feature, mask=wanted, other=0.0)
        total += strength * value.to(total.dtype)
    tl.store(out_TF + token * num_features + feature, total.to(out_TF.dtype.element_ty), inside)


@triton.jit
def products(
    token_TF,
    row_TK,
    here_TK,
    rows_NF,
    out_TK,
    num_features,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token times some of its rows; 0 for rows of other shards."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    at = token * K + place
    wanted = place < K
    if here_TK is not None:
        wanted = wanted & tl.load(here_TK + at, mask=wanted, other=0)
    row = tl.load(row_TK + at, mask=wanted, other=0).to(tl.int64)
    start_of_row = rows_NF + row[:, None] * num_features
    total = tl.zeros((PLACES, BLOCK), out_TK.dtype.element_ty)
    for start in range(0, num_features, BLOCK):
        feature = start + tl.arange(0, BLOCK)
        inside = feature < num_features
        x = tl.load(token_TF + token * num_features + feature, mask=inside, other=0.0)
        both = wanted[:, None] & inside[None, :]
        value = tl.load(start_of_row + feature[None, :], mask=both, other=0.0)
        total += value.to(total.dtype) * x.to(total.dtype)[None, :]
    tl.store(out_TK + at, tl.sum(total, 1), mask=place < K)


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])
def pick(
    number_TN,
    row_TK,
    here_TK,
    out_TK,
    num_tokens,
    num_rows,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """The numbers at the chosen rows; 0 for rows of other shards."""
    token, _, real, at = tile(num_tokens, K, TOKENS, PLACES)
    wanted = real
    if here_TK is not None:
        wanted = real & tl.load(here_TK + at, mask=real, other=0)
    row = tl.load(row_TK + at, mask=wanted, other=0)
    number = tl.load(number_TN + token[:, None] * num_rows + row, mask=wanted, other=0.0)
    tl.store(out_TK + at, number.to(out_TK.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])
def add(
    row_TK,
    here_TK,
    number_TK,
    to_TN,
    num_tokens,
    num_rows,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Add each number at its row. A token's rows are distinct, so no two writes collide."""
    token, _, real, at = tile(num_tokens, K, TOKENS, PLACES)
    wanted = real
    if here_TK is not None:
        wanted = real & tl.load(here_TK + at, mask=real, other=0)
    there = to_TN + token[:, None] * num_rows + tl.load(row_TK + at, mask=wanted, other=0)
    number = tl.load(number_TK + at, mask=wanted, other=0.0).to(to_TN.dtype.element_ty)
    tl.store(there, tl.load(there, mask=wanted, other=0.0) + number, mask=wanted)
