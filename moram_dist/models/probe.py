"""Ask a loaded base what no file says: whether it is causal, and whether its numbers are finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.comm import env
from moram_dist.models.folder import BaseError

LENGTH = 8
"""Tokens that are read."""

VARIANTS = 3
"""Last tokens that are tried in the place of the first row's."""

SLACK = 16
"""How often the difference between two equal rows of a batch may be exceeded: both are rounding."""

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""By which logits may differ in any case, as a part of the largest."""


def check_finite(model: nn.Module, name: str) -> None:
    """Look at every number of the weights, of a sharded model at this rank's. All ranks call it.

    Raises:
        InputError: names a tensor with NaN or infinity in it, on every rank.
    """
    here = next((n for n, t in model.state_dict(keep_vars=True).items() if not _finite(t)), None)
    found = next((n for n in env.gather_objects(here) if n is not None), None)
    if found is not None:
        raise BaseError(
            name,
            f"{found} holds NaN or infinity, in its file or in --dtype; give weights that are "
            "finite",
        )


def _finite(tensor: Any) -> bool:
    own = getattr(tensor, "ds_tensor", tensor)
    if not own.is_floating_point() or own.device.type == "meta":
        return True
    # A sum of absolute values would overflow, and isfinite of all at once takes room of its own.
    return all(bool(part.isfinite().all()) for part in own.detach().flatten().split(1 << 24))


def check_causal(model: Any, name: str, *, vocabulary: int, decoder_start: int | None) -> None:
    """Whether logits stay as they are where only a later token changes. All ranks call it.

    Args:
        model: language model, whole or under an engine's hooks.
        name: of the base, for messages.
        vocabulary: ids of tokens that may be asked about are below.
        decoder_start: ``Base.decoder_start``.

    Raises:
        InputError: they do not, or are not finite.
    """
    was_training = model.training
    model.eval()
    ids_BT = _rows(vocabulary).to(env.device())
    inputs = {"input_ids": ids_BT}
    if decoder_start is not None:
        start_B1 = torch.full_like(ids_BT[:, :1], decoder_start)
        inputs = {
            "input_ids": ids_BT[:1].expand_as(ids_BT),
            "decoder_input_ids": torch.cat([start_B1, ids_BT], 1),
        }
    with torch.no_grad():
        logits_BTV = model(**inputs, use_cache=False).logits
    model.train(was_training)
    if env.any_true(not bool(logits_BTV.isfinite().all())):
        raise BaseError(name, "its logits hold NaN or infinity; other weights, or another --dtype")
    if env.any_true(_moved(logits_BTV)):
        raise BaseError(
            name,
            f"{type(model).__name__} is no causal language model: its logits at a token move when "
            "a later one changes; give a model that was trained to predict the next token",
        )


def _rows(vocabulary: int) -> Tensor:
    """Two equal rows, and ``VARIANTS`` that end in another token; (2 + VARIANTS, LENGTH)."""
    draw = torch.Generator().manual_seed(0)
    row = torch.randint(vocabulary, (LENGTH,), generator=draw)
    ids = row.repeat(2 + VARIANTS, 1)
    for k in range(VARIANTS):
        ids[2 + k, -1] = (row[-1] + 1 + k * max(1, vocabulary // (VARIANTS + 1))) % vocabulary
    return ids


def _moved(logits_BTV: Tensor) -> bool:
    """Whether logits before the last place depend on the last token by more than rounding."""
    before = logits_BTV[:, :-1].double()
    rounding = (before[1] - before[0]).abs().max()
    moved = (before[2:] - before[0]).abs().max()
    allowed = ROUNDING.get(logits_BTV.dtype, ROUNDING[torch.bfloat16]) * before.abs().max()
    return bool(moved > allowed + SLACK * rounding)
