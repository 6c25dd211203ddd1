"""How many tokens a model has positions for.

A table of positions, learned or computed, ends: a token beyond it is an index error, on CUDA one
that takes the process with it. Rotary positions have no end; beyond ``max_position_embeddings`` a
model sees what it was not trained on. ALiBi, recurrent states and T5's buckets know no such number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

TABLE = re.compile(r"wpe|pos(?!t)(?!.*relative)")
"""Last names of modules that hold a row for each position: wpe, embed_positions, ..."""

OF_ENCODER = re.compile(r"(^|\.)encoder\.")
NOT_OF_TEXT = re.compile(r"vision|visual|image|audio|speech")


@dataclass(frozen=True)
class Positions:
    """In tokens; None: no such number."""

    source: int | None = None
    """That an encoder has rows for."""

    tokens: int | None = None
    """That a causal model, or a decoder, has rows for."""

    trained: int | None = None
    """That a model without a table was made for, by its config.json."""


def positions(model: nn.Module) -> Positions:
    """Of a language model of transformers, on whatever device."""
    config: Any = model.config
    text = config.get_text_config()
    source, tokens = _tables(model, both=config.is_encoder_decoder)
    said = getattr(text, "max_position_embeddings", None)
    if text.model_type == "mpt":
        tokens.append(text.max_seq_len)  # of its table of biases, which is made in the forward pass
    if isinstance(said, int):
        # Sines and cosines, or a mask, made once: GPT-J, CodeGen, CTRL, GPT-Neo.
        made = [b for _, b in model.named_buffers() if b.dim() > 1 and said in b.shape]
        tokens += [said] * bool(made)
    limit = min(tokens, default=None)
    extends = isinstance(said, int) and limit is None and not config.is_encoder_decoder
    return Positions(
        source=min(source, default=None),
        tokens=limit,
        trained=said if extends and not getattr(text, "alibi", False) else None,
    )


def _tables(model: nn.Module, *, both: bool) -> tuple[list[int], list[int]]:
    """Rows of the tables of an encoder, and of whatever else reads tokens."""
    source: list[int] = []
    tokens: list[int] = []
    for name, module in model.named_modules():
        known = isinstance(module, nn.Embedding) and TABLE.search(name.rpartition(".")[2])
        if not known or NOT_OF_TEXT.search(name):
            continue
        rows = module.num_embeddings - getattr(module, "offset", 0)  # type: ignore[operator]
        if module.padding_idx is not None:  # RoBERTa counts from the one after it
            rows -= module.padding_idx + 1  # type: ignore[operator]
        (source if both and OF_ENCODER.search(name) else tokens).append(rows)  # type: ignore[arg-type]
    return source, tokens
