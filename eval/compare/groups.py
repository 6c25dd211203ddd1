"""Check that runs are comparable, and group them by method, recall and settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from eval.compare.runs import OF_THE_RECOGNISER, Run
from eval.scoring_modes import recall_label
from moram_dist.registry import InputError

RunSlot = tuple[str, int]
"""A run's order and seed."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ only in order and seed: one row of the table."""

    label: str
    """The method, its recall unless all are ``all``, and settings that distinguish its groups."""

    settings: str
    """Settings in which groups of the table differ."""

    runs: dict[RunSlot, Run]


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise InputError if runs are not comparable.

    Runs of one seed must have the same test items. Those of another seed may differ, as in a
    generated benchmark, but not in number.
    """
    if not runs:
        raise InputError("there is no run to compare")
    for what, of in {
        "benchmarks": lambda run: run.benchmark,
        "protocols": lambda run: run.protocol,
        "base models": lambda run: run.base,
        "ways of answering": lambda run: run.answers,
        "tasks": lambda run: sorted(run.tasks),
        "sizes of test sets": _sizes,
    }.items():
        _all_equal(runs, what, of)
    for seed in sorted({run.seed for run in runs}):
        same_seed = [run for run in runs if run.seed == seed]
        _all_equal(same_seed, "test sets", lambda run: dict(zip(run.tasks, run.tests, strict=True)))


def _sizes(run: Run) -> dict[str, int]:
    measured = zip(run.tasks, run.last, run.learned, strict=True)
    return {task: len(last or learned or "") for task, last, learned in measured}


def _all_equal(runs: Sequence[Run], what: str, of: Callable[[Run], object]) -> None:
    first = of(runs[0])
    for run in runs:
        if of(run) != first:
            raise InputError(
                f"runs of other {what} cannot be compared in one table: {runs[0].name} has "
                f"{first}, {run.name} has {of(run)}"
            )


def group_runs(runs: Iterable[Run]) -> tuple[Group, ...]:
    """Group runs by method, recall and settings, in the order given.

    Raises InputError if two runs of a group have the same order and seed.
    """
    found: dict[tuple[str, str, str], dict[RunSlot, Run]] = {}
    for run in runs:
        key = (run.method, run.recall, json.dumps(run.settings, sort_keys=True))
        group = found.setdefault(key, {})
        twin = group.setdefault((run.order, run.seed), run)
        if twin is not run:
            raise InputError(
                f"{twin.name} and {run.name} are the same run: {run.method}, order {run.order}, "
                f"seed {run.seed}"
            )
    members = [next(iter(group.values())) for group in found.values()]
    return tuple(
        Group(label=_label(one, members), settings=_differing(one, members), runs=group)
        for one, group in zip(members, found.values(), strict=True)
    )


def _label(one: Run, members: Sequence[Run]) -> str:
    same = [other for other in members if other.method == one.method]
    plain = all(other.recall == "all" for other in same)
    parts = [one.method, "" if plain else recall_label(one.recall), _differing(one, same)]
    return ", ".join(part for part in parts if part)


def _differing(one: Run, members: Sequence[Run]) -> str:
    """The settings of a run in which some of the others differ, as text.

    A method's settings are compared only with runs of that method, a recogniser's only with runs of
    the same recall.
    """
    shown = []
    for name, value in one.settings.items():
        others = members
        if name.startswith("method."):
            others = [other for other in others if other.method == one.method]
        if name in OF_THE_RECOGNISER:
            others = [other for other in others if other.recall == one.recall]
        if any(other.settings.get(name) != value for other in others):
            shown.append(f"{name.split('.')[-1]} {value}")
    return ", ".join(shown)
