"""The largest scores of each token, the same ones on every backend.

Shape letters: T tokens, N scores of a token, C columns of a long row, K scores kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2**24
"""Scores that are compared together: beside them, int64 places take several times their memory."""

COLUMNS = 256
"""Columns in which a long row of scores is laid out: numpy partitions longer rows slowly."""


def best(score_TN: Tensor, num_kept: int) -> Tensor:
    """Indices of the ``num_kept`` largest of each row, (T, K) ascending; ties go to the lower one.

    torch.topk does not define the order among ties, and its backends differ, so it only supplies
    the k-th value. On a CPU, where reading values is free, a faster method is used if no row has a
    tie at the k-th value. num_kept must be at most N.
    """
    num_tokens, num_atoms = score_TN.shape
    if num_kept >= num_atoms:
        everything = torch.arange(num_atoms, device=score_TN.device)
        return everything.expand(num_tokens, num_atoms)
    if score_TN.device.type == "cpu" and num_kept <= COLUMNS // 4:
        found_TK = _best_without_ties(score_TN, num_kept)
        if found_TK is not None:
            return found_TK
    size = max(1, AT_ONCE // num_atoms)
    if num_tokens <= size:
        return _best_among_ties(score_TN, num_kept)
    return torch.cat([_best_among_ties(some_TN, num_kept) for some_TN in score_TN.split(size)])


def _best_without_ties(score_TN: Tensor, num_kept: int) -> Tensor | None:
    """``best`` on a CPU, or None if a row has a tie at the k-th value or a NaN.

    numpy partitions short rows several times as fast as torch. A long row is laid out in columns:
    its best scores are in the columns with the best maxima, which form a shorter row.
    """
    num_tokens, num_atoms = score_TN.shape
    if num_atoms <= 2 * COLUMNS:
        place = num_atoms - num_kept
        scores = score_TN.detach().numpy()
        last_T = np.partition(scores, place, axis=1)[:, place]
        flat = np.flatnonzero(scores >= last_T[:, None])
        if len(flat) != num_tokens * num_kept:
            return None
        start_T1 = np.arange(num_tokens)[:, None] * num_atoms
        index_TK = flat.reshape(num_tokens, num_kept) - start_T1
        in_row = (index_TK[:, 0] >= 0).all() and (index_TK[:, -1] < num_atoms).all()
        return torch.from_numpy(index_TK) if in_row else None
    num_rows, rest = divmod(num_atoms, COLUMNS)
    whole_TN, rest_TN = score_TN.split([num_atoms - rest, rest], -1)
    largest_TC = whole_TN.unflatten(1, (num_rows, COLUMNS)).amax(1)
    torch.maximum(largest_TC[:, :rest], rest_TN, out=largest_TC[:, :rest])
    column_TK = _best_without_ties(largest_TC, num_kept)
    if column_TK is None:
        return None
    row_R1 = torch.arange(num_rows + 1)[:, None] * COLUMNS
    index_TC = (column_TK[:, None] + row_R1).flatten(1)
    found_TC = score_TN.gather(1, index_TC.clamp(max=num_atoms - 1))
    found_TC = found_TC.masked_fill(index_TC >= num_atoms, -torch.inf)
    place_TK = _best_without_ties(found_TC, num_kept)
    return None if place_TK is None else index_TC.gather(1, place_TK)


def _best_among_ties(score_TN: Tensor, num_kept: int) -> Tensor:
    """``best`` for any scores, without reading values on the host."""
    num_tokens, num_atoms = score_TN.shape
    last_kept_T1 = score_TN.topk(num_kept, dim=-1).values[:, -1:]
    above = score_TN > last_kept_T1
    tied = score_TN == last_kept_T1
    places_left_T1 = num_kept - above.sum(-1, keepdim=True)
    keep = above | (tied & (tied.cumsum(-1) <= places_left_T1))
    # The i-th kept atom goes to slot i; all others share an extra last slot, which is cut off. Rows
    # of NaN keep nothing, and their slots stay 0, a valid index.
    place = torch.where(keep, keep.cumsum(-1) - 1, num_kept)
    index = torch.zeros(num_tokens, num_kept + 1, dtype=torch.long, device=score_TN.device)
    everything = torch.arange(num_atoms, device=score_TN.device).expand(num_tokens, num_atoms)
    return index.scatter_(1, place, everything)[:, :num_kept]
