"""The correct answers in float64, and how far an implementation may deviate from them.

Shape letters: T tokens, N atoms, D inputs and outputs, K atoms kept per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.variants import CaseInputs

TOLERANCE = 1e-5
"""Largest difference in float32 over the largest number of the reference, tensor by tensor."""

BLOCK = 4096
"""Number of atoms that are converted to float64 at a time."""

Answers = Mapping[str, Tensor]
"""``y``, and the gradient of each leaf by its name."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The comparison of an implementation with its reference."""

    errors: Mapping[str, float]
    """Largest difference of each tensor, relative to the tensor's largest number."""

    sets_equal: bool | None = field(default=None)
    """Whether each token chose the reference's atoms; None if there is no choice."""

    @property
    def worst(self) -> float:
        """The largest error of all tensors."""
        return max(self.errors.values())

    @property
    def passed(self) -> bool:
        """Whether the implementation may be timed; NaN does not pass."""
        return self.worst <= TOLERANCE and self.sets_equal is not False


def memory(inputs: CaseInputs) -> dict[str, Tensor]:
    """The formula in float64, and the ``chosen`` atoms (T, K).

    Autograd differentiates from scores to mixing weights; the other gradients are written out.
    """
    case, x_TD = inputs.case, inputs.x_TD.detach().double()
    g_TD = inputs.upstream_TD.double()
    score_TN = torch.cat([x_TD @ keys.T for keys, _ in _blocks(inputs)], -1).requires_grad_()
    chosen_TK = score_TN.topk(min(case.top_k, case.num_atoms)).indices.sort().values
    relevance_TN = score_TN / score_TN.norm(dim=-1, keepdim=True)
    weight_TK = torch.softmax(relevance_TN.gather(1, chosen_TK) / case.temperature, -1)
    strength_TK = weight_TK * score_TN.gather(1, chosen_TK)
    back_TN = torch.cat([g_TD @ values.T for _, values in _blocks(inputs)], -1)
    (dp_TN,) = torch.autograd.grad(strength_TK, score_TN, back_TN.gather(1, chosen_TK))
    strength_TN = torch.zeros_like(dp_TN).scatter(1, chosen_TK, strength_TK.detach())
    y_TD, dx_TD = torch.zeros_like(g_TD), torch.zeros_like(x_TD)
    first = 0
    for keys, values in _blocks(inputs):
        these = slice(first, first + len(keys))
        y_TD += strength_TN[:, these] @ values
        dx_TD += dp_TN[:, these] @ keys
        first += len(keys)
    r = case.num_active
    return {
        "y": y_TD,
        "x": dx_TD,
        "active keys": dp_TN[:, -r:].T @ x_TD,
        "active values": strength_TN[:, -r:].T @ g_TD,
        "chosen": chosen_TK,
    }


def _blocks(inputs: CaseInputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values in float64, some atoms at a time: all of them would double the memory."""
    for keys, values in (inputs.frozen, inputs.active):
        for some in zip(keys.detach().split(BLOCK), values.detach().split(BLOCK), strict=True):
            yield some[0].double(), some[1].double()


def lora(inputs: CaseInputs) -> dict[str, Tensor]:
    """Values times keys, y = B A x, by formula."""
    x_TD, g_TD = inputs.x_TD.detach().double(), inputs.upstream_TD.double()
    keys_ND, values_ND = (
        torch.cat(pair).detach().double() for pair in zip(inputs.frozen, inputs.active, strict=True)
    )
    inner_TN, back_TN = x_TD @ keys_ND.T, g_TD @ values_ND.T
    r = inputs.case.num_active
    return {
        "y": inner_TN @ values_ND,
        "x": back_TN @ keys_ND,
        "all keys": back_TN.T @ x_TD,
        "all values^T": g_TD.T @ inner_TN,
        "active keys": back_TN[:, -r:].T @ x_TD,
        "active values^T": g_TD.T @ inner_TN[:, -r:],
    }


def linear(inputs: CaseInputs) -> dict[str, Tensor]:
    """The frozen linear, by formula."""
    weight_DD = inputs.weight_DD.double()
    return {
        "y": inputs.x_TD.detach().double() @ weight_DD.T,
        "x": inputs.upstream_TD.double() @ weight_DD,
    }


def layer(added: Answers, base: Answers) -> dict[str, Tensor]:
    """The linear's answers plus the update's."""
    return {**added, "y": added["y"] + base["y"], "x": added["x"] + base["x"]}


def compare(found: Answers, expected: Answers, chosen_TK: Tensor | None = None) -> Check:
    """Compare every tensor of ``found`` with the expected tensor of the same name."""
    errors = {name: relative(tensor, expected[name]) for name, tensor in found.items()}
    sets_equal = None
    if "chosen" in expected and chosen_TK is not None:
        sets_equal = torch.equal(chosen_TK.long().sort().values, expected["chosen"])
    return Check(errors=errors, sets_equal=sets_equal)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, divided by the largest expected number."""
    expected = expected.detach()
    difference = (found.detach().double() - expected).abs().max()
    return float(difference / expected.abs().max())
