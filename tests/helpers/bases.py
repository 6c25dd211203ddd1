"""A tiny model of any architecture as a base's folder, and changes to such a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file, save_file

from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.tiny import SIZES

WEIGHTS = "model.safetensors"
ROWS = 1024
"""Of the demo's tokenizer."""

LLAMA = {"vocab_size": ROWS, **SIZES}
SMALL = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
GPT2 = {"vocab_size": ROWS, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}


def made(kind: str, **settings: Any) -> Any:
    """A causal model of random weights in fp32 and eval mode."""
    config = transformers.AutoConfig.for_model(kind, **settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save(kind: str, folder: Path, **settings: Any) -> Path:
    """Such a model as a folder, with the demo's tokenizer."""
    made(kind, **settings).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO_BASE / name, folder)
    return folder


def rename(folder: Path, new_name: Callable[[str], str | None]) -> None:
    """Give tensors other names; None leaves one out."""
    renamed = {new_name(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    kept = {name: tensor for name, tensor in renamed.items() if name is not None}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})


def change(path: Path, **changes: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
