"""The arguments of a recall, except the tensors that receive gradients.

Shape letters: T tokens, B = L T tokens of all L queried linears, R active atoms, D inputs, K atoms
kept per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moram_dist.atoms import native
from moram_dist.atoms.backend import backend
from moram_dist.atoms.bank import Atoms, Bank
from moram_dist.atoms.placement import Placement
from moram_dist.atoms.routing import Mixture, Routing, ShardCandidates
from moram_dist.atoms.scan import Image, scan
from moram_dist.atoms.shard import Chosen, spread
from moram_dist.comm.partition import largest_shard, new_rows, shard_size

Mask = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class RecallCall:
    """The queried memory, and how to query it."""

    bank: Bank
    members: tuple[int, ...]
    placement: Placement
    routing: Routing
    num_frozen: int
    """Frozen atoms to query: all of the bank's, or the first ones."""

    num_active: int

    recorded: bool
    """Whether there may be a backward pass."""

    show: Callable[[Mixture], None] | None = None
    """Gets the mixture of this rank's own tokens."""

    masks: tuple[Mask | None, ...] = ()
    """Of each linear: drops elements of its input (T, D) and, in the backward pass, of the input's
    gradient; None or no masks: nothing is dropped."""

    def dropped(self, inputs: Sequence[Tensor | None]) -> list[Any]:
        """Inputs, or their gradients, without what the masks drop."""
        if not self.masks:
            return [*inputs]
        pairs = zip(inputs, self.masks, strict=True)
        return [x if x is None or mask is None else mask(x) for x, mask in pairs]

    @property
    def num_atoms(self) -> int:
        """Frozen and active atoms of each linear."""
        return self.num_frozen + self.num_active

    @property
    def num_shards(self) -> int:
        """Into how many shards the atoms are split: see ``Placement``."""
        return self.placement.num_shards

    def is_one_operation(self, tensors: Sequence[Tensor], *, keep: bool) -> bool:
        """Whether the whole recall is one operation of ``native``.

        Args:
            tensors: inputs, active keys and active values.
            keep: whether there will be a backward pass, which is then one operation, too.
        """
        return (
            self.placement.is_local
            and self.show is None
            and backend(tensors[0]) is native
            and {t.dtype for t in tensors} == {self.bank.shard_F.dtype}
            and self.images() is None
            and not (keep and self.grams() is not None)
        )

    def shards(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], *, forward: bool
    ) -> dict[int, list[Atoms]]:
        """Shard to the atoms of the queried linears, frozen ones before active ones."""
        found = self.placement.atoms(self.bank, forward=forward)
        active = dict(zip(self.members, zip(keys, values, strict=True), strict=True))
        if self.num_shards == 1:
            ((shard, flat_F),) = found.items()
            return {shard: self.bank.joined(flat_F, active, self.num_frozen)}
        out = {}
        for shard, flat_F in found.items():
            own = self.active_rows(shard)
            mine = {i: (k[own], v[own]) for i, (k, v) in active.items()}
            out[shard] = self.bank.joined(flat_F, mine, self.first_active(shard))
        return out

    def active_rows(self, shard: int) -> slice:
        """Which of the active atoms will be frozen into a shard."""
        return new_rows(self.num_frozen, shard, self.num_shards)

    def chosen(self, mix: Mixture, shards: Mapping[int, Sequence[Atoms]]) -> dict[int, Chosen]:
        """Shard to the rows of a mixture's atoms in it."""
        index_BK = mix.index_TK
        if self.num_shards == 1:
            return {0: Chosen(index_BK, None)}
        row_BK = index_BK.div(self.num_shards, rounding_mode="floor")
        shard_BK = index_BK % self.num_shards
        # A token with NaN scores may have chosen an index that is not an atom.
        num_rows = {shard: atoms[0][0].shape[0] for shard, atoms in shards.items()}
        return {
            shard: Chosen(row_BK.clamp(max=max(rows - 1, 0)), (shard_BK == shard) & (row_BK < rows))
            for shard, rows in num_rows.items()
        }

    def scanned(
        self,
        images: Sequence[Image],
        inputs: Sequence[Tensor],
        shards: Mapping[int, Sequence[Atoms]],
    ) -> ShardCandidates:
        """The best frozen atoms, found by a scan. Only for a rank that has all atoms."""
        most = min(self.routing.top_k, self.num_frozen)
        found = [
            scan(x_TD, image, keys_ND[: self.num_frozen], num_kept=most)[0]
            for x_TD, image, (keys_ND, _) in zip(inputs, images, shards[0], strict=True)
        ]
        return ShardCandidates(*(torch.cat(field) for field in zip(*found, strict=True)))

    def grams(self) -> list[Tensor] | None:
        """K^T K of the frozen atoms of each queried linear, (D, D); None if not available."""
        whole = self.num_frozen == self.bank.num_atoms
        return self.placement.grams(self.bank, self.members, self.routing.top_k) if whole else None

    def images(self) -> list[Image] | None:
        """Images for scans of each queried linear's frozen atoms; None if a scan does not pay."""
        whole = self.num_frozen == self.bank.num_atoms
        return self.placement.images(self.bank, self.members) if whole else None

    def first_active(self, shard: int) -> int:
        """The first row of a shard that holds an active atom."""
        return shard_size(self.num_frozen, shard, self.num_shards)

    def packed(self, active_TR: Tensor) -> Tensor:
        """Columns of a shard's active atoms, padded to the same number for every shard."""
        if self.num_shards == 1:
            return active_TR.contiguous()
        room = largest_shard(self.num_active, self.num_shards)
        return F.pad(active_TR, (0, room - active_TR.shape[1])).contiguous()

    def unpacked(self, shards: Sequence[Tensor]) -> Tensor:
        """Undo ``packed``: from one tensor per shard to one column per active atom."""
        if self.num_shards == 1:
            return shards[0]
        out_TR = shards[0].new_empty(len(shards[0]), self.num_active)
        for shard, packed in enumerate(shards):
            columns = out_TR[:, self.active_rows(shard)]
            columns.copy_(packed[:, : columns.shape[1]])
        return out_TR

    def active_strength(self, mix: Mixture) -> Tensor:
        """How strongly each active atom answers each token, (B, R)."""
        row_TK = mix.index_TK - self.num_frozen
        active = Chosen(row_TK.clamp(min=0), row_TK >= 0)
        strength_TK = mix.spoken_TK * mix.score_TK
        return spread(active, strength_TK, self.num_active, strength_TK.dtype)
