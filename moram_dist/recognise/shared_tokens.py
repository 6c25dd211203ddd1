"""Tokens that nearly all prompts of a task share: its instruction, its labels, its layout.

A prompt that lacks many of them is none of the task's, however near its mean embedding is.

Shape letters: N prompts, T tasks, S shared tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moram_dist.recognise.left_out import UNKNOWN, left_out

COMMON = 0.8
"""Fraction of a task's prompts that must have a token for it to count as shared."""

FORGIVEN = 0.1
"""Fraction of the shared tokens' weight that a prompt may lack in any case, so that it may be
worded slightly differently."""


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

        def measure(others_N: Tensor, these_N: Tensor) -> Tensor:
            found = _weights([prompts[i] for i in others_N.nonzero()[:, 0].tolist()])
            return _lacking([found], [prompts[i] for i in these_N.nonzero()[:, 0].tolist()])[:, 0]

        return cls(*_weights(prompts), left_out(len(prompts), measure))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SharedTokens:
        """Rebuild from the task's file. Raises KeyError or ValueError."""
        tokens_S, weights_S = tensors["shared.tokens"].long(), tensors["shared.weights"].double()
        if tokens_S.dim() != 1 or tokens_S.shape != weights_S.shape:
            raise ValueError("shared.tokens and shared.weights differ in shape")
        return cls(tokens_S, weights_S, tensors["shared.own"].double())

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for the task's file."""
        return {
            "shared.tokens": self.tokens_S,
            "shared.weights": self.weights_S,
            "shared.own": self.own,
        }

    @property
    def limit(self) -> Tensor:
        """The largest weight that a prompt of the task may lack."""
        return torch.maximum(self.own[UNKNOWN], FORGIVEN * self.weights_S.sum())


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
    having = Counter(token for prompt in prompts for token in prompt.tolist())
    shared = sorted(t for t, count in having.items() if count >= COMMON * len(prompts))
    count_S = torch.tensor([having[token] for token in shared], dtype=torch.float64)
    # The mean of the posterior from Jeffreys' prior is never 0.
    lacking_S = (len(prompts) - count_S + 0.5) / (len(prompts) + 1)
    return torch.tensor(shared, dtype=torch.int64), -lacking_S.log()


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
