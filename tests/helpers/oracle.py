"""Recall by the formula, one token, one atom, one number at a time.

    p_i = k_i . x                                     score of atom i
    s_i = p_i / ||p||_2         over all N atoms      relevance (signed)
    K   = indices of the top_k largest s_i            ties: the lower index
    w_i = softmax_{i in K}(s_i / temperature)         0 outside K
    w_i = 0 where s_i < threshold                     not renormalised; threshold 0 is none
    y   = sum_i w_i p_i v_i                           0 where ||p|| = 0

Slow and plain on purpose: numbers are 0-d tensors only so that autograd follows them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recall_one(
    x: Tensor, keys: Tensor, values: Tensor, top_k: int, temperature: float, threshold: float
) -> list[Tensor]:
    """The update of one token, output by output."""
    num_atoms, num_outputs = len(keys), values.shape[1]
    nothing = [x.new_zeros(()) for _ in range(num_outputs)]

    scores = []
    for i in range(num_atoms):
        score = x.new_zeros(())
        for d in range(len(x)):
            score = score + keys[i, d] * x[d]
        scores.append(score)
    if all(score.item() == 0 for score in scores):
        return nothing

    square = x.new_zeros(())
    for score in scores:
        square = square + score * score
    relevance = [score / square.sqrt() for score in scores]

    kept: list[int] = []
    for _ in range(min(top_k, num_atoms)):
        best = None
        for i in range(num_atoms):
            if i in kept:
                continue
            if best is None or relevance[i].item() > relevance[best].item():
                best = i
        assert best is not None
        kept.append(best)

    highest = relevance[kept[0]].item()  # exp(a - c) / sum exp(b - c) is the same for any c
    shares = {i: torch.exp((relevance[i] - highest) / temperature) for i in kept}
    total = x.new_zeros(())
    for share in shares.values():
        total = total + share

    out = nothing
    for i in kept:
        if threshold > 0 and relevance[i].item() < threshold:
            continue
        for e in range(num_outputs):
            out[e] = out[e] + shares[i] / total * scores[i] * values[i, e]
    return out


def recall(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    top_k: int,
    temperature: float,
    threshold: float = 0.0,
) -> Tensor:
    """The updates of all tokens: x (..., D), keys (N, D), values (N, E) to (..., E)."""
    rows = [
        torch.stack(recall_one(token, keys, values, top_k, temperature, threshold))
        for token in x.reshape(-1, x.shape[-1])
    ]
    return torch.stack(rows).reshape(*x.shape[:-1], values.shape[1])
