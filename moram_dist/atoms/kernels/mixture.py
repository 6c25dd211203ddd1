"""Arithmetic on the numbers of chosen atoms: K per token.

The formulas are those of ``atoms.reference.weigh`` and ``atoms.recall_backward``. A program has
TOKENS tokens with PLACES >= K slots each. Temperature and threshold are compile-time constants: as
arguments they would be rounded to float32 even for float64.

Tensor arguments are pointers to contiguous tensors. Shape letters: T tokens, K atoms kept.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(num_tokens, K: tl.constexpr, TOKENS: tl.constexpr, PLACES: tl.constexpr):
    """The program's tokens, a token's slots, the mask of real ones, and their memory offsets."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    place = tl.arange(0, PLACES)
    real = (token < num_tokens)[:, None] & (place < K)[None, :]
    return token, place, real, token[:, None] * K + place[None, :]


@triton.jit(do_not_specialize=["num_tokens"])
def weigh(
    score_TK,
    norm_T1,
    relevance_TK,
    weight_TK,
    spoken_TK,
    num_tokens,
    TEMPERATURE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Relevance, softmax weights, and weights with 0 for silenced atoms."""
    token, place, real, at = tile(num_tokens, K, TOKENS, PLACES)
    score = tl.load(score_TK + at, mask=real, other=0.0)
    norm = tl.load(norm_T1 + token, mask=token < num_tokens, other=float("inf"))[:, None]
    relevance = score / norm
    heat = relevance / tl.full((), TEMPERATURE, score.dtype)
    heat = tl.where((place < K)[None, :], heat, float("-inf"))
    weight = tl.exp(heat - tl.max(heat, 1)[:, None])
    weight = weight / tl.sum(weight, 1)[:, None]
    weight = tl.where(norm == float("inf"), 0.0, weight)
    spoken = weight
    if THRESHOLD > 0:
        spoken = tl.where(relevance >= tl.full((), THRESHOLD, score.dtype), weight, 0.0)
    tl.store(relevance_TK + at, relevance, mask=real)
    tl.store(weight_TK + at, weight, mask=real)
    tl.store(spoken_TK + at, spoken, mask=real)


@triton.jit(do_not_specialize=["num_tokens"])
def sums(
    score_TK,
    relevance_TK,
    spoken_TK,
    u_TK,
    total_T2,
    num_tokens,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """A and B over the atoms that u belongs to."""
    token, _, real, at = tile(num_tokens, K, TOKENS, PLACES)
    score = tl.load(score_TK + at, mask=real, other=0.0)
    relevance = tl.load(relevance_TK + at, mask=real, other=0.0)
    spoken = tl.load(spoken_TK + at, mask=real, other=0.0)
    wq = spoken * score * tl.load(u_TK + at, mask=real, other=0.0)
    tl.store(total_T2 + 2 * token, tl.sum(wq, 1), mask=token < num_tokens)
    tl.store(total_T2 + 2 * token + 1, tl.sum(wq * relevance, 1), mask=token < num_tokens)


@triton.jit(do_not_specialize=["num_tokens"])
def score_gradient(
    score_TK,
    norm_T1,
    relevance_TK,
    weight_TK,
    spoken_TK,
    u_TK,
    total_T2,
    direct_TK,
    each_T1,
    num_tokens,
    TEMPERATURE: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Gradient of chosen scores, and the factor of every score, from A and B over all atoms."""
    token, _, real, at = tile(num_tokens, K, TOKENS, PLACES)
    asked = token < num_tokens
    score = tl.load(score_TK + at, mask=real, other=0.0)
    relevance = tl.load(relevance_TK + at, mask=real, other=0.0)
    weight = tl.load(weight_TK + at, mask=real, other=0.0)
    spoken = tl.load(spoken_TK + at, mask=real, other=0.0)
    u = tl.load(u_TK + at, mask=real, other=0.0)
    norm = tl.load(norm_T1 + token, mask=asked, other=float("inf"))
    A = tl.load(total_T2 + 2 * token, mask=asked, other=0.0)
    B = tl.load(total_T2 + 2 * token + 1, mask=asked, other=0.0)

    tau = tl.full((), TEMPERATURE, score.dtype)
    speaks = spoken == weight
    through_weights = weight * (tl.where(speaks, score * u, 0.0) - A[:, None])
    through_weights = through_weights / (tau * norm)[:, None]
    gam = (B - A * tl.sum(weight * relevance, 1)) / tau
    tl.store(direct_TK + at, spoken * u + through_weights, mask=real)
    tl.store(each_T1 + token, -gam / (norm * norm), mask=asked)
