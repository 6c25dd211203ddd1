"""Placements: where the atoms of a memory and the tokens that query it meet, and what is sent.

    Resident     every rank keeps a copy of all atoms       nothing is sent in a step
    Gathered     shards are sent to the tokens              all atoms, in forward and in backward
    Stationary   tokens are sent to the shards              tokens, candidates, partial sums

Resident and gathered atoms are one part, in the order of the memory: neither the work nor a single
bit of the results depends on the number of ranks. Stationary atoms are a part per rank, and the
sums over parts round differently. Bytes received per rank for one linear, with P ranks, N atoms
(rounded up to a multiple of P), T tokens per rank, K = min(top_k, N / P) candidates, e bytes per
number:

    gathered     forward    (P - 1) / P N (D + E) e          backward   the same
    stationary   forward    (P - 1) T D e + (P - 1) P T (4 + 8 K) + (P - 1) T E e
                 backward   (P - 1) T E e + (P - 1) P T 8 + (P - 1) T (D e + 4 R / P)

(float32 routing; R active atoms, rounded up to a multiple of P; D e is not sent back if the input
needs no gradient, and an input that linears share is sent once.) Source: counted by hand from the
collectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.atoms.bank import Bank
from moram_dist.atoms.routing import ShardCandidates
from moram_dist.atoms.scan import Image, pays, supported
from moram_dist.atoms.shard import MIX_ALL, each
from moram_dist.comm.collectives import AtomGroup, Pending

Pair = tuple[int, int]
"""The rank that owns the tokens, and the shard: 0 if one holds the whole memory, else a rank."""


class Placement(ABC):
    """Decides which pairs of an owner and a shard this rank computes, and exchanges the results."""

    num_shards: int
    """Into how many shards the atoms of a recall are split: one per rank, or one in all."""

    is_local = False
    """Whether all atoms are brought to this rank's own tokens, and nothing else is sent."""

    def __init__(self, group: AtomGroup) -> None:
        self.group = group

    @abstractmethod
    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """Owner to its rows for each linear, for every owner this rank works for."""

    @abstractmethod
    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """Shard to its frozen atoms, flat as in the bank, for every shard this rank works on."""

    def grams(self, bank: Bank, linears: Sequence[int], num_kept: int) -> list[Tensor] | None:
        """K^T K of each linear's frozen keys K; None unless available and cheaper than K.

        Beside it, a pass mixes the keys of the ``num_kept`` atoms of each token. All linears
        queried together use it or none does: the widest decides, as for ``images``.
        """
        return None

    def images(self, bank: Bank, linears: Sequence[int]) -> list[Image] | None:
        """Images for scans of the linears' frozen atoms; None unless available and worthwhile."""
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
    """All atoms answer this rank's own tokens as one shard: results need no communication."""

    num_shards = 1
    is_local = True

    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """This rank's own rows."""
        return {self.group.rank: list(rows)}

    def candidates(
        self, offered: Mapping[Pair, ShardCandidates], num_linears: int
    ) -> dict[int, list[ShardCandidates]]:
        """The offers, which are here already."""
        return {self.group.rank: [*offered.values()]}

    def sums(self, parts: Mapping[Pair, Tensor], num_linears: int) -> dict[int, list[Tensor]]:
        """The terms, which are here already."""
        return {self.group.rank: [*parts.values()]}

    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """The parts, which are here already."""
        return [list(linear) for linear in zip(*parts.values(), strict=True)]


class Resident(_Local):
    """Keeps a copy of all atoms, gathered once per task: frozen atoms never go stale."""

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """All atoms, from the copy."""
        return {0: bank.whole()}

    def grams(self, bank: Bank, linears: Sequence[int], num_kept: int) -> list[Tensor] | None:
        """From the copy, once per task, if that is cheaper than a product with all keys.

        A product with K^T K costs as much as one with as many keys as there are inputs. On CUDA,
        by data sheets, mixing costs as much as one with ``MIX_ALL`` keys for each chosen one; on a
        CPU it was measured to cost little.
        """
        fetched = MIX_ALL["cuda"] * num_kept if bank.shard_F.is_cuda else 0
        if bank.num_atoms <= _most_inputs(bank, linears) + fetched:
            return None
        return [bank.gram(i) for i in linears]

    def images(self, bank: Bank, linears: Sequence[int]) -> list[Image] | None:
        """From the copy, once per task, if there are many more atoms than inputs."""
        inputs = _most_inputs(bank, linears)
        if bank.num_atoms <= inputs:  # the usual case, without a question to the device
            return None
        device = bank.shard_F.device
        if not pays(bank.num_atoms, inputs, device.type) or not supported(device):
            return None
        return [bank.image(i) for i in linears]


