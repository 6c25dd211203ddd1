"""How the work of a rank grows with the number of ranks: not at all if it has all atoms."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from bench.measure import Work
from launch.planning.meter import PretendGroup
from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Gathered, Resident, Stationary
from moram_dist.atoms.recall import recall_together
from moram_dist.atoms.routing import Routing

TOKENS, WIDTH, FROZEN, ACTIVE, LINEARS = 32, 64, 240, 8, 3


def work(num_ranks: int, kind: type, device: str, *, uneven: bool = False) -> tuple:
    """Operations by name, FLOPs, and sizes of the tensors kept for the backward pass."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.ones(*shape, device=device)

    bank = Bank(
        [(WIDTH, WIDTH)] * LINEARS,
        PretendGroup(num_ranks),
        like=empty(1),
        copied=num_ranks > 1,
        num_active=ACTIVE,
    )
    bank.grow([(empty(FROZEN, WIDTH), empty(FROZEN, WIDTH))] * LINEARS)
    counts = [TOKENS - uneven * (rank > 0) for rank in range(num_ranks)]
    placement = kind(bank.group, counts) if kind is Stationary else kind(bank.group)
    placement.banks = [bank]
    active = [empty(ACTIVE, WIDTH).requires_grad_() for _ in range(2 * LINEARS)]
    x = empty(TOKENS, WIDTH).requires_grad_()
    kept: list[tuple] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.shape, tensor.dtype))
        return tensor

    with Work() as counted, saved_tensors_hooks(keep, lambda tensor: tensor):
        routing = Routing(top_k=16, temperature=0.3)
        found = recall_together(
            bank, placement, routing, [x] * 3, active[:3], active[3:], range(LINEARS)
        )
        torch.autograd.grad(found, (x, *active), [torch.ones_like(y) for y in found])
    return counted.operations, counted.flops, kept


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_resident(device):
    alone = work(1, Resident, device)
    assert alone[0].total() > 20 and alone[1] > 0 and alone[2]
    assert work(8, Resident, device) == alone
    assert work(64, Resident, device) == alone


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gathered(device):
    """Beside the copies of shards into their places, which are as many at 8 ranks as at 64."""
    assert work(1, Gathered, device)[1:] == work(8, Gathered, device)[1:]
    assert work(8, Gathered, device) == work(64, Gathered, device)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_stationary(device, uneven):
    """Each rank answers all ranks' tokens in one batch; only sums take a term from each shard."""
    at = {n: work(n, Stationary, device, uneven=uneven)[0].total() for n in (16, 64)}
    assert at[16] < at[64] < 4 * at[16] < 2000  # a loop over pairs of ranks: 16 times as many
