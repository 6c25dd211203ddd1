"""Settings of a method, as flags would give them."""

from __future__ import annotations

from typing import Any

from moram_dist.config import MethodConfig
from moram_dist.config_io import build


def config_of(method: str = "moram", **settings: Any) -> MethodConfig:
    """The method's own settings; those of other methods are left out."""
    return build({"method": method, **settings}).method
