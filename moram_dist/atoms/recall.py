"""What a memory answers to a token: the sum of the values of the atoms that it activates."""

from __future__ import annotations

import torch
from torch import Tensor

from moram_dist.atoms.routing import mixture_weights


def recall(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    top_k: int,
    temperature: float,
    threshold: float = 0.0,
) -> Tensor:
    """sum_i w_i p_i v_i: scores p = K x, weights w of their relevance, over all N atoms.

    Args:
        x: tokens, (..., D).
        keys: one key a row, (N, D).
        values: one value a row, (N, E).
        top_k: atoms that answer a token; see ``mixture_weights``, as for the next two.
        temperature: of the softmax over their relevance.
        threshold: relevance under which an atom is silent, 0 for none.

    Returns:
        (..., E) in the dtype of ``x``, differentiable in all three. N = 0 gives zeros. Scores and
        routing are in float32, or in float64 where ``x`` is.

    Raises:
        ValueError: shapes that do not fit, top_k < 1, temperature <= 0.

    Source: Lu et al. 2026, arXiv:2506.21035, the update of one adapted linear layer.
    """
    if (
        keys.ndim != 2
        or values.ndim != 2
        or len(keys) != len(values)
        or keys.shape[1] != x.shape[-1]
    ):
        raise ValueError(
            f"need x (..., D), keys (N, D), values (N, E); got {tuple(x.shape)}, "
            f"{tuple(keys.shape)}, {tuple(values.shape)}"
        )
    # bf16 scores change the top-k set of many tokens, so routing never sees less than float32.
    precise = torch.promote_types(x.dtype, torch.float32)
    scores = x.to(precise) @ keys.to(precise).T
    weights = mixture_weights(scores, top_k=top_k, temperature=temperature, threshold=threshold)
    return ((weights * scores).to(values.dtype) @ values).to(x.dtype)
