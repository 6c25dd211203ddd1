"""The dropout of ``dropout.TokenMask`` as one Triton kernel for CUDA.

It reads and writes each element once, where torch needs 15 operations on whole matrices.

Shape letters: T tokens, D elements of a token, S = ceil(D / 2) salts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moram_dist import kernels

BLOCK = 1024
"""Elements of one program."""


@triton.jit
def _mix(x):
    """``dropout._mix`` on unsigned numbers."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def drop(
    x_TD,
    key_T,
    salt_S,
    out_TD,
    num_elements,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token's elements of one block. Tensor arguments are pointers to contiguous tensors."""
    token = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = element < num_elements
    key = tl.load(key_T + token).to(tl.uint32, bitcast=True)
    salt = tl.load(salt_S + element // 2, mask=inside, other=0).to(tl.uint32, bitcast=True)
    half = (_mix(key ^ salt) >> (16 * (element & 1)).to(tl.uint32)).to(tl.int16)
    at = token * num_elements + element
    x = tl.load(x_TD + at, mask=inside, other=0.0)
    wide = x.to(tl.float64) if x.dtype == tl.float64 else x.to(tl.float32)
    kept = wide * tl.full((), SCALE, wide.dtype)
    out = tl.where(half.to(tl.int32) < THRESHOLD, 0.0, kept)
    tl.store(out_TD + at, out.to(x.dtype), mask=inside)


def dropped(x: Tensor, keys: Tensor, salts_S: Tensor, *, threshold: int, scale: float) -> Tensor:
    """Elements (..., D) times ``scale``, or 0 where the token's hash is below ``threshold``.

    Args:
        x: any floating dtype.
        keys: of each token, (..., 1), int32.
        salts_S: int32.
        threshold: a signed number of 16 bits.
        scale: rounded to the precision of computation, float32 or float64.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    num_elements = x.shape[-1]
    num_tokens = x.numel() // max(1, num_elements)
    kernels.launch(
        drop,
        (num_tokens, triton.cdiv(num_elements, BLOCK)),
        x,
        keys.contiguous(),
        salts_S,
        out,
        num_elements,
        THRESHOLD=threshold,
        SCALE=scale,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out
