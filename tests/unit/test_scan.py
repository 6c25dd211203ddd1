"""The scan of very many atoms: its bounds, who is certified, who is not, and that all are right."""

from __future__ import annotations

import pytest
import torch

from moram_dist.atoms import native, placement, recall_call, scan
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Gathered, Resident
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.comm.collectives import AtomGroup
from tests.helpers import oracle


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scanned(x_TD, key_ND, num_kept):
    """What the scan finds: candidates, and which tokens were certified."""
    precise = torch.promote_types(key_ND.dtype, torch.float32)
    image = scan.image(key_ND, key_ND.to(precise).T @ key_ND.to(precise))
    return scan.scan(x_TD, image, key_ND, num_kept=num_kept)


def assert_right(found, x_TD, key_ND, num_kept):
    """Sets and scores are float64's where its gap at the k-th place exceeds 1e-6 of the norm."""
    score_TN = x_TD.double() @ key_ND.double().T
    norm_T1 = torch.linalg.vector_norm(score_TN, dim=-1, keepdim=True)
    order_TN = score_TN.sort(dim=-1, descending=True, stable=True).indices
    expected_TK = order_TN[:, :num_kept].sort(-1).values
    sorted_TN = score_TN.gather(1, order_TN)
    clear_T = (sorted_TN[:, num_kept - 1] - sorted_TN[:, num_kept]) > 1e-6 * norm_T1[:, 0]
    assert torch.equal(found.index_TC[clear_T].long(), expected_TK[clear_T])
    scale = x_TD.double().norm(dim=-1, keepdim=True) * key_ND.double().norm(dim=-1).max()
    error_TK = found.score_TC.double() - score_TN.gather(1, found.index_TC.long())
    assert (error_TK.abs() <= 1e-6 * scale).all()
    torch.testing.assert_close(found.squares_T1.double().sqrt(), norm_T1, rtol=3e-6, atol=0)
    return clear_T


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("kind", ["random", "all of one sign", "halfway between bf16 numbers"])
def test_no_score_exceeds_its_bound(kind, scale):
    """Of one sign and halfway, what x and a key lose by rounding adds up as far as it can."""
    x_TD, key_ND = draw(30, 96, seed=1), draw(500, 96, seed=2)
    if kind != "random":
        x_TD, key_ND = x_TD.abs(), key_ND.abs()
    if kind == "halfway between bf16 numbers":
        x_TD, key_ND = torch.full_like(x_TD, 1 + 2.0**-8 - 2.0**-20), torch.full_like(key_ND, 1.0)
    x_TD = x_TD * scale
    bound_TN = scan.bounds(x_TD, scan.image(key_ND, key_ND.T @ key_ND))
    bound_TN = scan.rounded_up(bound_TN).double()
    score_TN = x_TD.double() @ key_ND.double().T
    assert (score_TN <= bound_TN).all() and (x_TD @ key_ND.T <= bound_TN).all()
    longest_TN = x_TD.double().norm(dim=-1, keepdim=True) * key_ND.double().norm(dim=-1)
    if scale > 1e-20:
        assert (bound_TN - score_TN <= 0.02 * longest_TN).all()  # so that it is of use


@pytest.mark.parametrize("num_kept", [1, 4, 16])
def test_random_keys_are_certified(num_kept):
    x_TD, key_ND = draw(100, 128, seed=1), draw(2000, 128, seed=2)
    found, certified_T = scanned(x_TD, key_ND, num_kept)
    assert certified_T.all()
    assert assert_right(found, x_TD, key_ND, num_kept).float().mean() > 0.9
    again, _ = scanned(x_TD, key_ND, num_kept)
    assert all(map(torch.equal, found, again))


def test_scores_in_bf16_would_not_do():
    """At these sizes the order of bf16 scores is another for many tokens."""
    x_TD, key_ND = draw(100, 128, seed=1), draw(2000, 128, seed=2)
    found, _ = scanned(x_TD, key_ND, 16)
    low_TN = (x_TD.bfloat16() @ key_ND.bfloat16().T).float()
    other_TK = low_TN.topk(16).indices.sort(-1).values
    assert (other_TK != found.index_TC).any(-1).float().mean() > 0.1


def test_near_ties_are_not_certified():
    """More keys than candidates, all closer than bf16 can tell: full scores decide."""
    x_TD, key_ND = draw(40, 128, seed=1), draw(2000, 128, seed=2)
    x_TD[:20] = 0.1 * x_TD[:20] + draw(128, seed=3)
    key_ND[300:1200] = draw(128, seed=3) + 1e-2 * draw(900, 128, seed=4)
    found, certified_T = scanned(x_TD, key_ND, 4)
    assert not certified_T[:20].any() and certified_T[20:].any()
    assert assert_right(found, x_TD, key_ND, 4)[:20].float().mean() > 0.5
    assert ((found.index_TC[:20] >= 300) & (found.index_TC[:20] < 1200)).all()


