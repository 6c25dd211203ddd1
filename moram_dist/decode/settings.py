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
        return model.generate(
            generation_config=GenerationConfig(
                decoder_start_token_id=decoder_start(model), **settings
            ),
            **inputs,
        )
    finally:
        model.generation_config = own


def decoder_start(model: Any) -> int | None:
    """The token that the decoder of an encoder-decoder model starts from; None: a causal model."""
    config = model.config
    return config.decoder_start_token_id if config.is_encoder_decoder else None
