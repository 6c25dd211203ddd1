"""Make tables in Markdown and figures from results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

from bench.contest import (
    COMPILED,
    LINEAR,
    OURS,
    PEFT_ACTIVE,
    PEFT_ALL,
    PUBLISHED,
)
from bench.results import BenchResults, Level, Measurement
from bench.targets import found
from eval.figures import AMOUNT, LOSS, QUIET, canvas

TITLES = {
    "layer": "One linear, forward and backward",
    "many": "One linear with very many atoms, forward and backward",
    "stack": "Four decoder blocks, forward and backward",
    "run": "Three tasks on two ranks through the launcher",
    "decode": "One linear, forward only",
    "step": "A step of generation with a whole model",
    "matrix": "All answers of a score matrix",
}

BUSY = 0.5
"""A machine counts as busy from this load on."""

Column = Callable[[Measurement], str]


def markdown(results: BenchResults) -> str:
    """All tables, the targets first."""
    parts = ["# Benchmark", environment_line(results)]
    if any(found(results.rows)):
        parts += ["## Targets", targets(results.rows)]
    for level, title in TITLES.items():
        rows = [row for row in results.rows if row.level == level]
        if rows:
            parts += [f"## {title}", level_line(results.levels[level]), level_table(rows)]
    return "\n\n".join(parts) + "\n"


def environment_line(results: BenchResults) -> str:
    """One line about the machine and versions."""
    env = results.environment
    packages = ", ".join(f"{name} {env[name]}" for name in ("torch", "transformers", "peft"))
    return (
        f"{env['processor']}, {env['threads']} thread of {env['cores']} cores, {env['dtype']}; "
        f"{packages}. CPU time of the process: least and median of n repetitions, the ways in an "
        "order drawn again for each."
    )


def level_line(level: Level) -> str:
    """One line about the conditions of a level, and about what was left out."""
    line = (
        f"Load of other processes {level.load_before:.1f} before, {level.load_after:.1f} after; "
        f"{level.seconds:.0f} s of CPU time."
    )
    if level.load_before > BUSY:
        line += " The machine was busy: compare ratios within this table rather than times."
    if level.compiler_missing:
        line += f" Without torch.compile: {level.compiler_missing}."
    return line


def level_table(rows: Sequence[Measurement]) -> str:
    """One line per implementation and case, with the level's columns."""
    columns: dict[str, Column] = {name: _of_case(name) for name in rows[0].case}
    columns["way"] = lambda row: row.way
    columns["least, ms"] = lambda row: _milliseconds(row.least) if row.passed else "not timed"
    columns["median"] = lambda row: _milliseconds(row.median)
    columns["n"] = lambda row: str(row.repeats or "")
    for title, first in (("x bare", LINEAR), ("x published", PUBLISHED)):
        columns[title] = _over(first, rows)
    columns |= {
        "MFLOP": lambda row: _count(row.flops, 1e6),
        "operations": lambda row: _count(row.dispatched),
        "saved, KB": lambda row: _count(row.saved_bytes, 1e3),
        "kept, KB": lambda row: _count(row.kept_bytes, 1e3),
        "error": lambda row: "" if row.error is None else f"{row.error:.0e}",
    }
    columns |= {name: _also(name) for name in rows[0].also}
    columns = {name: cell for name, cell in columns.items() if any(cell(row) for row in rows)}
    return table(columns, ([cell(row) for cell in columns.values()] for row in rows))


def _of_case(name: str) -> Column:
    return lambda row: _number(row.case[name])


def _also(name: str) -> Column:
    return lambda row: _number(row.also[name])


def _over(first: str, rows: Sequence[Measurement]) -> Column:
    """The time of an implementation, divided by that of another one in the same case."""
    whole = {_key(row): row.least for row in rows if row.way == first}
    return lambda row: _ratio(row.least, whole.get(_key(row)))


def table(header: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    names = list(header)
    out = [names, ["---"] * len(names), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in out)


def targets(rows: Sequence[Measurement]) -> str:
    """Targets and results, for the measured sizes."""
    lines = [
        [
            target.title,
            _number(ours.case.get("rows", "")),
            _number(ours.case["width"]),
            _number(ours.case["atoms"]),
            f"{'<=' if target.at_most else '>='} {target.bound:g}",
            f"{ratio:.2f}",
            "yes" if target.met(ratio) else "no",
        ]
        for target, ours, ratio in found(rows)
    ]
    return table(["ratio", "rows", "width", "atoms", "target", "found", "met"], lines)


def _key(row: Measurement) -> tuple[Any, ...]:
    return tuple(row.case.items())


COLOURS = {
    PUBLISHED: LOSS,
    COMPILED: "#e0a07d",
    PEFT_ALL: QUIET,
    PEFT_ACTIVE: "#a9b3bd",
    OURS: AMOUNT,
}


def time_figure(rows: Sequence[Measurement]) -> Figure:
    """CPU time of the update over the number of atoms, one panel per width."""
    return _figure(rows, "CPU time, ms", lambda row: row.least and 1e3 * row.least)


def memory_figure(rows: Sequence[Measurement]) -> Figure:
    """Saved bytes of the update over the number of atoms."""
    return _figure(rows, "saved for backward, MB", lambda row: (row.saved_bytes or 0) / 1e6 or None)


def _figure(
    rows: Sequence[Measurement], label: str, value: Callable[[Measurement], float | None]
) -> Figure:
    updates = [row for row in rows if row.level == "layer" and row.case["what"] == "update"]
    tokens = max(row.case["tokens"] for row in updates)
    updates = [row for row in updates if row.case["tokens"] == tokens]
    widths = sorted({int(row.case["width"]) for row in updates})
    with canvas(4.2 * len(widths), 3.2) as figure:
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
        for axes, width in zip(panels, widths, strict=True):
            for way, colour in COLOURS.items():
                points = [
                    (row.case["atoms"], value(row))
                    for row in updates
                    if row.way == way and row.case["width"] == width and value(row)
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", ms=3, color=colour, label=way)
            axes.set(xscale="log", yscale="log", xlabel="atoms", title=f"width {width}")
            axes.grid(True, which="major")
        panels[0].set_ylabel(f"{label} ({tokens} tokens)")
        panels[0].legend(frameon=False, fontsize=7)
    return figure


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.{1 if seconds >= 0.01 else 3}f}"


def _count(number: int | None, unit: float = 1) -> str:
    return "" if number is None else f"{number / unit:,.0f}"


def _ratio(one: float | None, other: float | None) -> str:
    return "" if one is None or not other else f"{one / other:.2f}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
