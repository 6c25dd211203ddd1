"""Ownership of rows that are split over ranks: row i belongs to rank i mod P.

So shard sizes differ by at most one row, new rows are spread over all ranks, and growth appends to
each shard. P is the number of ranks in the group.
"""

from __future__ import annotations


def shard_size(num_rows: int, rank: int, num_ranks: int) -> int:
    """Rows of ``rank`` among rows 0 .. num_rows - 1."""
    return max(0, -(-(num_rows - rank) // num_ranks))


def largest_shard(num_rows: int, num_ranks: int) -> int:
    """Rows of the largest shard, rank 0's."""
    return shard_size(num_rows, 0, num_ranks)


def new_rows(start: int, rank: int, num_ranks: int) -> slice:
    """The rows that ``rank`` owns among rows ``start``, ``start + 1``, ..., as a slice of them."""
    return slice((rank - start) % num_ranks, None, num_ranks)
