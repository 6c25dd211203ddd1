"""Check that a model in memory holds the numbers of the files that it names."""

from __future__ import annotations

from safetensors import safe_open
from torch import nn

from moram_dist.models.folder import local

ROWS = 2
"""Rows of each tensor that are compared: a different model differs everywhere."""

ROUNDING = 0.02
"""Largest relative distance that conversions to and from 16 bits can cause."""


def differs(model: nn.Module, source: str) -> str | None:
    """The name of a tensor of ``model`` that differs from the files of ``source``.

    A model created from a configuration names the configuration's folder as if it had been loaded
    from there. This compares, up to rounding, the first rows of each floating-point tensor with
    the same name and shape in both; quantised tensors are skipped.

    Args:
        model: on any device, in any dtype.
        source: a folder, or a hub id whose files are on this machine.

    Returns:
        None if no tensor differs, or there is nothing to compare.
    """
    folder = local(source)
    tensors = dict(model.named_parameters())
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        with safe_open(path, "pt") as file:
            for name in {*file.keys()} & {*tensors}:
                here, there = tensors[name].detach(), file.get_slice(name)
                fits = [*here.shape] == there.get_shape() and here.ndim
                if not fits or not here.is_floating_point():
                    continue
                expected = there[:ROWS].float()
                if (here[:ROWS].cpu().float() - expected).norm() > ROUNDING * expected.norm():
                    return name
    return None
