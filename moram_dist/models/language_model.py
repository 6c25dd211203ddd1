"""Load the frozen base model and its tokenizer, sharded from the start under ZeRO-3.

The model's configuration determines its family (``moram_dist.families``).
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moram_dist.config import EMBEDDED, EMBEDDED_IMAGES, ModelConfig
from moram_dist.decode.attention import FLASH
from moram_dist.families import Family, family_of
from moram_dist.models import attention, load_report
from moram_dist.models.folder import BaseError, because, check_folder, check_name, fetch, local
from moram_dist.models.tokenizer import read_tokenizer
from moram_dist.registry import InputError

DEMO_BASE = Path(__file__).parent / "demo_base"
DEMO_CLIP = Path(__file__).parent / "demo_clip"
SHIPPED = {EMBEDDED: DEMO_BASE, EMBEDDED_IMAGES: DEMO_CLIP}
"""Name of a base that ships with the package -> its folder."""

SIZES = re.compile(r"must match the|cannot be multiplied|is invalid for input of size")
"""Matches torch's messages for tensors whose shapes do not fit."""


@dataclass(frozen=True)
class Base:
    """A frozen model and its tokenizer."""

    model: nn.Module
    tokenizer: Any
    keep_alive: Any
    """transformers' handle on the DeepSpeed configuration, which it references only weakly."""

    family: Family


def resolve_dtype(config: ModelConfig) -> torch.dtype:
    """float32 or bfloat16."""
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.dtype]


def dtype_notes(dtype: torch.dtype) -> list[str]:
    """What a user should know about computing in a type on this machine, one line each."""
    if dtype != torch.bfloat16 or torch.cuda.is_available() or multiplies_bf16():
        return []
    return ["this CPU has no instructions for bf16: --dtype fp32 would be several times as fast"]


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products in bf16, as far as torch's library knows."""
    if not torch.backends.mkldnn.is_available():
        return True
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve_attention(config: ModelConfig, architecture: Any) -> str:
    """The attention kernel. Not to be called while ZeRO-3 shards new models.

    Raises:
        InputError: as ``attention.resolve``.
    """

    def build(kernel: str) -> None:
        with torch.device("meta"):
            family_of(architecture).auto_class().from_config(
                copy.deepcopy(architecture),
                attn_implementation=kernel,
                trust_remote_code=config.trust_remote_code,
            )

    return attention.resolve(config.attention, resolve_dtype(config), build)


def source(config: ModelConfig) -> str:
    """The folder or hub id that transformers loads."""
    return str(SHIPPED.get(config.model, config.model))


