"""Mixtures of LoRA experts, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from moram_dist.adapters.lora_experts import LoraExperts, PreciseProduct, gates
from tests.unit.test_lora_baselines import LN3, begin, built, no_look


@pytest.mark.parametrize(
    ("logits", "shares"),
    [
        ([1.0, 5.0, 5.0, 2.0], [0, 0.5, 0.5, 0]),
        ([LN3, 0.0, 0.0, 0.0], [0.75, 0.25, 0, 0]),  # of equals, the lower index
        ([0.0, 0.0, 0.0, LN3], [0.25, 0, 0, 0.75]),
        ([0.0] * 4, [0.5, 0.5, 0, 0]),
        ([0.0, LN3], [0.25, 0.75]),
        ([7.0], [1.0]),
    ],
)
def test_gates(logits, shares):
    assert gates(torch.tensor(logits), 2).tolist() == pytest.approx(shares)


def test_ties_go_to_the_lower_index_among_many():
    found = gates(torch.zeros(3, 5, 300), 2)
    assert torch.equal(found[..., :2], torch.full((3, 5, 2), 0.5)) and not found[..., 2:].any()


def experts(method, model):
    """Two frozen experts of outputs 2 and 4 for x = 1, and one of 100 that is learned."""
    A = [[1.0] + [0.0] * (model.layer.in_features - 1)]
    for i, value in enumerate((2.0, 4.0)):
        begin(method, model, i, A=A, B=[[value]])
        method.end_task(i, no_look)
    begin(method, model, 2, A=A, B=[[100.0]])


def test_experts_by_hand():
    method, model = built("moe_lora")
    experts(method, model)
    layer = model.layer
    assert isinstance(layer, LoraExperts) and layer.num_experts == 3
    with torch.no_grad():
        layer.router.copy_(torch.tensor([[0.0], [LN3], [-1.0]]))
    y = model(torch.tensor([[1.0], [-1.0]]))
    # x = 1: logits 0, LN3, -1, so experts 0 and 1 share 1 : 3.  x = -1: 0, -LN3, 1: 0 and 2.
    e = math.e
    assert y[0].item() == pytest.approx(0.25 * 2 + 0.75 * 4)
    assert y[1].item() == pytest.approx(-(2 + 100 * e) / (1 + e))
    y[0].sum().backward()
    # d y / d logit_1 = g_1 (4 - y); expert 2 is not asked and learns nothing from this token.
    assert layer.router.grad.tolist() == [
        [pytest.approx(0.25 * (2 - 3.5))],
        [pytest.approx(0.75 * (4 - 3.5))],
        [0.0],
    ]
    assert layer.lora_A.grad.item() == 0


@pytest.mark.parametrize("name", ["inc_lora", "moe_lora"])
def test_before_the_first_task_it_is_the_base(name):
    _, model = built(name, d_in=2, d_out=3)
    assert torch.equal(model(torch.ones(4, 5, 2)), torch.zeros(4, 5, 3))


def test_experts_to_come_take_no_part():
    method, model = built("moe_lora")
    x = torch.ones(1, 1)
    begin(method, model, 0, A=[[1.0]], B=[[2.0]])
    with torch.no_grad():
        model.layer.router[1:] = 100.0
    assert model(x).item() == 2
    method.end_task(0, no_look)
    assert (model(x).item(), model.layer.num_experts) == (2, 1)
    begin(method, model, 1, A=[[1.0]], B=[[4.0]])
    with torch.no_grad():
        model.layer.router[:2] = 0.0
    y = model(x)
    assert y.item() == 3
    y.backward()
    assert model.layer.router.grad[2].item() == 0
    assert model.layer.router.grad[:2].abs().min() > 0  # the older expert's row learns too


def test_the_router_is_that_of_the_task():
    method, model = built("moe_lora")
    experts(method, model)
    with torch.no_grad():
        model.layer.router.copy_(torch.tensor([[0.0], [LN3], [-1.0]]))
    tensors = method.end_task(2, no_look)
    again, restored = built("moe_lora")
    stored = {"layer.lora_A": torch.ones(1, 1), "layer.router": torch.zeros(1, 1)}
    again.load_task(0, stored | {"layer.lora_B": torch.tensor([[2.0]])})
    stored["layer.router"] = torch.zeros(2, 1)
    again.load_task(1, stored | {"layer.lora_B": torch.tensor([[4.0]])})
    again.load_task(2, tensors)
    x = torch.tensor([[1.0], [-1.0], [0.3]])
    assert torch.equal(restored(x), model(x))


def test_routing_is_in_float32():
    method, model = built("moe_lora", d_in=2)
    experts(method, model)
    with torch.no_grad():
        model.layer.router.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    model.bfloat16()
    # Logits 1, 1 + 2^-9, 1 + 2^-9: in bfloat16 all would be 1, and experts 0 and 1 be chosen.
    assert model(torch.tensor([[1.0, 2**-9]], dtype=torch.bfloat16)).item() == (4 + 100) / 2


# settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routing_keeps_inputs_in_their_own_type(dtype):
    """With the gradients of the plain product, to the rounding of sums."""
    x = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    router = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    upstream = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(2))
    pairs = [[t.clone().requires_grad_() for t in (x, router)] for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = PreciseProduct.apply(*pairs[0])
    expected = pairs[1][0].float() @ pairs[1][1].float().T
    assert torch.equal(found, expected) and {t.dtype for t in kept} == {dtype}
    for logits in (found, expected):
        logits.backward(upstream)
    for mine, plain in zip(*pairs, strict=True):
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad, plain.grad)
    alone = x.clone().requires_grad_()
    PreciseProduct.apply(alone, router).backward(upstream)
    assert torch.equal(alone.grad, pairs[0][0].grad)
