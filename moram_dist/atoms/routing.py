"""Self-activation: which memory atoms answer a token, and how strongly.

Pure functions of tensors: no modules, no process groups, no config objects. A bank that is split
over ranks can call the same functions once the ranks have exchanged their scores, so that the two
differ only in where the numbers live.

Shape letters in this file: T tokens (any leading dimensions), N atoms, K atoms kept per token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relevance(scores_TN: Tensor) -> Tensor:
    """Scores over their L2 norm across a token's atoms, (..., N), in [-1, 1].

    A token whose scores are all 0 has relevance 0 everywhere, with gradient 0.
    """
    norm_T1 = torch.linalg.vector_norm(scores_TN, dim=-1, keepdim=True)
    return scores_TN / norm_T1.masked_fill(norm_T1 == 0, 1.0)


def keep_top(relevance_TN: Tensor, top_k: int) -> Tensor:
    """Mask of the ``top_k`` most relevant atoms, (..., N) bool; ties go to the lower atom index.

    torch.topk leaves the order among ties open and its backends differ in it, so it only supplies
    the k-th value here.
    """
    if top_k >= relevance_TN.shape[-1]:
        return torch.ones_like(relevance_TN, dtype=torch.bool)
    last_kept_T1 = relevance_TN.topk(top_k, dim=-1).values[..., -1:]
    above = relevance_TN > last_kept_T1
    tied = relevance_TN == last_kept_T1
    places_left_T1 = top_k - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= places_left_T1))


def mixture_weights(
    scores_TN: Tensor, *, top_k: int, temperature: float, threshold: float = 0.0
) -> Tensor:
    """Turn key scores into sparse mixture weights.

    The ``top_k`` most relevant atoms (signed, so a strong negative match does not fire) share a
    softmax at ``temperature``; an atom whose relevance is under ``threshold`` is then silenced.
    Weights are not renormalised afterwards, so a token that no atom knows gets almost no update.

    Args:
        scores_TN: inner product of each token with each key, (..., N), N may be 0. Its precision is
            the precision of the routing: callers pass float32 or more.
        top_k: atoms kept per token, >= 1; all N are kept where N < top_k.
        temperature: softmax temperature in units of relevance, > 0.
        threshold: smallest relevance that may speak. 0 turns it off; training passes 0.

    Returns:
        Weights, shape and dtype of ``scores_TN``. A row sums to 1 when nothing was silenced, to
        less otherwise, and to 0 where all scores are 0: such a token gets no update, no gradient.

    Raises:
        ValueError: top_k < 1 or temperature <= 0.

    Source: Lu et al. 2026, arXiv:2506.21035 (self-activation, top-k, temperature, threshold).
    """
    if top_k < 1 or temperature <= 0:
        raise ValueError(f"need top_k >= 1 and temperature > 0, got {top_k} and {temperature}")
    relevance_TN = relevance(scores_TN)
    keep_TN = keep_top(relevance_TN.detach(), top_k)
    weights_TN = torch.softmax(
        (relevance_TN / temperature).masked_fill(~keep_TN, -torch.inf), dim=-1
    )
    silent_TN = (scores_TN == 0).all(-1, keepdim=True)
    if threshold > 0:
        silent_TN = silent_TN | (relevance_TN < threshold)
    return weights_TN.masked_fill(silent_TN, 0.0)
