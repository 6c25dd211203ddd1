"""Choose how many tasks of a memory answer each row of a batch.

The state of a growing method after task i is the first i + 1 tasks of its current state. So a row
that is known to belong to task i can be answered by exactly the model that had just learned it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from moram_dist.registry import InputError


class Prefix:
    """The number of tasks per row, shared by all adapted layers; all tasks answer by default."""

    def __init__(self) -> None:
        self._rows: tuple[int, ...] | None = None
        self._by_default: tuple[int, ...] | None = None

    @contextmanager
    def of(self, rows: Sequence[int] | None) -> Iterator[None]:
        """Context in which the first ``rows[b]`` tasks answer row b; None: use the default.

        A single number applies to batches of any size. Not for training: the task being learned
        belongs to no prefix.
        """
        before, self._rows = self._rows, None if rows is None else tuple(rows)
        try:
            yield
        finally:
            self._rows = before

    def default(self, rows: Sequence[int] | None) -> None:
        """Set the rows to use outside of ``of``, until the next call; None: all tasks answer."""
        self._by_default = None if rows is None else tuple(rows)

    def each(
        self, x: Tensor, update: Callable[[int | None], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Apply ``update`` to ``x``, with each row answered by its number of tasks.

        Args:
            x: (B, ..., D), or any shape if all rows have the same number.
            update: maps a number of tasks, or None for all, to tensors with the first dimension of
                ``x``. It always processes the whole batch: products of a part of it may be rounded
                differently.

        Raises:
            InputError: the numbers differ, in a layer whose input is not one item per row.
        """
        rows = self._rows if self._rows is not None else self._by_default
        if rows is None:
            return update(None)
        first, *others = sorted(set(rows))
        found = update(first)
        if not others:
            return found
        if len(x) != len(rows):
            raise InputError(
                "prompts of several tasks in one batch: this model has layers that do not see "
                "a batch as rows; give prompts of one task at a time"
            )
        for number in others:
            mine = [b for b, tasks in enumerate(rows) if tasks == number]
            for out, part in zip(found, update(number), strict=True):
                out[mine] = part[mine]
        return found
