"""What a run says about its compute type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moram_dist.models import language_model
from moram_dist.models.language_model import dtype_notes


@pytest.mark.parametrize(
    ("dtype", "gpu", "instructions", "told"),
    [
        (torch.bfloat16, False, False, True),
        (torch.bfloat16, False, True, False),
        (torch.bfloat16, True, False, False),
        (torch.float32, False, False, False),
    ],
)
def test_bf16_on_a_cpu_without_instructions_for_it(dtype, gpu, instructions, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(language_model, "multiplies_bf16", lambda: instructions)
    notes = dtype_notes(dtype)
    assert len(notes) == told
    assert all("--dtype fp32" in note for note in notes)


def test_an_older_cpu_has_none():
    """By what the kernel says of it; with AVX-512, torch's products in bf16 are fast enough."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if "avx2" not in flags or {"avx512bw", "amx_bf16", "avx_ne_convert"} & {*flags}:
        pytest.skip("this is not a CPU with AVX2 and nothing newer")
    assert not language_model.multiplies_bf16()
