"""The linear function under ZeRO-3: torch's results, without keeping a frozen linear's input."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from moram_dist.comm import zero3


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_torchs(with_bias, trained):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=trained)
    bias = torch.randn(4, dtype=torch.float64) if with_bias else None
    kept: list[torch.Tensor] = []
    leaves = [x, weight] if trained else [x]
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = zero3.linear()(x, weight, bias)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert any(t.data_ptr() == x.data_ptr() for t in kept) == trained
    with torch.no_grad():
        torch.testing.assert_close(zero3.linear()(x, weight, bias), expected)
