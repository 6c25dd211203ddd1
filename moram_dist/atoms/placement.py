"""Placements: where the atoms of a memory and the tokens that query it meet, and what is sent.

    Resident     every rank keeps a copy of all atoms       nothing is sent in a step
    Gathered     shards are sent to the tokens              all atoms, in forward and in backward
    Stationary   tokens are sent to the shards              tokens, candidates, partial sums

Resident and gathered atoms are one part, in the order of the memory: neither the work nor a single
bit of the results depends on the number of ranks. Stationary atoms are a part per rank, and the
sums over parts round differently. Bytes received per rank for one linear, with P ranks, N atoms
(rounded up to a multiple of P), T tokens on the rank that has the most, K = min(top_k, N / P)
candidates, e bytes per number:

    gathered     forward    (P - 1) / P N (D + E) e          backward   the same
    stationary   forward    (P - 1) T D e + (P - 1) P T (4 + 8 K) + (P - 1) T E e
                 backward   (P - 1) T E e + (P - 1) P T 8 + (P - 1) T (D e + 4 R / P)

(float32 routing; R active atoms, rounded up to a multiple of P; D e is not sent back if the input
needs no gradient, and an input that linears share is sent once.) Source: counted by hand from the
collectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.atoms.bank import Bank
from moram_dist.atoms.routing import ShardCandidates
from moram_dist.atoms.scan import Image, pays, supported
from moram_dist.atoms.shard import MIX_ALL
from moram_dist.comm.collectives import AtomGroup, Pending


class Placement(ABC):
    """Brings tokens to this rank's shard of the atoms, and the results to the tokens' owners.

    The tokens at a shard are those of all ranks, one after the other, or this rank's own.
    """

    num_shards: int
    """Into how many shards the atoms of a recall are split: one per rank, or one in all."""

    shard = 0
    """The one that this rank computes with."""

    is_local = False
    """Whether all atoms are brought to this rank's own tokens, and nothing else is sent."""

    def __init__(self, group: AtomGroup) -> None:
        self.group = group

    @abstractmethod
    def tokens(self, rows: Sequence[Tensor], name: str) -> list[Tensor]:
        """Each linear's rows of the tokens at this rank's shard, from those of its own."""

    @abstractmethod
    def own(self, stacked_B: Tensor, num_linears: int) -> Tensor:
        """The rows of this rank's own tokens, of those at its shard, stacked by linear."""

    @abstractmethod
    def atoms(self, bank: Bank, *, forward: bool) -> Tensor:
        """The shard's frozen atoms, flat as in the bank."""

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
    def candidates(self, offered: ShardCandidates) -> list[ShardCandidates]:
        """Candidates of all shards for the same tokens, in the order of shards."""

    @abstractmethod
    def sums(self, part_B2: Tensor) -> list[Tensor]:
        """The terms of all shards for the same tokens, (B, 2) each, in the order of shards."""

    @abstractmethod
    def collect(self, parts: Sequence[Tensor], name: str) -> Sequence[Tensor]:
        """Each linear's parts of all shards for this rank's own tokens, (P, T, F).

        Args:
            parts: each linear's part of this shard, for all tokens at it.
            name: of the message, for the count of bytes.
        """


class _Local(Placement):
    """All atoms answer this rank's own tokens as one shard: results need no communication."""

    num_shards = 1
    is_local = True

    def tokens(self, rows: Sequence[Tensor], name: str) -> list[Tensor]:
        """This rank's own rows."""
        return list(rows)

    def own(self, stacked_B: Tensor, num_linears: int) -> Tensor:
        """All rows."""
        return stacked_B

    def candidates(self, offered: ShardCandidates) -> list[ShardCandidates]:
        """The offer, which is here already."""
        return [offered]

    def sums(self, part_B2: Tensor) -> list[Tensor]:
        """The terms, which are here already."""
        return [part_B2]

    def collect(self, parts: Sequence[Tensor], name: str) -> Sequence[Tensor]:
        """The parts, which are here already."""
        return [part[None] for part in parts]


