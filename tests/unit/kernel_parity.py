"""Each Triton kernel against the torch code that it stands in for.

In Triton's interpreter: run by test_kernels.py in a process of its own, with
``-p tests.helpers.kernels_on_cpu``. On a GPU: tests/gpu/test_gpu_kernels.py.

The interpreter cuts float32 to bfloat16 instead of rounding it, so such outputs may be one step of
bfloat16 off there; test_kernels.py sees that the GPU's instruction rounds.

Shape letters: T tokens, N atoms or rows, F features, C candidates, K atoms kept per token.
"""

from __future__ import annotations

import os

import pytest
import torch

from moram_dist import kernels
from moram_dist.atoms import native, recall, routing, shard
from moram_dist.atoms.kernels import launch
from moram_dist.atoms.routing import Routing
from moram_dist.atoms.shard import Chosen
from tests.helpers import oracle
from tests.unit.test_recall import case

SIZES = [(0, 3), (1, 1), (5, 8), (8, 8), (9, 8), (100, 16), (240, 8), (1000, 64), (4096, 16)]
DTYPES = [torch.float32, torch.float64]
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.fixture(autouse=True)
def few_rows_are_few(monkeypatch):
    """So that small cases fetch rows, as only large ones do on a GPU."""
    monkeypatch.setitem(shard.MIX_ALL, DEVICE, 2)
    monkeypatch.setitem(shard.MULTIPLY_ALL, DEVICE, 5)


@pytest.fixture
def in_torch(monkeypatch):
    """Calls a function with the kernels out of the way."""

    def call(function, *arguments, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "serve", lambda tensor: False)
            patch.setattr(native, "serve", lambda tensor: False)
            return function(*arguments, **settings)

    return call


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that have run, in their order."""
    names, run = [], kernels.launch

    def record(kernel, *arguments, **constants):
        names.append(kernel.__name__)
        run(kernel, *arguments, **constants)

    monkeypatch.setattr(kernels, "launch", record)
    return names


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float32, seed=0):
    numbers = torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
    return numbers.to(DEVICE, dtype)


def few_numbers(*shape, dtype=torch.float32, seed=0):
    """Scores that are often equal, some of them 0 and -0."""
    whole = torch.randint(-3, 4, shape, generator=generator(seed)).to(DEVICE, dtype)
    return whole * torch.where(random(*shape, seed=seed + 1) > 0, 1, -1)


def best_by_hand(scores, num_kept):
    """By the rule: score descending, lower index first; then ascending."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(order[:num_kept])


@pytest.mark.parametrize("numbers", [few_numbers, random])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_atoms", "num_kept"), SIZES)
def test_candidates(num_atoms, num_kept, dtype, numbers, in_torch, launched):
    score_TN = numbers(3, num_atoms, dtype=dtype)
    of = {"num_kept": num_kept, "shard": 1, "num_shards": 3, "num_atoms": 3 * num_atoms}
    found = routing.candidates(score_TN, **of)
    assert launched == ["route"]
    expected = in_torch(routing.candidates, score_TN, **of)
    assert torch.equal(found.index_TC, expected.index_TC)
    assert torch.equal(found.score_TC, expected.score_TC)
    assert found.index_TC.dtype == torch.int32
    torch.testing.assert_close(found.squares_T1, expected.squares_T1)
    for scores, index_C in zip(score_TN.tolist(), found.index_TC.tolist(), strict=True):
        kept = [3 * i + 1 for i in best_by_hand(scores, num_kept)]
        assert index_C == kept + [3 * num_atoms] * (num_kept - len(kept))


def test_ties_at_the_edge_of_a_block_and_in_the_last_places(monkeypatch, in_torch):
    """Blocks of 32: seven of them, the last one with fewer atoms than are kept."""
    monkeypatch.setattr(launch, "BLOCK", 32)
    of = {"num_kept": 4, "shard": 0, "num_shards": 1, "num_atoms": 194}
    score_TN = few_numbers(6, 194)  # at most 3
    score_TN[0] = 1.0
    score_TN[1, 30:] = 4.0
    score_TN[2, [31, 64]] = 4.0
    score_TN[2, 192:] = 5.0
    found = routing.candidates(score_TN, **of)
    assert found.index_TC[:3].tolist() == [[0, 1, 2, 3], [30, 31, 32, 33], [31, 64, 192, 193]]
    expected = in_torch(routing.candidates, score_TN, **of)
    assert torch.equal(found.index_TC, expected.index_TC)
    assert torch.equal(found.score_TC, expected.score_TC)
    torch.testing.assert_close(found.squares_T1, expected.squares_T1)


def test_more_atoms_than_a_block(in_torch):
    score_TN = random(2, 9001)
    of = {"num_kept": 16, "shard": 0, "num_shards": 1, "num_atoms": 9001}
    found, expected = (
        routing.candidates(score_TN, **of),
        in_torch(routing.candidates, score_TN, **of),
    )
    assert torch.equal(found.index_TC, expected.index_TC)
    torch.testing.assert_close(found.squares_T1, expected.squares_T1)


