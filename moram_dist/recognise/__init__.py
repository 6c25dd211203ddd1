"""Recognise the task of a prompt from the prompt alone, before any forward pass."""

from moram_dist.recognise.features import PromptFeatures, prompt_features
from moram_dist.recognise.recognisers import RECOGNISERS, Recognised, Recogniser
from moram_dist.recognise.statistics import TaskStatistics

__all__ = [
    "RECOGNISERS",
    "PromptFeatures",
    "Recognised",
    "Recogniser",
    "TaskStatistics",
    "prompt_features",
]
