"""LoRAs that PEFT trains in a second."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from moram_dist.models.language_model import DEMO_BASE
from tests.helpers.tiny import tokens

peft = pytest.importorskip("peft")

IDS = tokens(2, 12)
CAUSAL = AutoModelForCausalLM


def plain(base=DEMO_BASE, kind=CAUSAL):
    return kind.from_pretrained(base, dtype=torch.float32).eval()


def train(folder, base=DEMO_BASE, kind=CAUSAL, seed=0, **settings):
    """A LoRA that PEFT trains for some steps to say a text."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | settings
    model = peft.get_peft_model(plain(base, kind), peft.LoraConfig(**settings))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=2e-2, weight_decay=0
    )
    said = tokens(2, 12, seed=seed + 1)
    for _ in range(6):
        model(input_ids=IDS, labels=said).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