def test_more_than_blocks_can_hold_is_left_to_torch(monkeypatch, launched, in_torch):
    assert launch.routes(4096 * 256, 16)
    assert not launch.routes(4096 * 256 + 1, 16)
    assert launch.routes(4096, 64)
    monkeypatch.setattr(launch, "BLOCK", 32)
    score_TN = few_numbers(2, 300)
    of = {"num_kept": 4, "shard": 0, "num_shards": 1, "num_atoms": 300}
    found = routing.candidates(score_TN, **of)
    assert not launched
    assert torch.equal(found.index_TC, in_torch(routing.candidates, score_TN, **of).index_TC)


@pytest.mark.parametrize("block", [16, 4096])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("nans", [1, 5, 40])
def test_nan_gives_valid_atoms(nans, sign, block, monkeypatch):
    """Whatever its sign bit, which would put it above or below all numbers."""
    monkeypatch.setattr(launch, "BLOCK", block)
    score_TN = random(3, 40)
    score_TN[1, :nans] = torch.copysign(torch.tensor(torch.nan), torch.tensor(float(sign)))
    clean = routing.candidates(random(3, 40), num_kept=4, shard=0, num_shards=1, num_atoms=40)
    found = routing.candidates(score_TN, num_kept=4, shard=0, num_shards=1, num_atoms=40)
    index_TC = found.index_TC
    assert torch.equal(index_TC[[0, 2]], clean.index_TC[[0, 2]])
    assert ((index_TC >= 0) & (index_TC < 40)).all()
    assert (index_TC.diff(dim=-1) > 0).all()
    assert found.squares_T1.isnan().flatten().tolist() == [False, True, False]
    mix = routing.mixture([found], num_atoms=40, routing=Routing(top_k=4, temperature=0.1))
    assert mix.weight_TK.isnan().any(-1).tolist() == [False, True, False]


def test_infinite_scores_come_first_and_last():
    score_TN = torch.tensor([[-torch.inf, 1.0, torch.inf, -2.0, -torch.inf, 0.0]], device=DEVICE)
    for num_kept, expected in ((1, [2]), (2, [1, 2]), (4, [1, 2, 3, 5]), (5, [0, 1, 2, 3, 5])):
        found = routing.candidates(score_TN, num_kept=num_kept, shard=0, num_shards=1, num_atoms=6)
        assert found.index_TC.tolist() == [expected]


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_zero_ties_with_zero(dtype):
    score_TN = torch.tensor([[-1.0, -0.0, 0.0, -0.0, 0.0]], dtype=dtype, device=DEVICE)
    for num_kept, expected in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        found = routing.candidates(score_TN, num_kept=num_kept, shard=0, num_shards=1, num_atoms=5)
        assert found.index_TC.tolist() == [expected]


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5])
def test_shards_make_the_mixture_of_the_whole(num_shards, in_torch, launched):
    """Of 11 atoms with many ties, 4 kept: shards of 5 have fewer than are kept."""
    score_TN = few_numbers(12, 11, seed=3)
    asked = Routing(top_k=4, temperature=0.3, threshold=0.1)
    offered = [
        routing.candidates(
            score_TN[:, number::num_shards].contiguous(),
            num_kept=4,
            shard=number,
            num_shards=num_shards,
            num_atoms=11,
        )
        for number in range(num_shards)
    ]
    found = routing.mixture(offered, num_atoms=11, routing=asked)
    assert launched == ["route"] * (num_shards + (num_shards > 1)) + ["weigh"]
    whole = in_torch(routing.candidates, score_TN, num_kept=4, shard=0, num_shards=1, num_atoms=11)
    expected = in_torch(routing.mixture, [whole], num_atoms=11, routing=asked)
    assert torch.equal(found.index_TK, expected.index_TK)
    assert torch.equal(found.score_TK, expected.score_TK)
    torch.testing.assert_close(found, expected)


def choice(num_tokens, num_rows, num_chosen, *, shared):
    """Distinct rows, ascending; where the memory is shared, half of them elsewhere."""
    scores = torch.rand(num_tokens, num_rows, generator=generator(2))
    row_TK = scores.topk(num_chosen).indices.sort().values.int()
    here_TK = torch.rand(num_tokens, num_chosen, generator=generator(3)) < 0.5
    return Chosen(row_TK.to(DEVICE), here_TK.to(DEVICE) if shared else None)


