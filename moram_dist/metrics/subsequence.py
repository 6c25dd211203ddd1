"""Longest common subsequence of two lists of words, with each row stored as bits of an integer.

The table of lengths grows by 0 or 1 from one column to the next. So one integer can store a row:
bit j is set if column j + 1 is longer than column j. A row costs a few operations on such integers
(Hyyrö 2004), while the plain table costs one operation per pair of words.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 64
"""Every BLOCK-th row is stored; rows between are computed again on the way back. So two texts of
30,000 words take a few megabytes instead of a hundred."""


def common_subsequence(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """The words of a longest common subsequence, last word first.

    If several are longest, this is the one found by going back from the table's last corner: take
    equal words; else go up if that is longer than left; else go left. The package ``rouge`` does
    the same, and the set of words depends on it.
    """
    shared = set(x)
    y = [word for word in y if word in shared]  # lengths do not grow at the other columns
    if not y:
        return []
    places: dict[str, int] = {}
    for j, word in enumerate(y):
        places[word] = places.get(word, 0) | 1 << j
    kept = [0]
    row = 0
    for i, word in enumerate(x, start=1):
        row = _next(row, places.get(word, 0))
        if i % BLOCK == 0:
            kept.append(row)

    found: list[str] = []
    i, j = len(x), len(y)
    rows: list[int] = []
    first = i + 1  # rows[k] is row first + k
    while i and j:
        if i < first:
            block = (i - 1) // BLOCK
            first, row, rows = block * BLOCK + 1, kept[block], []
            for word in x[block * BLOCK : i]:
                row = _next(row, places.get(word, 0))
                rows.append(row)
        if x[i - 1] == y[j - 1]:
            found.append(x[i - 1])
            i, j = i - 1, j - 1
        elif rows[i - first] >> (j - 1) & 1:
            i -= 1
        else:
            j -= 1
    return found


def _next(row: int, places: int) -> int:
    """The row after ``row``, for a word that occurs at the bits ``places`` of the other text.

    Each range between two set bits, including the upper one, keeps the lowest of its old and new
    bits: each length is reached as early as possible.
    """
    either = row | places
    return either & ~(either - (row << 1 | 1))