class Gathered(_Local):
    """Fetches all shards in each pass, and prefetches the next bank while one is in use.

    No copy outlives its use: the backward pass fetches the shards again, in reverse order.
    """

    def __init__(self, group: AtomGroup) -> None:
        super().__init__(group)
        self.banks: list[Bank] = []
        """In the order of the forward pass."""
        self._under_way: dict[int, Pending] = {}

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """All atoms, fetched; also starts to fetch the next bank's."""
        at = next(i for i, other in enumerate(self.banks) if other is bank)
        flat_PF = (self._under_way.pop(at, None) or self._start(at)).wait()
        following = at + 1 if forward else at - 1
        if 0 <= following < len(self.banks) and following not in self._under_way:
            self._under_way[following] = self._start(following)
        return {0: bank.in_order(flat_PF)}

    def forget(self) -> None:
        """Wait for pending fetches and drop them: the banks are about to change."""
        for pending in self._under_way.values():
            pending.wait()
        self._under_way.clear()

    def _start(self, at: int) -> Pending:
        return self.group.start_all_gather(self.banks[at].shard_F, "atoms")


class Stationary(Placement):
    """Keeps atoms where they are: this rank computes its shard's part for all owners' tokens."""

    def __init__(self, group: AtomGroup, num_tokens: Sequence[int]) -> None:
        """``num_tokens``: how many each rank of the group has in this pass."""
        super().__init__(group)
        self.num_shards = group.size
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
        """This rank's own shard."""
        return {self.group.rank: bank.shard_F}

    def candidates(
        self, offered: Mapping[Pair, ShardCandidates], num_linears: int
    ) -> dict[int, list[ShardCandidates]]:
        """Candidates of every shard for every owner: one message of sums, scores and indices."""
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
        """Terms of every shard for every owner: one message."""
        message = [parts[h, self.group.rank] for h in range(self.group.size)]
        return self._from_all(message, num_linears, "sums")

    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """Each shard's parts are sent to the tokens' owner."""
        mine, owners = self.group.rank, range(self.group.size)
        sizes = [part.shape[1] for part in parts[mine, mine]]
        blocks_PTF = torch.stack([self._padded(torch.cat([*parts[h, mine]], -1)) for h in owners])
        received_PTF = self.group.exchange(blocks_PTF, name)
        shards = (block[: self.num_tokens[mine]].split(sizes, -1) for block in received_PTF)
        return [list(linear) for linear in zip(*shards, strict=True)]

    def _from_all(
        self, of_homes: Sequence[Tensor], num_linears: int, name: str
    ) -> dict[int, list[Tensor]]:
        """Owner to every shard's part, (B, F) each, from this shard's parts for all owners."""
        parts = [torch.stack([*each(of_home, num_linears)], 1) for of_home in of_homes]
        gathered = self.group.all_gather(torch.stack([self._padded(t) for t in parts]), name)
        return {
            h: [t[: self.num_tokens[h]].transpose(0, 1).flatten(0, 1) for t in gathered[:, h]]
            for h in range(self.group.size)
        }

    def _padded(self, rows_TF: Tensor) -> Tensor:
        """Pad with zeros to the number of rows of the rank that has the most."""
        beyond = [0, 0] * (rows_TF.ndim - 1)
        return F.pad(rows_TF, (*beyond, 0, max(self.num_tokens) - len(rows_TF)))


def _most_inputs(bank: Bank, linears: Sequence[int]) -> int:
    return max([bank.shapes[i][0] for i in linears])
