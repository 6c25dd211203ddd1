"""When Triton kernels run, and how they are launched. This module does not import Triton."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

THERE = find_spec("triton") is not None


def serve(tensor: Tensor) -> bool:
    """Whether kernels can process a tensor: it is on a CUDA device, and Triton is installed.

    CUDA wheels of torch install Triton too.
    """
    return THERE and tensor.is_cuda


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first tensor; an empty grid launches nothing."""
    if 0 in grid:
        return
    # Triton launches on the current device.
    with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
        kernel[grid](*arguments, **constants)