ROWS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", ROWS)
@pytest.mark.parametrize(
    ("num_rows", "num_chosen", "num_features"), [(9, 1, 5), (80, 8, 100), (100, 16, 1030)]
)
def test_rows(num_rows, num_chosen, num_features, dtype, shared, in_torch, launched):
    """Two linears, against float64, by hand; torch's way agrees where it rounds no strengths."""
    precise = torch.promote_types(dtype, torch.float32)
    chosen = choice(2 * 4, num_rows, num_chosen, shared=shared)
    rows = [random(num_rows, num_features, dtype=dtype, seed=s) for s in (0, 3)]
    tokens = [random(4, num_features, dtype=dtype, seed=s) for s in (1, 4)]
    strength_BK = random(2 * 4, num_chosen, dtype=precise, seed=2)
    mixed = torch.cat(shard.mixed(chosen, strength_BK, rows, dtype))
    found = shard.products(tokens, rows, chosen, precise)
    assert launched == ["mix"] * 2 + ["products"] * 2
    assert (mixed.dtype, found.dtype) == (dtype, precise)

    of_linear = [4 * [0] + 4 * [1]]
    picked_BKF = torch.stack(rows).double()[torch.tensor(of_linear).T, chosen.row_TK.long()]
    here_BK = torch.ones_like(strength_BK) if chosen.here_TK is None else chosen.here_TK
    expected = torch.einsum("tk,tkf->tf", strength_BK.double() * here_BK, picked_BKF)
    step = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
    near = {"rtol": step.get(dtype, 1e-5), "atol": 1e-5}
    torch.testing.assert_close(mixed.double(), expected, **near)
    expected = torch.einsum("tf,tkf->tk", torch.cat(tokens).double(), picked_BKF) * here_BK
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    if precise == dtype:
        in_torch_BF = torch.cat(in_torch(shard.mixed, chosen, strength_BK, rows, dtype))
        torch.testing.assert_close(mixed, in_torch_BF, rtol=1e-5, atol=1e-5)
        in_torch_BK = in_torch(shard.products, tokens, rows, chosen, precise)
        torch.testing.assert_close(found, in_torch_BK, rtol=1e-5, atol=1e-4)


def test_rows_of_other_shards_are_not_read():
    chosen = choice(1, 80, 8, shared=True)
    assert chosen.here_TK is not None and 0 < chosen.here_TK.sum() < 8
    rows_NF = random(80, 30)
    rows_NF[chosen.row_TK[~chosen.here_TK].long()] = torch.nan
    (mixed,) = shard.mixed(chosen, random(1, 8), [rows_NF], rows_NF.dtype)
    assert mixed.isfinite().all()
    assert shard.products([random(1, 30)], [rows_NF], chosen, torch.float32).isfinite().all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("num_rows", "num_chosen"), [(5, 5), (30, 16), (300, 64)])
def test_few_rows(num_rows, num_chosen, dtype, shared, in_torch, launched):
    """Where a product with all rows is faster, kernels spread numbers and pick products."""
    chosen = choice(70, num_rows, num_chosen, shared=shared)
    rows = [random(num_rows, 12, dtype=dtype, seed=s) for s in (0, 3)]
    tokens = [random(35, 12, dtype=dtype, seed=s) for s in (1, 4)]
    given = (tokens, rows, chosen, dtype)
    torch.testing.assert_close(shard.products(*given), in_torch(shard.products, *given))
    number_TK = random(70, num_chosen, dtype=dtype, seed=2)
    spread = (chosen, number_TK, num_rows, dtype)
    assert torch.equal(shard.spread(*spread), in_torch(shard.spread, *spread))
    assert launched == ["pick", "add"]
    to_TN = random(70, num_rows, dtype=dtype, seed=3)
    expected = in_torch(shard.add, chosen, number_TK, to_TN.clone())
    assert torch.equal(shard.add(chosen, number_TK, to_TN), expected)
    with pytest.raises(RuntimeError, match="contiguous"):
        shard.add(chosen, number_TK, random(num_rows, 70, dtype=dtype).T)


def asked(num_atoms, num_tokens):
    """x, keys and values that want gradients."""
    inputs = case(num_atoms, num_tokens, seed=num_atoms)
    return tuple(tensor.detach().to(DEVICE).requires_grad_() for tensor in inputs)


def test_a_whole_recall_runs_every_kernel(launched):
    """With few rows for each that is chosen, and with many."""
    for num_atoms in (8, 240):
        inputs = asked(num_atoms, 3)
        found = recall(*inputs, top_k=4, temperature=0.1, threshold=0.1)
        expected = oracle.recall(*inputs, top_k=4, temperature=0.1, threshold=0.1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        found.sum().backward()
    every = {"choose", "weigh", "sums", "score_gradient", "mix", "products", "pick", "add"}
    assert set(launched) == every


def test_no_tokens_launch_nothing(monkeypatch):
    """A GPU refuses a grid of none."""
    monkeypatch.setattr(launch.routing, "choose", "not a kernel")
    assert recall(*asked(240, 0), top_k=4, temperature=0.1).shape == (0, 4)
    with pytest.raises(TypeError):
        recall(*asked(240, 1), top_k=4, temperature=0.1)
