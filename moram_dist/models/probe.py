"""Ask a loaded base what no file says: whether it is causal, and whether its numbers are finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.comm import env
from moram_dist.families import TextFamily
from moram_dist.models.folder import BaseError

LENGTH = 8
"""Tokens that are read."""

MIDDLE = 3
"""The place in them at which one row differs: what that changes later on is the scale of things."""

VARIANTS = 3
"""Last tokens that are tried instead of the first row's."""

SLACK = 16
"""How often the difference between two equal rows of a batch may be exceeded: both are rounding."""

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""By which logits may differ in any case, as a part of the largest."""

INFLUENCE = 0.1
"""Of an earlier token's: what less comes from a later one is rounding, as where experts get other
tokens beside these."""


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
    own = _own(tensor)
    if not own.is_floating_point() or own.device.type == "meta":
        return True
    # A sum of absolute values would overflow, and isfinite of all at once takes room of its own.
    return all(bool(part.isfinite().all()) for part in own.detach().flatten().split(1 << 24))


def _own(tensor: Any) -> Any:
    """What this rank holds of a tensor: the last shard of one is padded with arbitrary bits."""
    if not hasattr(tensor, "ds_tensor"):
        return tensor
    shard = tensor.ds_tensor.flatten()
    return shard[: max(0, tensor.ds_numel - env.rank() * len(shard))]


def check_causal(model: Any, name: str, family: TextFamily, *, vocabulary: int) -> None:
    """Whether logits stay as they are where only a later token changes. All ranks call it.

    Args:
        model: language model, whole or under an engine's hooks.
        name: of the base, for messages.
        family: of the base.
        vocabulary: ids of tokens that may be asked about are below.

    Raises:
        InputError: they do not, or are not finite.
    """
    was_training = model.training
    model.eval()
    inputs = family.causal_inputs(_rows(vocabulary).to(env.device()))
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
    """Two equal rows, one that differs in the middle, ``VARIANTS`` at the end; (_, LENGTH)."""
    draw = torch.Generator().manual_seed(0)
    row = torch.randint(vocabulary, (LENGTH,), generator=draw)
    ids = row.repeat(3 + VARIANTS, 1)
    for k in range(1 + VARIANTS):
        other = 1 + k * max(1, vocabulary // (2 + VARIANTS))
        place = MIDDLE if k == 0 else -1
        ids[2 + k, place] = (row[place] + other) % vocabulary
    return ids


def _moved(logits_BTV: Tensor) -> bool:
    """Whether logits before the last place depend on the last token by more than rounding."""
    logits = logits_BTV[:, :-1].double()
    change = (logits - logits[0]).abs()
    earlier = change[2, MIDDLE + 1 :].max()
    later = change[3:].max()
    rounding = ROUNDING.get(logits_BTV.dtype, ROUNDING[torch.bfloat16]) * logits.abs().max()
    return bool(later > rounding + SLACK * change[1].max() and later > INFLUENCE * earlier)
