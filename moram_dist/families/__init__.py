"""Model families, one file each, imported explicitly so that every name can be found."""

from moram_dist.families import causal, encoder_decoder
from moram_dist.families.answers import (
    Answered,
    answer_batch,
    choose_batch,
    generate_batch,
    is_generated,
    score_batch,
)
from moram_dist.families.family import FAMILIES, Family, Tower, family_of, family_of_model
from moram_dist.families.text import TextFamily

__all__ = [
    "FAMILIES",
    "Answered",
    "Family",
    "TextFamily",
    "Tower",
    "answer_batch",
    "causal",
    "choose_batch",
    "encoder_decoder",
    "family_of",
    "family_of_model",
    "generate_batch",
    "is_generated",
    "score_batch",
]
