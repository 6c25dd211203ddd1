"""The setting of the compared runs, which published numbers share or not."""

from __future__ import annotations

from eval.compare.comparison import Comparison
from eval.compare.references import Setting
from eval.compare.runs import Run
from moram_dist.tasks import mtil, xtail
from moram_dist.tasks.pictures.mtil_splits import FULL_SETS
from moram_dist.tasks.pictures.published_sets import IMAGE_SETS

PUBLISHED = ("xtail", "mtil")
"""Benchmarks of pictures that have published numbers."""


def setting_of(comparison: Comparison) -> Setting:
    """What the compared runs have in common. Several shots are joined, so they equal no others."""
    runs = [run for group in comparison.groups for run in group.runs.values()]
    pictures = runs[0].benchmark in PUBLISHED
    return Setting(
        base=runs[0].base["name"],
        protocol=runs[0].protocol,
        orders=tuple(comparison.orders),
        shots=", ".join(sorted({_shots(run) for run in runs})) if pictures else "",
        splits=_splits(runs[0]) if pictures else "",
    )


def _shots(run: Run) -> str:
    if (limit := run.settings.get("data.limit_train")) is not None:
        return f"{limit} a task"
    by_default = {"xtail": xtail.SHOTS, "mtil": None if _is_full(run) else mtil.SHOTS}
    shots = run.settings.get("data.shots") or by_default[run.benchmark]
    return "all" if shots is None else f"{shots}"


def _splits(run: Run) -> str:
    """Whose splits the protocol has; marked unless the test sets are as large as published."""
    name = "torchvision's" if _is_full(run) else "CoOp's lists"
    measured = zip(run.tasks, run.last, run.learned, strict=True)
    whole = all(len(last or learned or "") == _tests(run, task) for task, last, learned in measured)
    return name if whole else f"{name}, not all test pictures"


def _tests(run: Run, task: str) -> int | None:
    """The published number of test pictures; None for a task that the benchmark does not have."""
    if _is_full(run):
        full = FULL_SETS.get(task)
        return full.tests if full else None
    known = IMAGE_SETS.get(mtil.SETS.get(task, "") if run.benchmark == "mtil" else task)
    return known.tests if known else None


def _is_full(run: Run) -> bool:
    return (run.benchmark, run.protocol) == ("mtil", "full")
