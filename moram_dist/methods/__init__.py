"""Continual-learning methods, one file each; imported by hand so that every name can be found."""

from moram_dist.methods import (
    in_context,
    moram,
    multitask,
    replay,
    sequential_lora,
    single_task,
    zero_shot,
)
from moram_dist.methods.method import METHODS, Method

__all__ = [
    "METHODS",
    "Method",
    "in_context",
    "moram",
    "multitask",
    "replay",
    "sequential_lora",
    "single_task",
    "zero_shot",
]
