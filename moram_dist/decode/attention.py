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
    mask. Our rows hold one text.
    """
    from transformers import masking_utils

    own = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = own


@contextmanager
def taking_masks(model: nn.Module) -> Iterator[None]:
    """Context in which attention takes any mask: flash-attn, which takes none, gives way to torch.

    Otherwise each label would need its own pass.
    """
    config: Any = model.config
    own = config._attn_implementation
    if own == FLASH:
        config._attn_implementation = SDPA
    try:
        yield
    finally:
        if own == FLASH:
            config._attn_implementation = own
