"""Dropout whose mask depends on the token, not on the order in which random numbers are drawn.

A hash of the token's identity (its key) and of the layer decides which elements are dropped. So the
mask does not depend on the rest of the micro-batch, the rank or the device, and it is the same when
a checkpointed layer is recomputed.

Shape letters: B rows, T tokens of a row, D elements of a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moram_dist import kernels
from moram_dist.comm import env

BITS = 16
"""Hash bits that decide about one element: probabilities are multiples of 2^-16."""


class TokenKeys:
    """Keys that identify the tokens of the current micro-batch; all layers of a model share one."""

    def __init__(self) -> None:
        self._of: dict[int, Tensor] = {}

    def set(self, row_seeds: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        """Set the keys of the next micro-batch's tokens, from row and position.

        Args:
            row_seeds: a number in [0, 2^32) that identifies each row.
            lengths: tokens per row; several lengths if encoder and decoder read different texts.
                Their tokens at the same position share a key, but no layer reads both.
            device: the model's device.
        """
        rows_B1 = _int32(torch.tensor(row_seeds, dtype=torch.int64)).unsqueeze(1)
        places_T = _mix(torch.arange(max(lengths), dtype=torch.int32))
        keys_BT = env.sent(_mix(rows_B1 ^ places_T), device)
        self._of = {len(row_seeds) * length: keys_BT[:, :length] for length in lengths}

    def add(self, row_seeds: Sequence[int], length: int, device: torch.device) -> None:
        """Add keys of further rows of the micro-batch, which other layers read; as ``set``."""
        known = self._of
        self.set(row_seeds, (length,), device)
        self._of = self._of | known

    def of(self, num_tokens: int) -> Tensor | None:
        """Keys (B, T), int32, well mixed; None if none are set for this number of tokens."""
        return self._of.get(num_tokens)


@dataclass(frozen=True)
class TokenMask:
    """The elements that one layer drops of some tokens, computed from their keys at each call.

    A backward pass needs them again: keys take 4 bytes per token, dropped inputs several per
    element.
    """

    keys: Tensor
    """(..., 1), int32: the tokens' keys."""

    salts: Tensor
    p: float

    def __call__(self, x: Tensor) -> Tensor:
        """Drop elements of ``x``, (..., D), and scale the others; the same for its gradient."""
        # Each hash decides about two elements. Its halves are uniform over all of int16.
        threshold = round(self.p * 2**BITS) - 2 ** (BITS - 1)
        if kernels.serve(x):
            from moram_dist.adapters import dropout_kernel  # imports Triton, which takes a second

            given = (x, self.keys, self.salts)
            return dropout_kernel.dropped(*given, threshold=threshold, scale=1 / (1 - self.p))
        hashes = _mix(self.keys ^ self.salts)
        dropped = hashes.view(torch.int16)[..., : x.shape[-1]] < threshold
        return (x / (1 - self.p)).masked_fill_(dropped, 0)


class _Dropped(torch.autograd.Function):
    """Keeps nothing but the mask's keys for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: TokenMask) -> Tensor:
        ctx.mask = mask
        return mask(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.mask(grads[0]), None


class TokenDropout(nn.Module):
    """Zeroes each element with probability ``p`` in training, and scales the others by 1/(1-p).

    In evaluation, or with p = 0, it returns the same tensor object. If the input is not one vector
    per token of the micro-batch (keys unset, or a layer that reads only some tokens), it falls back
    to torch's dropout.
    """

    def __init__(self, p: float, keys: TokenKeys, *, name: str, size: int) -> None:
        """``name`` distinguishes layers; ``size`` is D."""
        super().__init__()
        self.p = p
        self.keys = keys
        salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        places = _mix(torch.arange(-(-size * BITS // 32), dtype=torch.int32))
        self.salts: Tensor
        salts = _mix(places ^ _int32(torch.tensor(salt, dtype=torch.int64)))
        self.register_buffer("salts", salts, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) or (B * T, D) to the same shape."""
        if not self.training or self.p == 0:
            return x
        mask = self.mask(x)
        return F.dropout(x, self.p) if mask is None else _Dropped.apply(x, mask)

    def mask(self, x: Tensor) -> TokenMask | None:
        """What is dropped of ``x`` in training; None if that does not follow from its tokens."""
        keys_BT = self.keys.of(x.numel() // x.shape[-1])
        if keys_BT is None or self.p == 1:
            return None
        return TokenMask(keys_BT.reshape(*x.shape[:-1], 1), self.salts, self.p)


def _int32(number: Tensor) -> Tensor:
    """The low 32 bits, as a signed number."""
    return ((number + 2**31) % 2**32 - 2**31).to(torch.int32)


def _mix(x: Tensor) -> Tensor:
    """An int32 hash in place: lowbias32, https://github.com/skeeto/hash-prospector.

    torch's right shift copies the sign bit, so the bits that it shifts in are masked out.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x ^= (x >> shift).bitwise_and_(2 ** (32 - shift) - 1)
        x *= factor
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x
