"""Checks of the values that a setting may have."""

from __future__ import annotations

import math

from moram_dist.registry import InputError, unknown


def positive(section: str, **values: float | None) -> None:
    """Raises InputError on the first value that is neither None nor > 0."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise InputError(f"--{name} must be > 0, got {value} ({section})")


_MOST = {
    "seed": 2**63 - 1,
    "atoms_per_task": 2**20,
    "top_k": 2**20,
    "top_experts": 2**20,
    "epochs": 10_000,
    "learning_rate": 1e30,
    "wait_limit": 1_000_000,
    "weight_decay": 1_000,
    "temperature": 1_000_000,
    "distill_temperature": 1_000_000,
    "alpha": 1_000_000,
    "clip": 1e30,
    "orthogonal_weight": 1e12,
    "ewc_weight": 1e12,
    "distill_weight": 1e12,
}
"""The largest value of a field; all other fields are limited to 32 bits. Beyond these, sizes
overflow, floats become infinite, and systems refuse to wait."""

_LEAST = {"temperature": 1e-6, "distill_temperature": 1e-6, "learning_rate": 1e-30, "alpha": 1e-30}
"""The least value of fields that must be > 0: smaller ones vanish in float32."""


def bounded(section: object) -> None:
    """Raises InputError where a number is too large or too small to compute with."""
    for name, value in vars(section).items():
        if isinstance(value, int | float):
            most, least = _MOST.get(name, 2**31 - 1), _LEAST.get(name, -math.inf)
            if not value <= most:
                raise InputError(f"--{name} must be <= {most:g}, got {value:g}")
            if not value >= least:
                raise InputError(f"--{name} must be >= {least:g}, got {value:g}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises InputError where ``value`` is not known; the message names the nearest known one."""
    if value not in known:
        raise unknown(f"--{name}", value, known)
