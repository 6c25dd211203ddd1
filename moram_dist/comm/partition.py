"""Who owns which row of a list that is split over ranks: row i belongs to rank i mod P.

So shards differ by at most one row, a run of new rows is spread over all ranks, and growth appends
to each shard. P is the number of ranks in the group.
"""

from __future__ import annotations


def shard_size(num_rows: int, rank: int, num_ranks: int) -> int:
    """Rows of ``rank`` among rows 0 .. num_rows - 1."""
    return max(0, -(-(num_rows - rank) // num_ranks))


def largest_shard(num_rows: int, num_ranks: int) -> int:
    """Rows of the rank that has most: rank 0's."""
    return shard_size(num_rows, 0, num_ranks)


def new_rows(start: int, rank: int, num_ranks: int) -> slice:
    """Which of the rows that follow row ``start - 1`` are ``rank``'s, as a slice of those rows."""
    return slice((rank - start) % num_ranks, None, num_ranks)
