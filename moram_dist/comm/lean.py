"""Import DeepSpeed without MLflow, which DeepSpeed imports for an autotuner that is not used here.

MLflow takes 1.2 s of a core and 120 MB, and only a main rank that tracks needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from moram_dist.comm import env


def import_deepspeed() -> ModuleType:
    """DeepSpeed, which takes long to import. Import its parts after the first call."""
    if env.device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it warns that it found no GPU
    with hidden("mlflow"):
        import deepspeed
    return deepspeed


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Context in which importing a module raises ImportError, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
