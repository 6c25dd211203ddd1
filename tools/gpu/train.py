"""A training step of 4,096 tokens by a model as large as LLaMA-2-7B: seconds and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from bench import stack
from bench.contest import OURS
from bench.measure import Saved, one_pass
from bench.models import draw_atoms
from tools.gpu import models, training
from tools.gpu.models import BARE, PEFT
from tools.gpu.record import How, Record
from tools.gpu.timing import seconds

DROPOUT = 0.1
REPEATS = 8

TOLERANCE = 1e-2
"""Of outputs and gradients in float32: two atoms that are all but equal may change places."""


def run(record: Record, how: How) -> None:
    """Check, then measure the bare model, PEFT's LoRA, and ours with and without dropout."""
    error = check(how)
    record.put(error_of_four_blocks=error)
    if not error <= TOLERANCE:
        raise RuntimeError(f"gradients are off by {error:.1e}: nothing is timed")
    rows, length = (2, 32) if how.tiny else (4, 1024)
    shape = models.shape_for(how)
    base = models.base_of(shape, how)
    atoms = models.atoms_of(base)
    batch = training.micro_batch(rows, length, shape)
    steps: dict[str, Callable[[], None]] = {
        BARE: training.bare_step(models.copy_of(base), batch, how),
    }
    for name, dropout in ((OURS, 0.0), (f"{OURS}, dropout {DROPOUT}", DROPOUT)):
        model = models.copy_of(base)
        steps[name] = training.our_step(model, atoms, batch, how, dropout=dropout)
    if models.has_peft():
        steps[PEFT] = training.peft_step(models.copy_of(base), atoms, batch, how)
    sizes = {"tokens": rows * length, "atoms": models.ATOMS, "dtype": str(base.dtype)}
    record.put(**sizes, **models.left_out())
    found: dict[str, dict[str, Any]] = {}
    for name, step in list(steps.items()):
        try:
            step()  # compiles, and makes the optimizer's state
            found[name] = memory_of(step, how)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            del steps[name]
        record.put(steps=found)
    repeats = 1 if how.tiny else REPEATS
    for name, times in seconds(steps, how.device, repeats=repeats, left=how.left).items():
        found[name] |= times
    for name in found.keys() - {BARE}:
        if "median" in found[name]:
            found[name]["over bare"] = found[name]["median"] / found[BARE]["median"]
    record.put(steps=found)
    wrong = [name for name, of in found.items() if "error" in of]
    if wrong:
        raise RuntimeError(f"failed: {', '.join(wrong)}")


def check(how: How) -> float:
    """Error of outputs and gradients of four blocks in float32, relative to float64.

    Of the worst tensor, in norms.
    """
    width, text, texts = (64, 8, 2) if how.tiny else (256, 64, 4)
    base = stack.decoder(width).to(how.device)
    atoms = draw_atoms(base, stack.METHOD, stack.ATOMS - stack.ACTIVE, stack.ACTIVE)
    generator = torch.Generator(how.device).manual_seed(0)
    shape = (1, texts * text, width)
    x, upstream = (
        torch.randn(shape, generator=generator, device=how.device).requires_grad_(leaf)
        for leaf in (True, False)
    )
    exactly = stack.published(deepcopy(base), atoms, x, text, double=True)
    expected = stack.answers(exactly, upstream)
    way = stack.ours(base, atoms, x, text)
    y, *gradients = one_pass(way, upstream)
    found = {"y": y.detach(), **dict(zip(way.wanted, gradients, strict=True))}
    return max(
        float((found[name].double() - exact).norm() / exact.norm())
        for name, exact in expected.items()
    )


def memory_of(step: Callable[[], None], how: How) -> dict[str, int]:
    """Bytes of a step: the peak beyond what stands; on a CPU, what is saved for backward."""
    if how.device == "cpu":
        saved = Saved([])
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            step()
        return {"saved_bytes": saved.bytes}
    torch.cuda.synchronize()
    standing = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return {"standing_bytes": standing, "peak_bytes": peak, "step_bytes": peak - standing}
