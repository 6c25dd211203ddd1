"""transformers' ``generate`` by the protocol's settings alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationConfig


def generate(model: Any, settings: dict[str, Any], **inputs: Any) -> Tensor:
    """``model.generate`` as ``settings`` say, and as transformers does by default.

    A model comes with settings of its own (``generation_config.json``), which ``generate`` takes
    for whatever nobody sets: lengths, forced and suppressed tokens, stop strings, caches, sampling.
    They would decide scores, so they are put aside for the call.

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
