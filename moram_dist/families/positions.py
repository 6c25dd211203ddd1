"""The number of tokens for which a model has positions.

A table of positions, learned or computed, is finite: a token beyond it is an index error, which on
CUDA kills the process. Rotary positions have no end, but beyond ``max_position_embeddings`` a model
reads lengths that it was not trained on. ALiBi, recurrent states and T5's buckets have no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

TABLE = re.compile(r"wpe|pos(?!t)(?!.*relative)")
"""Matches last names of modules with one row per position: wpe, embed_positions, ..."""

NOT_OF_TEXT = re.compile(r"vision|visual|image|audio|speech")


@dataclass(frozen=True)
class Positions:
    """Limits in tokens; None means no limit."""

    source: int | None = None
    """Rows for prompts that are read separately from their answers."""

    tokens: int | None = None
    """Rows for prompt and answer together, or for answers alone."""

    trained: int | None = None
    """Length in config.json of a model without a table."""

    @property
    def has_table(self) -> bool:
        """Whether tokens beyond a limit are an error, and not just outside of training lengths."""
        return self.source is not None or self.tokens is not None


def tables(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Full names of a model's position tables, each with the number of tokens that it covers."""
    for name, module in model.named_modules():
        known = isinstance(module, nn.Embedding) and TABLE.search(name.rpartition(".")[2])
        if not known or NOT_OF_TEXT.search(name):
            continue
        rows = module.num_embeddings - getattr(module, "offset", 0)  # type: ignore[operator]
        if module.padding_idx is not None:  # RoBERTa's positions start after padding_idx
            rows -= module.padding_idx + 1  # type: ignore[operator]
        yield name, rows  # type: ignore[misc]


def computed(model: Any) -> Iterator[int]:
    """Token limits of positions that are computed outside modules: biases, sines, masks."""
    text = model.config.get_text_config()
    if text.model_type == "mpt":
        yield text.max_seq_len  # its table of biases is made in the forward pass
    said = said_by_config(model)
    # A buffer of sines and cosines, or a mask: GPT-J, CodeGen, CTRL, GPT-Neo.
    if said is not None and any(b.dim() > 1 and said in b.shape for _, b in model.named_buffers()):
        yield said


def said_by_config(model: Any) -> int | None:
    """``max_position_embeddings`` of config.json; None if it is missing or not a number."""
    said = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return said if isinstance(said, int) else None
