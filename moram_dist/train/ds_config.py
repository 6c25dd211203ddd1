"""The DeepSpeed file configures ZeRO and communication; the run configures everything else.

Batch sizes, clipping and precision come from the run configuration through "auto". A number that is
in both must be the same.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from moram_dist.reading import read_object
from moram_dist.registry import InputError
from moram_dist.terminal import quoted

RUN_DECIDES = {
    "optimizer": "--learning_rate and --weight_decay",
    "scheduler": "--schedule and --warmup_ratio",
    "fp16": "--dtype (fp32 or bf16)",
}


def read(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed configuration. Raises InputError that names the file."""
    return read_object(path, unique=True)


def resolve(
    file: dict[str, Any],
    *,
    path: Path,
    batch_size: int,
    world_size: int,
    clip: float,
    bf16: bool,
) -> dict[str, Any]:
    """The configuration with every "auto" filled in.

    Args:
        file: from ``read``.
        path: of the file, for messages.
        batch_size: examples per step.
        world_size: number of ranks.
        clip: largest gradient norm, 0 for none.
        bf16: whether the model is in bfloat16.

    Raises:
        InputError: a value in the file differs from the run's, or only the run may set it.
    """
    out = copy.deepcopy(file)
    for key, flag in RUN_DECIDES.items():
        section = out.get(key)
        if section and (not isinstance(section, dict) or section.get("enabled", True)):
            raise InputError(f"{path}: remove {key!r}; it is set by {flag}")
    # The number of examples in a forward pass depends on their lengths, and the trainer marks the
    # last pass of a step. DeepSpeed gets the largest possible number of passes: one per example.
    passes = math.ceil(batch_size / world_size)
    wanted: dict[str, float] = {
        "train_batch_size": passes * world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": clip,
    }
    for key, value in wanted.items():
        found = out.get(key, "auto")
        if isinstance(found, bool) or found not in ("auto", value):
            raise InputError(
                f"{path}: {key} is {quoted(found)}, but the run's batch sizes and clipping make it "
                f'{value}; write "auto" there, or change --batch_size or --clip'
            )
        out[key] = value
    for key in ("bf16", "zero_optimization"):
        if not isinstance(out.setdefault(key, {}), dict):
            raise InputError(f"{path}: {key} must be an object, got {quoted(out[key])}")
    precision = out["bf16"]
    enabled = precision.get("enabled", "auto")
    if enabled != "auto" and enabled is not bf16:
        raise InputError(
            f"{path}: bf16.enabled is {quoted(enabled)}, but the run's --dtype makes it "
            f'{str(bf16).lower()}; write "auto" there'
        )
    precision["enabled"] = bf16
    stage = out["zero_optimization"].setdefault("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise InputError(
            f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, got {quoted(stage)}"
        )
    if stage == 0:
        out.pop("data_types", None)  # without ZeRO, DeepSpeed accumulates in the model's own dtype
    # DeepSpeed does not list torch's AdamW for every stage; we test resets with it at all stages.
    out["zero_allow_untested_optimizer"] = True
    out.setdefault("steps_per_print", 1_000_000_000)
    # DeepSpeed's timer of samples per second waits for the device twice in each pass.
    out.setdefault("timers", {}).setdefault("throughput", {}).setdefault("enabled", False)
    return out
