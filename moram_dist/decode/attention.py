"""What a forward pass needs of attention: kernels by name, and two contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

FLASH, SDPA, EAGER = "flash_attention_2", "sdpa", "eager"


@contextmanager
def one_text_a_row() -> Iterator[None]:
    """Context in which transformers does not look whether a row holds several texts.

    It looks at the positions on the device, and so waits for the device in each pass without a
    mask; with flash-attn, in each layer of a pass of one row. Our rows hold one text.
    """
    from transformers import masking_utils, modeling_flash_attention_utils

    looks = [
        (masking_utils, "find_packed_sequence_indices", lambda position_ids: None),
        (modeling_flash_attention_utils, "_is_packed_sequence", lambda *_: False),
    ]
    own = [getattr(module, name) for module, name, _ in looks]
    for module, name, answer in looks:
        setattr(module, name, answer)
    try:
        yield
    finally:
        for (module, name, _), function in zip(looks, own, strict=True):
            setattr(module, name, function)


@contextmanager
def taking_masks(model: nn.Module) -> Iterator[None]:
    """Context in which attention takes any mask: flash-attn, which takes none, gives way to torch.

    Otherwise each label would need its own pass. Nothing changes if ``is_built_in``.
    """
    config: Any = model.config
    gives_way = config._attn_implementation == FLASH and not is_built_in(model)
    if gives_way:
        every = all(getattr(module, "_supports_sdpa", True) for module in model.modules())
        config._attn_implementation = SDPA if every else EAGER
    try:
        yield
    finally:
        if gives_way:
            config._attn_implementation = FLASH


def is_built_in(model: nn.Module) -> bool:
    """Whether a model was built for flash-attn: a few classes cannot change it later."""
    return any(type(module).__name__.endswith("FlashAttention2") for module in model.modules())
