"""Where the atoms of a memory and the tokens that ask it meet.

    Resident     every rank keeps a copy of all shares      nothing moves in a step
    Gathered     shares come to the tokens                  all atoms, in forward and in backward
    Stationary   tokens come to the shares                  tokens, candidates, partial sums

All three compute the same products of a home's tokens and a share's atoms (``atoms.recall``) and
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

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.atoms.bank import Bank
from moram_dist.atoms.routing import Candidates
from moram_dist.atoms.scan import BEYOND, Image, supported
from moram_dist.comm.collectives import AtomGroup, Pending

Pair = tuple[int, int]
"""A home rank, and the rank of a share."""


class Placement(ABC):
    """Which pairs of a home and a share this rank computes, and how results find their way."""

    def __init__(self, group: AtomGroup) -> None:
        self.group = group

    @abstractmethod
    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """Home to its rows for each linear, for every home this rank works for."""

    @abstractmethod
    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """Share to its frozen atoms, flat as in the bank, for every share this rank works on."""

    def gram(self, bank: Bank, linear: int) -> Tensor | None:
        """K^T K of a linear's frozen atoms, where the rank has it and it is the smaller matrix."""
        return None

    def image(self, bank: Bank, linear: int) -> Image | None:
        """For a scan of a linear's frozen atoms, where the rank has them and a scan pays."""
        return None

    @abstractmethod
    def candidates(
        self, offered: Mapping[Pair, Sequence[Candidates]]
    ) -> dict[int, list[list[Candidates]]]:
        """Home to each linear's candidates from all shares, in the order of shares."""

    @abstractmethod
    def sums(self, parts: Mapping[Pair, Sequence[Tensor]]) -> dict[int, list[list[Tensor]]]:
        """Home to each linear's terms, (T, 2) each, in the order of shares."""

    @abstractmethod
    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """Each linear's parts for this rank's tokens, (T, F) each, in the order of shares."""


class _Local(Placement):
    """All pairs of this home: what belongs together is here already."""

    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """Its own rows."""
        return {self.group.rank: list(rows)}

    def candidates(
        self, offered: Mapping[Pair, Sequence[Candidates]]
    ) -> dict[int, list[list[Candidates]]]:
        """What its shares offered."""
        return {self.group.rank: _by_linear(offered)}

    def sums(self, parts: Mapping[Pair, Sequence[Tensor]]) -> dict[int, list[list[Tensor]]]:
        """Terms that are all here."""
        return {self.group.rank: _by_linear(parts)}

    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """Parts that are all here."""
        return _by_linear(parts)


class Resident(_Local):
    """Frozen atoms never go stale, so a copy gathered once a task serves all its steps."""

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """All shares, from the copy."""
        return bank.all_here()

    def gram(self, bank: Bank, linear: int) -> Tensor | None:
        """From the copy, once a task, where there are more atoms than inputs."""
        return bank.gram(linear) if bank.num_atoms > bank.shapes[linear][0] else None

    def image(self, bank: Bank, linear: int) -> Image | None:
        """From the copy, once a task, where atoms are many more than inputs."""
        device = bank.share_F.device
        many = bank.num_atoms > BEYOND.get(device.type, math.inf) * bank.shapes[linear][0]
        return bank.image(linear) if many and supported(device) else None


class Gathered(_Local):
    """Shares are fetched for each pass, the next bank's while this one's are used.

    Nothing outlives the pass: the backward pass fetches them again, in the reverse order.
    """

    def __init__(self, group: AtomGroup) -> None:
        super().__init__(group)
        self.banks: list[Bank] = []
        """In the order of the forward pass."""
        self._under_way: dict[int, Pending] = {}

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """All shares, fetched; the bank that follows is sent for."""
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
        return self.group.start_all_gather(self.banks[at].share_F, "atoms")


class Stationary(Placement):
    """Atoms stay where they are: this rank asks its share for all homes."""

    def __init__(self, group: AtomGroup, num_tokens: Sequence[int]) -> None:
        """``num_tokens``: how many each rank of the group has in this pass."""
        super().__init__(group)
        self.num_tokens = tuple(num_tokens)

    def tokens(self, rows: Sequence[Tensor], name: str) -> dict[int, list[Tensor]]:
        """Every home's rows: each rank sends its own to all."""
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
        for home, packed in enumerate(gathered_PTF):
            parts = packed[: self.num_tokens[home]].split(sizes, -1)
            by_id = dict(zip(distinct, (part.contiguous() for part in parts), strict=True))
            out[home] = [by_id[id(row)] for row in rows]
        return out

    def atoms(self, bank: Bank, *, forward: bool) -> dict[int, Tensor]:
        """Its own share."""
        return {self.group.rank: bank.share_F}

    def candidates(
        self, offered: Mapping[Pair, Sequence[Candidates]]
    ) -> dict[int, list[list[Candidates]]]:
        """Every share's, for every home: one message of sums, scores and indices."""
        mine, homes = self.group.rank, range(self.group.size)
        first = offered[mine, mine]
        widths = [t.shape[1] * t.element_size() // 4 for one in first for t in one]
        message_PTF = torch.stack(
            [
                self._padded(
                    torch.cat([t.view(torch.int32) for one in offered[h, mine] for t in one], -1)
                )
                for h in homes
            ]
        )
        gathered_PPTF = self.group.all_gather(message_PTF, "candidates")  # [share, home]
        out: dict[int, list[list[Candidates]]] = {h: [[] for _ in first] for h in homes}
        for of_share in gathered_PPTF:
            for h, packed in enumerate(of_share):
                parts = iter(packed[: self.num_tokens[h]].split(widths, -1))
                for linear, like in zip(out[h], first, strict=True):
                    fields = (next(parts).contiguous().view(t.dtype) for t in like)
                    linear.append(Candidates(*fields))
        return out

    def sums(self, parts: Mapping[Pair, Sequence[Tensor]]) -> dict[int, list[list[Tensor]]]:
        """Every share's, for every home: one message."""
        mine, homes = self.group.rank, range(self.group.size)
        message = torch.stack([self._padded(torch.cat([*parts[h, mine]], -1)) for h in homes])
        gathered = self.group.all_gather(message, "sums")  # [share, home]
        out = {}
        for h in homes:
            linears = zip(
                *(t[: self.num_tokens[h]].split(2, -1) for t in gathered[:, h]), strict=True
            )
            out[h] = [list(linear) for linear in linears]
        return out

    def collect(self, parts: Mapping[Pair, Sequence[Tensor]], name: str) -> list[list[Tensor]]:
        """Each share's parts go to their home."""
        mine, homes = self.group.rank, range(self.group.size)
        sizes = [part.shape[1] for part in parts[mine, mine]]
        blocks_PTF = torch.stack([self._padded(torch.cat([*parts[h, mine]], -1)) for h in homes])
        received_PTF = self.group.exchange(blocks_PTF, name)
        shares = (block[: self.num_tokens[mine]].split(sizes, -1) for block in received_PTF)
        return [list(linear) for linear in zip(*shares, strict=True)]

    def _padded(self, rows_TF: Tensor) -> Tensor:
        """With as many rows as the rank that has most."""
        return F.pad(rows_TF, (0, 0, 0, max(self.num_tokens) - len(rows_TF)))


def _by_linear(parts: Mapping[Pair, Sequence]) -> list[list]:
    """From one home's pairs: each linear's entries in the order of shares."""
    shares = [parts[pair] for pair in sorted(parts)]
    return [list(linear) for linear in zip(*shares, strict=True)]
