"""Find the best of very many frozen atoms for each token without scoring them all in float32.

One bf16 product gives an upper bound of every score. The atoms with the highest bounds are scored
exactly. A token is certified if the lowest score that it keeps exceeds the bounds of all atoms that
were not scored; other tokens get the full product. So no result is approximate:

    p_i  = x . k_i                score, of token x and key k_i;  ^ is rounding to bf16
    p_i <= x^ . k^_i + ||x|| ||k_i - k^_i|| + ||x - x^|| ||k^_i|| + rounding          = bound of p_i

The terms after x^ . k^_i are products of one number per token and one per key, so extra columns of
the two matrices add them to the product. "rounding" covers both sums of D products, the bf16 one
(accumulated in float32) and the exact one: at most D u ||x|| ||k_i|| each, in any order of
summation. So the bound holds for the computed scores, not only for the true ones.

||p||^2 = x^T K^T K x. In float32 this is accurate unless ||p|| is small for the length of x (see
``LEAST_NORM``); such tokens get the full product too.

Shape letters: T tokens, N atoms, C candidates, K atoms kept per token, D inputs, F = D + extra
columns, S pairs of a token and an atom.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from moram_dist.atoms.reference import products_of_pairs
from moram_dist.atoms.routing import ShardCandidates, candidates
from moram_dist.atoms.top_k import best

BEYOND = {"cpu": 4}
"""By device, the number of atoms per input above which a scan pays. Other devices never scan: the
bounds depend on how bf16 products are summed, which is still to be tested on CUDA."""

MANY_NUMBERS = 2**21
"""A scan pays only if the keys of a linear are more numbers than these, since the steps of a scan
have a cost of their own. Measured on a CPU at 256 to 1,024 inputs."""

SOME_TOKENS = 4
"""Nor does it pay for fewer tokens: reading all keys once is the faster way."""

PER_KEPT = 4
"""Candidates per atom to keep: two to three of them have bounds above the lowest kept score."""

FURTHER = 32
"""Extra columns of an image: two, and zeros that keep rows aligned."""

SCORES_AT_ONCE = 2**26
"""Bounds, or exact scores, to hold in memory at a time."""

LEAST_NORM = 2.0**-4
"""||p|| is taken from K^T K if it is at least this fraction of the largest value that ||x|| allows.
Its relative error, as measured, is about 5e-9 over the fraction squared: here at most 1.3e-6."""

UNIT = 2.0**-8
"""Largest relative error of rounding to bf16."""


class Image(NamedTuple):
    """The data that a scan needs of a linear's frozen atoms, in the order of the whole memory."""

    key_NF: Tensor
    """bf16: each key, then its rounding error and its length, both rounded up."""

    gram_DD: Tensor
    """K^T K."""

    stretch: float
    """Largest factor ||K x|| / ||x||: the square root of K^T K's largest eigenvalue."""


