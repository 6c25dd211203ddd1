"""Choose a model's attention kernel: the requested one, or the fastest that it supports."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from moram_dist.decode.attention import EAGER, FLASH, SDPA
from moram_dist.registry import InputError


def leave_out_cudnn() -> None:
    """Keep torch's own kernel from computing attention with cuDNN, in this process.

    On the newest GPUs torch prefers it, but it plans each new shape, which may take half a second
    (on a B200, FunASR's issue 3704): nearly every generated token and micro-batch has a new one.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def resolve(asked: str, dtype: torch.dtype, build: Callable[[str], object]) -> str:
    """The kernel's name in transformers.

    ``auto`` takes flash-attn on CUDA in bf16 if installed, else torch's own kernel. If the model's
    class does not support that, it takes the next one, at last ``eager``, which every class has.

    Args:
        asked: a kernel's name, or ``auto``.
        dtype: the compute type.
        build: makes the model with a kernel, without weights; raises if a part of it does not
            support the kernel.

    Raises:
        InputError: the kernel requested by name cannot run, or the class does not support it.
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
