"""Subspaces that inputs span, from their second moments.

Shape letters: D elements of a token, K directions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 128
"""Vectors to iterate together; iteration is used if at most half as many are wanted."""

ROUNDS = 20

HELD_ROUNDS = 4
"""Iterations when only the energy in the subspace matters."""

PRECISION = 1e-8
"""Largest residual of a singular vector's equation, relative to its squared singular value."""


def without(moment_DD: Tensor, basis_KD: Tensor) -> Tensor:
    """``(I - P) M``, where P projects onto the orthonormal rows of ``basis_KD``."""
    basis_KD = basis_KD.to(moment_DD)
    return moment_DD - basis_KD.T @ (basis_KD @ moment_DD)


def leading(matrix_DD: Tensor, count: int) -> Tensor:
    """The leading left singular vectors as rows, (count, D), padded with zero rows.

    The sign of each vector makes its largest element positive.
    """
    found = _left_singular(matrix_DD, lambda squares: count)
    return torch.cat([found, found.new_zeros(count - len(found), found.shape[1])])


def new_directions(moment_DD: Tensor, basis_KD: Tensor, energy: float) -> Tensor:
    """The fewest directions to add to ``basis_KD`` so that it holds ``energy`` of the moments.

    That is ``|P M|^2 >= energy |M|^2`` in the Frobenius norm, where P projects onto old and new
    directions: the greedy rule of gradient projection memory.

    Returns:
        Orthonormal rows, orthogonal to ``basis_KD``; none if the basis holds enough already.
    """
    total = moment_DD.square().sum()
    rest_DD = without(moment_DD, basis_KD)
    lacking = energy * total - (total - rest_DD.square().sum())
    if lacking <= 0:
        return moment_DD.new_zeros(0, len(moment_DD))
    return _left_singular(rest_DD, lambda squares: int((squares.cumsum(0) < lacking).sum()) + 1)


def directions_of_inputs(moment_DD: Tensor, basis_KD: Tensor, energy: float) -> Tensor:
    """The fewest directions to add to ``basis_KD`` so that it holds ``energy`` of the inputs.

    That is ``trace(P M) >= energy trace(M)``, where P projects onto old and new directions: the
    fraction of the inputs' squared length in their span. (``new_directions`` squares M instead.)

    Returns:
        Orthonormal rows in float32, orthogonal to ``basis_KD``; none if it holds enough already.
    """
    off_DD = without(without(moment_DD, basis_KD).T, basis_KD)
    total, rest = moment_DD.trace(), off_DD.trace()
    missing = energy * total - (total - rest)
    if missing <= 0:
        return moment_DD.new_zeros(0, len(moment_DD), dtype=torch.float32)
    # In float32: speed matters more than the exact number of directions.
    energies_K, rows_KD = _holding(off_DD.float(), float(missing))
    count = int((energies_K.cumsum(0) < missing).sum()) + 1
    # Directions that hold only rounding errors are arbitrary, and may lie along old ones.
    real = energies_K[:count] > total * torch.finfo(torch.float32).eps
    # Rounding leaves small components along old directions in the new ones.
    clean_DK, _ = torch.linalg.qr(without(rows_KD[:count][real].T.to(moment_DD), basis_KD))
    rows_KD = clean_DK.T.float()
    return rows_KD * rows_KD.gather(1, rows_KD.abs().argmax(1, keepdim=True)).sign()


def _holding(moment_DD: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """The energy of each direction, largest first, and directions that hold ``energy`` together.

    Uses subspace iteration with blocks that double until they hold enough. It need not converge:
    the energy of each direction is exact, so the only cost is a few more directions.
    """
    size, block = len(moment_DD), BLOCK
    start = torch.Generator().manual_seed(0)
    while block <= size // 4:
        seen_DK = torch.randn(size, block, generator=start).to(moment_DD)
        for _ in range(HELD_ROUNDS):
            basis_DK, _ = torch.linalg.qr(moment_DD @ seen_DK)
            seen_DK = basis_DK
        energies_K, turn_KK = torch.linalg.eigh(seen_DK.T @ (moment_DD @ seen_DK))
        if energies_K.clamp(min=0).sum() >= energy:
            return energies_K.flip(0).clamp(min=0), (seen_DK @ turn_KK).T.flip(0)
        block *= 2
    energies_D, vectors_DD = torch.linalg.eigh(moment_DD)
    return energies_D.flip(0).clamp(min=0), vectors_DD.T.flip(0)


def _left_singular(matrix_DD: Tensor, wanted: Callable[[Tensor], int]) -> Tensor:
    """Left singular vectors as rows; ``wanted`` maps squared singular values to their number."""
    squares_K, rows_KD = _iterated(matrix_DD, wanted) or _solved(matrix_DD)
    # Singular vectors of values that are 0 up to rounding are arbitrary.
    real = squares_K > squares_K[:1] * torch.finfo(squares_K.dtype).eps * len(matrix_DD)
    rows = rows_KD[real][: wanted(squares_K)]
    return rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()


def _solved(matrix_DD: Tensor) -> tuple[Tensor, Tensor]:
    """All squared singular values, the largest first, and left singular vectors as rows."""
    squares, vectors = torch.linalg.eigh(matrix_DD @ matrix_DD.T)
    return squares.flip(0).clamp(min=0), vectors.T.flip(0)


def _iterated(matrix_DD: Tensor, wanted: Callable[[Tensor], int]) -> tuple[Tensor, Tensor] | None:
    """The largest of them by subspace iteration; None if that does not reach ``PRECISION``.

    Singular values of moments decay so fast that a few rounds suffice, in a tenth of the time.
    """
    if len(matrix_DD) <= 2 * BLOCK:
        return None
    start = torch.Generator().manual_seed(0)
    block_DK = torch.randn(len(matrix_DD), BLOCK, generator=start, dtype=torch.float64)
    block_DK = matrix_DD @ block_DK.to(matrix_DD)
    for _ in range(ROUNDS):
        basis_DK, _ = torch.linalg.qr(block_DK)
        seen_DK = matrix_DD.T @ basis_DK
        squares_K, turn_KK = torch.linalg.eigh(seen_DK.T @ seen_DK)
        squares_K, turn_KK = squares_K.flip(0).clamp(min=0), turn_KK.flip(1)
        vectors_DK = basis_DK @ turn_KK
        block_DK = matrix_DD @ (seen_DK @ turn_KK)
        count = wanted(squares_K)
        if count > BLOCK // 2:
            return None
        off_K = (block_DK - vectors_DK * squares_K).norm(dim=0)
        if (off_K[:count] <= PRECISION * squares_K[:count]).all():
            return squares_K, vectors_DK.T
    return None
