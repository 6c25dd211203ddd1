"""Load the frozen base model and its tokenizer, sharded from the start under ZeRO-3.

Which kind of language model it is, causal or encoder-decoder, its own configuration says.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moram_dist.config import EMBEDDED, ModelConfig
from moram_dist.registry import InputError

DEMO_BASE = Path(__file__).parent / "demo_base"


@dataclass(frozen=True)
class Base:
    """A frozen language model and its tokenizer."""

    model: nn.Module
    tokenizer: Any
    keep_alive: Any
    """transformers' handle on the DeepSpeed configuration; it holds it by weak reference only."""

    decoder_start: int | None = None
    """The token that a decoder starts from; None: a causal model, which has no encoder."""


def resolve_dtype(config: ModelConfig) -> torch.dtype:
    """float32 or bfloat16."""
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.dtype]


def resolve_attention(config: ModelConfig, architecture: Any) -> str:
    """The attention kernel: flash-attn on CUDA in bf16 where it imports, else torch's own.

    Raises:
        InputError: flash-attn was asked for where it cannot run.
    """
    installed = importlib.util.find_spec("flash_attn") is not None
    half = resolve_dtype(config) == torch.bfloat16
    flash = torch.cuda.is_available() and installed and half
    if flash and architecture.is_encoder_decoder:
        flash = False  # T5 adds a bias to attention scores, and flash-attn has no place for it
    if config.attention == "auto":
        return "flash_attention_2" if flash else "sdpa"
    if config.attention == "flash_attention_2" and not flash:
        raise InputError(
            "--attention flash_attention_2 needs CUDA, --dtype bf16, the package flash-attn and a "
            "causal model"
        )
    return config.attention


def source(config: ModelConfig) -> str:
    """What transformers loads: a folder or a hub id."""
    return str(DEMO_BASE) if config.model == EMBEDDED else config.model


def check(config: ModelConfig) -> Any:
    """The model's configuration, read without its weights.

    Raises:
        InputError: no such folder or id, a folder that lacks a file, or settings that
            transformers does not know.
    """
    from transformers import AutoConfig

    path = Path(source(config))
    if not path.exists() and config.model.startswith(("/", ".", "~")):  # never an id of the hub
        raise InputError(f"--model {config.model}: no such folder")
    if path.exists() and not (path / "config.json").is_file():
        raise InputError(f"--model {config.model}: {path / 'config.json'} does not exist")
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise InputError(
            f"--model {config.model}: holds no *.safetensors; other formats are not read, because "
            "unpickling runs code"
        )
    try:
        return AutoConfig.from_pretrained(
            source(config), trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--model {config.model}: cannot be loaded: {reason}") from None


def _auto_class(architecture: Any) -> Any:
    """What transformers makes such a model with."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if architecture.is_encoder_decoder else AutoModelForCausalLM


def decoder_start(config: ModelConfig, architecture: Any) -> int | None:
    """``Base.decoder_start``.

    Raises:
        InputError: an encoder-decoder model that does not say.
    """
    if not architecture.is_encoder_decoder:
        return None
    start = getattr(architecture, "decoder_start_token_id", None)
    if start is None:
        raise InputError(
            f"--model {config.model}: its config.json lacks decoder_start_token_id, from which "
            "its decoder starts; T5's is 0"
        )
    return start


def skeleton(config: ModelConfig) -> nn.Module:
    """The model's modules without any weights: to look at names before work starts."""
    architecture = check(config)
    resolve_attention(config, architecture)
    decoder_start(config, architecture)
    try:
        with torch.device("meta"):
            return _auto_class(architecture).from_config(
                architecture, trust_remote_code=config.trust_remote_code
            )
    except ValueError as error:
        kind = "text-to-text" if architecture.is_encoder_decoder else "causal"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--model {config.model} is no {kind} language model: {reason}") from None


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer, with a pad token: ``unk`` where it has none, else EOS, as published."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source(config), trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--model {config.model}: no tokenizer: {reason}") from None
    if tokenizer.eos_token_id is None:
        raise InputError(f"--model {config.model}: its tokenizer has no end-of-sequence token")
    if check(config).is_encoder_decoder and tokenizer("")["input_ids"] != [tokenizer.eos_token_id]:
        raise InputError(
            f"--model {config.model}: its tokenizer does not end a text with its end-of-sequence "
            "token and add no other; of encoder-decoder models only those that do, such as T5, "
            "are supported"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load(config: ModelConfig, ds_config: dict[str, Any]) -> Base:
    """Load model and tokenizer. Under ZeRO-3 no rank ever holds the whole model.

    Args:
        config: which model, in which precision.
        ds_config: resolved DeepSpeed configuration; its stage decides about sharding.
    """
    from transformers.integrations import HfDeepSpeedConfig

    keep_alive = None
    if ds_config["zero_optimization"]["stage"] == 3:
        keep_alive = HfDeepSpeedConfig(ds_config)
    architecture = check(config)
    model = _auto_class(architecture).from_pretrained(
        source(config),
        dtype=resolve_dtype(config),
        attn_implementation=resolve_attention(config, architecture),
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
    )
    model.requires_grad_(False)
    if config.gradient_checkpointing:
        # Nothing before the first adapter needs a gradient, so re-entrant checkpointing, which
        # follows the input's, would cut the graph.
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.config.use_cache = False
    return Base(
        model,
        load_tokenizer(config),
        keep_alive,
        decoder_start(config, architecture),
    )
