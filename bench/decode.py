"""Level ``decode``: one linear, forward only, with the few tokens that generation has at a time.

In ours all atoms are frozen, as when a learned memory answers. PEFT's adapters are not merged into
the linear; merged, they are the bare linear.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench import exact, variants
from bench.contest import COMPILED, LINEAR, OURS, PEFT_ACTIVE, PUBLISHED, Settings
from bench.exact import Answers, compare
from bench.measure import Work, interleaved
from bench.results import Measurement
from bench.variants import Case, Contender, on_linear

GRID = [
    Case(num_tokens=num_tokens, width=2048, num_atoms=num_atoms)
    for num_tokens in (1, 16)
    for num_atoms in (240, 4096)
]

QUICK = [Case(num_tokens=num_tokens, width=512, num_atoms=240) for num_tokens in (1, 16)]


def run(settings: Settings) -> Iterator[list[Measurement]]:
    """Measure all cases in turn."""
    for case in QUICK if settings.quick else GRID:
        yield one_case(case, settings)


@torch.no_grad()
def one_case(case: Case, settings: Settings) -> list[Measurement]:
    """Check and count each layer, and time those that pass."""
    inputs = variants.draw(case)
    with torch.enable_grad():
        memory, lora, base = exact.memory(inputs), exact.lora(inputs), exact.linear(inputs)
    made = {
        LINEAR: (variants.bare_linear, base),
        PUBLISHED: (on_linear(variants.published_eager), exact.layer(memory, base)),
        COMPILED: (on_linear(variants.published_compiled), exact.layer(memory, base)),
        PEFT_ACTIVE: (variants.peft_active_layer, exact.layer(lora, base)),
        OURS: (on_linear(variants.ours_learned), exact.layer(memory, base)),
    }
    if not settings.compiler:
        del made[COMPILED]
    ways = {name: make(inputs) for name, (make, _) in made.items()}
    rows = {name: _looked_at(case, name, way, made[name][1]) for name, way in ways.items()}
    times = interleaved(
        {name: way.forward for name, way in ways.items() if rows[name]["passed"]},
        seconds=settings.seconds,
        least_repeats=settings.least_repeats,
    )
    for name, each in times.items():
        rows[name] |= {"least": each.least, "median": each.median, "repeats": each.repeats}
    sizes = {"tokens": case.num_tokens, "width": case.width, "atoms": case.num_atoms}
    return [Measurement(level="decode", case=sizes, way=name, **rows[name]) for name in rows]


def _looked_at(case: Case, name: str, way: Contender, expected: Answers) -> dict:
    """Error and counts of one pass."""
    work = Work()
    if name == COMPILED:
        y_TD = way.forward()
    else:
        with work:
            y_TD = way.forward()
    check = compare({"y": y_TD}, {"y": expected["y"]})
    counted = name != COMPILED
    return {
        "error": check.worst,
        "passed": check.passed,
        "flops": work.flops if counted else None,
        "dispatched": work.dispatched if counted else None,
    }
