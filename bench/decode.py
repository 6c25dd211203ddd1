"""Level ``decode``: one linear, forward only, with the few tokens that generation has at a time.

In ours all atoms are frozen, as when a learned memory answers. PEFT's adapters are not merged into
the linear; merged, they are the bare linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench import exact, variants
from bench.contest import (
    COMPILED,
    LINEAR,
    OURS,
    PEFT_ACTIVE,
    PUBLISHED,
    Entry,
    Settings,
    forward_contest,
)
from bench.exact import Answers
from bench.results import Measurement
from bench.variants import Case, CaseInputs, Contender, on_linear

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


def one_case(case: Case, settings: Settings) -> list[Measurement]:
    """Check and count each layer, and time those that pass."""
    inputs = variants.draw(case)
    memory, lora, base = exact.memory(inputs), exact.lora(inputs), exact.linear(inputs)
    made: dict[str, tuple[Callable[[CaseInputs], Contender], Answers]] = {
        LINEAR: (variants.bare_linear, base),
        PUBLISHED: (on_linear(variants.published_eager), exact.layer(memory, base)),
        COMPILED: (on_linear(variants.published_compiled), exact.layer(memory, base)),
        PEFT_ACTIVE: (variants.peft_active_layer, exact.layer(lora, base)),
        OURS: (on_linear(variants.ours_learned), exact.layer(memory, base)),
    }
    if not settings.compiler:
        del made[COMPILED]
    return forward_contest(
        "decode",
        {"tokens": case.num_tokens, "width": case.width, "atoms": case.num_atoms},
        {
            name: Entry(make=partial(make, inputs), reference=reference)
            for name, (make, reference) in made.items()
        },
        settings,
        tolerance=exact.TOLERANCE,
    )
