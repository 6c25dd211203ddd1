"""Losses of a step whose gradients are computed in the forward pass or across ranks.

Shape letters: N positions, V vocabulary, B pictures of a rank, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moram_dist.comm import env
from moram_dist.data.stream import IGNORED

ROWS_TIMES_WORDS = 2**24
"""Number of logits that the loss processes at once: 64 MiB in float32."""


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over all targets but ``IGNORED``, in float32 or float64."""
    loss: Tensor = SummedCrossEntropy.apply(logits_NV, targets_N)
    return loss


def smoothed_cross_entropy(logits_BC: Tensor, targets_B: Tensor, smoothing_B: Tensor) -> Tensor:
    """``cross_entropy`` with part of each target spread evenly over the classes of its row.

    Args:
        logits_BC: -inf for classes that are not of the row.
        targets_B: class of each row, or ``IGNORED``.
        smoothing_B: the part that is spread, in [0, 1).
    """
    loss = cross_entropy(logits_BC, targets_B)
    if not smoothing_B.any():
        return loss
    log_p_BC = F.log_softmax(logits_BC.float(), -1)
    own_BC = logits_BC.isfinite()
    spread_B = -log_p_BC.masked_fill(~own_BC, 0).sum(1) / own_BC.sum(1)
    picked_B = F.nll_loss(log_p_BC, targets_B, ignore_index=IGNORED, reduction="none")
    there_B = targets_B != IGNORED
    return loss + (smoothing_B * (spread_B - picked_B)).where(there_B, 0).sum()


def text_to_image(logits_BC: Tensor, targets_B: Tensor, weights_B: Tensor) -> Tensor:
    """Cross-entropy of finding each picture among all pictures of a step by its class's text.

    This rank's part of ``sum_b w_b -log softmax_b'(logits[b', y_b])[b]``, where b' runs over the
    pictures of all ranks. Only one number per class and rank is exchanged. All ranks call it
    together, with the same classes in the same order.

    Args:
        logits_BC: similarity of each of this rank's pictures to each class's text; -inf excludes a
            picture from a class.
        targets_B: each picture's class; ``IGNORED`` excludes the picture from all.
        weights_B: w, of each picture.

    Returns:
        A scalar in the dtype of the logits. The gradient is that of the sum over ranks.
    """
    loss: Tensor = PicturesOfTexts.apply(logits_BC, targets_B, weights_B)
    return loss


class SummedCrossEntropy(torch.autograd.Function):
    """``F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")``.

    Processes some rows at a time, and computes their gradient together with the loss: with a
    vocabulary of 262,144 tokens, one float32 copy of the logits of 4,096 positions takes 4 GiB.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Logits of N positions, and their target tokens."""
        exact = torch.promote_types(logits_NV.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=logits_NV.device)
        wanted = ctx.needs_input_grad[0]
        gradient_NV = torch.empty_like(logits_NV) if wanted else None
        size = max(1, ROWS_TIMES_WORDS // logits_NV.shape[1])
        for start in range(0, len(logits_NV), size):
            rows = slice(start, start + size)
            log_p = logits_NV[rows].to(exact).log_softmax(-1)
            total += F.nll_loss(log_p, targets_N[rows], ignore_index=IGNORED, reduction="sum")
            if gradient_NV is not None:
                answers_N1 = (targets_N[rows] != IGNORED)[:, None]
                p = log_p.exp_()
                p.scatter_add_(1, targets_N[rows].clamp(min=0)[:, None], -torch.ones_like(p[:, :1]))
                gradient_NV[rows] = p.mul_(answers_N1)
        if gradient_NV is not None:
            ctx.save_for_backward(gradient_NV)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """Probabilities minus the one-hot targets."""
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV.mul_(upstream), None  # in place: autograd refuses a second backward


class PicturesOfTexts(torch.autograd.Function):
    """See ``text_to_image``; sums in float64, so that ranks hardly change them."""

    @staticmethod
    def forward(ctx: Any, logits_BC: Tensor, targets_B: Tensor, weights_B: Tensor) -> Tensor:
        """This rank's part of the sum."""
        there_B = targets_B != IGNORED
        scores_BC = logits_BC.double().masked_fill(~there_B[:, None], -torch.inf)
        rows_B, weights_B = targets_B.clamp(min=0), weights_B.double() * there_B
        weights_C = scores_BC.new_zeros(scores_BC.shape[1]).index_add(0, rows_B, weights_B)
        parts_P2C = env.all_gather(torch.stack([scores_BC.logsumexp(0), weights_C]))
        total_C, weights_C = parts_P2C[:, 0].logsumexp(0), parts_P2C[:, 1].sum(0)
        p_BC = (scores_BC - total_C).exp().where(weights_C > 0, 0.0)
        picked_B1 = rows_B[:, None]
        own_B = (total_C[rows_B] - scores_BC.gather(1, picked_B1)[:, 0]).where(there_B, 0.0)
        gradient_BC = (p_BC * weights_C).scatter_add(1, picked_B1, -weights_B[:, None])
        ctx.save_for_backward(gradient_BC.to(logits_BC.dtype))
        return (weights_B * own_B).sum().to(logits_BC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Weighted probabilities over the step's pictures, minus the weights of own classes."""
        (gradient_BC,) = ctx.saved_tensors
        return gradient_BC * upstream, None, None
