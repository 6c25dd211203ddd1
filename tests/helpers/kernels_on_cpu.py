"""A pytest plugin (-p): Triton's kernels serve tensors on the CPU, in its interpreter.

The process must start with TRITON_INTERPRET=1, since Triton reads it when it is imported.
"""

from __future__ import annotations

import os

from moram_dist import kernels
from moram_dist.atoms import native

assert os.environ.get("TRITON_INTERPRET") == "1", "start the process with TRITON_INTERPRET=1"
kernels.serve = lambda tensor: tensor.device.type == "cpu"
for whole in ("answers", "recall", "recall_gradients"):
    delattr(native, whole)  # nothing may be computed without the kernels
