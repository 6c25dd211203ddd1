"""Whether a model in memory holds the numbers of the files that it names."""

from __future__ import annotations

from safetensors import safe_open
from torch import nn

from moram_dist.models.folder import local

ROWS = 2
"""Of a tensor, that are compared: another model differs everywhere."""

ROUNDING = 0.02
"""Relative distance that 16-bit numbers, on the way or at the end, explain."""


def differs(model: nn.Module, source: str) -> str | None:
    """Name of a tensor of ``model`` whose numbers are not those of the files of ``source``.

    A model made from a configuration names the folder of that configuration as though it had been
    loaded from there. Looked at are the first rows of each tensor that both hold by one name and
    one shape in floating point, up to rounding; quantised ones are left out.

    Args:
        model: on any device, in any dtype.
        source: a folder, or an id of the hub whose files are on this machine.

    Returns:
        None where nothing differs, or there is nothing to compare.
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
