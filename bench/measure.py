"""Measure the cost of a call: exact counts of operations, and CPU time of the process.

CPU time depends least on other processes. FLOPs are torch's count; operations on chosen rows, which
torch does not count, add two for each number of each row. A dispatched operation is one kernel
call; views and allocations without writing do not count. Saved bytes are the storages that autograd
holds for the backward pass, each once, without the input, parameters and frozen atoms, which every
implementation needs.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.variants import Contender

aten = torch.ops.aten

WITHOUT_KERNEL = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,
    aten.lift_fresh,
    aten.is_same_size,
    aten.promote_types,
}
"""Operations that start no kernel although their schema returns a new tensor, or none."""

CHOSEN_ROWS = {
    "aten._embedding_bag": (0, 1),
    "aten._embedding_bag_forward_only": (0, 1),
    "aten._embedding_bag_per_sample_weights_backward": (1, 2),
    "moram.mix": (3, 0),
    "moram.products": (3, 1),
}
"""Operation on chosen rows -> positions of the rows and of their indices among its arguments."""

LEAST_S = 0.02
"""Shorter calls are timed several at once."""

MOST_AT_ONCE = 2000


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Process CPU seconds of one call."""

    least: float
    median: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts that do not depend on the machine; None if torch.compile hides them."""

    flops: int | None
    dispatched: int | None
    saved_bytes: int
    operations: Mapping[str, int] = field(default_factory=dict)
    """Name -> number of calls; ``dispatched`` is their sum."""


@dataclass(frozen=True, kw_only=True)
class PassRecord:
    """Answers and costs of one forward and backward pass."""

    answers: Mapping[str, Tensor]
    """``y``, and the gradient of each leaf."""

    chosen_TK: Tensor | None
    """The atoms of each token, as they were saved for the backward pass."""

    counts: Counts


def one_pass(way: Contender, upstream_TD: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients of one forward and backward pass."""
    y_TD = way.forward()
    return (y_TD, *torch.autograd.grad(y_TD, tuple(way.wanted.values()), upstream_TD))


def look(way: Contender, upstream_TD: Tensor, *, top_k: int, counted: bool = True) -> PassRecord:
    """One pass with all counters; without ``counted`` only saved bytes, as for compiled code.

    The chosen atoms are read from the tensors that the pass saves: the only integer one of (T, K).
    """
    saved = Saved([*way.held, *way.wanted.values()])
    work = Work()
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        if counted:
            with work:
                y, *gradients = one_pass(way, upstream_TD)
        else:
            y, *gradients = one_pass(way, upstream_TD)
    shape = (len(upstream_TD), top_k)
    chosen = [t for t in saved.tensors if not t.is_floating_point() and t.shape == shape]
    return PassRecord(
        answers={"y": y.detach(), **dict(zip(way.wanted, gradients, strict=True))},
        chosen_TK=chosen[0].detach() if chosen else None,
        counts=Counts(
            flops=work.flops if counted else None,
            dispatched=work.dispatched if counted else None,
            saved_bytes=saved.bytes,
            operations=work.operations,
        ),
    )


Tensors = list[Tensor]


def _of_answers(
    x_TD: Tensor, keys: Tensors, values: Tensors, atoms: int, kept: int, *more: float
) -> int:
    """Products with all keys, and of values: chosen ones, or all if they are few."""
    read = _read(atoms, kept, more[-1])
    return _products(len(x_TD), [(k, atoms) for k in keys] + [(v, read) for v in values])


def _of_score(x_TD: Tensor, keys_ND: Tensor, *more: Tensor) -> int:
    """Products with all keys."""
    return _products(len(x_TD), [(keys_ND, len(keys_ND))])


def _of_recall(inputs: Tensors, keys: Tensors, values: Tensors, kept: int, *more: float) -> int:
    """The same, of a recall with gradients."""
    return _of_answers(inputs[0], keys, values, len(keys[0]), kept, *more)


