"""Named settings: those that a method's authors published, and those that we recommend.

Recipes and flags override them, and the run saves the result as plain settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moram_dist.config import EMBEDDED, EMBEDDED_IMAGES
from moram_dist.registry import InputError, one_of

PRESETS = ("published", "recommended")

RECALL = {"recall": "prefix,all"}
"""A newer task's atoms or LoRA should not answer an older task's prompts."""

RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "moram": {
        "temperature": 0.3,  # at the published 0.03 one atom answers nearly alone
        "learning_rate": 3e-3,
        "target_modules": "all-linear",
        **RECALL,
    },
    **dict.fromkeys(
        ("inc_lora", "o_lora", "inf_lora", "gain_lora", "gpm_lora", "moe_lora"), RECALL
    ),
}
"""By method; docs/methods.md says how they were chosen. Published settings are the defaults of the
configuration and of each benchmark's protocol."""

PICTURES = {"schedule": "cosine", "beta2": 0.9999, "clip": 0.0, "eval_rows": "all"}
"""As in the published MoRAM code for X-TAIL; its runs start without warm-up."""

OF_BENCHMARK: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("xtail", "mtil", "images"), PICTURES),
    EMBEDDED_IMAGES: {**PICTURES, "dropout": 0.0, "model": EMBEDDED_IMAGES},
}
"""Settings that replace the configuration's defaults, whatever the preset."""


def preset_settings(preset: str | None, *, method: str, benchmark: str) -> Mapping[str, Any]:
    """Settings of a preset by bare name.

    Args:
        preset: None means recommended (if the method has it) on the two demos, and published on
            all other benchmarks.
        method: the run's.
        benchmark: the run's.

    Raises:
        InputError: there is no such preset, or it does not cover the method.
    """
    own = {**OF_BENCHMARK.get(benchmark, {})}
    if preset is None:
        demo = benchmark in (EMBEDDED, EMBEDDED_IMAGES)
        return {**own, **(RECOMMENDED.get(method, {}) if demo else {})}
    one_of("preset", preset, PRESETS)
    if preset == "published":
        return own
    if method not in RECOMMENDED:
        raise InputError(
            f"--preset recommended says nothing of --method {method}; it is there for "
            f"{', '.join(RECOMMENDED)}"
        )
    return {**own, **RECOMMENDED[method]}
