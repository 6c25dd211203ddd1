"""A key-value cache with spare room for new tokens.

transformers copies its whole cache for every new token, which on long prompts takes longer than the
token itself. The rows of this cache can also be joined with others, and removed.

Shape letters: B rows, H heads, L tokens, A head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 4
"""A full tensor is replaced by one that is longer by 1 / ROOM."""


CACHE_SHARE = 0.3
"""Part of a rank's memory that the cache of keys and values may take: half a megabyte per token in
a 7B model. A part of the whole, not of what is free: batches must not depend on the moment."""


class RoomyLayer(DynamicLayer):
    """A layer whose ``keys`` and ``values``, (B, H, L, A), are the first part of longer tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._room: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, new, A). Returns all keys and all values."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None and self.values is not None
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def select(self, rows: Tensor, length: int) -> None:
        """Keep these rows alone, and of them the last ``length`` tokens."""
        assert self.keys is not None and self.values is not None
        self._room.clear()  # otherwise the tensors of all rows would live until the next token
        self.keys = self.keys[rows, :, -length:]
        self.values = self.values[rows, :, -length:]

    def release(self) -> None:
        """Free the memory of a layer that is not used any more."""
        self._room.clear()
        self.keys = self.values = None

    def _appended(self, kind: str, old_BHLA: Tensor, new_BHLA: Tensor) -> Tensor:
        used, total = old_BHLA.shape[2], old_BHLA.shape[2] + new_BHLA.shape[2]
        room = self._room.get(kind)
        if room is None or room.data_ptr() != old_BHLA.data_ptr() or room.shape[2] < total:
            batch, heads, _, numbers = old_BHLA.shape
            room = old_BHLA.new_empty(batch, heads, total + max(32, total // ROOM), numbers)
            room[:, :, :used] = old_BHLA
            self._room[kind] = room
        room[:, :, used:total] = new_BHLA
        return room[:, :, :total]


class RoomyCache(DynamicCache):
    """A cache with one ``RoomyLayer`` per layer of a model."""

    def __init__(self, layers: Sequence[RoomyLayer]) -> None:
        super().__init__()
        self.layers = [*layers]
        self.roomy = tuple(layers)

    @classmethod
    def of(cls, model: Any) -> RoomyCache | None:
        """An empty cache; None for a model that caches anything but all keys and values."""
        layers = DynamicCache(config=model.config).layers
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None
        return cls([RoomyLayer() for _ in layers])

    def select(self, rows: Tensor, length: int) -> None:
        """Keep these rows alone, and of them the last ``length`` tokens."""
        for layer in self.roomy:
            layer.select(rows, length)


def bytes_per_token(model: Any) -> int:
    """Bytes that a ``RoomyCache`` of a model keeps of each token, room for new ones included."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number: int = next(model.parameters()).element_size()
    whole = 2 * config.num_hidden_layers * heads * width * number
    return whole + whole // ROOM


def most_tokens(model: Any, memory_bytes: float, most: int) -> int:
    """Tokens to generate together with a model on ranks with this much memory, at most ``most``."""
    if RoomyCache.of(model) is None:
        return most
    return max(1, min(most, int(CACHE_SHARE * memory_bytes / bytes_per_token(model))))


def joined(caches: Sequence[RoomyCache]) -> RoomyCache:
    """One cache with the rows of all; shorter ones are padded with zeros on the left.

    The given ones are emptied layer by layer, so that not all layers exist twice.
    """
    if len(caches) == 1:
        return caches[0]
    layers = []
    for parts in zip(*(cache.roomy for cache in caches), strict=True):
        layer = RoomyLayer()
        layer.update(_stacked([p.keys for p in parts]), _stacked([p.values for p in parts]))
        for part in parts:
            part.release()
        layers.append(layer)
    return RoomyCache(layers)


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    whole = [part for part in parts if part is not None]
    longest = max(part.shape[2] for part in whole)
    return torch.cat([F.pad(part, (0, 0, longest - part.shape[2], 0)) for part in whole])
