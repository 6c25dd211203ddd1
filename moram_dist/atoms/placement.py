"""Where the atoms of a memory and the tokens that ask it meet.

    Resident     every rank keeps a copy of all shards      nothing moves in a step
    Gathered     shards come to the tokens                  all atoms, in forward and in backward
    Stationary   tokens come to the shards                  tokens, candidates, partial sums

All three compute the same products of an owner's tokens and a shard's atoms (``atoms.recall``) and
bring together the same parts in the same order: results are the same bits, unless a copy of more
atoms than inputs is at hand and K^T K serves in backward. What they move, in
bytes received per rank for one linear, with P ranks, N atoms (rounded up to a multiple of P), T
tokens a rank, K = min(top_k, N / P) candidates, e bytes a number:

    gathered     forward    (P - 1) / P N (D + E) e          backward   the same
    stationary   forward    (P - 1) T D e + (P - 1) P T (4 + 8 K) + (P - 1) T E e
                 backward   (P - 1) T E e + (P - 1) P T 8 + (P - 1) T (D e + 4 R / P)

(float32 routing; R active atoms, rounded up to a multiple of P; no D e goes back where the input
wants no gradient, and an input that linears share goes out once.) Source: the byte counts of
gather-atoms and dispatch-tokens by hand.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.atoms.bank import Bank
from moram_dist.atoms.routing import ShardCandidates
from moram_dist.atoms.scan import BEYOND, Image, supported
from moram_dist.atoms.shard import each
from moram_dist.comm.collectives import AtomGroup, Pending

Pair = tuple[int, int]
"""The rank that owns tokens, and the rank of a shard."""

Part = TypeVar("Part")


class Placement(ABC):
    """Which pairs of an owner and a shard this rank computes, and how results find their way."""

    def __init__(self, group: AtomGroup) -> None:
        self.group = group

    @abstractmethod
    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """Owner to its rows for each linear, for every owner this rank works for."""

    @abstractmethod
    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """Shard to its frozen atoms, flat as in the bank, for every shard this rank works on."""

    def grams(self, bank: Bank, linears: Sequence[int]) -> list[Tensor] | None:
        """K^T K of each linear's frozen atoms, where the rank has it and it is the smaller one.

        Linears that are asked together have it all or none: the widest decides, as for images.
        """
        return None

    def images(self, bank: Bank, linears: Sequence[int]) -> list[Image] | None:
        """For scans of the linears' frozen atoms, where the rank has them and a scan pays."""
        return None

    @abstractmethod
    def candidates(
        self, offered: Mapping[Pair, ShardCandidates], num_linears: int
    ) -> dict[int, list[ShardCandidates]]:
        """Owner to the candidates of its tokens from all shards, in the order of shards."""

    @abstractmethod
    def sums(self, parts: Mapping[Pair, Tensor], num_linears: int) -> dict[int, list[Tensor]]:
        """Owner to the terms of its tokens, (B, 2) each, in the order of shards."""

    @abstractmethod
    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """Each linear's parts for this rank's tokens, (T, F) each, in the order of shards."""


class _Local(Placement):
    """All pairs of this owner: what belongs together is here already."""

    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """Its own rows."""
        return {self.group.rank: list(rows)}

    def candidates(
        self, offered: Mapping[Pair, ShardCandidates], num_linears: int
    ) -> dict[int, list[ShardCandidates]]:
        """What its shards offered."""
        return {self.group.rank: _by_shard(offered)}

    def sums(self, parts: Mapping[Pair, Tensor], num_linears: int) -> dict[int, list[Tensor]]:
        """Terms that are all here."""
        return {self.group.rank: _by_shard(parts)}

    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """Parts that are all here."""
        return [list(linear) for linear in zip(*_by_shard(parts), strict=True)]


class Resident(_Local):
    """Frozen atoms never go stale, so a copy gathered once a task serves all its steps."""

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """All shards, from the copy."""
        return bank.all_here()

    def grams(self, bank: Bank, linears: Sequence[int]) -> list[Tensor] | None:
        """From the copy, once a task, where there are more atoms than inputs."""
        if bank.num_atoms <= _most_inputs(bank, linears):
            return None
        return [bank.gram(i) for i in linears]

    def images(self, bank: Bank, linears: Sequence[int]) -> list[Image] | None:
        """From the copy, once a task, where atoms are many more than inputs."""
        device = bank.shard_F.device
        most = BEYOND.get(device.type, math.inf) * _most_inputs(bank, linears)
        if bank.num_atoms <= most or not supported(device):
            return None
        return [bank.image(i) for i in linears]


