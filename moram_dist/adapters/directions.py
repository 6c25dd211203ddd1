"""The directions of older tasks' inputs, and keys that are kept off them.

Shape letters: R keys, D elements of an input, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import sizes
from moram_dist.adapters.moments import of_inputs
from moram_dist.adapters.subspaces import directions_of_inputs

EXAMPLES = 64
"""Training examples of a task from which its directions are computed."""

NEGLIGIBLE = 1e-4
"""Of a direction, the length outside a span at which it counts as inside."""

Names = tuple[str, ...]
"""Full names of linears that share an input."""


def off(keys_RD: Tensor, directions_KD: Tensor | None) -> Tensor:
    """Keys without their part along orthonormal directions; so their gradients have none either."""
    if directions_KD is None:
        return keys_RD
    precise = torch.promote_types(keys_RD.dtype, torch.float32)
    keys, directions = keys_RD.to(precise), directions_KD.to(precise)
    return (keys - (keys @ directions.T) @ directions).to(keys_RD.dtype)


def beyond(rows_KD: Tensor, basis_KD: Tensor) -> Tensor:
    """Orthonormal rows that span, with ``basis_KD``, all that ``rows_KD`` and it span.

    Args:
        rows_KD: orthonormal.
        basis_KD: orthonormal.

    Returns:
        Rows in the dtype of ``rows_KD``, orthogonal to ``basis_KD``: at most as many as ``rows_KD``
        has, and fewer if the basis holds some of them to 1e-4 of their length.
    """
    rest, basis = rows_KD.double(), basis_KD.double()
    for _ in range(2):  # once would leave the rounding of the stored basis
        rest = rest - (rest @ basis.T) @ basis
    _, lengths_K, found_KD = torch.linalg.svd(rest, full_matrices=False)
    return found_KD[lengths_K > NEGLIGIBLE].to(rows_KD.dtype).contiguous()


class OlderInputs:
    """For each group of linears, as few directions as hold enough of each older task's inputs.

    Source: gradient projection memory, Saha et al. 2021, arXiv:2103.09762.
    """

    def __init__(
        self, linears: Mapping[str, nn.Module], groups: Sequence[Names], energy: float
    ) -> None:
        """No task yet.

        Args:
            linears: adapted ones by full name.
            groups: which of them share an input.
            energy: part of the squared length of a task's inputs that its directions hold.
        """
        self.linears = linears
        self.groups = groups
        self.energy = energy
        self._parts = {names: [torch.zeros(0, sizes(linears[names[0]])[0])] for names in groups}
        """What each task added, not yet joined: joining after each one copies all before it."""

    def of(self, names: Names) -> Tensor:
        """Directions of a group: orthonormal rows (K, D) in float32, on the CPU."""
        parts = self._parts[names]
        if len(parts) > 1:
            parts[:] = [torch.cat(parts)]
        return parts[0]

    def add_task(
        self, model: nn.Module, look: Callable[[int], tuple[int, Iterator[Tensor]]]
    ) -> dict[str, Tensor]:
        """Add a task's directions; returns them as tensors of its memory file.

        Args:
            model: that the linears are of, as it is after the task. All ranks call this together.
            look: ``methods.method.ExampleLosses`` of the task.
        """
        found = {names: self.of(names)[:0] for names in self.groups}

        def compute(together: list[str], moment_DD: Tensor) -> dict[Names, Tensor]:
            return {
                names: directions_of_inputs(moment_DD, self.of(names), self.energy).cpu()
                for names in self.groups
                if not {*names}.isdisjoint(together)
            }

        for _, computed in of_inputs(model, self.linears, look, EXAMPLES, compute):
            for names, new_KD in computed.items():
                if len(found[names]):  # the group has more than one input
                    new_KD = beyond(new_KD, torch.cat([self.of(names), found[names]]))
                found[names] = torch.cat([found[names], new_KD])
        tensors = {_entry(names): new_KD for names, new_KD in found.items()}
        self.load_task(tensors)
        return tensors

    def load_task(self, tensors: Mapping[str, Tensor]) -> None:
        """Append a task's directions from its memory file."""
        for names, parts in self._parts.items():
            parts.append(tensors[_entry(names)].cpu().float())


def direction_shapes(
    linears: Mapping[str, nn.Module], groups: Sequence[Sequence[str]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of a task's directions in its memory file; -1: as many as it adds."""
    return {_entry(names): (-1, sizes(linears[names[0]])[0]) for names in groups}


def _entry(names: Sequence[str]) -> str:
    return f"{names[0]}.directions"
