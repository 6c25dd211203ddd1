"""Recall against its formula (``tests.helpers.oracle``): outputs, gradients, ties, precision."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from moram_dist.atoms import placement, recall, scan
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Resident
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.atoms.top_k import best
from moram_dist.comm.collectives import AtomGroup
from tests.helpers import oracle

D, E = 5, 4


def case(num_atoms, *leading, seed=0, dtype=torch.float64):
    """Random x, keys and values that want gradients; scores without ties."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return tuple(
        tensor.requires_grad_()
        for tensor in (random(*leading, D), random(num_atoms, D), random(num_atoms, E))
    )


def assert_equal_with_gradients(inputs, **routing):
    """Outputs and all three gradients of recall are the oracle's."""
    found, expected = recall(*inputs, **routing), oracle.recall(*inputs, **routing)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)
    gradients = [
        torch.autograd.grad(out, inputs, upstream, allow_unused=True, materialize_grads=True)
        if out.requires_grad
        else [torch.zeros_like(tensor) for tensor in inputs]
        for out in (found, expected)
    ]
    for name, ours, theirs in zip(("x", "keys", "values"), *gradients, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize(
    ("num_atoms", "top_k"), [(0, 3), (1, 1), (1, 3), (8, 1), (8, 3), (8, 8), (8, 9), (240, 16)]
)
def test_equals_the_formula(num_atoms, top_k, threshold):
    inputs = case(num_atoms, 3, seed=num_atoms)
    assert_equal_with_gradients(inputs, top_k=top_k, temperature=0.1, threshold=threshold)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 2), (0,), (2, 0)])
def test_leading_dimensions(leading):
    inputs = case(8, *leading)
    if 0 in leading:
        assert recall(*inputs, top_k=3, temperature=0.1).shape == (*leading, E)
    else:
        assert_equal_with_gradients(inputs, top_k=3, temperature=0.1)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("zero", ["one token", "one key", "all keys", "everything"])
def test_zeros_give_zeros(zero, threshold):
    x, keys, values = (tensor.detach().clone() for tensor in case(8, 3))
    if zero in ("one token", "everything"):
        x[1 if zero == "one token" else slice(None)] = 0
    if zero in ("one key", "all keys", "everything"):
        keys[2 if zero == "one key" else slice(None)] = 0
    inputs = tuple(tensor.requires_grad_() for tensor in (x, keys, values))
    assert_equal_with_gradients(inputs, top_k=3, temperature=0.1, threshold=threshold)
    if zero == "one token":
        assert recall(*inputs, top_k=3, temperature=0.1)[1].eq(0).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e3, 1e9])
def test_extreme_temperatures(temperature):
    """Cold: the best atom alone. Hot: the kept atoms shard alike. Neither overflows."""
    x, keys, values = (tensor.detach() for tensor in case(8, 5))
    found = recall(x, keys, values, top_k=3, temperature=temperature)
    scores = x @ keys.T
    best = scores.topk(1 if temperature < 1 else 3)
    shards = best.values / len(best.values[0])
    expected = torch.einsum("tk,tke->te", shards, values[best.indices])
    torch.testing.assert_close(found, expected, rtol=1e-2 if temperature > 1 else 1e-4, atol=1e-4)
    theirs = oracle.recall(x, keys, values, top_k=3, temperature=temperature)
    torch.testing.assert_close(found, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 6])
