"""Levels ``layer`` and ``many``: one linear, forward and backward, over tokens, widths and atoms.

``update`` is the output of a memory or a LoRA alone; ``layer`` adds the frozen linear's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench import exact, variants
from bench.contest import (
    COMPILED,
    LINEAR,
    OURS,
    PEFT_ACTIVE,
    PEFT_ALL,
    PUBLISHED,
    Entry,
    Settings,
    contest,
)
from bench.results import Measurement
from bench.variants import Case, CaseInputs, Contender, on_linear

GRID = [
    Case(num_tokens=2048, width=width, num_atoms=num_atoms)
    for width in (1024, 2048)
    for num_atoms in (64, 240, 256, 1024, 4096)
]

MANY = Case(num_tokens=256, width=1024, num_atoms=65536)
QUICK_MANY = Case(num_tokens=64, width=512, num_atoms=8192)

QUICK = [Case(num_tokens=512, width=512, num_atoms=num_atoms) for num_atoms in (64, 1024)]


LARGEST_LORA = 4096
"""Rows. A larger LoRA is not compared, because it takes gigabytes in float64."""


def run(settings: Settings) -> Iterator[list[Measurement]]:
    """Measure all cases in turn."""
    for case in QUICK if settings.quick else GRID:
        yield one_case(variants.draw(case), settings)


def many(settings: Settings) -> Iterator[list[Measurement]]:
    """Level ``many``: the same with far more atoms than tokens."""
    case = QUICK_MANY if settings.quick else MANY
    yield one_case(variants.draw(case), settings, level="many")


def one_case(inputs: CaseInputs, settings: Settings, level: str = "layer") -> list[Measurement]:
    """The update alone, then the layer."""
    case = inputs.case
    memory, base = exact.memory(inputs), exact.linear(inputs)
    whole = exact.layer(memory, base)

    def entry(make: Callable[[CaseInputs], Contender], reference: exact.Answers) -> Entry:
        return Entry(make=lambda: make(inputs), reference=reference)

    update = {PUBLISHED: entry(variants.published_eager, memory)}
    layer = {
        LINEAR: entry(variants.bare_linear, base),
        PUBLISHED: entry(on_linear(variants.published_eager), whole),
    }
    if settings.compiler:
        update[COMPILED] = entry(variants.published_compiled, memory)
    if case.num_atoms <= LARGEST_LORA:
        lora = exact.lora(inputs)
        update[PEFT_ALL] = entry(variants.peft_all, lora)
        update[PEFT_ACTIVE] = entry(variants.peft_active, lora)
        layer[PEFT_ACTIVE] = entry(variants.peft_active_layer, exact.layer(lora, base))
    update[OURS] = entry(variants.ours, memory)
    layer[OURS] = entry(on_linear(variants.ours), whole)
    sizes = {"tokens": case.num_tokens, "width": case.width, "atoms": case.num_atoms}
    return [
        row
        for what, entries in (("update", update), ("layer", layer))
        for row in contest(
            level,
            {**sizes, "what": what},
            entries,
            inputs.upstream_TD,
            settings,
            top_k=case.top_k,
            tolerance=exact.TOLERANCE,
        )
    ]
