"""Which placement a memory gets: from shared numbers only, with its reason."""

from __future__ import annotations

import itertools

import pytest
import torch

from moram_dist.atoms import scan
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placer import Placer, tokens_move
from moram_dist.comm.collectives import AtomGroup
from moram_dist.comm.partition import largest_shard, new_rows, shard_size
from moram_dist.config import PLACEMENTS


def planned(choice, *, ranks=2, room=100.0, per_task=10, num_tasks=10, device=None):
    group = AtomGroup(rank=1, size=ranks) if ranks > 1 else AtomGroup()
    placer = Placer(group, choice, room=room, num_tasks=num_tasks, device=device)
    bank = Bank([(4, 4)], group, like=torch.zeros(1))
    placer.plan([bank], per_task)
    return placer, bank


@pytest.mark.parametrize(
    ("choice", "room", "in_step", "reason"),
    [
        ("auto", 100, False, "resident: the memory's 0.0 MB after the last task fit"),
        ("auto", 99, True, "gathered or stationary by the pass: the memory's 0.0 MB"),
        ("resident", 0, False, "resident, as asked"),
        ("gathered", 1e9, True, "gathered, as asked"),
        ("stationary", 1e9, True, "stationary, as asked"),
    ],
)
def test_plan(choice, room, in_step, reason):
    placer, bank = planned(choice, room=room)
    assert placer.in_step == in_step
    assert bank.copied == (not in_step)
    assert placer.reason.startswith(reason)


@pytest.mark.parametrize("choice", PLACEMENTS)
def test_one_rank_holds_all(choice):
    placer, bank = planned(choice, ranks=1)
    assert not placer.in_step and not bank.copied
    assert placer.reason == "resident: one rank holds all atoms"


def test_a_model_that_will_move_is_planned_for_where_it_goes(monkeypatch):
    monkeypatch.setattr(scan, "MANY_NUMBERS", 0)  # a CPU keeps images of so many atoms, CUDA none
    room = 17 * 32 + 4 * 4 * 4
    for device, in_step in ((None, True), ("cuda", False)):
        placer, bank = planned("auto", room=room, per_task=32, num_tasks=17, device=device)
        assert placer.in_step == in_step
        assert bank.shard_F.device.type == "cpu"


@pytest.mark.parametrize(
    ("num_atoms", "bytes_beside"),
    [(4, 0), (5, 4 * 4 * 4), (16, 4 * 4 * 4), (17, 4 * 4 * 4 + 17 * 2 * (4 + 32))],
)
def test_a_copy_of_many_atoms_needs_more_room(num_atoms, bytes_beside, monkeypatch):
    """Of 4 inputs, 32 bytes an atom: beyond 4, K^T K in float32; beyond 16, keys in bf16."""
    monkeypatch.setattr(scan, "MANY_NUMBERS", 0)
    for missing in (0, 1):
        room = num_atoms * 32 + bytes_beside - missing
        placer, _ = planned("auto", room=room, per_task=32, num_tasks=num_atoms)
        assert placer.in_step == (missing == 1)


def test_what_moves():
    """By hand: 1,000-byte atoms, 4 ranks, calls that cost 10,000 bytes each."""

    def move(num_atoms, num_tokens, call_bytes=10_000):
        return tokens_move(num_atoms, num_tokens, 4, atom_bytes=1_000, call_bytes=call_bytes)

    # Atoms: 2 * N * 3/4 * 1000 + 2 calls. Tokens: 2 * 3 * T * 1000 + 6 calls.
    assert not move(400, 100, call_bytes=0)  # N = P T: a draw
    assert move(401, 100, call_bytes=0)
    assert not move(401, 100) and not move(426, 100)
    assert move(427, 100)  # 26.7 atoms more pay for four calls


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_shards(num_ranks):
    for num_rows in (0, 1, 5, 12):
        owned = [[*range(num_rows)][rank::num_ranks] for rank in range(num_ranks)]
        sizes = [shard_size(num_rows, rank, num_ranks) for rank in range(num_ranks)]
        assert sizes == [len(rows) for rows in owned]
        assert largest_shard(num_rows, num_ranks) == max(sizes)
    for start, count, rank in itertools.product((0, 1, 5), (0, 1, 7), range(num_ranks)):
        rows = [*range(start, start + count)][new_rows(start, rank, num_ranks)]
        assert rows == [row for row in range(start, start + count) if row % num_ranks == rank]
