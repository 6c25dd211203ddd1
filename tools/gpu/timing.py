"""Seconds of calls in turn: by CUDA events on a GPU, by CPU time of the process elsewhere."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from bench.measure import interleaved

REPEATS = 20

LEAST_S = 0.002
"""Shorter calls are timed several at once, without a wait in between."""

MOST_AT_ONCE = 200


def seconds(
    calls: Mapping[str, Callable[[], object]],
    device: str,
    *,
    repeats: int = REPEATS,
    left: Callable[[], float] = lambda: float("inf"),
) -> dict[str, dict[str, Any]]:
    """``least`` and ``median`` seconds of each call, and how often it was measured.

    Each repetition runs all calls in a new random order. There are fewer repetitions if another
    one would not fit into the seconds that ``left`` gives, but always one.
    """
    if device == "cpu":
        times = interleaved(calls, seconds=0, least_repeats=repeats)
        return {name: asdict(each) for name, each in times.items()}
    return _by_events(calls, repeats, left)


def _by_events(
    calls: Mapping[str, Callable[[], object]], repeats: int, left: Callable[[], float]
) -> dict[str, dict[str, Any]]:
    numbers, spent = {}, 0.0
    for name, call in calls.items():
        call()  # compiles
        once = _events(call, 1)
        numbers[name] = max(1, min(round(LEAST_S / once), MOST_AT_ONCE))
        spent += once * numbers[name]
    found: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    for turn in range(repeats):
        if turn and left() < spent:
            break
        order = list(calls)
        shuffle(order)
        for name in order:
            found[name].append(_events(calls[name], numbers[name]))
    return {
        name: {"least": min(each), "median": statistics.median(each), "repeats": len(each)}
        for name, each in found.items()
    }


def _events(call: Callable[[], object], number: int) -> float:
    """Seconds of a call on the device, with gaps in which it waits for the host."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(number):
        call()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000 / number
