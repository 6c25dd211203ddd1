"""Run a model on torch's meta device, where tensors have sizes but no contents.

The model, its memory and the backward pass run unchanged; the bytes of live tensors are counted,
and the bytes that collectives would receive. The tensors are those of a CPU, where attention keeps
no scores; flash attention on a GPU saves the same tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from moram_dist.comm.collectives import AtomGroup, Pending

ASKED = torch.ops.aten._local_scalar_dense.default
LINEAR = torch._C._nn.linear
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class PretendGroup(AtomGroup):
    """Rank 0 of ranks that do not exist; the bytes that they would send are counted."""

    def __init__(self, size: int) -> None:
        super().__init__(0, size)

    def start_all_gather(self, mine: Tensor, name: str) -> Pending:
        """Every rank has this rank's tensor: this is the rank with the most tokens."""
        out = mine.expand(self.size, *mine.shape).contiguous()
        if self.size > 1:
            self._count(out, name)
        return Pending(out, None)

    def exchange(self, blocks: Tensor, name: str) -> Tensor:
        """Counts as many bytes as a real exchange."""
        out = torch.empty_like(blocks, memory_format=torch.contiguous_format)
        if self.size > 1:
            self._count(out, name)
        return out


class Meter(TorchDispatchMode):
    """Counts the bytes of live tensors that operations created, each storage once."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """``known``: tensors that do not count, such as parameters."""
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}
        for tensor in known:
            self._watch(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count its outputs."""
        if func is ASKED and args[0].is_meta:
            # transformers checks that no row is padded and all positions are in order: both hold.
            return True
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._watch(storage, storage.nbytes())
            self.peak = max(self.peak, self.now)

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        self._seen[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.now += size

    def _gone(self, key: int, size: int) -> None:
        del self._seen[key]  # another storage may soon have this address
        self.now -= size


class AsOnDevice(TorchFunctionMode):
    """Operations of a real device that the meta device does not have."""

    def __init__(self, linear: Any = None) -> None:
        """``linear``: replaces torch's own if given (``zero3.linear``)."""
        super().__init__()
        self.linear = linear

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Use attention that keeps no scores where torch would choose one that does."""
        kwargs = dict(kwargs or {})
        if func is LINEAR and self.linear is not None:
            return self.linear(*args, **kwargs)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v, *_ = args
        if kwargs.pop("enable_gqa", False):
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        return ATTENTION(q, k, v, **kwargs)[0]
