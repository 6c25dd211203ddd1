"""Continual-learning methods, one file each; imported by hand so that every name can be found."""

from moram_dist.methods import (
    ewc,
    inc_lora,
    lwf,
    moe_lora,
    moram,
    o_lora,
    sequential_lora,
    zero_shot,
)
from moram_dist.methods.method import METHODS, Method

__all__ = [
    "METHODS",
    "Method",
    "ewc",
    "inc_lora",
    "lwf",
    "moe_lora",
    "moram",
    "o_lora",
    "sequential_lora",
    "zero_shot",
]
