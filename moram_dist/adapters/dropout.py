"""Dropout that belongs to a token, not to the order in which random numbers are drawn.

Which elements of a token are dropped is a hash of who the token is (its key) and of the layer, so
the mask is the same whatever else is in the micro-batch, on whichever rank, on CPU and GPU, and
when a checkpointed layer is computed again.

Shape letters: B rows, T tokens of a row, D elements of a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BITS = 16
"""Of a hash decide about one element: probabilities are multiples of 2^-16."""


class TokenKeys:
    """Who the tokens of the current micro-batch are; the layers of a model share one."""

    def __init__(self) -> None:
        self._of: dict[int, Tensor] = {}

    def set(self, row_seeds: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        """Key the tokens of the micro-batch that comes next, by row and position.

        Args:
            row_seeds: a number in [0, 2^32) that is the row's own.
            lengths: tokens in a row; several where an encoder and a decoder read other texts. Their
                tokens at one position share a key, and no layer sees both.
            device: where the model computes.
        """
        rows_B1 = _int32(torch.tensor(row_seeds, dtype=torch.int64)).unsqueeze(1)
        places_T = _mix(torch.arange(max(lengths), dtype=torch.int32))
        keys_BT = _mix(rows_B1 ^ places_T).to(device)
        self._of = {len(row_seeds) * length: keys_BT[:, :length] for length in lengths}

    def of(self, num_tokens: int) -> Tensor | None:
        """(B, T) int32, well mixed; None where nobody said who so many tokens are."""
        return self._of.get(num_tokens)


class TokenDropout(nn.Module):
    """Zeroes each element with probability ``p`` in training, and scales the others by 1/(1-p).

    In evaluation, or with p = 0, it returns the very tensor that it was given. Input that is not
    one vector for each token of the micro-batch (keys unset, or a layer that sees only some tokens)
    gets torch's own dropout.
    """

    def __init__(self, p: float, keys: TokenKeys, *, name: str, size: int) -> None:
        """``name`` tells layers apart; ``size`` is D."""
        super().__init__()
        self.p = p
        self.keys = keys
        salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        places = _mix(torch.arange(-(-size * BITS // 32), dtype=torch.int32))
        self.salts: Tensor
        salts = _mix(places ^ _int32(torch.tensor(salt, dtype=torch.int64)))
        self.register_buffer("salts", salts, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) or (B * T, D) to the same."""
        if not self.training or self.p == 0:
            return x
        keys_BT = self.keys.of(x.numel() // x.shape[-1])
        if keys_BT is None or self.p == 1:
            return F.dropout(x, self.p)
        hashes = _mix(keys_BT.reshape(*x.shape[:-1], 1) ^ self.salts)
        # Each hash decides about two elements. Its halves are uniform over all of int16.
        threshold = round(self.p * 2**BITS) - 2 ** (BITS - 1)
        dropped = hashes.view(torch.int16)[..., : x.shape[-1]] < threshold
        return (x / (1 - self.p)).masked_fill(dropped, 0)


def _int32(number: Tensor) -> Tensor:
    """The low 32 bits, as a signed number."""
    return ((number + 2**31) % 2**32 - 2**31).to(torch.int32)


def _mix(x: Tensor) -> Tensor:
    """An int32 hash in place: lowbias32, https://github.com/skeeto/hash-prospector.

    torch's shift copies the sign, so what it shifted in is masked away.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x ^= (x >> shift).bitwise_and_(2 ** (32 - shift) - 1)
        x *= factor
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x
