"""A memory split over ranks answers as the formula does, wherever atoms and tokens meet.

Every placement against ``tests.helpers.oracle`` in float64, outputs, gradients and chosen sets; in
float32, resident and gathered atoms against one process, bit for bit, and stationary ones against
them to rounding; what they move, against its formula.
"""

from __future__ import annotations

import dataclasses
import itertools
import os

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Gathered, Placement, Resident, Stationary
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing
from moram_dist.comm import env
from moram_dist.comm.collectives import AtomGroup, make_atom_group
from moram_dist.comm.partition import largest_shard, shard_size
from moram_dist.registry import InputError
from tests.helpers import oracle
from tests.helpers.ranks import run_ranks

D = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """A memory of two linears, (D, 3) and (D, N): the values of the second tell atoms apart."""

    num_frozen: int
    num_active: int
    top_k: int
    threshold: float = 0.0
    integers: bool = False
    """Scores that tie often."""
    zero_rows: bool = False

    @property
    def num_atoms(self) -> int:
        return self.num_frozen + self.num_active


CASES = [
    *(
        Case(frozen, active, top_k, threshold)
        for frozen, active in ((0, 0), (0, 3), (1, 0), (1, 3), (5, 0), (5, 3))
        for top_k in (1, 4, 16)  # 16 is more than there are
        for threshold in (0.0, 0.4)
    ),
    Case(240, 0, 16),
    Case(240, 8, 16, threshold=0.1),
    *(Case(13, 4, top_k, integers=True, zero_rows=True) for top_k in (1, 3, 7)),
    Case(240, 4, 8, integers=True),
    Case(5, 3, 4, threshold=0.4, zero_rows=True),
]
ROUTING = {"temperature": 0.1}


