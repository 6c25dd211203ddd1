"""Which attention kernel a model runs with: what is asked for, or the fastest that it supports."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from moram_dist.registry import InputError

FLASH, SDPA, EAGER = "flash_attention_2", "sdpa", "eager"


def resolve(asked: str, dtype: torch.dtype, build: Callable[[str], object]) -> str:
    """The kernel's name, as transformers has it.

    ``auto`` takes flash-attn on CUDA in bf16 where it is installed, else torch's own kernel; and of
    those only what the model's class supports, else ``eager``, which every class has.

    Args:
        asked: one of these names, or ``auto``.
        dtype: what the model computes in.
        build: makes the model with a kernel, without weights; raises where a part of it does not
            support the kernel.

    Raises:
        InputError: a kernel was asked for by name that cannot run, or that the class lacks.
    """
    installed = importlib.util.find_spec("flash_attn") is not None
    flash = torch.cuda.is_available() and installed and dtype == torch.bfloat16

    def supported(kernel: str) -> bool:
        try:
            build(kernel)
        except (ValueError, ImportError):
            return False
        return True

    if asked == "auto":
        fastest = [FLASH, SDPA] if flash else [SDPA]
        return next((kernel for kernel in fastest if supported(kernel)), EAGER)
    if asked == FLASH and not flash:
        raise InputError(
            "--attention flash_attention_2 needs CUDA, --dtype bf16, the package flash-attn and a "
            "model that supports it"
        )
    if asked != EAGER and not supported(asked) and supported(EAGER):
        raise InputError(
            f"--attention {asked}: this model's class does not support it; leave the flag out"
        )
    return asked
