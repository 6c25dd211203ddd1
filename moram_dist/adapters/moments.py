"""Second moments of the inputs of linears, over the examples of a task and all ranks.

Shape letters: N tokens, D elements of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import sizes
from moram_dist.comm import env

Computed = TypeVar("Computed")

AT_ONCE = 2**32
"""Bytes of sums at a time. A base of 7 B parameters has 41 GiB of them."""


def round_bytes(inputs: Iterable[int]) -> int:
    """Bytes on the device, at most, while moments of inputs of these sizes are taken and used."""
    each = [torch.float64.itemsize * size**2 for size in inputs]
    # What is computed of one of them makes a few matrices of its size.
    return min(sum(each), max(AT_ONCE, *each)) + 4 * max(each)


class InputMoments:
    """``sum_n x_n x_n^T`` over the inputs of each linear, in float64.

    The products of one forward pass are computed in float32. Linears that are called in a row with
    the same tensor, such as query, key and value, share one sum. Sums of all linears at once could
    exceed the device's memory, so one round of passes takes as many as ``most_bytes`` allows, and
    at least one; the others wait for another round over the same examples.
    """

    def __init__(self, linears: Mapping[str, nn.Module], most_bytes: int) -> None:
        """``linears`` by full name; ``most_bytes`` of sums at a time."""
        self.linears = linears
        self.most_bytes = most_bytes
        self.counting = True
        """Whether the next forward passes count."""
        self._first: dict[str, str] = {}
        """Linear -> the first one that is called with the same tensor; its name is the sum's."""
        self._done: set[str] = set()
        self._waiting: set[str] = set()
        self._bytes: dict[str, int] = {}
        """Of each sum of this round."""
        self._sums: dict[str, Tensor] = {}
        self._last: tuple[str, Tensor] | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Context of a round: forward passes are recorded. They compute no gradients."""
        self._waiting.clear()
        handles = [
            linear.register_forward_pre_hook(partial(self._take, name), with_kwargs=True)
            for name, linear in self.linears.items()
        ]
        try:
            with torch.no_grad():
                yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def over_ranks(self) -> Iterator[tuple[list[str], Tensor]]:
        """Names of linears that share an input, and the sum over all ranks' passes, (D, D).

        Those of the last round. All ranks must iterate together.
        """
        first: dict[str, str] = {}
        waiting: set[str] = set()
        for of_rank, waits in env.gather_objects((self._first, self._waiting)):
            first, waiting = of_rank | first, waiting | waits
        for name in sorted({*first.values()} - waiting - self._done):
            together = [other for other in self.linears if first.get(other) == name]
            total = self._sums.pop(name, None)
            if total is None:
                size, _ = sizes(self.linears[name])
                total = torch.zeros(size, size, dtype=torch.float64, device=env.device())
            env.sum_(total)
            self._done.add(name)
            yield together, total
        self._waiting = waiting
        self._bytes.clear()
        self._sums.clear()

    @property
    def waits(self) -> bool:
        """Whether a linear needs another round, the same on all ranks after ``over_ranks``."""
        return bool(self._waiting)

    def _take(
        self, name: str, linear: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        x = arguments[0] if arguments else next(iter(named.values()))
        if name not in self._first:
            again = self._last is not None and _same(self._last[1], x)
            self._first[name] = self._first[self._last[0]] if again and self._last else name
        self._last = name, x  # kept, so that no other tensor reuses its memory
        if self._first[name] == name and self._has_room(name) and self.counting:
            x_ND = x.reshape(-1, x.shape[-1]).float()
            sum_DD = self._sums.get(name)
            product = (x_ND.T @ x_ND).double()
            self._sums[name] = product if sum_DD is None else sum_DD.add_(product)

    def _has_room(self, name: str) -> bool:
        """Whether a sum is one of this round's."""
        if name in self._done or name in self._waiting:
            return False
        if name not in self._bytes:
            size, _ = sizes(self.linears[name])
            own = torch.float64.itemsize * size**2
            if self._bytes and sum(self._bytes.values()) + own > self.most_bytes:
                self._waiting.add(name)
                return False
            self._bytes[name] = own
        return True


def of_inputs(
    model: nn.Module,
    linears: Mapping[str, nn.Module],
    look: Callable[[int], tuple[int, Iterator[Tensor]]],
    examples: int,
    compute: Callable[[list[str], Tensor], Computed],
    seen: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[str], Computed]]:
    """What ``compute`` makes of the moments of linears' inputs, without dropout.

    Each result is computed by one rank and sent to the others: ranks share the work, and cannot
    differ in its rounding. All ranks must iterate together; the order is the same on all of them.

    Args:
        model: the model that contains the linears.
        linears: by full name.
        look: a ``methods.method.ExampleLosses``; the moments are over all tokens of its examples.
        examples: how many, over all ranks.
        compute: gets the names of linears that share an input, and its moments (D, D), float64.
        seen: called once after each counted example has passed through the model.
    """
    moments = InputMoments(linears, AT_ONCE)
    rank, num_ranks = env.rank(), env.world_size()
    while True:
        _take_round(model, moments, look, examples, seen)
        mine = [one for i, one in enumerate(moments.over_ranks()) if i % num_ranks == rank]
        computed = [(names, compute(names, moment_DD)) for names, moment_DD in mine]
        del mine
        for source in range(num_ranks):  # a gather would take the largest times all ranks
            yield from env.from_rank(source, computed)
        if not moments.waits:
            return
        seen = _nothing


def _nothing() -> None:
    pass


def _take_round(
    model: nn.Module,
    moments: InputMoments,
    look: Callable[[int], tuple[int, Iterator[Tensor]]],
    examples: int,
    seen: Callable[[], None],
) -> None:
    count, losses = look(examples)
    training = model.training
    model.eval()
    # A rank with fewer examples than others gets a filler, which must not count.
    mine = len(range(env.rank(), count, env.world_size()))
    with moments.taken():
        moments.counting = mine > 0
        for done, _ in enumerate(losses, 1):
            if moments.counting:
                seen()
            moments.counting = done < mine
    model.train(training)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share the same memory and shape."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