def test_equal_keys():
    """Two that tie are both scored; of too many the tie is settled by full scores."""
    x_TD, key_ND = draw(2, 128, seed=1), draw(2000, 128, seed=2)
    x_TD[0], key_ND[[700, 300]] = draw(128, seed=3), draw(128, seed=3)
    x_TD[1], key_ND[500:600] = draw(128, seed=4), draw(128, seed=4)
    found, certified_T = scanned(x_TD, key_ND, 1)
    assert certified_T.tolist() == [True, False]
    assert found.index_TC.tolist() == [[300], [500]]


def test_one_giant_key():
    """It is far from bf16, but the bounds of the others stay as they are."""
    x_TD, key_ND = draw(100, 128, seed=1), draw(2000, 128, seed=2)
    key_ND[700] *= 8
    found, certified_T = scanned(x_TD, key_ND, 4)
    assert_right(found, x_TD, key_ND, 4)
    answered_T = (found.index_TC == 700).any(-1)
    assert answered_T.any() and not answered_T.all()
    assert certified_T.float().mean() > 0.9
    key_ND[700] *= 1000  # now most tokens are far from all keys, as lengths go
    found, certified_T = scanned(x_TD, key_ND, 4)
    assert_right(found, x_TD, key_ND, 4)


def test_zeros():
    x_TD, key_ND = draw(3, 128, seed=1), draw(2000, 128, seed=2)
    x_TD[1] = 0
    found, certified_T = scanned(x_TD, key_ND, 4)
    assert certified_T.tolist() == [True, False, True]
    assert found.index_TC[1].tolist() == [0, 1, 2, 3]
    assert found.squares_T1[1] == 0 and found.score_TC[1].eq(0).all()
    nothing, certified_T = scanned(x_TD, torch.zeros_like(key_ND), 4)
    assert not certified_T.any() and nothing.squares_T1.eq(0).all()
    assert nothing.index_TC.tolist() == [[0, 1, 2, 3]] * 3


def test_tokens_far_from_all_keys():
    """There x^T K^T K x is a small difference of large numbers, and full scores are taken."""
    basis_BD = draw(8, 128, seed=1)
    key_ND = draw(2000, 8, seed=2) @ basis_BD + 1e-4 * draw(2000, 128, seed=3)
    x_TD = draw(20, 128, seed=4)
    inside_TB = torch.linalg.lstsq(basis_BD.T.double(), x_TD.T.double()).solution.T
    x_TD[:10] -= (inside_TB.float() @ basis_BD)[:10]
    found, certified_T = scanned(x_TD, key_ND, 4)
    assert not certified_T[:10].any()
    norm_T = (x_TD.double() @ key_ND.double().T).norm(dim=-1)
    precise_T = found.squares_T1[:, 0].double().sqrt()
    print((precise_T / norm_T - 1)[:10])
    torch.testing.assert_close(precise_T, norm_T, rtol=1e-3, atol=0)  # x has lost digits
    gram_DD = key_ND.T @ key_ND
    from_gram_T = torch.einsum("td,de,te->t", x_TD, gram_DD, x_TD).abs().sqrt().double()
    assert ((from_gram_T - norm_T).abs() > 1e-2 * norm_T)[:10].any()  # so it was needed


@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 1e38])
def test_numbers_without_bound_are_not_certified(bad):
    x_TD, key_ND = draw(3, 128, seed=1), draw(2000, 128, seed=2)
    x_TD[1, 5] = bad
    found, certified_T = scanned(x_TD, key_ND, 4)
    assert certified_T.tolist() == [True, False, True]
    assert found.squares_T1[[0, 2]].isfinite().all()


def test_a_part_at_a_time(monkeypatch):
    """Memory is bounded by parts of the tokens; certified or not, they come out in order."""
    x_TD, key_ND = draw(50, 128, seed=1), draw(2000, 128, seed=2)
    x_TD[::3] = 0
    whole, certified_T = scanned(x_TD, key_ND, 4)
    monkeypatch.setattr(scan, "SCORES_AT_ONCE", 7 * 2000)
    parts, certified_in_parts_T = scanned(x_TD, key_ND, 4)
    assert torch.equal(certified_T, certified_in_parts_T)
    assert torch.equal(whole.index_TC, parts.index_TC)
    torch.testing.assert_close(whole.score_TC, parts.score_TC)


def test_bf16_keys():
    """Scores are of the stored keys, in float32."""
    x_TD, key_ND = draw(30, 128, seed=1), draw(2000, 128, seed=2, dtype=torch.bfloat16)
    found, certified_T = scanned(x_TD, key_ND, 4)
    assert certified_T.all()
    assert_right(found, x_TD, key_ND, 4)


