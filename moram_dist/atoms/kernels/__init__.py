"""Triton kernels for a recall on a GPU, and when they run.

    routing.py    the best atoms of each token, of one shard or of all
    mixture.py    the small arithmetic on the chosen atoms' numbers, forward and backward
    rows.py       chosen rows: mix, multiply, pick, add to them
    launch.py     launches the kernels as functions of tensors: shapes, grids, limits

``atoms.reference`` has the same functions in torch, and tests compare each kernel with it;
``atoms.backend`` chooses between the two.
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

THERE = find_spec("triton") is not None


def serve(tensor: Tensor) -> bool:
    """Whether kernels can process a tensor: it is on a CUDA device, and Triton is installed.

    CUDA wheels of torch install Triton too.
    """
    return THERE and tensor.is_cuda
