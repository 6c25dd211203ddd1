"""Passes of a model without its numbers: on torch's meta device tensors have sizes, no contents.

The model, its memory and their backward pass run as they are; what is counted is bytes of tensors
that are alive, and what collectives would bring. The tensors are those of a CPU, where attention
keeps no scores; flash attention on a GPU saves as much.
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
    """Rank 0 of ranks that are not there. What they would send has its size, and is counted."""

    def __init__(self, size: int) -> None:
        super().__init__(0, size)

    def start_all_gather(self, mine: Tensor, name: str) -> Pending:
        """Others have what this rank has: numbers of tokens are those of the busiest."""
        out = mine.expand(self.size, *mine.shape).contiguous()
        if self.size > 1:
            self._count(out, name)
        return Pending(out, None)

    def exchange(self, blocks: Tensor, name: str) -> Tensor:
        """As many bytes as in a real one."""
        out = torch.empty_like(blocks, memory_format=torch.contiguous_format)
        if self.size > 1:
            self._count(out, name)
        return out


class Meter(TorchDispatchMode):
    """Bytes of tensors that operations made and that are alive, each storage once."""

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
        """Run an operation and count what it made."""
        if func is ASKED and args[0].is_meta:
            # transformers asks whether no row is padded and all positions are in order: so it is.
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
        del self._seen[key]  # its address may be another's soon
        self.now -= size


class AsOnDevice(TorchFunctionMode):
    """What a device has and the meta device has not."""

    def __init__(self, linear: Any = None) -> None:
        """``linear``: what takes the place of torch's own, if anything (``zero3.linear``)."""
        super().__init__()
        self.linear = linear

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Attention that keeps no scores, where torch would take one that does."""
        kwargs = dict(kwargs or {})
        if func is LINEAR and self.linear is not None:
            return self.linear(*args, **kwargs)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v, *_ = args
        if kwargs.pop("enable_gqa", False):
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        return ATTENTION(q, k, v, **kwargs)[0]
