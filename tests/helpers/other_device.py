"""A pretended device: its tensors are elsewhere for every operation, with their numbers on the CPU.

Operations that mix its tensors with the CPU's fail, as on a GPU, and so do numpy and everything
else that needs a tensor's memory on the host. So a whole run shows what is on the wrong device, and
its numbers can be compared with those of a run on the CPU.

Its tensors call themselves ``meta``, the only kind of device without memory that autograd serves in
a build of torch for CPUs; the branches for CUDA are therefore not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
CPU = torch.device("cpu")

aten = torch.ops.aten

FROM_ELSEWHERE = {aten.copy_.default, aten._to_copy.default}
"""They bring tensors from one device to another."""

INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""They take indices from the CPU for a tensor on a device, but not the other way round."""

_tensor, _as_tensor = torch.tensor, torch.as_tensor


class Elsewhere(Tensor):
    """A tensor on the pretended device."""

    held: Tensor
    """Its numbers, on the CPU."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        """Of the same shape, strides and dtype as ``held``."""
        strides = held.stride()
        empty = torch.empty_strided(held.shape, strides, dtype=held.dtype, device=DEVICE)
        out = Tensor._make_subclass(cls, empty)
        out.held = held
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    # Lists and numbers would become tensors on the device that the mode does not see.

    def __getitem__(self, where):
        return super().__getitem__(_indices(where))

    def __setitem__(self, where, value) -> None:
        if isinstance(value, bool | int | float):
            value = _tensor(value, dtype=self.dtype)
        super().__setitem__(_indices(where), value)

    def tolist(self):
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *args, **named):
        raise TypeError("can't convert a tensor of this device to numpy")

    __array__ = numpy


def _indices(where: Any) -> Any:
    if isinstance(where, list):
        return _tensor(where)
    return tuple(map(_indices, where)) if isinstance(where, tuple) else where


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Context in which tensors can be on the device."""
    making = {"tensor": _on_device(_tensor), "as_tensor": _on_device(_as_tensor)}
    with patch.multiple(torch, **making), _Mode():
        yield DEVICE


def _on_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` reads its data only if it is not on ``meta``."""

    def made(data: Any, *args: Any, device: Any = None, **named: Any) -> Tensor:
        out = make(data, *args, **named)
        return out if device is None else out.to(device)

    return made


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on numbers on the CPU, if all tensors are where they must be."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = [t for t in given if not isinstance(t, Elsewhere)]
    elsewhere = [t for t in given if isinstance(t, Elsewhere)]
    if any(t.device == DEVICE for t in here):
        raise RuntimeError(f"{func}: a tensor on the device that the mode has not made")
    asked = kwargs.get("device")
    if elsewhere and func not in FROM_ELSEWHERE:
        wrong = [t for t in here if t.dim()]  # a single number may come from the host
        if func in INDEXING or func._schema.is_mutable:
            wrong += [] if isinstance(args[0], Elsewhere) else [args[0]]
        if func in INDEXING and isinstance(args[0], Elsewhere):
            wrong = []
        if wrong:
            raise RuntimeError(f"{func}: expected all tensors on one device, found two")
    if asked is not None:
        on_device = torch.device(asked) == DEVICE
        kwargs = kwargs | {"device": CPU}
    elif func is aten.copy_.default:
        on_device = isinstance(args[0], Elsewhere)
    else:
        on_device = bool(elsewhere)
    held_args, held_kwargs = tree_map_only(Elsewhere, lambda t: t.held, (args, kwargs))
    out = func(*held_args, **held_kwargs)
    if not on_device:
        return out
    same = {id(t.held): t for t in elsewhere}  # operations in place return their argument
    return tree_map_only(Tensor, lambda t: same[id(t)] if id(t) in same else Elsewhere(t), out)
