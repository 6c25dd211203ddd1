"""Find the family of a model."""

from __future__ import annotations

from typing import Any

from moram_dist.families.family import FAMILIES, Family


def family_of(architecture: Any) -> Family:
    """The first family that accepts this transformers configuration.

    Models that no other family accepts count as causal.
    """
    kinds = (FAMILIES[name] for name in FAMILIES)
    return next(kind for kind in kinds if kind.accepts(architecture)).of(architecture)


def family_of_model(model: Any) -> Family:
    """The family of a transformers model; a module without a configuration counts as causal."""
    return family_of(getattr(model, "config", None))
