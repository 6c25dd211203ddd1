"""The best atoms of each token.

The k-th largest score of a row is found bit by bit, from the highest: a bit is set if at least k
scores are at least as large as the number built so far with this bit. That takes one count per bit
of a score, for any k and any number of ties. Scores above the result are kept; ties with it fill
the remaining slots, lowest index first.

Tensor arguments are pointers to contiguous tensors. Shape letters: T tokens, N scores of a token,
B blocks of them, C slots of all blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _highest_bit(dtype: tl.constexpr):
    return tl.full((), 1, dtype) << (dtype.primitive_bitwidth - 1)


@triton.jit
def _ordered(score):
    """Unsigned integers that sort like the scores. NaN counts as -inf, and -0 as 0."""
    score = tl.where(score != score, float("-inf"), score)
    score = tl.where(score == 0, 0.0, score)
    if score.dtype == tl.float64:
        bits = score.to(tl.uint64, bitcast=True)
    else:
        bits = score.to(tl.uint32, bitcast=True)
    sign = _highest_bit(bits.dtype)
    return tl.where((bits & sign) != 0, bits ^ (sign | (sign - 1)), bits | sign)


@triton.jit
def _kth_largest(bits, k):
    """The largest number that at least k elements of ``bits`` reach."""
    bit = _highest_bit(bits.dtype)
    found = bit ^ bit
    for _ in range(bits.dtype.primitive_bitwidth):
        higher = found | bit
        reached = tl.sum((bits >= higher).to(tl.int32), 0) >= k
        found = tl.where(reached, higher, found)
        bit = bit >> 1
    return found


@triton.jit
def _best(score, num_best):
    """Which scores are the ``num_best`` largest, and the places of these, from 0."""
    bits = _ordered(score)
    last = _kth_largest(bits, num_best)
    above, tied = bits > last, bits == last
    places_left = num_best - tl.sum(above.to(tl.int32), 0)
    counted = tl.cumsum((above.to(tl.int32) << 16) | tied.to(tl.int32), 0)  # both in one scan
    nth_above, nth_tied = counted >> 16, counted & 0xFFFF
    kept = above | (tied & (nth_tied <= places_left))
    return kept, nth_above + tl.minimum(nth_tied, places_left) - 1


@triton.jit(do_not_specialize=["num_kept", "shard", "num_shards", "num_atoms"])
def route(
    score_TN,
    listed_TN,
    squares_TB,
    best_TC,
    index_TC,
    num_scores,
    num_kept,
    shard,
    num_shards,
    num_atoms,
    BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
):
    """The ``num_kept`` best of one token's scores in one block, in the order of their columns.

    Slots that the block cannot fill come last and get score -inf and index ``num_atoms``.
    ``listed_TN`` holds the atoms that the scores belong to, ascending; if it is None, score i
    belongs to atom i * num_shards + shard. If ``squares_TB`` is None, squares are not summed.
    """
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_scores
    at = token * num_scores + column
    # Columns outside come last, and ties go to earlier ones, so they are never kept.
    score = tl.load(score_TN + at, mask=inside, other=float("-inf"))
    here = token * tl.num_programs(1) + block
    if squares_TB is not None:
        tl.store(squares_TB + here, tl.sum(tl.where(inside, score * score, 0.0), 0))

    num_best = tl.minimum(num_kept, num_scores - block * BLOCK)
    kept, place = _best(score, num_best)
    place += here * num_kept
    if listed_TN is None:
        index = column * num_shards + shard
    else:
        index = tl.load(listed_TN + at, mask=inside, other=0)
    tl.store(best_TC + place, score, mask=kept)
    tl.store(index_TC + place, index, mask=kept)

    empty = tl.arange(0, PLACES)
    lacking = (empty >= num_best) & (empty < num_kept)
    nothing = tl.full((PLACES,), float("-inf"), score.dtype)
    tl.store(best_TC + here * num_kept + empty, nothing, mask=lacking)
    tl.store(index_TC + here * num_kept + empty, num_atoms, mask=lacking)


@triton.jit(do_not_specialize=["num_kept"])
def choose(
    score_TN,
    index_TK,
    best_TK,
    norm_T1,
    relevance_TK,
    weight_TK,
    spoken_TK,
    num_scores,
    num_kept,
    TEMPERATURE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The mixture of one token, from the scores of all atoms; see ``mixture.weigh``."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < num_scores
    score = tl.load(score_TN + token * num_scores + column, mask=inside, other=float("-inf"))
    norm = tl.sqrt(tl.sum(tl.where(inside, score * score, 0.0), 0))
    norm = tl.where(norm == 0, float("inf"), norm)
    kept, place = _best(score, num_kept)

    relevance = score / norm
    heat = relevance / tl.full((), TEMPERATURE, score.dtype)
    heat = tl.where(kept, heat, float("-inf"))
    weight = tl.exp(heat - tl.max(heat, 0))
    weight = weight / tl.sum(weight, 0)
    weight = tl.where(norm == float("inf"), 0.0, weight)
    spoken = weight
    if THRESHOLD > 0:
        spoken = tl.where(relevance >= tl.full((), THRESHOLD, score.dtype), weight, 0.0)

    at = token * num_kept + place
    tl.store(index_TK + at, column, mask=kept)
    tl.store(best_TK + at, score, mask=kept)
    tl.store(norm_T1 + token, norm)
    tl.store(relevance_TK + at, relevance, mask=kept)
    tl.store(weight_TK + at, weight, mask=kept)
    tl.store(spoken_TK + at, spoken, mask=kept)
