"""Targets of the layer's speed and memory.

Targets are ratios within one run. The published formulation does six products of all tokens and all
atoms; ours needs two, or one and K^T K if there are more atoms than inputs. On a CPU, selection and
memory traffic reduce the gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.contest import LINEAR, OURS, PEFT_ACTIVE, PUBLISHED
from bench.results import Measurement


@dataclass(frozen=True, kw_only=True)
class Target:
    """A ratio of two implementations in one case."""

    title: str
    case: Mapping[str, object]
    """Columns and their values; the other columns of that row may have any value."""

    bound: float
    one: str = PUBLISHED
    other: str = OURS
    levels: Sequence[str] = ("layer", "many")
    value: Callable[[Measurement], float | None] = lambda row: row.least
    at_most: bool = False

    def met(self, found: float) -> bool:
        """Whether a ratio is good enough."""
        return found <= self.bound if self.at_most else found >= self.bound


def _update(width: int, atoms: int) -> Mapping[str, object]:
    return {"what": "update", "width": width, "atoms": atoms}


def _faster(width: int, atoms: int, bound: float) -> Target:
    return Target(title="time, published / ours", case=_update(width, atoms), bound=bound)


def _smaller(width: int, atoms: int, bound: float) -> Target:
    return Target(
        title="saved bytes, published / ours",
        case=_update(width, atoms),
        bound=bound,
        value=lambda row: row.saved_bytes,
    )


def _than_peft(width: int, atoms: int) -> Target:
    return Target(
        title="time, PEFT's active rows / ours",
        case=_update(width, atoms),
        bound=1.0,
        one=PEFT_ACTIVE,
    )


TARGETS = (
    *(_faster(width, 64, 1.25) for width in (1024, 2048)),
    *(_faster(width, 256, 2.0) for width in (1024, 2048)),
    *(_faster(width, 1024, 2.7) for width in (1024, 2048)),
    _faster(1024, 4096, 5.0),
    _faster(2048, 4096, 4.0),
    _faster(1024, 65536, 15.0),
    Target(
        title="time of the layer, ours / bare linear",
        case={"what": "layer", "width": 2048, "atoms": 256},
        bound=1.2,
        one=OURS,
        other=LINEAR,
        at_most=True,
    ),
    *(
        Target(
            title="time of a step of generation, ours / bare model",
            case={"rows": rows, "width": width},
            bound=bound,
            one=OURS,
            other=LINEAR,
            levels=("step",),
            at_most=True,
        )
        for rows, bound in ((1, 1.3), (16, 1.15))
        for width in (256, 1024)
    ),
    *(_than_peft(width, atoms) for width in (1024, 2048) for atoms in (240, 1024, 4096)),
    *(_smaller(width, 256, 4.0) for width in (1024, 2048)),
    *(_smaller(width, 4096, 300.0) for width in (1024, 2048)),
)


def found(rows: Sequence[Measurement]) -> Iterator[tuple[Target, Measurement, float]]:
    """Each target whose two implementations were measured, its row of ours, and the ratio."""
    for target in TARGETS:
        of = {
            row.way: row
            for row in rows
            if row.level in target.levels and target.case.items() <= row.case.items()
        }
        if {target.one, target.other} <= of.keys():
            one, other = target.value(of[target.one]), target.value(of[target.other])
            if one and other:
                yield target, of[OURS], one / other
