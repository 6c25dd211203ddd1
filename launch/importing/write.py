"""Write a memory whose tasks are LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from moram_dist.adapters.adapter import sizes
from moram_dist.atoms.manifest import Imported, Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.config import ModelConfig
from moram_dist.models import language_model
from moram_dist.models.identity import identify
from moram_dist.use.from_peft import PeftLora
from moram_dist.use.lora_atoms import atoms_of, settings_for


def write_loras(
    loras: Sequence[PeftLora], skeleton: nn.Module, base: ModelConfig, folder: Path
) -> None:
    """Write each LoRA as a task, in order.

    All linears that any of them adapts get atoms; those of one that leaves a linear alone are 0.

    Args:
        loras: with different names.
        skeleton: the base's modules.
        base: whose fingerprint the manifest gets.
        folder: ``MEMORY/memory``.
    """
    linears = {
        name: sizes(module)
        for name, module in skeleton.named_modules()
        if any(name in lora.terms for lora in loras)
    }
    size = max(lora.rank for lora in loras)
    name = base.model if base.model in language_model.SHIPPED else None
    manifest = Manifest(
        method="moram",
        settings=asdict(settings_for(size, ",".join(linears))),
        base=identify(language_model.source(base), name=name).saved,
        modules=[*linears],
    )
    files = MemoryFiles(folder)
    for lora in loras:
        tensors = {}
        for linear, (num_in, num_out) in linears.items():
            none = (torch.zeros(1, num_in), torch.zeros(1, num_out))
            atoms = atoms_of(lora.terms.get(linear, none), size)
            tensors[f"{linear}.keys"], tensors[f"{linear}.values"] = atoms
        made_from = Imported(sha256=lora.sha256, rank=lora.rank)
        manifest = files.publish(manifest, lora.name, tensors, imported=made_from)
