"""Choose the placement of a memory, once or for each forward pass.

A choice depends only on numbers that all ranks share, never on a clock or on one rank's data, so
all ranks choose alike. It changes only what is sent, not the results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moram_dist.atoms.bank import Bank
from moram_dist.atoms.placement import Gathered, Placement, Resident, Stationary
from moram_dist.atoms.scan import FURTHER, pays
from moram_dist.comm.collectives import AtomGroup
from moram_dist.config import PLACEMENTS

AUTO, RESIDENT, GATHERED, STATIONARY = PLACEMENTS

CALL_BYTES = {"cpu": 500_000, "cuda": 2_000_000}
"""Startup cost of a collective, as the bytes that a link moves in that time, by the bank's device:
measured for gloo (docs/placement.md); for NCCL from data sheets, between NVLink and InfiniBand."""


class Placer:
    """Chooses the placement for each forward pass.

    Args:
        group: the ranks that hold the memory together.
        choice: one of ``config.PLACEMENTS``.
        room: bytes that a rank may spend on a copy of the whole memory; for ``auto``.
        num_tasks: tasks that the memory will hold in the end; for ``auto``.
        device: device type that banks will move to; default: the one they are on. For ``auto``.
    """

    def __init__(
        self,
        group: AtomGroup | None = None,
        choice: str = RESIDENT,
        *,
        room: float = 0.0,
        num_tasks: int = 1,
        device: str | None = None,
    ) -> None:
        self.group = group or AtomGroup()
        self.choice = choice
        self._room, self._num_tasks = room, num_tasks
        self._device = device
        self.reason = ""
        """Why this choice was made, in one line for the user; set by ``plan``."""
        self._resident = Resident(self.group)
        self._gathered = Gathered(self.group)
        self.now: Placement = self._resident
        """Placement of the current forward pass."""
        self.of_source: Placement = self._resident
        """The same for tokens that an encoder reads: a decoder has others."""

    def plan(self, banks: Sequence[Bank], bytes_per_task: int) -> None:
        """Make the choices that hold for the whole run, and set ``reason``.

        Args:
            banks: in the order of the forward pass.
            bytes_per_task: bytes that a task adds to the whole memory.
        """
        self._gathered.banks = list(banks)
        final_bytes: float = bytes_per_task * self._num_tasks
        final_atoms = final_bytes / sum(bank.atom_bytes for bank in banks)
        final_bytes += sum(
            _beside_a_copy(final_atoms, d, self._device_of(bank))
            for bank in banks
            for d, _ in bank.shapes
        )
        self.reason = f"{self.choice}, as asked"
        size = f"the memory's {final_bytes / 2**20:,.1f} MB after the last task"
        if self.group.size == 1:
            self.choice, self.reason = RESIDENT, "resident: one rank holds all atoms"
        elif self.choice == AUTO and final_bytes <= self._room:
            self.choice = RESIDENT
            self.reason = f"resident: {size} fit the {self._room / 2**20:,.0f} MB that it may take"
        elif self.choice == AUTO:
            self.reason = (
                f"gathered or stationary by the pass: {size} exceed the "
                f"{self._room / 2**20:,.0f} MB that a copy may take"
            )
        for bank in banks:
            bank.copied = not self.in_step and self.group.size > 1

    @property
    def in_step(self) -> bool:
        """Whether forward passes are collective, so that all ranks must make equally many."""
        return self.choice != RESIDENT

    def begin(self, num_tokens: int, *, source: bool = False) -> None:
        """Choose the placement for a pass with ``num_tokens`` tokens on this rank.

        All ranks must call it together. ``source``: an encoder reads the tokens.
        """
        placement = self._choose(num_tokens)
        if source:
            self.of_source = placement
        else:
            self.now = placement

    def _choose(self, num_tokens: int) -> Placement:
        if self.choice == RESIDENT:
            return self._resident
        if self.choice == GATHERED:
            return self._gathered
        banks = self._gathered.banks
        device = banks[0].shard_F.device
        mine = torch.tensor([num_tokens], device="cpu" if device.type == "meta" else device)
        counts = self.group.all_gather(mine, "token counts").flatten().tolist()
        moved = self.choice == STATIONARY or tokens_move(
            banks[0].num_atoms,
            max(counts),
            self.group.size,
            atom_bytes=sum(bank.atom_bytes for bank in banks) / len(banks),
            call_bytes=CALL_BYTES[self._device_of(banks[0])],
        )
        return Stationary(self.group, counts) if moved else self._gathered

    def _device_of(self, bank: Bank) -> str:
        return self._device or bank.shard_F.device.type

    def growing(self) -> None:
        """Call before banks grow: drops pending fetches."""
        self._gathered.forget()


def _beside_a_copy(num_atoms: float, num_inputs: int, device: str) -> float:
    """Bytes that a linear's copy of ``num_atoms`` adds at most: K^T K, an image for scans."""
    gram = 4 * num_inputs**2 if num_atoms > num_inputs else 0
    scanned = pays(num_atoms, num_inputs, device)
    return gram + (2 * num_atoms * (num_inputs + FURTHER) if scanned else 0)


def tokens_move(
    num_atoms: int, num_tokens: int, num_ranks: int, *, atom_bytes: float, call_bytes: int
) -> bool:
    """Whether sending tokens to atoms likely takes less time than sending atoms to tokens.

    In a forward and backward pass of one bank, gathering takes two collectives and moves
    N (P - 1) / P atoms twice; stationary atoms take six and move (P - 1) T tokens' inputs and
    outputs twice, as large as atoms (``atoms.placement``). A collective adds ``call_bytes``.
    """
    atoms = 2 * num_atoms * (num_ranks - 1) / num_ranks * atom_bytes
    tokens = 2 * (num_ranks - 1) * num_tokens * atom_bytes
    return atoms + 2 * call_bytes > tokens + 6 * call_bytes
