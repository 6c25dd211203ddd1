"""The frozen atoms of some linears on one rank: its shard and, optionally, a copy of all atoms.

A shard is one flat tensor, so that one collective moves it: the keys of each linear, then the
values of each, padded to the largest shard of any rank. Atom i belongs to rank i mod P of the group
(``comm.partition``), so each task's atoms are spread over all ranks. A copy of the whole memory has
the same layout with one row per atom, in the order of the memory, and reserves room for active
atoms: a forward pass writes them behind the frozen ones, so both form one matrix and the frozen
atoms are not copied.

Shape letters: N atoms in the memory, R new ones, D inputs, E outputs, P ranks, F flat numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moram_dist.atoms.scan import Image, image
from moram_dist.comm.collectives import AtomGroup
from moram_dist.comm.partition import largest_shard, new_rows, shard_size

SPARE = 8
"""A rank alone reserves room for an eighth more atoms than it has. So of a thousand tasks, few copy
all atoms of the tasks before them."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of a number."""

Atoms = tuple[Tensor, Tensor]
"""Keys (rows, D) and values (rows, E)."""


class Bank(nn.Module):
    """Holds frozen atoms as buffers: ZeRO-3 neither shards nor moves them, and they can grow."""

    shard_F: Tensor
    copy_F: Tensor

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
            copied: whether this rank also keeps a copy of all atoms.
            num_active: active atoms to reserve room for behind the frozen ones of a whole memory.
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
        self.register_buffer("copy_F", empty, persistent=False)
        self._bits = torch.zeros(len(self.shapes), 2, 2, dtype=torch.int64, device=like.device)
        """Sums of the bits of the atoms as they were appended: linear, keys or values, own or all.
        """
        self._grams: dict[int, Tensor] = {}
        self._images: dict[int, Image] = {}
        self._rows: tuple[Tensor, tuple[list[Tensor], list[Tensor]]] | None = None
        """With the flat memory that they are views of: a bank may move to another device."""

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
        return self.views(self.shard_F, self.group.rank, self.group.size)

    def whole(self) -> Tensor:
        """All atoms, flat, in the order of the memory. Only for a rank that has them all."""
        return self.copy_F if self.group.size > 1 else self.shard_F

    def gathered(self) -> list[Atoms]:
        """All atoms of each linear, wherever they are. All ranks must call it together."""
        if self.copied or self.group.size == 1:
            return self.views(self.whole())
        return self.views(self.in_order(self.group.all_gather(self.shard_F, "whole keys")))

    def in_order(self, flat_PF: Tensor) -> Tensor:
        """The shards of all ranks as one flat memory, with room for active atoms."""
        num_ranks, size = flat_PF.shape
        if num_ranks == 1:
            return flat_PF[0]
        rows = size // self._width
        all_rows = num_ranks * rows + self.num_active
        out_F = flat_PF.new_zeros(all_rows * self._width)
        matrices = out_F.split([all_rows * width for width in self._widths])
        shards = flat_PF.split([rows * width for width in self._widths], -1)
        for matrix_F, shards_PF, width in zip(matrices, shards, self._widths, strict=True):
            of_ranks_RPF = matrix_F[: num_ranks * rows * width].view(rows, num_ranks, width)
            of_ranks_RPF.copy_(shards_PF.unflatten(1, (rows, width)).transpose(0, 1))
        return out_F

    def views(self, flat_F: Tensor, shard: int = 0, num_shards: int = 1) -> list[Atoms]:
        """The atoms of each linear in a flat shard, or in a flat memory."""
        rows = shard_size(self.num_atoms, shard, num_shards)
        return [(k[:rows], v[:rows]) for k, v in self._matrices(flat_F)]

    def joined(self, flat_F: Tensor, active: Mapping[int, Atoms], num_frozen: int) -> list[Atoms]:
        """Frozen atoms of linears, followed by active ones.

        Args:
            flat_F: a shard, or the whole memory.
            active: linear to the active atoms that will be frozen into it; empty if only some of
                the frozen atoms are queried.
            num_frozen: rows of frozen atoms to query: all of them, or the first ones.

        Returns:
            The atoms of each linear in ``active``: views that are valid until the next call if
            there is room, else copies.
        """
        if flat_F is self.whole():
            matrices = list(zip(*self.rows(), strict=True))
        else:
            matrices = self._matrices(flat_F)
        return [
            (_behind(matrices[i][0], k, num_frozen), _behind(matrices[i][1], v, num_frozen))
            for i, (k, v) in active.items()
        ]

    @property
    def _widths(self) -> list[int]:
        """Columns of each matrix of a flat shard, in its order."""
        return [d for d, _ in self.shapes] + [e for _, e in self.shapes]

    @property
    def _width(self) -> int:
        return sum(self._widths)

    def _matrices(self, flat_F: Tensor) -> list[Atoms]:
        """Keys and values of each linear in a flat shard, padding included."""
        rows = flat_F.shape[0] // self._width
        parts = flat_F.split([rows * width for width in self._widths])
        found = [part.view(rows, width) for part, width in zip(parts, self._widths, strict=True)]
        half = len(self.shapes)
        return list(zip(found[:half], found[half:], strict=True))

    def rows(self) -> tuple[list[Tensor], list[Tensor]]:
        """All keys, and all values, of each linear, padding included.

        Only for a rank that has all atoms. They stay the same while a task is learned.
        """
        flat_F = self.whole()
        if self._rows is None or self._rows[0] is not flat_F:
            keys, values = zip(*self._matrices(flat_F), strict=True)
            self._rows = flat_F, ([*keys], [*values])
        return self._rows[1]

    def gram(self, linear: int) -> Tensor:
        """K^T K of all frozen atoms of a linear, (D, D) in float32 or more; cached until it grows.

        Only for a rank that has all atoms.
        """
        if linear not in self._grams:
            precise = torch.promote_types(self.shard_F.dtype, torch.float32)
            keys_ND = self.views(self.whole())[linear][0].to(precise)
            self._grams[linear] = keys_ND.T @ keys_ND
        return self._grams[linear]

    def image(self, linear: int) -> Image:
        """The ``Image`` of a linear's frozen atoms for scans; cached until the bank grows.

        Only for a rank that has all atoms.
        """
        if linear not in self._images:
            keys_ND = self.views(self.whole())[linear][0]
            self._images[linear] = image(keys_ND, self.gram(linear))
        return self._images[linear]

    def grow(self, atoms: Sequence[Atoms]) -> None:
        """Append frozen atoms, one pair per linear: unsharded, the same on all ranks of the group.

        They are converted to the bank's dtype and device. All ranks must call it together.

        Raises:
            RuntimeError: the sizes do not fit.
        """
        mine = new_rows(self.num_atoms, self.group.rank, self.group.size)
        num_new = len(atoms[0][0])
        alone = self.group.size == 1
        total = self.num_atoms + num_new + (self.num_active if alone else 0)
        needed = largest_shard(total, self.group.size)
        kept_F = grown_F = self.shard_F
        if not alone or needed * self._width > len(kept_F):
            room = needed + (needed // SPARE if alone else 0)
            grown_F = kept_F.new_zeros(room * self._width)
        places = zip(self.own(), atoms, self._matrices(grown_F), strict=True)
        for linear, (kept_pair, new_pair, grown_pair) in enumerate(places):
            parts = zip(kept_pair, new_pair, grown_pair, strict=True)
            for which, (kept, new, grown) in enumerate(parts):
                if new.shape != (num_new, kept.shape[1]):
                    raise RuntimeError(
                        f"atoms of shape {tuple(new.shape)} in a memory of {kept.shape[1]}"
                    )
                new = new.to(kept)
                added = new[mine]
                if grown_F is not kept_F:
                    grown[: len(kept)] = kept
                grown[len(kept) : len(kept) + len(added)] = added
                self._bits[linear, which] += _bits([added, new]).to(self._bits.device)
        self.shard_F = grown_F
        self.num_atoms += num_new
        if self.copied:
            self.copy_F = self.in_order(self.group.all_gather(self.shard_F, "copies"))
        self._grams.clear()
        self._images.clear()
        self._rows = None

    def intact(self) -> bool:
        """Whether every atom here, copies included, has the bits with which it was appended."""
        held = [self.own()] + ([self.views(self.copy_F)] if self.copied else [])
        parts = (
            [atoms[i][which] for atoms in held]
            for i in range(len(self.shapes))
            for which in range(2)
        )
        found = torch.stack([_bits(part) for part in parts]).view(len(self.shapes), 2, len(held))
        return torch.equal(found.to(self._bits.device), self._bits[..., : len(held)])


def _bits(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of each tensor's bits as integers: any one change shows, and it is fast."""
    sums = [t.reshape(-1).view(INTEGERS[t.element_size()]).sum(dtype=torch.int64) for t in tensors]
    return torch.stack(sums)


def _behind(matrix: Tensor, active: Tensor, first: int) -> Tensor:
    """The first rows of a matrix, followed by active atoms."""
    if not active.shape[0]:
        return matrix[:first]
    if not first:
        return active
    last = first + active.shape[0]
    if last > matrix.shape[0] or active.dtype != matrix.dtype:
        return torch.cat([matrix[:first], active])
    matrix[first:last] = active
    return matrix[:last]
