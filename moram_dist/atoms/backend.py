"""Choose the backend for work on selected atoms: Triton kernels, C++, or plain torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moram_dist import kernels
from moram_dist.atoms import native, reference


def backend(tensor: Tensor) -> Any:
    """The module that implements the functions of ``reference`` for this tensor's device."""
    if kernels.serve(tensor):
        from moram_dist.atoms.kernels import launch  # imports Triton, which takes a second

        return launch
    return native if native.serve(tensor) else reference
