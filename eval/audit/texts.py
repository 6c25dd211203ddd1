"""Findings in a task's texts: answers, repeats, contradictions, leaks. Needs no tokenizer.

Comparisons are exact: two prompts are equal only if every character is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from eval.audit.findings import ERROR, NOTE, WARNING, Finding, listed
from moram_dist.tasks.samples import is_silent
from moram_dist.tasks.task import Example, Task


def check_texts(task: Task) -> list[Finding]:
    """All findings in a task's prompts and answers."""
    findings = []
    for split, examples in (("train", task.train), ("test", task.test)):
        where = f"{task.name} {split}"
        findings += _answers(where, examples, task.labels)
        findings += _repeats(where, examples)
        findings += _contradictions(
            where, examples, ERROR if split == "test" and task.labels else WARNING
        )
        findings += _references(where, examples)
    return [*findings, *_unseen_labels(task), *_leaks(task)]


def _ids(examples: Iterable[Example]) -> tuple[str, ...]:
    return tuple(example.id for example in examples)


def _answers(where: str, examples: Sequence[Example], labels: Sequence[str]) -> list[Finding]:
    """Answers outside a closed set of labels; in an open task, answers without content."""
    if labels:
        found = [e for e in examples if not set(e.references) <= set(labels)]
        kind, text = "outside_labels", "answers outside the label set"
    else:
        found = [e for e in examples if all(map(is_silent, e.references))]
        kind, text = "no_answer", "answers without a letter or a digit"
    if not found:
        return []
    outside = Counter(text for e in found for text in e.references if text not in labels)
    return [
        Finding(
            severity=ERROR if labels else WARNING,
            where=where,
            kind=kind,
            text=f"{text}: {len(found)} of {len(examples)}: {listed(outside)}",
            examples=_ids(found),
        )
    ]


def _repeats(where: str, examples: Sequence[Example]) -> list[Finding]:
    first: dict[tuple[str, tuple[str, ...]], str] = {}
    found = [e for e in examples if first.setdefault((e.prompt, e.references), e.id) != e.id]
    if not found:
        return []
    text = f"repeats of an earlier example (prompt and answer): {len(found)} of {len(examples)}"
    return [
        Finding(severity=WARNING, where=where, kind="repeated", text=text, examples=_ids(found))
    ]


def _contradictions(where: str, examples: Sequence[Example], severity: str) -> list[Finding]:
    """Prompts that occur more than once, with no answer that is accepted each time."""
    by_prompt: dict[str, list[Example]] = {}
    for example in examples:
        by_prompt.setdefault(example.prompt, []).append(example)
    groups = [
        group
        for group in by_prompt.values()
        if not set.intersection(*(set(example.references) for example in group))
    ]
    if not groups:
        return []
    return [
        Finding(
            severity=severity,
            where=where,
            kind="contradictory",
            text=f"prompts that occur more than once with different answers: {len(groups)}",
            examples=_ids(example for group in groups for example in group),
        )
    ]


def _references(where: str, examples: Sequence[Example]) -> list[Finding]:
    several = [e for e in examples if len(e.references) > 1]
    if not several:
        return []
    most = max(len(e.references) for e in several)
    text = (
        f"several references, up to {most}: {len(several)} of {len(examples)}; "
        "training uses the first, a score is the best over all"
    )
    return [
        Finding(
            severity=NOTE, where=where, kind="several_references", text=text, examples=_ids(several)
        )
    ]


def _unseen_labels(task: Task) -> list[Finding]:
    trained = {text for example in task.train for text in example.references}
    unseen = [label for label in task.labels if label not in trained]
    if not unseen:
        return []
    text = f"labels that no training example has: {', '.join(map(repr, unseen))}"
    return [Finding(severity=WARNING, where=f"{task.name} train", kind="unseen_label", text=text)]


def _leaks(task: Task) -> list[Finding]:
    """Test prompts that were trained on."""
    trained: dict[str, set[str]] = {}
    for example in task.train:
        trained.setdefault(example.prompt, set()).update(example.references)
    found = [e for e in task.test if e.prompt in trained]
    if not found:
        return []
    same = sum(not trained[e.prompt].isdisjoint(e.references) for e in found)
    text = (
        f"prompts that occur in train too: {len(found)} of {len(task.test)}, {same} with the answer"
    )
    return [
        Finding(
            severity=ERROR,
            where=f"{task.name} test",
            kind="leak",
            text=text,
            examples=_ids(found),
        )
    ]
