"""The arguments of a recall, except the tensors that receive gradients.

Shape letters: T tokens, B = L T tokens of all L queried linears, R active atoms, D inputs, K atoms
kept per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def atoms(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], *, forward: bool
    ) -> list[Atoms]:
        """The shard's atoms of each queried linear, frozen ones before active ones."""
        flat_F = self.placement.atoms(self.bank, forward=forward)
        active = dict(zip(self.members, zip(keys, values, strict=True), strict=True))
        if self.num_shards > 1:
            mine = self.active_rows(self.placement.shard)
            active = {i: (k[mine], v[mine]) for i, (k, v) in active.items()}
        return self.bank.joined(flat_F, active, self.first_active)

    def active_rows(self, shard: int) -> slice:
        """Which of the active atoms will be frozen into a shard."""
        return new_rows(self.num_frozen, shard, self.num_shards)

    def chosen(self, mix: Mixture, atoms: Sequence[Atoms]) -> Chosen:
        """The rows of a mixture's atoms in the shard."""
        index_BK = mix.index_TK
        if self.num_shards == 1:
            return Chosen(index_BK, None)
        row_BK = index_BK.div(self.num_shards, rounding_mode="floor")
        num_rows = atoms[0][0].shape[0]
        # A token with NaN scores may have chosen an index that is not an atom.
        here_BK = (index_BK % self.num_shards == self.placement.shard) & (row_BK < num_rows)
        return Chosen(row_BK.clamp(max=max(num_rows - 1, 0)), here_BK)

    def scanned(
        self,
        images: Sequence[Image],
        inputs: Sequence[Tensor],
        atoms: Sequence[Atoms],
    ) -> ShardCandidates:
        """The best frozen atoms, found by a scan. Only for a rank that has all atoms."""
        most = min(self.routing.top_k, self.num_frozen)
        found = [
            scan(x_TD, image, keys_ND[: self.num_frozen], num_kept=most)[0]
            for x_TD, image, (keys_ND, _) in zip(inputs, images, atoms, strict=True)
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

    @property
    def first_active(self) -> int:
        """The first row of the shard that holds an active atom."""
        return shard_size(self.num_frozen, self.placement.shard, self.num_shards)

    def packed(self, active_TR: Tensor) -> Tensor:
        """Columns of a shard's active atoms, padded to the same number for every shard."""
        if self.num_shards == 1:
            return active_TR.contiguous()
        room = largest_shard(self.num_active, self.num_shards)
        return F.pad(active_TR, (0, room - active_TR.shape[1])).contiguous()

    def unpacked(self, packed_PTR: Tensor) -> Tensor:
        """Undo ``packed``: from the columns of P shards to one column per active atom, (T, R)."""
        if self.num_shards == 1:
            return packed_PTR[0]
        # Active atoms 0, P, 2 P, ... are in this shard, 1, P + 1, ... in the next one.
        of_first = self.num_frozen % self.num_shards
        in_turn_TR = packed_PTR.roll(-of_first, 0).permute(1, 2, 0).flatten(1)
        return in_turn_TR[:, : self.num_active]

    def active_strength(self, mix: Mixture) -> Tensor:
        """How strongly each active atom answers each token, (B, R)."""
        row_TK = mix.index_TK - self.num_frozen
        active = Chosen(row_TK.clamp(min=0), row_TK >= 0)
        strength_TK = mix.spoken_TK * mix.score_TK
        return spread(active, strength_TK, self.num_active, strength_TK.dtype)