class Gathered(_Local):
    """Shards are fetched for each pass, the next bank's while this one's are used.

    Nothing outlives the pass: the backward pass fetches them again, in the reverse order.
    """

    def __init__(self, group: AtomGroup) -> None:
        super().__init__(group)
        self.banks: list[Bank] = []
        """In the order of the forward pass."""
        self._under_way: dict[int, Pending] = {}

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """All shards, fetched; the bank that follows is sent for."""
        at = next(i for i, other in enumerate(self.banks) if other is bank)
        flat_PF = (self._under_way.pop(at, None) or self._start(at)).wait()
        following = at + 1 if forward else at - 1
        if 0 <= following < len(self.banks) and following not in self._under_way:
            self._under_way[following] = self._start(following)
        return dict(enumerate(flat_PF))

    def forget(self) -> None:
        """Drop what is under way: the banks are about to change."""
        for pending in self._under_way.values():
            pending.wait()
        self._under_way.clear()

    def _start(self, at: int) -> Pending:
        return self.group.start_all_gather(self.banks[at].shard_F, "atoms")


class Stationary(Placement):
    """Atoms stay where they are: this rank asks its shard for all owners."""

    def __init__(self, group: AtomGroup, num_tokens: Sequence[int]) -> None:
        """``num_tokens``: how many each rank of the group has in this pass."""
        super().__init__(group)
        self.num_tokens = tuple(num_tokens)

    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """Every owner's rows: each rank sends its own to all."""
        expected = self.num_tokens[self.group.rank]
        if len(rows[0]) != expected:
            raise RuntimeError(
                f"a linear was asked for {len(rows[0])} tokens in a pass of {expected}: a model "
                "that gives its linears unlike tokens needs --placement resident or gathered"
            )
        distinct = {id(row): row for row in rows}
        sizes = [row.shape[1] for row in distinct.values()]
        packed_TF = torch.cat([*distinct.values()], -1)
        gathered_PTF = self.group.all_gather(self._padded(packed_TF), name)
        out = {}
        for owner, packed in enumerate(gathered_PTF):
            parts = packed[: self.num_tokens[owner]].split(sizes, -1)
            by_id = dict(zip(distinct, (part.contiguous() for part in parts), strict=True))
            out[owner] = [by_id[id(row)] for row in rows]
        return out

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """Its own shard."""
        return {self.group.rank: bank.shard_F}

    def candidates(
        self, offered: Mapping[Pair, ShardCandidates], num_linears: int
    ) -> dict[int, list[ShardCandidates]]:
        """Every shard's, for every owner: one message of sums, scores and indices."""
        mine, owners = self.group.rank, range(self.group.size)
        like = offered[mine, mine]
        widths = [t.shape[1] * t.element_size() // 4 for t in like]
        message = [torch.cat([t.view(torch.int32) for t in offered[h, mine]], -1) for h in owners]
        gathered = self._from_all(message, num_linears, "candidates")
        out: dict[int, list[ShardCandidates]] = {}
        for h, shards in gathered.items():
            fields = [packed.split(widths, -1) for packed in shards]
            out[h] = [
                ShardCandidates(
                    *(f.contiguous().view(t.dtype) for f, t in zip(one, like, strict=True))
                )
                for one in fields
            ]
        return out

    def sums(self, parts: Mapping[Pair, Tensor], num_linears: int) -> dict[int, list[Tensor]]:
        """Every shard's, for every owner: one message."""
        message = [parts[h, self.group.rank] for h in range(self.group.size)]
        return self._from_all(message, num_linears, "sums")

    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """Each shard's parts go to their owner."""
        mine, owners = self.group.rank, range(self.group.size)
        sizes = [part.shape[1] for part in parts[mine, mine]]
        blocks_PTF = torch.stack([self._padded(torch.cat([*parts[h, mine]], -1)) for h in owners])
        received_PTF = self.group.exchange(blocks_PTF, name)
        shards = (block[: self.num_tokens[mine]].split(sizes, -1) for block in received_PTF)
        return [list(linear) for linear in zip(*shards, strict=True)]

    def _from_all(
        self, of_homes: Sequence[Tensor], num_linears: int, name: str
    ) -> dict[int, list[Tensor]]:
        """Owner to what every shard has for it, (B, F) each, from what this one has for each."""
        parts = [torch.stack([*each(of_home, num_linears)], 1) for of_home in of_homes]
        gathered = self.group.all_gather(torch.stack([self._padded(t) for t in parts]), name)
        return {
            h: [t[: self.num_tokens[h]].transpose(0, 1).flatten(0, 1) for t in gathered[:, h]]
            for h in range(self.group.size)
        }

    def _padded(self, rows_TF: Tensor) -> Tensor:
        """With as many rows as the rank that has most."""
        beyond = [0, 0] * (rows_TF.ndim - 1)
        return F.pad(rows_TF, (*beyond, 0, max(self.num_tokens) - len(rows_TF)))


def _by_shard(parts: Mapping[Pair, Part]) -> list[Part]:
    """From one owner's pairs: what is of each shard, in the order of shards."""
    return [parts[pair] for pair in sorted(parts)]


def _most_inputs(bank: Bank, linears: Sequence[int]) -> int:
    return max(bank.shapes[i][0] for i in linears)