D, E = 5, 4


@pytest.fixture
def used(monkeypatch):
    """The scan, on whatever machine; how many tokens it was asked for, and certified, by call."""
    calls = []

    def watched(x_TD, *args, **kwargs):
        found, certified_T = scan.scan(x_TD, *args, **kwargs)
        calls.append((len(x_TD), int(certified_T.sum())))
        return found, certified_T

    monkeypatch.setattr(placement, "supported", lambda device: True)
    monkeypatch.setattr(scan, "MANY_NUMBERS", 0)  # the tests' memories are small
    monkeypatch.setattr(recall_call, "scan", watched)
    return calls


def memory(num_frozen, num_active, num_tokens, dtype=torch.float64):
    """A bank and what else recall takes: x, active keys and values, all frozen and active."""
    keys, values = (draw(num_frozen + num_active, n, seed=n, dtype=dtype) for n in (D, E))
    bank = Bank([(D, E)], AtomGroup(), like=keys)
    bank.grow([(keys[:num_frozen], values[:num_frozen])])
    x = draw(num_tokens, D, seed=9, dtype=dtype).requires_grad_()
    active = [t[num_frozen:].clone().requires_grad_() for t in (keys, values)]
    return bank, x, active, (keys[:num_frozen], values[:num_frozen])


@pytest.mark.parametrize("num_active", [0, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("top_k", [1, 4, 99])
def test_recall_equals_the_formula(used, num_active, threshold, top_k):
    bank, x, (keys, values), frozen = memory(90, num_active, 6)
    with torch.no_grad():
        x[2] = 0
    routing = Routing(top_k=top_k, temperature=0.1, threshold=threshold)
    (found,) = recall_together(bank, Resident(bank.group), routing, [x], [keys], [values])
    whole = [torch.cat(pair) for pair in zip(frozen, (keys, values), strict=True)]
    expected = oracle.recall(x, *whole, top_k=top_k, temperature=0.1, threshold=threshold)
    assert used == [(6, 5)]  # all but the zero token
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = draw(6, E, seed=11, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(
            y, (x, keys, values), upstream, allow_unused=True, materialize_grads=True
        )
        for y in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradcheck(used):
    bank, x, active, _ = memory(40, 3, 3)
    routing = Routing(top_k=3, temperature=0.5)

    def answer(x, keys, values):
        return recall_together(bank, Resident(bank.group), routing, [x], [keys], [values])[0]

    assert torch.autograd.gradcheck(answer, (x, *active))
    assert used


def test_only_many_atoms_of_a_copy_are_scanned(used):
    few, many = memory(4 * D, 2, 3)[0], memory(4 * D + 1, 2, 3)[0]
    assert Resident(few.group).images(few, (0,)) is None
    assert len(Resident(many.group).images(many, (0,))) == 1
    assert Gathered(many.group).images(many, (0,)) is None


def test_few_numbers_and_few_tokens_are_not_scanned(used, monkeypatch):
    """Reading all keys is faster then; a scan would take up to 18 times as long."""
    with monkeypatch.context() as real:
        real.setattr(scan, "MANY_NUMBERS", 2**21)
        assert scan.pays(8193, 256, "cpu") and not scan.pays(8192, 256, "cpu")
        assert scan.pays(4097, 1024, "cpu") and not scan.pays(4096, 1024, "cpu")
        assert not scan.pays(2**20, 1024, "cuda")
    bank, x, _, _ = memory(90, 0, scan.SOME_TOKENS, torch.float32)
    routing = Routing(top_k=4, temperature=0.1)
    with torch.no_grad():
        several = recall_together(bank, Resident(bank.group), routing, [x])[0]
        assert len(used) == 1
        (each,) = recall_together(bank, Resident(bank.group), routing, [x[:-1]])
        assert len(used) == (1 if native.serve(x) else 2)
        torch.testing.assert_close(each, several[:-1], rtol=1e-5, atol=1e-6)
        monkeypatch.setattr(scan, "MANY_NUMBERS", 90 * D)
        assert Resident(bank.group).images(bank, (0,)) is None


def test_a_machine_without_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    bank = memory(90, 2, 3)[0]
    assert Resident(bank.group).images(bank, (0,)) is None


def test_freezing_changes_rounding_only(used):
    """And what a bank keeps for scans is renewed when it grows."""
    bank, x, (keys, values), _ = memory(90, 3, 20, torch.float32)
    routing = Routing(top_k=4, temperature=0.1)
    place = Resident(bank.group)
    (before,) = recall_together(bank, place, routing, [x], [keys], [values])
    bank.grow([(keys.detach(), values.detach())])
    (after,) = recall_together(bank, place, routing, [x], [keys[:0]], [values[:0]])
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert len(used) == 2
