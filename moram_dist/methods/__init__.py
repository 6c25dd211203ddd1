"""Continual-learning methods, one per file; importing them here registers them in ``METHODS``."""

from moram_dist.methods import (
    any_ssr,
    ewc,
    gain_lora,
    gpm_lora,
    in_context,
    inc_lora,
    inf_lora,
    lwf,
    moe_lora,
    moram,
    multitask,
    o_lora,
    replay,
    sequential_lora,
    single_task,
    slao,
    zero_shot,
)
from moram_dist.methods.method import METHODS, Method

__all__ = [
    "METHODS",
    "Method",
    "any_ssr",
    "ewc",
    "gain_lora",
    "gpm_lora",
    "in_context",
    "inc_lora",
    "inf_lora",
    "lwf",
    "moe_lora",
    "moram",
    "multitask",
    "o_lora",
    "replay",
    "sequential_lora",
    "single_task",
    "slao",
    "zero_shot",
]
