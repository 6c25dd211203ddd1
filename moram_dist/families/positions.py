"""How many tokens a model has positions for.

A table of positions, learned or computed, ends: a token beyond it is an index error, on CUDA one
that takes the process with it. Rotary positions have no end; beyond ``max_position_embeddings`` a
model sees what it was not trained on. ALiBi, recurrent states and T5's buckets know no such number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

TABLE = re.compile(r"wpe|pos(?!t)(?!.*relative)")
"""Last names of modules that hold a row for each position: wpe, embed_positions, ..."""

NOT_OF_TEXT = re.compile(r"vision|visual|image|audio|speech")


@dataclass(frozen=True)
class Positions:
    """In tokens; None: no such number."""

    source: int | None = None
    """For prompts that are read apart from their answers, that the model has rows for."""

    tokens: int | None = None
    """For prompt and answer, or for answers alone, that it has rows for."""

    trained: int | None = None
    """That a model without a table was made for, by its config.json."""

    @property
    def has_table(self) -> bool:
        """Whether there is nothing beyond some number, rather than something unknown."""
        return self.source is not None or self.tokens is not None


def tables(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Full names of a model's tables of positions, and how many tokens each has rows for."""
    for name, module in model.named_modules():
        known = isinstance(module, nn.Embedding) and TABLE.search(name.rpartition(".")[2])
        if not known or NOT_OF_TEXT.search(name):
            continue
        rows = module.num_embeddings - getattr(module, "offset", 0)  # type: ignore[operator]
        if module.padding_idx is not None:  # RoBERTa counts from the one after it
            rows -= module.padding_idx + 1  # type: ignore[operator]
        yield name, rows  # type: ignore[misc]


def computed(model: Any) -> Iterator[int]:
    """For how many tokens a model computes positions that are no modules: biases, sines, masks."""
    text = model.config.get_text_config()
    if text.model_type == "mpt":
        yield text.max_seq_len  # of its table of biases, which is made in the forward pass
    said = said_by_config(model)
    # Sines and cosines, or a mask, made once: GPT-J, CodeGen, CTRL, GPT-Neo.
    if said is not None and any(b.dim() > 1 and said in b.shape for _, b in model.named_buffers()):
        yield said


def said_by_config(model: Any) -> int | None:
    """``max_position_embeddings``, where config.json has such a number."""
    said = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return said if isinstance(said, int) else None
