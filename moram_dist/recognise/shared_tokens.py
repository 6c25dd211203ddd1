"""Tokens that nearly all prompts of a task share: its instruction, its labels, its layout.

A prompt that lacks many of them is none of the task's, however near its mean embedding is.

Shape letters: N prompts, T tasks, S shared tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moram_dist.recognise.left_out import LEVELS, UNKNOWN, left_out, quantiles

COMMON = 0.8
"""Fraction of a task's prompts that must have a token for it to count as shared."""

FORGIVEN, MOST = 0.1, 0.3
"""Fractions of the shared tokens' weight that a prompt may lack: the first in any case, so that it
may be worded slightly differently, and the second at most, however much a task's own prompts do."""


@dataclass(frozen=True)
class SharedTokens:
    """One task's shared tokens."""

    tokens_S: Tensor
    """Token ids, ascending."""

    weights_S: Tensor
    """Nats of surprise if a prompt of the task lacks the token, in float64."""

    own: Tensor
    """Quantiles of the weight that the task's own prompts lack (``left_out``)."""

    @classmethod
    def of(cls, prompts: Sequence[Tensor]) -> SharedTokens:
        """Find them in the distinct tokens of each prompt of a task."""

        def chosen(which_N: Tensor) -> list[Tensor]:
            return [prompts[i] for i in which_N.nonzero()[:, 0].tolist()]

        def measure(others_N: Tensor, these_N: Tensor) -> Tensor:
            return _lacking([_weights(chosen(others_N))], chosen(these_N))[:, 0]

        tokens_S, weights_S = _weights(prompts)
        if len(prompts) < 3:  # one that is left out leaves none that shares less than all
            return cls(tokens_S, weights_S, (MOST * weights_S.sum()).expand(len(LEVELS)).clone())
        # With all prompts, a token may weigh a little more than without those that are left out.
        inside = quantiles(_lacking([(tokens_S, weights_S)], prompts)[:, 0])
        return cls(tokens_S, weights_S, torch.maximum(inside, left_out(len(prompts), measure)))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SharedTokens:
        """Rebuild from the task's file. Raises KeyError or ValueError."""
        tokens_S, weights_S = tensors["shared.tokens"].long(), tensors["shared.weights"].double()
        own = tensors["shared.own"].double()
        if tokens_S.dim() != 1 or tokens_S.shape != weights_S.shape or len(own) != len(LEVELS):
            raise ValueError("shared tokens, their weights or limits differ in shape")
        return cls(tokens_S, weights_S, own)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for the task's file."""
        return {
            "shared.tokens": self.tokens_S,
            "shared.weights": self.weights_S,
            "shared.own": self.own,
        }

    @property
    def typical(self) -> bool:
        """Whether nine tenths of the task's own prompts have nearly all of them."""
        return len(self.tokens_S) > 0 and bool(self.own[0] <= MOST * self.weights_S.sum())

    @property
    def limit(self) -> Tensor:
        """The largest weight that a prompt of the task may lack."""
        weight = self.weights_S.sum()
        return self.own[UNKNOWN].clamp(FORGIVEN * weight, MOST * weight)


def alike(tasks: Sequence[SharedTokens], prompts: Sequence[Tensor]) -> Tensor:
    """Whether a prompt has a task's shared tokens, (N, T).

    Args:
        tasks: T of them, at least one.
        prompts: distinct tokens of each of N prompts.
    """
    missing_NT = _lacking([(task.tokens_S, task.weights_S) for task in tasks], prompts)
    return missing_NT <= torch.stack([task.limit for task in tasks])


def _weights(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Shared tokens and their weights, both (S,)."""
    having_V = torch.bincount(torch.cat([*prompts]))
    tokens_S = (having_V >= max(1, COMMON * len(prompts))).nonzero()[:, 0]
    # The mean of the posterior from Jeffreys' prior is never 0.
    lacking_S = (len(prompts) - having_V[tokens_S].double() + 0.5) / (len(prompts) + 1)
    return tokens_S, -lacking_S.log()


def _lacking(tasks: Sequence[tuple[Tensor, Tensor]], prompts: Sequence[Tensor]) -> Tensor:
    """The summed weight (N, T) of each task's shared tokens that a prompt lacks."""
    tokens = torch.cat([tokens_S for tokens_S, _ in tasks])
    weights = torch.cat([weights_S for _, weights_S in tasks])
    sizes = torch.tensor([len(tokens_S) for tokens_S, _ in tasks])
    owner = torch.arange(len(tasks)).repeat_interleave(sizes)
    found_NT = torch.zeros(len(prompts), len(tasks), dtype=torch.float64)
    for found_T, prompt in zip(found_NT, prompts, strict=True):
        found_T.index_add_(0, owner, weights * ~torch.isin(tokens, prompt.long()))
    return found_NT
