"""A model's family answers for it, whichever family that is."""

from __future__ import annotations

from typing import Any

from moram_dist.decode import LabelScores
from moram_dist.families import family_of_model


def generate_batch(model: Any, *args: Any, **settings: Any) -> list[str]:
    """``Family.generate``."""
    return family_of_model(model).generate(model, *args, **settings)


def choose_batch(model: Any, *args: Any, **settings: Any) -> list[str]:
    """``Family.choose``."""
    return family_of_model(model).choose(model, *args, **settings)


def score_batch(model: Any, *args: Any, **settings: Any) -> list[LabelScores]:
    """``Family.score_labels``."""
    return family_of_model(model).score_labels(model, *args, **settings)
