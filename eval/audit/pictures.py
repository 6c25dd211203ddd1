"""Audit a benchmark of pictures: counts, sizes, damaged files, repeats, leaks, classes and texts.

Two pictures are the same if all bytes of their files, or of their rows, are.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.audit.classes import check_counts, check_names, counts, own_labels
from eval.audit.findings import (
    ERROR,
    WARNING,
    Audited,
    Finding,
    by_severity,
    notes_of,
)
from eval.audit.picture_files import Looked, LookedAt, look_at_pictures
from moram_dist.tasks.task import Benchmark, Example, Task

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class PictureSplit:
    """One split of one task."""

    task: str
    split: str
    pictures: int
    used: int
    """Different pictures that a run trains on or tests."""

    classes: int
    fewest: int
    """Pictures of the class that has the fewest."""

    most: int
    smallest: int
    """Of the shorter edges, in pixels."""

    median: float
    """Of the shorter edges, in pixels."""

    unreadable: int


@dataclass(frozen=True, kw_only=True)
class PictureAudit(Audited):
    """The audit of a benchmark of pictures."""

    splits: tuple[PictureSplit, ...]


def audit_pictures(
    benchmark: Benchmark, whole: Benchmark, tokenizer: Any, *, say: Callable[[str], None]
) -> PictureAudit:
    """Audit all tasks.

    Args:
        benchmark: as a run uses it.
        whole: the same with every training picture.
        tokenizer: the base's encoder of texts, to see which are cut; None to leave that out.
        say: prints lines of progress.
    """
    findings = notes_of(benchmark)
    looked = look_at_pictures(whole, say)
    splits: list[PictureSplit] = []
    for number, (used, task) in enumerate(zip(benchmark.tasks, whole.tasks, strict=True), start=1):
        of_task = [*check_counts(task, used.train), *_leaks(task, looked), *_cut(task, tokenizer)]
        for split in SPLITS:
            splits.append(_measure(used, task, split, looked))
            of_task += _files(task, split, looked)
        findings += of_task
        say(f"{number}/{len(whole.tasks)} {task.name}: findings: {len(of_task)}")
    findings += [*check_names(benchmark), *_shared(whole, looked)]
    return PictureAudit(
        benchmark=benchmark.name,
        order=benchmark.order,
        protocol=benchmark.protocol,
        splits=tuple(splits),
        findings=by_severity(findings),
    )


def _examples(task: Task, split: str) -> Sequence[Example]:
    return task.train if split == "train" else task.test


def _seen(task: Task, example: Example, looked: Looked) -> LookedAt:
    assert isinstance(task.pictures, Path)
    return looked[task.pictures, example.prompt]


def _measure(used: Task, task: Task, split: str, looked: Looked) -> PictureSplit:
    examples = _examples(task, split)
    sizes = [seen.shorter for e in examples if (seen := _seen(task, e, looked)).shorter]
    by_class = counts(task, examples).values()
    return PictureSplit(
        task=task.name,
        split=split,
        pictures=len(examples),
        used=len({example.prompt for example in _examples(used, split)}),
        classes=sum(count > 0 for count in by_class),
        fewest=min(by_class),
        most=max(by_class),
        smallest=min(sizes, default=0),
        median=statistics.median(sizes or [0]),
        unreadable=len(examples) - len(sizes),
    )


def _finding(
    severity: str, where: str, kind: str, text: str, names: Iterable[str]
) -> Iterator[Finding]:
    """A finding about some pictures, if there are any."""
    examples = tuple(names)
    if examples:
        yield Finding(severity=severity, where=where, kind=kind, text=text, examples=examples)


def _files(task: Task, split: str, looked: Looked) -> Iterator[Finding]:
    """Damaged pictures, and pictures that a split has several times."""
    where, examples = f"{task.name} {split}", _examples(task, split)
    bad = [e for e in examples if _seen(task, e, looked).problem]
    first = _seen(task, bad[0], looked).problem if bad else ""
    text = f"pictures that cannot be read: {len(bad)} of {len(examples)}: {first}"
    yield from _finding(ERROR, where, "unreadable", text, (e.prompt for e in bad))
    by_content: dict[bytes, list[Example]] = defaultdict(list)
    for example in examples:
        by_content[_seen(task, example, looked).digest].append(example)
    by_content.pop(b"", None)
    several = [group for group in by_content.values() if len(group) > 1]
    repeated = [e for group in several for e in group[1:] if e.references == group[0].references]
    text = f"pictures that repeat an earlier one of their class: {len(repeated)} of {len(examples)}"
    yield from _finding(WARNING, where, "repeated", text, (e.prompt for e in repeated))
    torn = [group for group in several if len({e.references for e in group}) > 1]
    yield from _finding(
        ERROR if split == "test" else WARNING,
        where,
        "contradictory",
        f"pictures that are in several classes: {len(torn)}",
        (e.prompt for group in torn for e in group),
    )


def _leaks(task: Task, looked: Looked) -> Iterator[Finding]:
    """Test pictures that may be trained on."""
    trained: dict[bytes, set[str]] = defaultdict(set)
    for example in task.train:
        trained[_seen(task, example, looked).digest].add(example.references[0])
    trained.pop(b"", None)
    found = [e for e in task.test if _seen(task, e, looked).digest in trained]
    same = sum(e.references[0] in trained[_seen(task, e, looked).digest] for e in found)
    text = f"pictures that are in train too: {len(found)} of {len(task.test)}, {same} in its class"
    yield from _finding(ERROR, f"{task.name} test", "leak", text, (e.prompt for e in found))


def _shared(whole: Benchmark, looked: Looked) -> Iterator[Finding]:
    """Pictures of one task that an earlier one has too."""
    first: dict[bytes, str] = {}
    for task in whole.tasks:
        own: Counter[str] = Counter()
        names: dict[str, list[str]] = defaultdict(list)
        for split in SPLITS:
            for example in _examples(task, split):
                digest = _seen(task, example, looked).digest
                where = first.setdefault(digest, task.name) if digest else task.name
                if where != task.name:
                    own[where] += 1
                    names[where].append(example.prompt)
        for where, count in own.items():
            text = f"pictures that task {where} has too: {count}"
            yield from _finding(WARNING, task.name, "in_other_task", text, names[where])


def _cut(task: Task, tokenizer: Any) -> Iterator[Finding]:
    """Texts that are longer than the base reads."""
    if tokenizer is None:
        return
    texts = dict(zip(task.labels, task.texts, strict=True))
    long = [
        text
        for label in own_labels(task)
        for text in texts[label]
        if len(tokenizer.tokenizer(text)["input_ids"]) > tokenizer.most
    ]
    if long:
        said = f"texts that are cut to {tokenizer.most} tokens: {len(long)}: {long[0]!r}"
        yield Finding(severity=WARNING, where=task.name, kind="truncated", text=said)
