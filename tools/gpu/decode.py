"""Greedy generation by a model as large as LLaMA-2-7B: seconds a token, as evaluation generates.

A LoRA that is merged into the weights is the bare model. A call that makes one token is subtracted
from one that makes many, so that reading the prompt does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moram_dist.decode.continuous_batching import ContinuousBatcher, Request, Room
from tools.gpu import models
from tools.gpu.record import How, Record
from tools.gpu.steps import Stopped
from tools.gpu.timing import seconds

TOLERANCE = 1e-2
"""Of logits in float32: two atoms that are all but equal may change places."""

REPEATS = 8


def run(record: Record, how: How) -> None:
    """Check, then measure one row and 16."""
    error = models.check(how)
    record.put(error_of_two_layers=error)
    if not error <= TOLERANCE:
        raise RuntimeError(f"logits are off by {error:.1e}: nothing is timed")
    prompt, new = (16, 3) if how.tiny else (512, 17)
    shape = models.shape_for(how)
    base = models.base_of(shape, how)
    ways = models.answering(base, models.atoms_of(base))
    record.put(**models.left_out())
    for batch in (1, 16):
        if how.left() < 10 and not how.tiny:
            raise Stopped(f"no time for {batch} rows")
        prompts = models.tokens(batch, prompt, shape, how).tolist()
        calls: dict[str, Callable[[], object]] = {}
        for name, model in ways.items():
            batcher = batcher_of(model, batch, shape.vocabulary)
            for count in (1, new):
                calls[f"{name} {count}"] = _call(batcher, prompts, count)
        half = how.left() / 2 if batch == 1 else 0
        times = seconds(
            calls,
            how.device,
            repeats=1 if how.tiny else REPEATS,
            left=lambda half=half: how.left() - half,  # type: ignore[misc]
        )
        rows = {}
        for name in ways:
            long, short = times[f"{name} {new}"], times[f"{name} 1"]
            each = (long["median"] - short["median"]) / (new - 1)
            rows[name] = {
                "seconds a token": each,
                "tokens a second": batch / each if each > 0 else None,
                "seconds to the first token": short["median"],
                "repeats": long["repeats"],
            }
        record.put(**{f"{batch} rows, prompts of {prompt} tokens": rows})


def batcher_of(model: Any, rows: int, vocabulary: int) -> ContinuousBatcher:
    """Greedy generation that never ends early: no token is the last one."""
    return ContinuousBatcher(
        model,
        Room.for_all(rows),
        do_sample=False,
        num_beams=1,
        eos_token_id=vocabulary,
        pad_token_id=0,
        use_cache=True,
    )


def generated(batcher: ContinuousBatcher, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The new tokens of each row."""
    asked = [Request(key, prompt, count) for key, prompt in enumerate(prompts)]
    said = [row.said for row in batcher(asked)]
    if any(len(new) != count for new in said):
        raise RuntimeError(f"a row has not got {count} new tokens")
    return said


def _call(batcher: ContinuousBatcher, prompts: list[list[int]], count: int) -> Callable[[], object]:
    return lambda: generated(batcher, prompts, count)