def draw(*shape: int, seed: int, integers: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if integers:
        return torch.randint(-2, 3, shape, generator=generator).double()
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def placements(group: AtomGroup, bank: Bank, num_tokens: int) -> list[Placement]:
    """One of each kind."""
    gathered = Gathered(group)
    gathered.banks = [bank]
    counts = group.all_gather(torch.tensor([num_tokens]), "counts").flatten().tolist()
    return [Resident(group), gathered, Stationary(group, counts)]


def filled(group: AtomGroup, keys: list[Tensor], values: list[Tensor], count: int) -> Bank:
    """A bank that grew to its first ``count`` atoms in unlike steps."""
    shapes = [(k.shape[1], v.shape[1]) for k, v in zip(keys, values, strict=True)]
    bank = Bank(shapes, group, like=keys[0], copied=group.size > 1)
    for start, stop in itertools.pairwise((0, min(1, count), min(4, count), count)):
        bank.grow([(k[start:stop], v[start:stop]) for k, v in zip(keys, values, strict=True)])
    assert bank.num_atoms == count
    return bank


def check_against_the_formula(case: Case, group: AtomGroup) -> None:
    """Outputs, chosen sets and gradients of each placement on this rank's own tokens."""
    total = case.num_atoms
    keys = [draw(total, D, seed=1 + i, integers=case.integers) for i in range(2)]
    values = [draw(total, 3, seed=3), torch.eye(total, total + 1, dtype=torch.float64)]
    num_tokens = 2 + env.rank() % 2  # ranks have unlike numbers
    own = [draw(num_tokens, D, seed=10 * (env.rank() + 1) + i) for i in range(2)]
    if case.integers:
        own = [draw(num_tokens, D, seed=10 * env.rank() + i, integers=True) for i in range(2)]
    if case.zero_rows:
        own[0][-1] = 0
        keys[1][: total // 2] = 0
    n = case.num_frozen
    inputs = [x.clone().requires_grad_() for x in own]
    active = [t[n:].clone().requires_grad_() for t in (*keys, *values)]
    leaves = (*inputs, *active)

    expected = [
        oracle.recall(
            inputs[i],
            torch.cat([keys[i][:n], active[i]]),
            torch.cat([values[i][:n], active[2 + i]]),
            top_k=case.top_k,
            threshold=case.threshold,
            **ROUTING,
        )
        for i in range(2)
    ]
    upstream = [draw(*y.shape, seed=20 + env.rank()) for y in expected]
    wanted = gradients(expected, leaves, upstream)

    bank = filled(group, keys, values, n)
    routing = Routing(top_k=case.top_k, threshold=case.threshold, **ROUTING)
    for placement in placements(group, bank, num_tokens):
        found = recall_together(
            bank, placement, routing, inputs, active[:2], active[2:], members=(0, 1)
        )
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        assert torch.equal(found[1] != 0, expected[1] != 0)
        for ours, theirs in zip(gradients(found, leaves, upstream), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def gradients(outputs: list[Tensor], leaves: tuple[Tensor, ...], upstream: list[Tensor]):
    pairs = [(y, g) for y, g in zip(outputs, upstream, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, upstream = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, leaves, upstream, allow_unused=True, materialize_grads=True)


def check_one_process(group: AtomGroup, dtype: torch.dtype) -> None:
    """At sizes where sums round: who holds the atoms does not change a bit, nor does freezing.

    Stationary atoms are summed by shards, so they agree to rounding.
    """
    num_frozen, width, num_tokens = 41, 96, 50 + 7 * env.rank()
    keys = [draw(49, width, seed=i).to(dtype) for i in range(3)]
    values = [draw(49, width - 16 * i, seed=5 + i).to(dtype) for i in range(3)]
    x = draw(num_tokens, width, seed=30 + env.rank()).to(dtype).requires_grad_()
    others = [x, x, (x.detach() * 1.25).requires_grad_()]
    active = [t[num_frozen:].clone().requires_grad_() for t in (*keys, *values)]
    none = [t[:0] for t in (*keys, *values)]
    routing = Routing(top_k=8, temperature=0.3, threshold=0.05)

    def results(group: AtomGroup, bank: Bank, frozen: Bank, placement: Placement) -> list[Tensor]:
        found = recall_together(
            bank, placement, routing, others, active[:3], active[3:], members=range(3)
        )
        upstream = [draw(*y.shape, seed=40 + env.rank()).to(dtype) for y in found]
        other = next(p for p in placements(group, frozen, num_tokens) if type(p) is type(placement))
        after = recall_together(
            frozen, other, routing, others, none[:3], none[3:], members=range(3)
        )
        assert all(map(torch.equal, after, found)), "freezing changed an output"
        return [*found, *torch.autograd.grad(found, (x, others[2], *active), upstream)]

    alone = AtomGroup()
    expected = results(alone, *banks(alone, keys, values, (num_frozen, 49)), Resident(alone))
    bank, frozen = banks(group, keys, values, (num_frozen, 49))
    for placement in placements(group, bank, num_tokens):
        for ours, theirs in zip(results(group, bank, frozen, placement), expected, strict=True):
            assert ours.dtype == dtype and ours.abs().max() > 0
            if placement.num_shards == 1:
                assert torch.equal(ours, theirs)
            else:
                worst = (ours - theirs).abs().max() / theirs.abs().max()
                assert worst < (1e-6 if dtype == torch.float32 else 2e-2), worst


def banks(
    group: AtomGroup, keys: list[Tensor], values: list[Tensor], counts: tuple[int, ...]
) -> list[Bank]:
    return [filled(group, keys, values, count) for count in counts]


def check_ownership(group: AtomGroup) -> None:
    """Shards differ by one atom at most, each task is spread, and copies hold what shards do."""
    P, shapes = group.size, [(D, 3), (D, 5)]
    bank = Bank(shapes, group, like=torch.zeros(1))
    bank.copied = P > 1  # the placer decides it when the bank grows
    whole: list[list[Tensor]] = [[], [], [], []]
    for task, size in enumerate((7, 1, 8)):
        new = [draw(size, d, seed=task).float() + i for i, d in enumerate((D, 3, D, 5))]
        bank.grow([(new[0], new[1]), (new[2], new[3])])
        whole = [[*rows, *more] for rows, more in zip(whole, new, strict=True)]
        total = bank.num_atoms
        per_rank = env.gather_objects(bank.stored_bytes)
        atom = sum(d + e for d, e in shapes) * 4
        assert sum(per_rank) == total * atom
        assert max(per_rank) - min(per_rank) <= atom
        assert max(per_rank) <= -(-total // P) * atom
        spare = bank.shard_F.nbytes // atom - -(-total // P)
        assert 0 <= spare <= total // 8 if P == 1 else not spare
        for atoms, step in ((bank.own(), slice(group.rank, None, P)), (all_of(bank), slice(None))):
            tensors = [t for pair in atoms for t in pair]
            for found, rows in zip(tensors, whole, strict=True):
                assert torch.equal(found, torch.stack(rows[step]) if rows[step] else found)
            assert len(tensors[0]) == len(whole[0][step])
        assert len(bank.own()[0][0]) == shard_size(total, group.rank, P)
    assert bank.intact()
    bank.whole()[2] += 1e-6
    assert not bank.intact()


def all_of(bank: Bank) -> list[tuple[Tensor, Tensor]]:
    return bank.views(bank.whole())


def check_bytes(group: AtomGroup) -> None:
    """What a pass moves is what the docstring of ``atoms.placement`` says."""
    P, N, T, E, K, e = group.size, 24, 10, 6, 5, 4
    keys, values = [draw(N, D, seed=1).float()], [draw(N, E, seed=2).float()]
    bank = filled(group, keys, values, N)
    gathered, stationary = Gathered(group), Stationary(group, [T] * P)
    gathered.banks = [bank]
    K = min(K, largest_shard(N, P))
    forward = {"tokens": D * e, "candidates": P * (4 + 8 * K), "outputs": E * e}
    backward = {"gradients": E * e, "sums": P * 8, "input gradients": D * e}
    expected = {
        gathered: ({"atoms": N * (D + E) * e // P}, {"atoms": N * (D + E) * e // P}),
        stationary: tuple({name: T * n for name, n in d.items()} for d in (forward, backward)),
        Resident(group): ({}, {}),
    }
    active = [torch.ones(1, D, requires_grad=True)], [torch.ones(1, E, requires_grad=True)]
    for placement, formulas in expected.items():
        group.traffic.clear()
        x = draw(T, D, seed=3).float().requires_grad_()
        none = [keys[0][:0]], [values[0][:0]]
        atoms = none if placement is stationary else active
        (y,) = recall_together(bank, placement, Routing(top_k=5, temperature=0.1), [x], *atoms)
        found = []
        for formula, act in zip(formulas, (lambda: None, y.sum().backward), strict=True):
            act()
            found = {name: (t.calls, t.bytes) for name, t in group.traffic.items()}
            assert found == {name: (1, (P - 1) * n) for name, n in formula.items()} or P == 1
            group.traffic.clear()
        assert P > 1 or not found


def check_coalescing_and_prefetch(group: AtomGroup) -> None:
    """One collective for the linears of a bank; the next bank's is under way; none is kept."""
    size, banks = 12, []
    for i in range(3):
        keys = [draw(size, D, seed=i), draw(size, D, seed=i + 9)]
        banks.append(filled(group, keys, [torch.eye(size).double()] * 2, size))
    gathered = Gathered(group)
    gathered.banks = banks
    x = draw(3, D, seed=1).requires_grad_()
    none = [draw(0, D, seed=0)] * 2, [torch.zeros(0, size).double()] * 2
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        routing = Routing(top_k=3, temperature=0.1)
        y = [recall_together(bank, gathered, routing, [x, x], *none, (0, 1)) for bank in banks]
    assert group.size == 1 or group.traffic["atoms"].calls == 3
    assert not gathered._under_way
    tokens = (0, len(x), 2 * len(x))  # of one linear or of both
    assert saved and all(len(t) in tokens for t in saved)  # no atoms

    gathered.atoms(banks[0], forward=True)
    assert set(gathered._under_way) == {1}
    gathered.forget()
    assert not gathered._under_way
    torch.stack([out.sum() for pair in y for out in pair]).sum().backward()
    assert x.grad.abs().max() > 0 and not gathered._under_way


def check_recomputed_layers_prefetch_nothing(group: AtomGroup) -> None:
    """Two layers of two banks under gradient checkpointing: no copy is left for the next step."""
    size = 12
    banks = [
        filled(group, [draw(size, D, seed=i)], [draw(size, D, seed=i + 9)], size) for i in range(4)
    ]
    gathered = Gathered(group)
    gathered.banks = banks
    routing, x = Routing(top_k=3, temperature=0.1), draw(3, D, seed=1).requires_grad_()
    none = [draw(0, D, seed=0)], [draw(0, D, seed=0)]

    def layer(x: Tensor, first: int) -> Tensor:
        for bank in banks[first : first + 2]:
            x = x + recall_together(bank, gathered, routing, [x], *none)[0]
        return x

    plain = layer(layer(x, 0), 2)
    (expected,) = torch.autograd.grad(plain.sum(), x)
    y = x
    for first in (0, 2):
        y = checkpoint(layer, y, first, use_reentrant=False)
    (found,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(found, expected) and not gathered._under_way


def check_one_memory_a_node(rank: int) -> None:
    """Four ranks on two machines of two: each machine holds all atoms, and answers for itself."""
    os.environ["LOCAL_SIZE"] = "2"  # as DeepSpeed's launcher says it
    group = make_atom_group("node")
    assert (group.rank, group.size) == (rank % 2, 2)
    for case in (Case(5, 3, 4), Case(13, 4, 7, integers=True, zero_rows=True)):
        check_against_the_formula(case, group)
    os.environ["LOCAL_WORLD_SIZE"] = "3"
    with pytest.raises(InputError, match="--atom_group node needs as many ranks on each machine"):
        make_atom_group("node")


def all_checks(rank: int, world_size: int) -> None:
    group = make_atom_group("world")
    assert (group.rank, group.size) == (rank, world_size)
    for case in CASES:
        try:
            check_against_the_formula(case, group)
        except Exception as error:
            error.add_note(str(case))
            raise
    for dtype in (torch.float32, torch.bfloat16):
        check_one_process(group, dtype)
    for check in (
        check_ownership,
        check_bytes,
        check_coalescing_and_prefetch,
        check_recomputed_layers_prefetch_nothing,
    ):
        group.traffic.clear()
        check(group)
    if world_size == 4:
        check_one_memory_a_node(rank)


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_placements(world_size, tmp_path):
    run_ranks(all_checks, world_size=world_size, tmp_path=tmp_path)
