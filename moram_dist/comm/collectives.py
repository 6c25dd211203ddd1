"""Collectives for atoms, on a separate process group, and a count of the bytes that they move.

    all_gather   (...) on each rank -> (P, ...), every rank's, on every rank
    exchange     (P, ...), a block for each rank -> (P, ...), a block from each rank

The gradient of an ``all_gather`` needs an ``exchange``, which returns the blocks to be summed; the
gradient of an ``exchange`` needs another one. Callers sum in rank order: a backend's reduce chooses
its order of summation, and results would depend on it. An ``exchange`` receives as many bytes as a
reduce-scatter.

P is the number of ranks in the group. All ranks must call with the same shapes, in the same order;
this is not checked, because the check would itself be a collective.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moram_dist.comm import env
from moram_dist.registry import InputError


@dataclass
class Traffic:
    """Calls of one kind of collective on this rank, and the bytes that they moved."""

    calls: int = 0
    bytes: int = 0
    """Received from other ranks."""


class Pending:
    """A collective that is still running."""

    def __init__(self, out: Tensor, work: Any) -> None:
        self._out, self._work = out, work

    def wait(self) -> Tensor:
        """Wait for the result and return it."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._out


class AtomGroup:
    """The ranks over which a memory is split. With one rank every collective is the identity."""

    def __init__(self, rank: int = 0, size: int = 1, process_group: Any = None) -> None:
        self.rank, self.size = rank, size
        self._process_group = process_group
        self.traffic: dict[str, Traffic] = {}
        """By the name that the caller gives."""

    def all_gather(self, mine: Tensor, name: str) -> Tensor:
        """(...) to (P, ...): every rank's tensor, in rank order."""
        return self.start_all_gather(mine, name).wait()

    def start_all_gather(self, mine: Tensor, name: str) -> Pending:
        """``all_gather`` that runs while this rank computes."""
        if self.size == 1:
            return Pending(mine[None], None)
        out = mine.new_empty(self.size, *mine.shape)
        self._count(out, name)
        # torch 2.13 renamed it.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        work = gather(
            out.flatten(), mine.contiguous().flatten(), group=self._process_group, async_op=True
        )
        return Pending(out, work)

    def exchange(self, blocks: Tensor, name: str) -> Tensor:
        """(P, ...) to (P, ...): block r is sent to rank r; received blocks are in rank order."""
        if self.size == 1:
            return blocks
        out = torch.empty_like(blocks, memory_format=torch.contiguous_format)
        self._count(out, name)
        dist.all_to_all_single(out, blocks.contiguous(), group=self._process_group)
        return out

    def _count(self, out: Tensor, name: str) -> None:
        traffic = self.traffic.setdefault(name, Traffic())
        traffic.calls += 1
        traffic.bytes += out.nbytes // self.size * (self.size - 1)


def make_atom_group(over: str, *, limit_s: float = env.LIMIT_S) -> AtomGroup:
    """The group of this rank. All ranks must call it together, after ``joining.join``.

    Args:
        over: ``world``: all ranks share one memory; ``node``: the ranks of each machine share one,
            and every machine holds a copy.
        limit_s: longest wait in a collective.

    Raises:
        InputError: ``node``, but machines have different numbers of ranks.
    """
    world = env.world_size()
    size = world if over == "world" else env.local_world_size()
    if world % size or not env.all_true(size == env.from_main(size)):
        raise InputError(f"--atom_group {over} needs as many ranks on each machine; use world")
    if size == 1:
        return AtomGroup()
    limit = timedelta(seconds=limit_s)  # a new group does not take over the world's
    groups = [dist.new_group(range(k, k + size), timeout=limit) for k in range(0, world, size)]
    return AtomGroup(env.rank() % size, size, groups[env.rank() // size])
