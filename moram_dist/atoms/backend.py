"""Who does the work on chosen atoms: Triton kernels or plain torch, chosen by the tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moram_dist.atoms import kernels, reference


def backend(tensor: Tensor) -> Any:
    """A module with the functions of ``reference`` for tensors like this one."""
    return kernels if kernels.serve(tensor) else reference
