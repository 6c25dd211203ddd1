"""Compare the cost of a memory with the published formulation, PEFT's LoRA and a bare linear.

    python -m bench                                  every level: minutes
    python -m bench --quick                          small sizes
    python -m bench --levels layer,decode
    python -m bench --out docs/results/bench         also JSON, tables and figures

Levels in the folder that are not measured again stay there.
Everything is checked against float64 before it is timed. Exit code 1: a check failed; 2: wrong
input. Times are CPU time of this process on one thread. They are only printed;
tests/unit/test_bench.py checks everything that must not change.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.contest import Settings, compiler_missing
from bench.measure import load_of_others
from bench.report import markdown, memory_figure, time_figure
from bench.results import BenchResults, Level, Measurement, environment
from eval.figures import svg_text
from moram_dist.command_line import Parser
from moram_dist.files import write_atomically
from moram_dist.registry import InputError, unknown

LEVELS = ("layer", "many", "stack", "decode", "step", "matrix", "run")

COMPILING = {"layer", "many", "decode"}
"""Levels in which the published formulation is also compiled; with --quick only the first."""

RESULTS = "results.json"


def main(words: Sequence[str]) -> int:
    """Run the command. Returns the exit code."""
    parser = Parser("python -m bench", __doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--levels", default=",".join(LEVELS), help="of %(default)s")
    parser.add_argument(
        "--without_compile", action="store_true", help="leave torch.compile out: it takes its time"
    )
    parser.add_argument("--out", type=Path, help="folder for JSON, tables and figures")
    try:
        given = parser.parse_args(words)
        levels = given.levels.split(",")
        for level in levels:
            if level not in LEVELS:
                raise unknown("level", level, LEVELS)
        if importlib.util.find_spec("peft") is None:
            raise InputError("package peft is missing; pip install -r requirements-dev.txt")
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = Settings(quick=given.quick, compiler=not given.without_compile)
    results = measure(levels, settings, given.out)
    print(markdown(results))
    failed = [row for row in results.rows if row.level in levels and not row.passed]
    for row in failed:
        print(f"failed its check: {row.level}, {dict(row.case)}, {row.way}", file=sys.stderr)
    return 1 if failed else 0


def measure(levels: Sequence[str], settings: Settings, out: Path | None) -> BenchResults:
    """Measure some levels; with ``out``, results are written after each case."""
    torch.set_num_threads(1)
    began = time.monotonic()
    compiling = {*levels} & ({"layer"} if settings.quick else COMPILING)
    missing = "not asked for"
    if settings.compiler and compiling:
        missing = compiler_missing()
    found = environment() | {"quick": settings.quick}
    results = BenchResults(environment=found, levels={}, rows=[])
    if out and (out / RESULTS).exists():
        earlier = BenchResults.from_json((out / RESULTS).read_text(encoding="utf-8"))
        if earlier.environment == found:
            results = earlier
    for level in levels:
        print(f"level {level} ...", file=sys.stderr, flush=True)
        load, begun = load_of_others(began), time.process_time()
        rows: list[Measurement] = []
        compiler = level in compiling and not missing
        for more in runner(level)(replace(settings, compiler=compiler)):
            rows += more
            took = Level(
                load_before=load,
                load_after=load_of_others(began),
                seconds=time.process_time() - begun,
                compiler_missing=missing if level in compiling else "",
            )
            results = results.with_level(level, took, rows)
            if out:
                write(results, out)
    return results


def runner(level: str) -> Callable[[Settings], Iterator[list[Measurement]]]:
    """The function that measures a level case by case; imported when needed, as some are slow."""
    if level == "layer":
        from bench.layer import run
    elif level == "many":
        from bench.layer import many as run
    elif level == "stack":
        from bench.stack import run
    elif level == "decode":
        from bench.decode import run
    elif level == "step":
        from bench.step import run
    elif level == "matrix":
        from bench.matrix import run
    else:
        from bench.mini_run import run
    return run


def write(results: BenchResults, folder: Path) -> None:
    """Write all files that the documentation links to."""
    write_atomically(folder / RESULTS, results.to_json())
    write_atomically(folder / "table.md", markdown(results))
    if any(row.level == "layer" for row in results.rows):
        write_atomically(folder / "time.svg", svg_text(time_figure(results.rows)))
        write_atomically(folder / "memory.svg", svg_text(memory_figure(results.rows)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