class Resident(_Local):
    """Keeps a copy of all atoms, gathered once per task: frozen atoms never go stale."""

    def atoms(self, bank: Bank, *, forward: bool) -> Tensor:
        """All atoms, from the copy."""
        return bank.whole()

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

    No copy outlives its use: the backward pass fetches the shards again, in reverse order. Where it
    recomputes a layer, nothing is prefetched: the next layer's backward pass is over, so its copy
    would stay until the next step.
    """

    def __init__(self, group: AtomGroup) -> None:
        super().__init__(group)
        self.banks: list[Bank] = []
        """In the order of the forward pass."""
        self._under_way: dict[int, Pending] = {}

    def atoms(self, bank: Bank, *, forward: bool) -> Tensor:
        """All atoms, fetched; also starts to fetch the next bank's."""
        at = next(i for i, other in enumerate(self.banks) if other is bank)
        flat_PF = (self._under_way.pop(at, None) or self._start(at)).wait()
        following = at + 1 if forward else at - 1
        recomputes = forward and in_backward()
        is_missing = 0 <= following < len(self.banks) and following not in self._under_way
        if is_missing and not recomputes:
            self._under_way[following] = self._start(following)
        return bank.in_order(flat_PF)

    def forget(self) -> None:
        """Wait for pending fetches and drop them: the banks are about to change."""
        for pending in self._under_way.values():
            pending.wait()
        self._under_way.clear()

    def _start(self, at: int) -> Pending:
        return self.group.start_all_gather(self.banks[at].shard_F, "atoms")


class Stationary(Placement):
    """Keeps atoms where they are: this rank computes its shard's part for all ranks' tokens.

    They are one batch, each rank's padded with zeros to the most that a rank has. So the number of
    operations grows with the number of ranks only where a sum is taken in the order of shards.
    """

    def __init__(self, group: AtomGroup, num_tokens: Sequence[int]) -> None:
        """``num_tokens``: how many each rank of the group has in this pass."""
        super().__init__(group)
        self.num_shards, self.shard = group.size, group.rank
        self._own, self._most = num_tokens[group.rank], max(num_tokens)

    def tokens(self, rows: Sequence[Tensor], name: str) -> list[Tensor]:
        """The rows of all ranks: each sends its own to all."""
        if len(rows[0]) != self._own:
            raise RuntimeError(
                f"a linear was asked for {len(rows[0])} tokens in a pass of {self._own}: a model "
                "that gives its linears unlike tokens needs --placement resident or gathered"
            )
        distinct = {id(row): row for row in rows}
        sizes = [row.shape[1] for row in distinct.values()]
        packed_TF = torch.cat([*distinct.values()], -1)
        padded_TF = F.pad(packed_TF, (0, 0, 0, self._most - self._own))
        gathered_TF = self.group.all_gather(padded_TF, name).flatten(0, 1)
        parts = (part.contiguous() for part in gathered_TF.split(sizes, -1))
        by_id = dict(zip(distinct, parts, strict=True))
        return [by_id[id(row)] for row in rows]

    def own(self, stacked_B: Tensor, num_linears: int) -> Tensor:
        """The rows of this rank's tokens among those of all."""
        of_ranks = stacked_B.unflatten(0, (num_linears, self.group.size, self._most))
        return of_ranks[:, self.group.rank, : self._own].flatten(0, 1)

    def atoms(self, bank: Bank, *, forward: bool) -> Tensor:
        """This rank's own shard."""
        return bank.shard_F

    def candidates(self, offered: ShardCandidates) -> list[ShardCandidates]:
        """Candidates of every shard: one message of sums, scores and indices."""
        widths = [t.shape[1] * t.element_size() // 4 for t in offered]
        message = torch.cat([t.view(torch.int32) for t in offered], -1)
        gathered = self.group.all_gather(message, "candidates").split(widths, -1)
        fields = [
            packed.contiguous().view(t.dtype) for packed, t in zip(gathered, offered, strict=True)
        ]
        return [ShardCandidates(*of_shard) for of_shard in zip(*fields, strict=True)]

    def sums(self, part_B2: Tensor) -> list[Tensor]:
        """Terms of every shard: one message."""
        return [*self.group.all_gather(part_B2, "sums")]

    def collect(self, parts: Sequence[Tensor], name: str) -> Sequence[Tensor]:
        """Each shard's parts are sent to the tokens' owner."""
        sizes = [part.shape[1] for part in parts]
        blocks_PTF = torch.cat([*parts], -1).unflatten(0, (self.group.size, self._most))
        received_PTF = self.group.exchange(blocks_PTF, name)
        return received_PTF[:, : self._own].split(sizes, -1)


def in_backward() -> bool:
    """Whether autograd runs a backward pass in this thread, as where it recomputes a layer."""
    return torch._C._current_graph_task_id() != -1


def _most_inputs(bank: Bank, linears: Sequence[int]) -> int:
    return max([bank.shapes[i][0] for i in linears])
