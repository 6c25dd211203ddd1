"""Model families, one file each, imported explicitly so that every name can be found."""

from moram_dist.families import causal, clip, encoder_decoder
from moram_dist.families.answers import (
    Answered,
    answer_batch,
    is_generated,
)
from moram_dist.families.choose import family_of, family_of_model
from moram_dist.families.family import FAMILIES, Family, Tower
from moram_dist.families.text import TextFamily

__all__ = [
    "FAMILIES",
    "Answered",
    "Family",
    "TextFamily",
    "Tower",
    "answer_batch",
    "causal",
    "clip",
    "encoder_decoder",
    "family_of",
    "family_of_model",
    "is_generated",
]
