"""The frozen atoms of some linears on one rank: its shard and, optionally, a copy of all shards.

A shard is one flat tensor, so that one collective moves it: for each linear its keys, then its
values, each padded to the largest shard of any rank. Atom i belongs to rank i mod P of the group
(``comm.partition``), so each task's atoms are spread over all ranks. A rank that has all shards
also reserves room for active atoms: a forward pass writes them behind the frozen ones, so both form
one matrix and the frozen atoms are not copied.

Shape letters: N atoms in the memory, R new ones, D inputs, E outputs, P ranks, F flat numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moram_dist.atoms.scan import Image, image
from moram_dist.comm.collectives import AtomGroup
from moram_dist.comm.partition import largest_shard, new_rows, shard_size

Atoms = tuple[Tensor, Tensor]
"""Keys (rows, D) and values (rows, E)."""


class Bank(nn.Module):
    """Holds frozen atoms as buffers: ZeRO-3 neither shards nor moves them, and they can grow."""

    shard_F: Tensor
    copy_PF: Tensor

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        group: AtomGroup,
        *,
        like: Tensor,
        copied=False,
        num_active=0,
    ) -> None:
        """An empty memory.

        Args:
            shapes: (D, E) of each linear.
            group: the ranks that hold the memory together.
            like: a tensor of the memory's dtype and device.
            copied: whether this rank also keeps a copy of all shards.
            num_active: active atoms to reserve room for behind the frozen ones, if this rank has
                all shards.
        """
        super().__init__()
        self.shapes = tuple(shapes)
        self.group = group
        self.copied = copied
        self.num_active = num_active
        self.num_atoms = 0
        """Frozen atoms per linear in the whole memory."""
        empty = torch.empty(0, dtype=like.dtype, device=like.device)
        self.register_buffer("shard_F", empty, persistent=False)
        self.register_buffer("copy_PF", empty.view(group.size, 0), persistent=False)
        self._room = 0
        """Rows of each matrix in a shard, padding included."""
        self._sealed: list[str] | None = None
        self._grams: dict[int, Tensor] = {}
        self._images: dict[int, Image] = {}

    @property
    def atom_bytes(self) -> int:
        """Bytes of one atom in every linear."""
        return sum(d + e for d, e in self.shapes) * self.shard_F.element_size()

    @property
    def stored_bytes(self) -> int:
        """Bytes of this rank's shard, without padding."""
        return shard_size(self.num_atoms, self.group.rank, self.group.size) * self.atom_bytes

    def own(self) -> list[Atoms]:
        """The atoms of each linear in this rank's shard."""
        return self.views(self.shard_F, self.group.rank)

    def all_here(self) -> dict[int, Tensor]:
        """Every shard, flat. Only for a rank that has them all."""
        return dict(enumerate(self.copy_PF if self.group.size > 1 else self.shard_F[None]))

    def views(self, flat_F: Tensor, shard: int) -> list[Atoms]:
        """The atoms of each linear in a flat shard."""
        rows = shard_size(self.num_atoms, shard, self.group.size)
        return [(k[:rows], v[:rows]) for k, v in self._matrices(flat_F)]

    def joined(
        self, flat_F: Tensor, shard: int, active: Mapping[int, Atoms], num_frozen: int
    ) -> dict[int, Atoms]:
        """Frozen atoms of linears in a flat shard, followed by active ones.

        Args:
            flat_F: the shard, as a placement supplies it.
            shard: its index.
            active: linear to the active atoms that will be frozen into this shard; empty if only
                some of the frozen atoms are queried.
            num_frozen: frozen atoms to query: all of the memory's, or the first ones.

        Returns:
            Linear to its atoms: a view that is valid until the next call if there is room, else a
            copy.
        """
        first = shard_size(num_frozen, shard, self.group.size)
        matrices = self._matrices(flat_F)
        return {
            i: (self._behind(matrices[i][0], k, first), self._behind(matrices[i][1], v, first))
            for i, (k, v) in active.items()
        }

    def _behind(self, matrix: Tensor, active: Tensor, first: int) -> Tensor:
        if not len(active):
            return matrix[:first]
        last = first + len(active)
        if last > len(matrix) or active.dtype != matrix.dtype:
            return torch.cat([matrix[:first], active])
        matrix[first:last] = active
        return matrix[:last]

    def _matrices(self, flat_F: Tensor) -> list[Atoms]:
        """Keys and values of each linear in a flat shard, padding included."""
        parts = iter(flat_F.split([self._room * size for shape in self.shapes for size in shape]))
        return [
            (next(parts).view(self._room, d), next(parts).view(self._room, e))
            for d, e in self.shapes
        ]

    def gram(self, linear: int) -> Tensor:
        """K^T K of all frozen atoms of a linear, (D, D) in float32 or more; cached until it grows.

        Only for a rank that has all shards.
        """
        if linear not in self._grams:
            precise = torch.promote_types(self.shard_F.dtype, torch.float32)
            width = self.shapes[linear][0]
            gram_DD = self.shard_F.new_zeros(width, width, dtype=precise)
            for shard, flat_F in self.all_here().items():
                keys_ND = self.views(flat_F, shard)[linear][0].to(precise)
                gram_DD.addmm_(keys_ND.T, keys_ND)
            self._grams[linear] = gram_DD
        return self._grams[linear]

    def image(self, linear: int) -> Image:
        """The ``Image`` of a linear's frozen atoms for scans; cached until the bank grows.

        Only for a rank that has all shards.
        """
        if linear not in self._images:
            shards = self.all_here().items()
            keys = {shard: self.views(flat_F, shard)[linear][0] for shard, flat_F in shards}
            self._images[linear] = image(keys, self.gram(linear))
        return self._images[linear]

    def grow(self, atoms: Sequence[Atoms]) -> None:
        """Append frozen atoms, one pair per linear: unsharded, the same on all ranks of the group.

        They are converted to the bank's dtype and device. All ranks must call it together.

        Raises:
            RuntimeError: the sizes do not fit.
        """
        mine = new_rows(self.num_atoms, self.group.rank, self.group.size)
        before = self.own()
        num_new = len(atoms[0][0])
        behind = self.num_active if self.copied or self.group.size == 1 else 0
        room = largest_shard(self.num_atoms + num_new + behind, self.group.size)
        parts: list[Tensor] = []
        for old, new in zip(before, atoms, strict=True):
            for kept, added in zip(old, new, strict=True):
                if added.shape != (num_new, kept.shape[1]):
                    raise RuntimeError(
                        f"atoms of shape {tuple(added.shape)} in a memory of {kept.shape[1]}"
                    )
                rows = torch.cat([kept, added[mine].to(kept)])
                empty = kept.new_zeros(room - len(rows), kept.shape[1])
                parts += [rows.flatten(), empty.flatten()]
        self.shard_F = torch.cat(parts)
        self.num_atoms += num_new
        self._room = room
        if self.copied:
            self.copy_PF = self.group.all_gather(self.shard_F, "copies")
        self._sealed = None
        self._grams.clear()
        self._images.clear()

    def intact(self) -> bool:
        """Whether every atom here, copies included, is unchanged since the first call.

        The next call after the bank has grown counts as the first.
        """
        flats = [(self.group.rank, self.shard_F)]
        if self.copied:
            flats += enumerate(self.copy_PF)
        now = [
            hashlib.sha256(atoms.cpu().view(torch.uint8).numpy().tobytes()).hexdigest()
            for shard, flat_F in flats
            for pair in self.views(flat_F, shard)
            for atoms in pair
        ]
        self._sealed = self._sealed or now
        return now == self._sealed
