"""How many tasks of a memory answer each row of a batch.

The state of a growing method after task i is the first i + 1 tasks of its state now. So a row that
is known to belong to task i can be answered by exactly the model that had just learned it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from moram_dist.registry import InputError


class Prefix:
    """Shared by the adapted layers of a model: all tasks answer, unless it is told otherwise."""

    def __init__(self) -> None:
        self._rows: tuple[int, ...] | None = None
        self._by_default: tuple[int, ...] | None = None

    @contextmanager
    def of(self, rows: Sequence[int] | None) -> Iterator[None]:
        """Within it, row b is answered by the first ``rows[b]`` tasks; None: all tasks, all rows.

        A single number serves batches of any size. Not in training: what is learned belongs to
        no prefix.
        """
        before, self._rows = self._rows, None if rows is None else tuple(rows)
        try:
            yield
        finally:
            self._rows = before

    def default(self, rows: Sequence[int] | None) -> None:
        """As ``of``, until the next call, wherever ``of`` says nothing else."""
        self._by_default = None if rows is None else tuple(rows)

    def each(
        self, x: Tensor, update: Callable[[int | None], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What ``update`` gives for ``x``, with each row answered by its own number of tasks.

        Args:
            x: (B, ..., D), or anything where all rows have the same number.
            update: from a number of tasks, or None for all, to tensors whose first dimension is
                ``x``'s. It always sees the whole batch: the products of a part of one may be
                rounded otherwise.

        Raises:
            InputError: rows have unlike numbers in a layer that does not see them as rows.
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
