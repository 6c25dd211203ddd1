"""Tiny models of many architectures: one line of settings each, sizes that a test can train."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

WIDE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": WIDE,
    "Qwen2": WIDE,
    "Qwen3": WIDE | {"head_dim": 8},
    "Gemma2": WIDE | {"head_dim": 8},
    "Gemma3Text": WIDE | {"head_dim": 8},
    "Mistral": WIDE,
    "Mixtral": WIDE | EXPERTS | {"num_local_experts": 4},
    "Phi": WIDE,
    "Phi3": WIDE,
    "GPT2": OLD,
    "GPTNeoX": WIDE,
    "OPT": WIDE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": OLD | {"hidden_size": 32},
    "Falcon": WIDE,
    "GPTJ": OLD | {"rotary_dim": 4},
    "Olmo2": WIDE,
    "Granite": WIDE,
    "StableLm": WIDE,
    "SmolLM3": WIDE,
    "DeepseekV3": WIDE
    | EXPERTS
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "Mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 1,
    },
    "GraniteMoeHybrid": WIDE
    | EXPERTS
    | {
        "num_local_experts": 4,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
    },
    "T5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    },
}
"""By the name of the configuration's class, without ``Config``."""


def tiny(name: str, vocabulary: int = 64, **changes: Any) -> nn.Module:
    """A model of random weights, large enough that inputs matter. In eval mode."""
    config = getattr(transformers, f"{name}Config")(
        **{
            "vocab_size": vocabulary,
            "max_position_embeddings": 512,
            "initializer_range": 0.1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **CONFIGS.get(name, WIDE),
            **changes,
        }
    )
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind.from_config(config).eval()


def bare(name: str, **changes: Any) -> nn.Module:
    """The same without weights."""
    with torch.device("meta"):
        return tiny(name, **changes)
