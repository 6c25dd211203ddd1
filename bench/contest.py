"""Compare implementations: check each against float64, and time those that agree."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.exact import Answers, compare
from bench.measure import interleaved, look, one_pass
from bench.results import Measurement
from bench.variants import Contender

PUBLISHED = "published"
COMPILED = "published, compiled"
PEFT_ALL = "PEFT LoRA, all rows"
PEFT_ACTIVE = "PEFT LoRA, active rows"
OURS = "ours"
LINEAR = "bare linear"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much to measure."""

    quick: bool = False
    compiler: bool = True
    """Whether torch.compile works here."""

    seconds: float = 5.0
    """CPU time for the repetitions of a case; the minimum number of repetitions may take longer."""

    least_repeats: int = 3


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An implementation, and the answers that it must give."""

    make: Callable[[], Contender]
    reference: Answers


def contest(
    level: str,
    case: Mapping[str, Any],
    entries: Mapping[str, Entry],
    upstream: Tensor,
    settings: Settings,
    *,
    top_k: int,
    tolerance: float,
) -> list[Measurement]:
    """Forward and backward passes of all entries: checks, counts, and times of those that pass."""
    ways: dict[str, Contender] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        way = entry.make()
        kept_bytes = way.kept_bytes()  # also makes the tensors made once per task, before counting
        seen = look(way, upstream, top_k=top_k, counted=name != COMPILED)
        check = compare(seen.answers, entry.reference, seen.chosen_TK)
        passed = check.worst <= tolerance and check.sets_equal is not False
        found[name] = {
            "error": check.worst,
            "passed": passed,
            "flops": seen.counts.flops,
            "dispatched": seen.counts.dispatched,
            "saved_bytes": seen.counts.saved_bytes,
            "kept_bytes": kept_bytes,
        }
        if passed:
            ways[name] = way
    gc.collect()
    times = interleaved(
        {name: _pass_of(way, upstream) for name, way in ways.items()},
        seconds=settings.seconds,
        least_repeats=settings.least_repeats,
    )
    for name, each in times.items():
        found[name] |= {"least": each.least, "median": each.median, "repeats": each.repeats}
    return [
        Measurement(level=level, case=case, way=name, **fields) for name, fields in found.items()
    ]


def _pass_of(way: Contender, upstream: Tensor) -> Callable[[], object]:
    return lambda: one_pass(way, upstream)


def compiler_missing() -> str:
    """Why torch.compile cannot be used here, in one line; empty if it can."""
    try:
        torch.compile(torch.sin)(torch.zeros(2))
    except RuntimeError as error:
        return "it does not work here, " + " ".join(str(error).split())[:160]
    return ""
