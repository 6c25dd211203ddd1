"""Write a LoRA in PEFT's format: ``PeftModel.from_pretrained(base, folder)`` loads it.

Written without PEFT, which only a test needs: the format is a JSON file and named tensors.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import nn
from transformers.pytorch_utils import Conv1D

from moram_dist.files import write_atomically
from moram_dist.use.lora import Lora

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

TASK_TYPES = {"AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM"}
"""transformers' class -> what PEFT calls its models; others have no type."""


def write_peft(folder: Path, lora: Lora, model: nn.Module, base: str, auto_class: str) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        folder: is created.
        lora: what is added.
        model: the base or its skeleton.
        base: its folder or hub id.
        auto_class: the name of the class that loads it.
    """
    tensors = {}
    for name, (A, B) in lora.terms.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.T.contiguous()
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in lora.terms)
    config = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(auto_class),
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": target_modules(model, [*lora.terms]),
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def target_modules(model: nn.Module, names: list[str]) -> list[str]:
    """The last names of the adapted linears if no other module has them, else the full names.

    Other programs that read PEFT's format know short names only.
    """
    short = sorted({name.rpartition(".")[2] for name in names})
    every = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in short}
    return short if every == {*names} else sorted(names)
