"""The update of one layer in its usual formulation, with which ours is compared.

Old and new atoms are concatenated, scored, normalised, cut to the top k, scattered back, and
multiplied with all values. Autograd then computes gradients for every atom, including frozen ones.

Source: equations of Lu et al. 2026, arXiv:2506.21035; order of operations as in its public code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recall(
    x_TD: Tensor,
    frozen: tuple[Tensor, Tensor],
    active: tuple[Tensor, Tensor],
    *,
    top_k: int,
    temperature: float,
) -> Tensor:
    """(T, D) to (T, E); frozen and active are keys (N, D) and values (N, E)."""
    keys_ND, values_NE = (torch.cat(pair) for pair in zip(frozen, active, strict=True))
    score_TN = x_TD @ keys_ND.T
    relevance_TN = score_TN / score_TN.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    best = relevance_TN.topk(min(top_k, len(keys_ND)), dim=-1)
    kept_TN = torch.full_like(relevance_TN, -torch.inf).scatter(-1, best.indices, best.values)
    weight_TN = torch.softmax(kept_TN / temperature, -1)
    return (weight_TN * score_TN) @ values_NE
