"""Longest common subsequence of two lists of words, row by row in the bits of integers.

The table of lengths grows by 0 or 1 from one column to the next. So a row of it is one integer: bit
j is set where column j + 1 is longer than column j. A row costs a few operations on such integers
(Hyyrö 2004), where the plain table costs one for each pair of words.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 64
"""Rows between two that are kept; those between them are computed again on the way back. So 30,000
words against as many take a few megabytes instead of a hundred."""


def common_subsequence(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """The words of a longest common subsequence, last word first.

    Where several are longest, this is the one that the plain table leads to from its last corner:
    equal words are taken; else up, where that is longer than left; else left. So the package
    ``rouge`` chooses, and the set of words depends on it.
    """
    shared = set(x)
    y = [word for word in y if word in shared]  # the other columns are as long as those before them
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
    """The row after ``row``, for a word that stands at ``places`` of the other text.

    Each stretch between two set bits, its upper one with it, keeps the lowest of its old and new
    bits: a length is reached as early as it can be.
    """
    either = row | places
    return either & ~(either - (row << 1 | 1))
