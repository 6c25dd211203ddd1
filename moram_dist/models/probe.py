"""Test whether a loaded base is causal and all its numbers are finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moram_dist.comm import env
from moram_dist.families import TextFamily
from moram_dist.models.folder import BaseError

LENGTH = 8
"""Length of the test rows in tokens."""

MIDDLE = 3
"""Position at which one row differs; its effect on later logits sets the scale for comparison."""

VARIANTS = 3
"""Number of other last tokens that are tried."""

SLACK = 16
"""Allowed multiple of the difference between two equal rows of a batch, which is pure rounding."""

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Difference of logits that is always allowed, relative to the largest one."""

INFLUENCE = 0.1
"""A later token's effect below this fraction of an earlier token's counts as rounding. Such effects
occur when experts process these tokens together with others."""


def check_finite(model: nn.Module, name: str) -> None:
    """Check every weight, in a sharded model those of this rank. All ranks call it together.

    Raises:
        InputError: on all ranks, names a tensor that contains NaN or infinity.
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
    # In parts, as isfinite of the whole tensor takes memory; a sum of absolutes could overflow.
    return all(bool(part.isfinite().all()) for part in own.detach().flatten().split(1 << 24))


def _own(tensor: Any) -> Any:
    """This rank's part of a tensor, without the arbitrary padding of the last shard."""
    if not hasattr(tensor, "ds_tensor"):
        return tensor
    shard = tensor.ds_tensor.flatten()
    return shard[: max(0, tensor.ds_numel - env.rank() * len(shard))]


def check_causal(model: Any, name: str, family: TextFamily, *, vocabulary: int) -> None:
    """Check that logits do not change with a later token. All ranks call it together.

    Args:
        model: language model, whole or under an engine's hooks.
        name: of the base, for messages.
        family: of the base.
        vocabulary: token ids in the test are below this number.

    Raises:
        InputError: they change, or are not finite.
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
    """(3 + VARIANTS, LENGTH): two equal rows, one that differs at MIDDLE, the others at the end."""
    draw = torch.Generator().manual_seed(0)
    row = torch.randint(vocabulary, (LENGTH,), generator=draw)
    ids = row.repeat(3 + VARIANTS, 1)
    for k in range(1 + VARIANTS):
        other = 1 + k * max(1, vocabulary // (2 + VARIANTS))
        place = MIDDLE if k == 0 else -1
        ids[2 + k, place] = (row[place] + other) % vocabulary
    return ids


def _moved(logits_BTV: Tensor) -> bool:
    """Whether logits before the last position depend on the last token by more than rounding."""
    logits = logits_BTV[:, :-1].double()
    change = (logits - logits[0]).abs()
    earlier = change[2, MIDDLE + 1 :].max()
    later = change[3:].max()
    rounding = ROUNDING.get(logits_BTV.dtype, ROUNDING[torch.bfloat16]) * logits.abs().max()
    return bool(later > rounding + SLACK * change[1].max() and later > INFLUENCE * earlier)