def supported(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32 ones, and accumulate in float32."""
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def pays(num_atoms: float, num_inputs: int, device: str) -> bool:
    """Whether scans of ``SOME_TOKENS`` or more take less time than scoring all atoms."""
    numbers = num_atoms * num_inputs
    return num_atoms > BEYOND.get(device, math.inf) * num_inputs and numbers > MANY_NUMBERS


def image(keys_ND: Tensor, gram_DD: Tensor) -> Image:
    """Build the image of all keys."""
    num_atoms, num_inputs = keys_ND.shape
    key_NF = keys_ND.new_zeros(num_atoms, num_inputs + FURTHER, dtype=torch.bfloat16)
    key_NF[:, :num_inputs] = keys_ND
    precise_ND, low_ND = keys_ND.to(gram_DD.dtype), key_NF[:, :num_inputs].to(gram_DD.dtype)
    key_NF[:, num_inputs] = _up(torch.linalg.vector_norm(precise_ND - low_ND, dim=-1))
    key_NF[:, num_inputs + 1] = _up(torch.linalg.vector_norm(low_ND, dim=-1))
    return Image(key_NF, gram_DD, _largest_eigenvalue(gram_DD) ** 0.5)


def scan(
    x_TD: Tensor, of: Image, keys_ND: Tensor, *, num_kept: int
) -> tuple[ShardCandidates, Tensor]:
    """The best frozen atoms of each token; ties as in ``top_k.best``.

    Args:
        x_TD: tokens, in float32 or more.
        of: the ``image`` of the keys.
        keys_ND: the keys.
        num_kept: how many atoms, at most N.

    Returns:
        The best atoms, and which tokens were certified, (T,).
    """
    at_once = max(1, SCORES_AT_ONCE // len(of.key_NF))
    parts = [_scan(some, of, keys_ND, num_kept) for some in x_TD.split(at_once)]
    found, certified = zip(*parts, strict=True)
    whole = ShardCandidates(*(torch.cat(field) for field in zip(*found, strict=True)))
    certified_T = torch.cat(certified)
    unsure = (~certified_T).nonzero()[:, 0]
    for rows in unsure.split(at_once) if len(unsure) else ():
        exact = _in_full(x_TD[rows], keys_ND, num_kept)
        for field, rest in zip(whole, exact, strict=True):
            field[rows] = rest
    return whole, certified_T


def _scan(
    x_TD: Tensor, of: Image, keys_ND: Tensor, num_kept: int
) -> tuple[ShardCandidates, Tensor]:
    num_atoms = len(of.key_NF)
    num_candidates = min(PER_KEPT * num_kept, num_atoms)
    bound_TC, index_TC = bounds(x_TD, of).topk(num_candidates, dim=-1)
    bound_TC = rounded_up(bound_TC)
    outside_T1 = bound_TC[:, -1:]
    if num_candidates == num_atoms:
        outside_T1 = torch.full_like(outside_T1, -torch.inf)

    # First score the K atoms with the highest bounds: bounds below all their scores are ruled out.
    first_TC = torch.zeros_like(index_TC, dtype=torch.bool)
    first_TC[:, :num_kept] = True
    score_TC = x_TD.new_full(index_TC.shape, -torch.inf)
    _score(score_TC, x_TD, keys_ND, index_TC, first_TC)
    enough_T1 = score_TC[:, :num_kept].amin(-1, keepdim=True)
    _score(score_TC, x_TD, keys_ND, index_TC, (bound_TC >= enough_T1) & ~first_TC)

    index_TC, order_TC = index_TC.sort(-1)  # so that ties go to the lower index
    score_TC = score_TC.gather(1, order_TC)
    kept = best(score_TC, num_kept)
    score_TK = score_TC.gather(1, kept)
    squares_T1 = _quadratic(x_TD, of.gram_DD)
    certified_T1 = score_TK.amin(-1, keepdim=True) > outside_T1
    length_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
    certified_T1 &= squares_T1 > (LEAST_NORM * of.stretch * length_T1).square()
    return ShardCandidates(squares_T1, score_TK, index_TC.gather(1, kept).int()), certified_T1[:, 0]


def bounds(x_TD: Tensor, of: Image) -> Tensor:
    """Bounds of all scores, (T, N), rounded to bf16: apply ``rounded_up`` before comparing."""
    num_tokens = len(x_TD)
    low_TD = x_TD.bfloat16()
    length_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
    error_T1 = torch.linalg.vector_norm(x_TD - low_TD, dim=-1, keepdim=True)
    # A factor 2 for the two sums, and 2 for instructions that also round each pair of products.
    error_T1 = error_T1 + 4 * of.key_NF.shape[1] * 2.0**-24 * length_T1
    zeros_TF = low_TD.new_zeros(num_tokens, FURTHER - 2)
    token_TF = torch.cat([low_TD, _up(length_T1), _up(error_T1), zeros_TF], -1)
    return token_TF @ of.key_NF.T


def rounded_up(bound: Tensor) -> Tensor:
    """The largest value, in float32, that a bf16 bound can have had before it was rounded."""
    bound = bound.float()
    return bound + UNIT * bound.abs()


def _in_full(x_TD: Tensor, keys_ND: Tensor, num_kept: int) -> ShardCandidates:
    """The best atoms, from the exact scores of all atoms."""
    return candidates(
        x_TD @ keys_ND.to(x_TD.dtype).T,
        num_kept=num_kept,
        shard=0,
        num_shards=1,
        num_atoms=len(keys_ND),
    )


def _score(
    score_TC: Tensor, x_TD: Tensor, keys_ND: Tensor, index_TC: Tensor, asked_TC: Tensor
) -> None:
    """Fill in the exact scores of the atoms that ``asked_TC`` marks."""
    token_S, place_S = asked_TC.nonzero(as_tuple=True)
    row_S = index_TC[token_S, place_S]
    score_TC[token_S, place_S] = products_of_pairs(x_TD, keys_ND, token_S, row_S)


def _quadratic(x_TD: Tensor, gram_DD: Tensor) -> Tensor:
    """x^T G x of each token, (T, 1); G is symmetric, so blocks below the diagonal are skipped."""
    width = max(1, -(-x_TD.shape[1] // 8))
    total_T = x_TD.new_zeros(len(x_TD))
    for start in range(0, x_TD.shape[1], width):
        mine, after = slice(start, start + width), slice(start + width, None)
        x_TB = x_TD[:, mine]
        part_TF = x_TB @ gram_DD[mine, start:].to(x_TD.dtype)
        total_T = total_T + (part_TF[:, : x_TB.shape[1]] * x_TB).sum(-1)
        total_T = total_T + 2 * (part_TF[:, x_TB.shape[1] :] * x_TD[:, after]).sum(-1)
    return total_T[:, None]


def _up(length: Tensor) -> Tensor:
    """Round up to bf16.

    The margin covers the rounding error of ``length`` itself; 2^-50 covers underflow of squares and
    products.
    """
    return (length * (1 + 2 * UNIT) + 2.0**-50).bfloat16()


def _largest_eigenvalue(gram_DD: Tensor) -> float:
    """By power iteration from the column with the largest diagonal; slightly underestimates it."""
    v_D = gram_DD[gram_DD.diagonal().argmax()]
    for _ in range(32):
        v_D = gram_DD @ (v_D / torch.linalg.vector_norm(v_D).clamp(min=1e-30))
    return float(torch.linalg.vector_norm(v_D))
