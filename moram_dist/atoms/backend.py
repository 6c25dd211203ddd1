"""Choose the backend for work on selected atoms: Triton kernels or plain torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moram_dist.atoms import kernels, reference


def backend(tensor: Tensor) -> Any:
    """The module that implements the functions of ``reference`` for this tensor's device."""
    return kernels if kernels.serve(tensor) else reference
