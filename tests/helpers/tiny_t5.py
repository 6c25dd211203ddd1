"""An encoder-decoder language model that is small enough to train in a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.tiny import HIDDEN, VOCABULARY

START = PAD = 0
"""One and the same token, as in every published T5."""

WIDE = {"vocab_size": 1024}
"""For ``tiny_t5`` to go with the demo's tokenizer."""


def tiny_t5(seed: int = 0, **changes: Any) -> T5ForConditionalGeneration:
    """Two layers a stack of random weights in fp32, and no dropout of its own. In eval mode."""
    settings = {
        "vocab_size": VOCABULARY,
        "d_model": HIDDEN,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": START,
        "pad_token_id": PAD,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(T5Config(**settings | changes)).eval()


def save_tiny_t5(folder: Path, **changes: Any) -> Path:
    """A tiny T5 as a folder that ``language_model.load`` takes.

    Its tokenizer is the demo's, made to add what T5's adds: EOS, and no BOS.
    """
    tiny_t5(**WIDE | changes).save_pretrained(folder)
    shutil.copy(DEMO_BASE / "tokenizer.model", folder)
    settings = json.loads((DEMO_BASE / "tokenizer_config.json").read_text())
    settings |= {"add_bos_token": False, "add_eos_token": True, "pad_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
