"""Does a training step wait for the device, and what does it launch?

Two layers as wide as LLaMA-2-7B's, for the trainer's forward pass, loss, backward pass and AdamW.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.contest import OURS
from bench.measure import Work
from tools.gpu import models, training
from tools.gpu.models import BARE, PEFT
from tools.gpu.record import How, Record

DROPOUT = 0.1
MOST_SHOWN = 25


def run(record: Record, how: How) -> None:
    """Look at a step of each kind. Raises RuntimeError if one of ours waits."""
    rows, length = (2, 32) if how.tiny else (2, 256)
    shape = models.shape_for(how, layers=2)
    base = models.base_of(shape, how)
    atoms = models.atoms_of(base)
    batch = training.micro_batch(rows, length, shape)
    makes: dict[str, Callable[[], training.Step]] = {
        BARE: lambda: training.bare_step(models.copy_of(base), batch, how),
        OURS: lambda: training.our_step(models.copy_of(base), atoms, batch, how, dropout=0.0),
        f"{OURS}, dropout {DROPOUT}": lambda: training.our_step(
            models.copy_of(base), atoms, batch, how, dropout=DROPOUT
        ),
    }
    if models.has_peft():
        makes[PEFT] = lambda: training.peft_step(models.copy_of(base), atoms, batch, how)
    record.put(tokens=rows * length, layers=shape.layers, **models.left_out())
    found: dict[str, dict[str, Any]] = {}
    for name, make in makes.items():
        step = make()
        for _ in range(2):
            step()  # the first steps compile, and may wait
        found[name] = {**waits(step, how), **counts(step, how)}
        record.put(steps=found)
    waiting = [name for name in found if name.startswith(OURS) and found[name].get("waits")]
    if waiting:
        raise RuntimeError(f"waits for the device: {', '.join(waiting)}")


def waits(step: training.Step, how: How) -> dict[str, Any]:
    """Whether a step waits for the device, where it first does, and all such places."""
    if how.device == "cpu":
        return {"waits": None}
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        first = traceback.format_exc().splitlines()[-20:]
        found: dict[str, Any] = {"waits": True, "first": [*first, str(error)]}
    else:
        return {"waits": False}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{each.filename}:{each.lineno}" for each in caught)
    return {**found, "places": dict(places.most_common(MOST_SHOWN))}


def counts(step: training.Step, how: How) -> dict[str, Any]:
    """Kernels and copies on the device; on a CPU, operations that would start one."""
    if how.device == "cpu":
        with Work() as work:
            step()
        return {"operations": work.dispatched, "most": dict(work.operations.most_common(5))}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    events: Any = seen.events()
    on_device = [each for each in events if each.device_type.name == "CUDA"]
    names = Counter(each.name[:120] for each in on_device)
    spent: Counter[str] = Counter()
    for each in on_device:
        spent[each.name[:120]] += each.time_range.elapsed_us()
    return {
        "launches": len(on_device),
        "device_us": sum(spent.values()),
        "by_number": dict(names.most_common(MOST_SHOWN)),
        "by_us": dict(spent.most_common(MOST_SHOWN)),
    }
