"""Products of bf16 with float32 matrices as on CUDA, where the latter is split into two halves.

A CPU has no product of bf16 matrices with a float32 result, so one of float32 copies, which is as
precise, stands in for it.
"""

from __future__ import annotations

import pytest
import torch

from moram_dist import kernels
from moram_dist.atoms import shard
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Resident
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.atoms.shard import halves, product
from moram_dist.comm.collectives import AtomGroup
from tests.helpers import oracle

BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture
def products(monkeypatch):
    """Pretends that tensors are on CUDA; the dtypes of all products of matrices, in their order."""
    seen, mm = [], torch.mm

    def one(a, b, *, out_dtype=None, out=None):
        seen.append((a.dtype, b.dtype))
        return mm(a, b, out=out) if out_dtype is None else mm(a.to(out_dtype), b.to(out_dtype))

    def more(c, a, b, *, out_dtype):
        return one(a, b, out_dtype=out_dtype) + c

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(kernels, "THERE", False)
    monkeypatch.setattr(torch, "mm", one)
    monkeypatch.setattr(torch, "addmm", more)
    return seen


def numbers(*shape, dtype=F32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_halves():
    """1 + 2^-9 + 2^-17 is 1 in bf16, which leaves 2^-9 + 2^-17, of which bf16 keeps 2^-9."""
    high, low = halves(torch.tensor([1 + 2**-9 + 2**-17, -3.0]))
    assert (high.tolist(), low.tolist()) == ([1.0, -3.0], [2**-9, 0.0])
    assert (high.dtype, low.dtype) == (BF16, BF16)
    x = numbers(10_000)
    high, low = halves(x)
    assert ((high.double() + low.double() - x).abs() <= 2**-17 * x.abs()).all()


@pytest.mark.parametrize("dtypes", [(F32, BF16), (BF16, F32)])
def test_a_product_keeps_16_bits(dtypes, products):
    a, b = numbers(9, 70, dtype=dtypes[0]), numbers(70, 5, dtype=dtypes[1], seed=1)
    found = product(a, b, F32)
    assert products == [(BF16, BF16)] * 2 and found.dtype == F32
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert ((found - exact).abs() <= 2**-16 * size).all()
    one_half = a.to(BF16).double() @ b.to(BF16).double()
    assert (found - exact).abs().max() < (one_half - exact).abs().max() / 50


@pytest.mark.parametrize("dtypes", [(F32, F32), (torch.float16, F32), (torch.float64, BF16)])
def test_other_products_are_of_copies(dtypes, products):
    """Float16 lacks the range: small gradients would be lost in halves."""
    a, b = numbers(4, 6, dtype=dtypes[0]), numbers(6, 3, dtype=dtypes[1], seed=1)
    wide = torch.promote_types(*dtypes)
    assert torch.equal(product(a, b, wide), a.to(wide) @ b.to(wide))
    assert not products


@pytest.mark.parametrize("by_gram", [False, True])
def test_gradients_of_a_whole_recall(by_gram, products, monkeypatch):
    """As near to float64 as bf16 can be, with K^T K and keys that are fetched, and without."""
    for table in (shard.MIX_ALL, shard.MULTIPLY_ALL):
        monkeypatch.setitem(table, "cpu", 1 if by_gram else 100)
        monkeypatch.setitem(table, "cuda", 0 if by_gram else 100)
    x, keys, values = given = [
        numbers(n, d, dtype=BF16, seed=i) for i, (n, d) in enumerate([(7, 6), (40, 6), (40, 5)])
    ]
    upstream = numbers(7, 5, dtype=BF16, seed=3)
    exact = [tensor.double().requires_grad_() for tensor in given]
    oracle.recall(*exact, top_k=4, temperature=0.5).backward(upstream.double())

    bank = Bank([(6, 5)], AtomGroup(), like=x)
    bank.grow([(keys[:36], values[:36])])
    place = Resident(bank.group)
    assert (place.grams(bank, (0,), 4) is not None) == by_gram
    mine = [tensor.clone().requires_grad_() for tensor in (x, keys[36:], values[36:])]
    routing = Routing(top_k=4, temperature=0.5)
    (found,) = recall_together(bank, place, routing, *([tensor] for tensor in mine))
    del products[:]
    found.backward(upstream)
    assert len(products) >= 4 and not any(F32 in pair for pair in products)
    expected = [exact[0].grad, exact[1].grad[36:], exact[2].grad[36:]]
    for ours, right in zip(mine, expected, strict=True):
        near = {"rtol": 2**-6, "atol": 2**-6 * right.abs().max().item()}
        torch.testing.assert_close(ours.grad.double(), right, **near)
