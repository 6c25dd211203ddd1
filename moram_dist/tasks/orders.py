"""Choose the tasks to learn and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moram_dist.registry import InputError, unknown


def choose_order(
    order: str | None, *, named: Mapping[str, Sequence[str]], tasks: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """The order's name and its tasks.

    Args:
        order: a name in ``named``, or task names separated by commas; None is the first of
            ``named``.
        named: the benchmark's own orders. A second name for the same tasks is an alias: the first
            one is returned, so that runs of one order have one name.
        tasks: every task of the benchmark.

    Raises:
        InputError: no order or task has that name, or a task is named twice.
    """
    order = next(iter(named)) if order is None else order
    if order in named:
        first = next(name for name in named if tuple(named[name]) == tuple(named[order]))
        return first, tuple(named[order])
    names = tuple(name.strip() for name in order.split(","))
    for name in names:
        if name not in tasks:
            raise (
                unknown("task", name, tasks)
                if len(names) > 1
                else unknown("order", name, [*named, *tasks])
            )
        if names.count(name) > 1:
            raise InputError(f"order {order!r} names task {name!r} twice")
    return order, names