def test_ties_go_to_the_lower_index(top_k):
    """Integer data: scores of the first token are 3, 5, 3, 5, 3, -2 exactly."""
    keys = torch.tensor([[3.0, 1], [5, 0], [3, 2], [5, 1], [3, 0], [-2, 7]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
    winners = [[1, 3, 0, 2, 4, 5][:top_k], [5, 2, 0, 3, 1, 4][:top_k]]
    values = torch.eye(6, dtype=torch.float64)  # so that outputs tell the atoms apart
    found = recall(x, keys, values, top_k=top_k, temperature=1.0)
    for token, scores in enumerate(x @ keys.T):
        speaking = {i for i in winners[token] if scores[i] != 0}  # w_i p_i v_i is 0 where p_i is
        assert set(found[token].nonzero().flatten().tolist()) == speaking
    theirs = oracle.recall(x, keys, values, top_k=top_k, temperature=1.0)
    torch.testing.assert_close(found, theirs, rtol=1e-12, atol=1e-12)


def test_many_integer_ties():
    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(-1, 2, (40, 3), generator=generator).double()
    x = torch.randint(-2, 3, (30, 3), generator=generator).double()
    values = torch.eye(40, dtype=torch.float64)
    routing = {"top_k": 7, "temperature": 0.5}
    found, expected = recall(x, keys, values, **routing), oracle.recall(x, keys, values, **routing)
    assert torch.equal(found != 0, expected != 0)
    reverse = recall(x, keys.flip(0), values.flip(0), **routing)
    assert not torch.equal(reverse != 0, expected != 0)  # so the order among ties is tested


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_gradcheck(threshold):
    assert gradcheck(
        lambda *inputs: recall(*inputs, top_k=3, temperature=0.5, threshold=threshold),
        case(6, 2, 2),
    )


@pytest.mark.parametrize(("num_frozen", "num_active"), [(0, 3), (4, 0), (7, 3), (12, 3), (60, 3)])
def test_linears_that_are_asked_together(num_frozen, num_active, monkeypatch):
    """Each is the formula of its own: two see one input, a third a wider one, all other outputs.

    7 atoms are more than the narrow ones have inputs, 12 than the wide one, 60 are scanned.
    """
    torch.manual_seed(0)
    monkeypatch.setattr(placement, "supported", lambda device: True)
    monkeypatch.setattr(scan, "MANY_NUMBERS", 0)
    x, wide = case(num_active, 7, seed=1)[0], torch.randn(7, 9, dtype=torch.float64)
    inputs = [x, wide.requires_grad_(), x]
    shapes = [(5, 4), (9, 2), (5, 6)]
    bank = Bank(shapes, AtomGroup(), like=x)
    drawn = [
        tuple(torch.randn(num_frozen + num_active, n, dtype=torch.float64) for n in shape)
        for shape in shapes
    ]
    bank.grow([(k[:num_frozen], v[:num_frozen]) for k, v in drawn])
    active = [[t[num_frozen:].clone().requires_grad_() for t in pair] for pair in drawn]
    keys, values = zip(*active, strict=True)
    routing = Routing(top_k=4, temperature=0.1, threshold=0.2)
    place, members = Resident(bank.group), (0, 1, 2)
    assert (place.grams(bank, members, 4) is not None) == (num_frozen > 9)
    assert (place.images(bank, members) is not None) == (num_frozen > 4 * 9)
    found = recall_together(bank, place, routing, inputs, keys, values, members)
    expected = [
        oracle.recall(
            x,
            *(torch.cat([t[:num_frozen], new]) for t, new in zip(pair, both, strict=True)),
            top_k=4,
            temperature=0.1,
            threshold=0.2,
        )
        for x, pair, both in zip(inputs, drawn, active, strict=True)
    ]
    upstream = [torch.randn_like(y) for y in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    wanted = [x, wide, *keys, *values]
    gradients = [
        torch.autograd.grad(y, wanted, upstream, allow_unused=True, materialize_grads=True)
        for y in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_bfloat16_routes_in_float32():
    num_atoms = 64
    x, keys, _ = (tensor.detach() for tensor in case(num_atoms, 200, dtype=torch.bfloat16))
    values = torch.eye(num_atoms, dtype=torch.bfloat16)  # an output is one product, so no sum blurs
    routing = {"top_k": 4, "temperature": 0.05, "threshold": 0.1}
    found = recall(x, keys, values, **routing)
    precise = recall(x.float(), keys.float(), values.float(), **routing)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, precise.bfloat16())

    in_bfloat16 = (x @ keys.T).topk(4).indices.sort().values
    in_float32 = (x.float() @ keys.float().T).topk(4).indices.sort().values
    assert not torch.equal(in_bfloat16, in_float32)  # so bf16 scores would have been found out


def test_gradients_of_bfloat16_inputs():
    inputs = case(8, 3, dtype=torch.bfloat16)
    recall(*inputs, top_k=3, temperature=0.1).sum().backward()
    assert all(t.grad.dtype == torch.bfloat16 and t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 5), (8, 4), (8, 4)),
        ((3, 5), (8, 5), (7, 4)),
        ((3, 5), (5,), (8, 4)),
        ((5,), (8, 5), (8,)),
    ],
)
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"need x \(\.\.\., D\)"):
        recall(*(torch.ones(shape) for shape in shapes), top_k=1, temperature=1.0)


@pytest.mark.parametrize("routing", [{"top_k": 0}, {"top_k": -1}, {"temperature": 0.0}])
@pytest.mark.parametrize("num_atoms", [0, 8])
def test_bad_routing(routing, num_atoms):
    inputs = (torch.ones(3, D), torch.ones(num_atoms, D), torch.ones(num_atoms, E))
    with pytest.raises(ValueError, match="need top_k >= 1 and temperature > 0"):
        recall(*inputs, **({"top_k": 1, "temperature": 1.0} | routing))


@pytest.mark.parametrize(("num_atoms", "index_bytes"), [(16, 1), (600, 2)])
def test_what_is_kept_for_backward(num_atoms, index_bytes):
    """Beyond D atoms no score of a frozen one: some hundred bytes a token, however many atoms."""
    width, num_tokens, top_k = 16, 50, 4
    generator = torch.Generator().manual_seed(0)
    bank = Bank([(width, width)], AtomGroup(), like=torch.zeros(1))
    bank.grow([(torch.randn(num_atoms, width, generator=generator),) * 2])
    x = torch.randn(num_tokens, width, generator=generator).requires_grad_()
    active = [torch.randn(2, width, generator=generator).requires_grad_() for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        routing = Routing(top_k=top_k, temperature=0.1)
        recall_together(bank, Resident(bank.group), routing, [x], active[:1], active[1:])
    own = {t.data_ptr() for t in (x, *active)}
    many = num_atoms > width
    scores = num_tokens * 4 * (2 + top_k if many else 2 + num_atoms)  # the chosen ones' or all
    chosen = num_tokens * (top_k * index_bytes + 4)  # and the norm
    assert sum(t.nbytes for t in kept if t.data_ptr() not in own) == scores + chosen


@pytest.mark.parametrize("num_atoms", [63, 64, 128, 191, 192, 500])
@pytest.mark.parametrize("tied", [False, True])
def test_best_of_many(num_atoms, tied):
    """At sizes where torch goes other ways; ties between distant places as well."""
    generator = torch.Generator().manual_seed(num_atoms)
    scores = torch.randn(40, num_atoms, generator=generator)
    if tied:
        scores = scores.mul(4).round()
    expected = torch.stack(
        [row.sort(descending=True, stable=True).indices[:2].sort().values for row in scores]
    )
    assert torch.equal(best(scores, 2), expected)
