"""Compare implementations: check each against float64, and time those that agree."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.exact import Answers, compare
from bench.measure import Work, interleaved, look, one_pass
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
    calls = {name: _pass_of(way, upstream) for name, way in ways.items()}
    return _timed(level, case, found, calls, settings)


@torch.no_grad()
def forward_contest(
    level: str,
    case: Mapping[str, Any],
    entries: Mapping[str, Entry],
    settings: Settings,
    *,
    tolerance: float,
) -> list[Measurement]:
    """Forward passes of all entries, each with its output ``y``: as ``contest``."""
    ways = {name: entry.make() for name, entry in entries.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        work = Work()
        counted = name != COMPILED
        with work if counted else nullcontext():
            y = way.forward()
        check = compare({"y": y}, {"y": entries[name].reference["y"]})
        found[name] = {
            "error": check.worst,
            "passed": check.worst <= tolerance,
            "flops": work.flops if counted else None,
            "dispatched": work.dispatched if counted else None,
        }
    calls = {name: way.forward for name, way in ways.items() if found[name]["passed"]}
    return _timed(level, case, found, calls, settings)


def _timed(
    level: str,
    case: Mapping[str, Any],
    found: Mapping[str, dict[str, Any]],
    calls: Mapping[str, Callable[[], object]],
    settings: Settings,
) -> list[Measurement]:
    """Rows of what was found, with the times of all calls."""
    gc.collect()
    times = interleaved(calls, seconds=settings.seconds, least_repeats=settings.least_repeats)
    for name, each in times.items():
        found[name].update(least=each.least, median=each.median, repeats=each.repeats)
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
