"""The Triton kernel of dropout against torch; run as ``kernel_parity`` is."""

from __future__ import annotations

import pytest
import torch

from moram_dist.adapters.dropout import TokenDropout, TokenKeys
from tests.unit.kernel_parity import DEVICE, ROWS, in_torch, launched, random  # noqa: F401

STEP = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-22, torch.float64: 2**-51}
"""The kernel multiplies where torch divides on a CPU, and the interpreter cuts bfloat16."""


def of(p, size):
    keys = TokenKeys()
    keys.set([11, 2**32 - 1, 7], [9], torch.device(DEVICE))
    return TokenDropout(p, keys, name="layer", size=size).to(DEVICE)


@pytest.mark.parametrize("dtype", ROWS)
@pytest.mark.parametrize(("p", "size"), [(0.1, 1), (0.5, 65), (0.9, 64), (0.1, 1100)])
def test_the_same_elements_are_dropped(p, size, dtype, in_torch, launched):  # noqa: F811
    x = random(3, 9, size, dtype=dtype)
    mask = of(p, size).mask(x)
    found, expected = mask(x), in_torch(mask, x)
    assert launched == ["drop"]
    assert found.dtype == dtype
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found, expected, rtol=STEP[dtype], atol=0)
    apart = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(mask(apart), found)


def test_a_dropped_nan_is_dropped(in_torch):  # noqa: F811
    x = torch.full((3, 9, 64), torch.nan, device=DEVICE)
    mask = of(0.5, 64).mask(x)
    assert torch.equal(mask(x).isnan(), in_torch(mask, x).isnan())
    assert not mask(x).isnan().all()


def test_input_and_gradient_of_a_layer(launched):  # noqa: F811
    layer, x = of(0.5, 64), random(27, 64).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert launched == ["drop", "drop"]
    assert torch.equal(x.grad, torch.where(y != 0, 2.0, 0.0))