def _of_gradients(
    inputs: Tensors,
    keys: Tensors,
    values: Tensors,
    grads: Tensors,
    score_BN: Tensor,
    index_BK: Tensor,
    norm_B1: Tensor,
    first: int,
    *more: float,
) -> int:
    """Products of gradients with values and, if inputs want theirs, keys; of active atoms."""
    atoms, wants_inputs = len(keys[0]), more[-1]
    read, active = _read(atoms, index_BK.shape[1], more[-2]), atoms - first
    of_keys = (atoms if wants_inputs else 0) + active
    pairs = [(k, of_keys) for k in keys] + [(v, read + active) for v in values]
    return _products(len(inputs[0]), pairs)


def _read(atoms: int, kept: int, read_all: float) -> int:
    """How many rows a token reads."""
    kept = min(kept, atoms)
    return atoms if atoms <= read_all * kept else kept


def _products(num_tokens: int, pairs: Iterable[tuple[Tensor, int]]) -> int:
    """Of each token with so many rows of each matrix."""
    return 2 * num_tokens * sum(rows.shape[1] * number for rows, number in pairs)


COUNTS: Mapping[str, Callable[..., int]] = {
    "moram.answers": _of_answers,
    "moram.score": _of_score,
    "moram.recall": _of_recall,
    "moram.recall_gradients": _of_gradients,
}
"""FLOPs of operations in C++ that torch cannot count."""


class Saved:
    """The storages that autograd saves, except those of given tensors."""

    def __init__(self, without: Iterable[Tensor]) -> None:
        self._without = {tensor.untyped_storage().data_ptr() for tensor in without}
        self._storages: dict[int, int] = {}
        self.tensors: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        """The hook of autograd: records the tensor, and saves it as torch would."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._without:
            self._storages[storage.data_ptr()] = storage.nbytes()
            self.tensors.append(tensor.detach())
        return tensor

    @property
    def bytes(self) -> int:
        """Bytes of all storages, each counted once."""
        return sum(self._storages.values())


class Work(TorchDispatchMode):
    """A context in which FLOPs and dispatched operations are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        """Multiplications and additions of matrix products and bags."""
        self.operations: Counter[str] = Counter()

    @property
    def dispatched(self) -> int:
        """Operations that start a kernel."""
        return self.operations.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operation and run it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if str(packet) in CHOSEN_ROWS:
            rows, indices = (args[place] for place in CHOSEN_ROWS[str(packet)])
            self.flops += 2 * indices.numel() * rows.shape[1]
        elif count := COUNTS.get(str(packet)):
            self.flops += count(*args)
        elif packet is aten.addmm:  # torch's own count takes no ``out_dtype``
            self.flops += _products(len(args[1]), [(args[2], args[1].shape[1])])
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        if not func.is_view and packet not in WITHOUT_KERNEL:
            self.operations[str(packet)] += 1
        return out


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    least_repeats: int,
    most_repeats: int = 15,
    seed: int = 0,
) -> dict[str, CpuTimes]:
    """CPU time of each call; each repetition runs all calls in a new random order.

    A first round is not counted; it determines how many calls make one measurement, and how many
    repetitions ``seconds`` allow.
    """
    numbers, spent = {}, 0.0
    for name, call in calls.items():
        once = max(_seconds(call, 1), LEAST_S / MOST_AT_ONCE)
        numbers[name] = max(1, round(LEAST_S / once))
        spent += once * numbers[name]
    repeats = min(max(round(seconds / spent), least_repeats), most_repeats)
    found: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(seed).shuffle
    for _ in range(repeats):
        order = list(calls)
        shuffle(order)
        for name in order:
            found[name].append(_seconds(calls[name], numbers[name]))
    return {
        name: CpuTimes(least=min(each), median=statistics.median(each), repeats=repeats)
        for name, each in found.items()
    }


def _seconds(call: Callable[[], object], number: int) -> float:
    begun = time.process_time()
    for _ in range(number):
        call()
    return (time.process_time() - begun) / number


def load_of_others(began: float) -> float:
    """Mean number of other processes that needed a core during the last minute.

    The system's load average fades with a time constant of a minute. This process and its children
    are taken out of it as if they had computed evenly since ``began``, a time of ``monotonic``.
    """
    seconds = max(time.monotonic() - began, 1e-9)
    own = sum(os.times()[:4]) / seconds
    return max(0.0, os.getloadavg()[0] - own * (1 - math.exp(-seconds / 60)))
