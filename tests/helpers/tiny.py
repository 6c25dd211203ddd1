"""A causal language model that is small enough to train in a test."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moram_dist.models.language_model import DEMO_BASE

VOCABULARY = 64
HIDDEN = 32
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Of LLaMA and of what is built like it."""


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """Two layers of random weights in fp32, large enough that inputs matter. In eval mode."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        **SIZES,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def save_tiny_model(folder: Path) -> Path:
    """The tiny model as a folder that ``language_model.load`` takes, with a tokenizer in it."""
    tiny_model().save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO_BASE / name, folder)
    return folder


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, shape, generator=generator)
