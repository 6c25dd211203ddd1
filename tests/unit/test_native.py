"""Each operation in C++ against the torch code that it stands in for, and whole recalls."""

from __future__ import annotations

import pytest
import torch

from moram_dist.atoms import native, reference
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Resident
from moram_dist.atoms.recall import AT_ONCE, recall_together
from moram_dist.atoms.recall_call import RecallCall
from moram_dist.atoms.routing import Routing
from moram_dist.comm.collectives import AtomGroup
from tests.helpers import oracle

pytestmark = pytest.mark.skipif(not native.load(), reason="no compiler or no ninja")

DTYPES = [torch.float32, torch.float64]


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def often_equal(*shape, dtype):
    numbers = draw(*shape, dtype=dtype).mul(2).round()
    return numbers * torch.where(draw(*shape, seed=1) > 0, 1, -1).to(dtype)  # 0 and -0 too


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", [draw, often_equal])
@pytest.mark.parametrize(
    ("num_atoms", "num_kept"), [(0, 3), (1, 1), (5, 8), (8, 8), (9, 8), (240, 16), (700, 100)]
)
def test_route(num_atoms, num_kept, numbers, dtype):
    score_TN = numbers(7, num_atoms, dtype=dtype)
    where = {"shard": 1, "num_shards": 3, "num_atoms": 3 * num_atoms}
    found = native.route(score_TN, num_kept, **where)
    expected = reference.route(score_TN, num_kept, **where)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 15, 16, 17])
@pytest.mark.parametrize("num_atoms", [0, 1, 4, 7, 90])
@pytest.mark.parametrize("width", [5, 16, 100])
def test_scores(width, num_atoms, num_tokens):
    """Of tokens and keys that are parts of larger tensors, into a part of one."""
    x, keys = draw(num_tokens, 2 * width)[:, width:], draw(num_atoms + 2, width, seed=1)[2:]
    out = torch.full((num_tokens + 2, num_atoms), 7.0)
    native.score(x, keys, out[1:-1])
    assert (out[0] == 7).all() and (out[-1] == 7).all()
    torch.testing.assert_close(
        out[1:-1].double(), x.double() @ keys.double().T, rtol=1e-6, atol=1e-7 * width
    )
    in_double = torch.empty(num_tokens, num_atoms, dtype=torch.float64)
    native.score(x.double(), keys.double(), in_double)
    torch.testing.assert_close(in_double, x.double() @ keys.double().T)


@pytest.mark.parametrize("width", [5, 16, 100])
def test_a_score_depends_on_its_token_and_key_alone(width):
    """To the bit, for few tokens, whatever tile it is in; also with a NaN beside it."""
    x, keys = draw(16, width), draw(23, width, seed=1)
    x[3, 2], keys[5, 1] = torch.nan, torch.inf
    expected = native.products(x, torch.arange(23).int().expand(16, -1), None, keys, x.dtype)
    few = torch.ops.moram.few_tokens()
    for tokens in (slice(0, few), slice(3, 3 + min(few, 5)), slice(6, 7)):
        for atoms in (slice(0, 23), slice(4, 23), slice(9, 10)):
            found = torch.empty_like(expected[tokens, atoms])
            native.score(x[tokens], keys[atoms], found)
            same = torch.equal(found.nan_to_num(), expected[tokens, atoms].nan_to_num())
            assert same and torch.equal(found.isnan(), expected[tokens, atoms].isnan())


@pytest.mark.parametrize("num_tokens", [2, 40])
def test_scores_that_do_not_fit(num_tokens):
    x, keys = draw(num_tokens, 8), draw(9, 8, seed=1)
    for wrong in (
        (x, draw(9, 7), torch.empty(num_tokens, 9)),
        (x, keys, torch.empty(num_tokens, 8)),
        (x, keys, torch.empty(num_tokens + 1, 9)),
        (x, keys, torch.empty(9, num_tokens).T),
    ):
        with pytest.raises(RuntimeError, match="keys"):
            native.score(*wrong)


