"""Call transformers' ``generate`` with the protocol's settings alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationConfig


def generate(model: Any, settings: dict[str, Any], **inputs: Any) -> Tensor:
    """``model.generate`` with ``settings``, and transformers' defaults for all other settings.

    ``generate`` would otherwise fill unset fields from the model's ``generation_config.json``:
    lengths, forced and suppressed tokens, stop strings, caches, sampling. These would influence
    scores, so the call ignores them.

    Args:
        model: with ``generate``.
        settings: fields of transformers' ``GenerationConfig``.
        inputs: further arguments of ``generate``.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        return model.generate(generation_config=GenerationConfig(**settings), **inputs)
    finally:
        model.generation_config = own