def check(config: ModelConfig) -> Any:
    """The model's configuration, read without its weights.

    Raises:
        InputError: no such folder or id, a missing or broken file, settings that transformers does
            not know, custom code without ``trust_remote_code``, or quantised weights.
    """
    from transformers import AutoConfig

    name = config.model
    folder = SHIPPED.get(name) or check_name(name)
    if folder is not None:
        check_folder(folder, name)
    try:
        architecture = AutoConfig.from_pretrained(
            source(config), trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # wrong settings may raise anything in a model's own code
        if "trust_remote_code" in str(error):
            raise BaseError(
                name,
                "needs code of its own, which config.json names under auto_map; read it, then "
                "give --trust_remote_code true",
            ) from None
        if folder is None and isinstance(error, OSError):
            raise BaseError(
                name,
                "no such folder, and its files are neither in the cache of the Hugging Face hub "
                f"nor available from it: {because(error)}",
            ) from None
        raise BaseError(name, f"config.json cannot be used: {because(error)}") from None
    if folder is None and (cached := local(source(config))) is not None:
        check_folder(cached, name)
    _refuse_quantised(architecture, name)
    return architecture


def _refuse_quantised(architecture: Any, name: str) -> None:
    """Raises InputError for quantised weights: adapters and ZeRO need plain floating-point ones."""
    for part in (architecture, architecture.get_text_config()):
        for field in ("quantization_config", "compression_config"):
            how = getattr(part, field, None)
            if how:
                method = how.get("quant_method") if isinstance(how, dict) else None
                raise BaseError(
                    name,
                    f"its weights are quantised ({method or field}), which is not supported; give "
                    "the original weights",
                )


def checked_family(config: ModelConfig, architecture: Any) -> Family:
    """The family of a base.

    Raises:
        InputError: the family cannot use the configuration.
    """
    family = family_of(architecture)
    problem = family.config_problem(architecture)
    if problem is not None:
        raise BaseError(config.model, problem)
    return family


def skeleton(config: ModelConfig) -> nn.Module:
    """The model's modules without weights, for checks before work starts; without flash-attn."""
    architecture = check(config)
    family = checked_family(config, architecture)
    try:
        kernel = resolve_attention(config, architecture)
        if kernel == FLASH:  # flash-attn has nothing for tensors without content
            own = replace(config, attention="auto", dtype="fp32")
            kernel = resolve_attention(own, architecture)
        with torch.device("meta"):
            model = family.auto_class().from_config(
                architecture,
                attn_implementation=kernel,
                trust_remote_code=config.trust_remote_code,
            )
    except InputError:
        raise
    except Exception as error:  # inconsistent sizes may raise anything
        raise BaseError(
            config.model, f"is no {family.kind} language model: {because(error)}"
        ) from None
    _refuse_sizes(model, family, config.model)
    problem = family.model_problem(architecture, model)
    if problem is not None:
        raise BaseError(config.model, problem)
    return model


def _refuse_sizes(model: Any, family: Family, name: str) -> None:
    """Raises InputError for sizes that are inconsistent only in use, not when modules are made.

    For most models, a forward pass on the meta device finds them as well as a real one.
    """
    try:
        with torch.no_grad():
            model(**family.trial_inputs(model.config, 4))
    except Exception as error:  # many come from operations that need content: ignore those
        if SIZES.search(str(error)):
            raise BaseError(
                name, f"sizes in config.json do not go together: {because(error)}"
            ) from None


def check_weights(config: ModelConfig, model: nn.Module) -> None:
    """Compare names and shapes of the weights with ``model``'s; download them from the hub first.

    Raises:
        InputError: as ``load_report.check_weights`` does, or the download fails.
    """
    folder = local(source(config))
    if folder is None or not Path(source(config)).exists():
        folder = fetch(source(config))
    load_report.check_weights(model, folder, config.model)


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer. Without a pad token, or without a row for it, pad becomes ``unk``.

    If there is no ``unk`` either, pad becomes EOS, as published.
    """
    name = config.model
    architecture = check(config)
    tokenizer = read_tokenizer(
        source(config),
        local(source(config)),
        name,
        trust_remote_code=config.trust_remote_code,
    )
    if tokenizer.eos_token_id is None:
        raise BaseError(name, "its tokenizer has no end-of-sequence token")
    family = family_of(architecture)
    problem = family.tokenizer_problem(tokenizer)
    if problem is not None:
        raise BaseError(name, problem)
    rows = getattr(architecture.get_text_config(), "vocab_size", None)
    pad = tokenizer.pad_token_id
    if pad is None or (isinstance(rows, int) and pad >= rows):
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return family.with_tokenizer(tokenizer, source(config))


def load(config: ModelConfig, ds_config: dict[str, Any] | None = None) -> Base:
    """Load model and tokenizer. Under ZeRO-3 no rank ever holds the whole model.

    Models of a few families are loaded whole (``Family.loads_sharded``) and then sharded.

    Args:
        config: the model and its precision.
        ds_config: resolved DeepSpeed configuration; its stage determines the sharding. None: one
            process, for which DeepSpeed need not be installed.
    """
    from transformers import GenerationConfig

    if ds_config is not None:
        from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # left by an earlier base; a skeleton must not be sharded
    if ds_config is not None or find_spec("accelerate"):  # without which nothing loads on meta
        check_weights(config, skeleton(config))
    architecture = check(config)
    family = checked_family(config, architecture)
    kernel = resolve_attention(config, architecture)
    attention.leave_out_cudnn()
    keep_alive = None
    if ds_config and ds_config["zero_optimization"]["stage"] == 3 and family.loads_sharded:
        keep_alive = HfDeepSpeedConfig(ds_config)
    model, report = family.auto_class().from_pretrained(
        source(config),
        config=architecture,  # the checked one
        dtype=resolve_dtype(config),
        attn_implementation=kernel,
        generation_config=GenerationConfig(),  # the protocol defines decoding, not the base's file
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
    )
    # check_weights has judged unexpected keys; under ZeRO-3 transformers does not report them.
    load_report.refuse({**report, "unexpected_keys": ()}, model, {}, config.model)
    model.requires_grad_(False)
    model = family.prepared(model)
    if config.gradient_checkpointing:
        # The input needs no gradient, as nothing before the first adapter does. Re-entrant
        # checkpointing needs one and would cut the graph.
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.config.use_cache = False
    return Base(model, load_tokenizer(config), keep_alive, family)