@pytest.mark.parametrize("num_kept", [4, 65])
def test_route_of_numbers_that_are_not_finite(num_kept):
    score_TN = draw(3, 90)
    score_TN[1, :40] = torch.nan
    score_TN[2, [3, 70]] = torch.tensor([torch.inf, -torch.inf])
    squares, _, index = native.route(score_TN, num_kept, num_atoms=90)
    assert squares.isnan().flatten().tolist() == [False, True, False]
    assert ((index >= 0) & (index < 90)).all() and (index.diff(dim=-1) > 0).all()
    assert 3 in index[2] and 70 not in index[2]
    if num_kept == 4:
        assert (index[1] >= 40).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_weights_and_their_gradient(threshold, dtype):
    score_TK, u_TK = draw(300, 16, dtype=dtype), draw(300, 16, seed=1, dtype=dtype)
    score_TK[1] = 0
    norm_T1 = native.norms((score_TK * 1.5).square().sum(-1, keepdim=True))
    assert norm_T1[1] == torch.inf
    torch.testing.assert_close(norm_T1, reference.norms(norm_T1.square()))
    found = native.weigh(score_TK, norm_T1, 0.1, threshold)
    expected = reference.weigh(score_TK, norm_T1, 0.1, threshold)
    torch.testing.assert_close(found, expected)
    assert (expected[2] == 0).sum() > (20 if threshold else 0)
    sums = (score_TK, expected[0], expected[2], u_TK)
    totals_T2 = native.sums(*sums)
    torch.testing.assert_close(totals_T2, reference.sums(*sums))
    given = (score_TK, norm_T1, *expected, u_TK, totals_T2, 0.1)
    torch.testing.assert_close(native.score_gradient(*given), reference.score_gradient(*given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("some_elsewhere", [False, True])
def test_add(some_elsewhere, dtype):
    row_TK = torch.stack([torch.randperm(20)[:5] for _ in range(9)]).int()
    here_TK = draw(9, 5, seed=2) > 0 if some_elsewhere else None
    number_TK, found = draw(9, 5), draw(9, 20, seed=1, dtype=dtype)
    expected = found.clone()
    native.add(row_TK, here_TK, number_TK, found)
    reference.add(row_TK, here_TK, number_TK, expected)
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError, match="contiguous"):
        native.add(row_TK, here_TK, number_TK, draw(20, 9).T)


@pytest.mark.parametrize("outputs", [(12, 12, 12), (12, 5, 7)])
@pytest.mark.parametrize("num_atoms", [1, 7, 240])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("members", [(0, 1, 2), (1, 2), (2,)])
def test_a_recall_at_once_is_the_formula(members, threshold, num_atoms, outputs):
    """Of some linears of a bank with room behind its atoms; the first tasks' atoms too."""
    keys = [draw(num_atoms, 10, seed=i, dtype=torch.float64) for i in range(3)]
    values = [draw(num_atoms, e, seed=5 + i, dtype=torch.float64) for i, e in enumerate(outputs)]
    bank = Bank([(10, e) for e in outputs], AtomGroup(), like=keys[0], num_active=4)
    bank.grow(list(zip(keys, values, strict=True)))
    x = draw(2, 3, 10, seed=9, dtype=torch.float64)
    x[0, 0] = 0
    asked = {"top_k": 6, "temperature": 0.3, "threshold": threshold}
    for asked_atoms in {num_atoms, -(-num_atoms // 2)}:
        with torch.no_grad():
            found = recall_together(
                bank,
                Resident(bank.group),
                Routing(**asked),
                [x] * len(members),
                members=members,
                num_frozen=asked_atoms,
            )
        for y, i in zip(found, members, strict=True):
            expected = oracle.recall(x, keys[i][:asked_atoms], values[i][:asked_atoms], **asked)
            torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("num_frozen", [0, 12, 44])
@pytest.mark.parametrize("top_k", [2, 8, 16])  # of 4 to 48 atoms: all, most or few of them
@pytest.mark.parametrize("num_linears", [1, 3])
def test_a_recall_and_its_gradients_at_once_are_those_of_steps(
    num_linears, top_k, num_frozen, threshold, dtype, monkeypatch
):
    """To the bit; also where an output is not used, scores are 0, and inputs want no gradient."""
    linears = range(num_linears)
    bank = Bank([(48, 32)] * num_linears, AtomGroup(), like=draw(1, dtype=dtype), num_active=4)
    bank.grow([(draw(num_frozen, 48, seed=i), draw(num_frozen, 32, seed=9 + i)) for i in linears])
    x = draw(90, 48, seed=20, dtype=dtype)
    x[7] = 0
    active = [
        [draw(4, width, seed=seed + i, dtype=dtype).requires_grad_() for i in linears]
        for width, seed in ((48, 30), (32, 40))
    ]
    routing = Routing(top_k=top_k, temperature=0.3, threshold=threshold)
    seen, gradients = [], native.recall_gradients
    monkeypatch.setattr(
        native, "recall_gradients", lambda *a, **k: seen.append(1) or gradients(*a, **k)
    )

    def ask(wants):
        tokens = x.clone().requires_grad_(wants)
        where = (bank, Resident(bank.group), routing, [tokens] * num_linears)
        found = recall_together(*where, *active, linears)
        used = found[:-1] or found
        wanted = [*([tokens] if wants else []), *active[0], *active[1]]
        loss = sum((y * draw(90, 32, seed=50, dtype=dtype)).sum() for y in used)
        return [*found, *torch.autograd.grad(loss, wanted)]

    at_once = [ask(True), ask(False)]
    assert len(seen) == 2
    monkeypatch.setattr(RecallCall, "is_one_operation", lambda *_, **__: False)
    for found, expected in zip(at_once, [ask(True), ask(False)], strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert len(seen) == 2


def test_when_one_operation_answers(monkeypatch):
    """Few tokens, no gradients, no active atoms, one input."""
    calls, answers = [], native.answers
    monkeypatch.setattr(native, "answers", lambda *a, **k: calls.append(1) or answers(*a, **k))
    bank = Bank([(8, 8)] * 2, AtomGroup(), like=torch.zeros(1))
    bank.grow([(draw(20, 8), draw(20, 8))] * 2)
    routing = Routing(top_k=4, temperature=0.3)

    def ask(inputs, active=()):
        more = [[active] * len(inputs)] * 2 if len(active) else [(), ()]
        where = (bank, Resident(bank.group), routing, inputs)
        return recall_together(*where, *more, range(len(inputs)))

    few, many = draw(AT_ONCE, 8), draw(AT_ONCE + 1, 8)
    with torch.no_grad():
        at_once = ask([few, few])
        assert calls == [1]
        ask([many, many])
        ask([few, few.clone()])
        ask([few, few], draw(3, 8))
        bank.double()
        ask([few.double()] * 2)
        assert calls == [1, 1]  # after the bank has moved to another dtype
    assert calls == [1, 1]
    bank.float()
    in_torch = ask([few, few])
    assert calls == [1, 1]
    torch.testing.assert_close(at_once, in_torch)


def test_a_machine_without_a_compiler_computes_in_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not native.load.__wrapped__()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("some_elsewhere", [False, True])
@pytest.mark.parametrize("width", [5, 16, 100])
def test_rows(width, some_elsewhere, dtype):
    row_TK = torch.stack([torch.randperm(20)[:5] for _ in range(9)]).int()
    here_TK = draw(9, 5, seed=2) > 0 if some_elsewhere else None
    strength_TK, rows_NF = draw(9, 5, dtype=dtype), draw(20, width, seed=1, dtype=dtype)
    found = native.mix(row_TK, here_TK, strength_TK, rows_NF, rows_NF.dtype)
    torch.testing.assert_close(
        found, reference.mix(row_TK, here_TK, strength_TK, rows_NF, rows_NF.dtype)
    )
    tokens_TF = draw(9, width, seed=3, dtype=dtype)
    given = (tokens_TF, row_TK, here_TK, rows_NF, dtype)
    torch.testing.assert_close(native.products(*given), reference.products(*given))


@pytest.mark.parametrize("num_linears", [1, 3])
@pytest.mark.parametrize("num_frozen", [0, 4, 40])
@pytest.mark.parametrize("top_k", [2, 8, 16])
@pytest.mark.parametrize("num_tokens", [1, 24])
def test_freezing_changes_no_bit(num_tokens, top_k, num_frozen, num_linears):
    """Nor does a smaller memory differ from a prefix of a larger one."""
    keys = [draw(num_frozen + 4, 32, seed=i) for i in range(num_linears)]
    values = [draw(num_frozen + 4, 32, seed=9 + i) for i in range(num_linears)]
    x = draw(num_tokens, 32, seed=20)
    routing = Routing(top_k=top_k, temperature=0.05, threshold=0.1)

    def bank(first):
        found = Bank([(32, 32)] * num_linears, AtomGroup(), like=x, num_active=4)
        found.grow([(k[:first], v[:first]) for k, v in zip(keys, values, strict=True)])
        return found

    def ask(bank, *active, **of):
        inputs, members = [x] * num_linears, range(num_linears)
        return recall_together(
            bank, Resident(bank.group), routing, inputs, *active, members=members, **of
        )

    small, large = bank(num_frozen), bank(num_frozen + 4)
    active = [[t[num_frozen:] for t in tensors] for tensors in (keys, values)]
    with torch.no_grad():
        assert all(map(torch.equal, ask(small, *active), ask(large)))
        if num_frozen:
            prefix = ask(large, num_frozen=num_frozen)
            assert all(map(torch.equal, ask(small), prefix))
