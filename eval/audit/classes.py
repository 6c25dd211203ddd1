"""Findings in the classes of tasks of pictures: how many pictures each has, names and texts.

Needs no pixels and no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from eval.audit.findings import NOTE, WARNING, Finding, listed
from moram_dist.tasks.task import Benchmark, Example, Task


def own_labels(task: Task) -> tuple[str, ...]:
    """The labels of a task's own classes, where those of all tasks compete."""
    return task.train_labels or task.labels


def own_name(task: Task, label: str) -> str:
    """The name of a class, without the task's that stands before it where classes compete."""
    return label.removeprefix(f"{task.name}/") if task.train_labels else label


def counts(task: Task, examples: Iterable[Example]) -> Counter[str]:
    """Pictures by class name, those of classes without any too."""
    found = Counter({own_name(task, label): 0 for label in own_labels(task)})
    found.update(own_name(task, example.references[0]) for example in examples)
    return found


def check_counts(task: Task, drawn: Sequence[Example]) -> list[Finding]:
    """Classes with too few pictures.

    Args:
        task: with all of its pictures.
        drawn: those that a run trains on; with replacement where a class has fewer than shots.
    """
    there, shots = counts(task, task.train), counts(task, drawn)
    few = {name: n for name, n in there.items() if n < shots[name]}
    single = {name: n for name, n in there.items() if n < 2 and name not in few}
    untested = {name: 0 for name, n in counts(task, task.test).items() if n == 0}
    most = max(shots.values(), default=0)
    return [
        Finding(severity=severity, where=f"{task.name} {split}", kind=kind, text=text + _named(bad))
        for severity, split, kind, text, bad in (
            (WARNING, "train", "few_pictures", f"classes with fewer than {most} pictures", few),
            (WARNING, "train", "few_pictures", "classes with one picture", single),
            (NOTE, "test", "untested_class", "classes without a test picture", untested),
        )
        if bad
    ]


def _named(bad: dict[str, int]) -> str:
    return f": {len(bad)}: {listed(Counter(bad))}"


def check_names(benchmark: Benchmark) -> Iterator[Finding]:
    """Class names of several tasks, and texts of several classes."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for task in benchmark.tasks:
        for label in own_labels(task):
            tasks[own_name(task, label)].append(task.name)
    twice = [f"{name!r} ({', '.join(own)})" for name, own in tasks.items() if len(own) > 1]
    if twice:
        text = f"class names that several tasks have: {len(twice)}: {_first(twice)}"
        yield Finding(severity=NOTE, where="classes", kind="same_name", text=text)
    yield from _same_texts(benchmark)


def _same_texts(benchmark: Benchmark) -> Iterator[Finding]:
    """Classes with the same texts. CLIP's tokenizer makes all letters small."""
    labels: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    compete = any(task.train_labels for task in benchmark.tasks)
    for task in benchmark.tasks:
        texts = dict(zip(task.labels, task.texts, strict=True))
        for label in own_labels(task):
            plain = tuple(text.lower() for text in texts[label])
            labels[plain].append((task.name, own_name(task, label)))
    for severity, kind, what in (
        (WARNING, "same_text", "texts of several classes that compete, so the first one wins"),
        (NOTE, "same_text", "texts of classes of several tasks, which do not compete"),
    ):
        found = [
            f"{plain[0]!r} ({', '.join(map('/'.join, own))})"
            for plain, own in labels.items()
            if len(own) > 1
            and (severity == WARNING) == (compete or len({task for task, _ in own}) < len(own))
        ]
        if found:
            yield Finding(
                severity=severity,
                where="classes",
                kind=kind,
                text=f"{what}: {len(found)}: {_first(found)}",
            )


def _first(found: Sequence[str], most: int = 3) -> str:
    return ", ".join(found[:most]) + (f", {len(found) - most} more" if len(found) > most else "")
