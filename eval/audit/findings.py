"""A finding of an audit, and how severe it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from moram_dist.tasks.task import Benchmark

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Error: scores are not valid. Warning: scores are less precise, or something is wasted. Note:
useful to know."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact that a reader of scores on this benchmark should know."""

    severity: str
    """``ERROR``, ``WARNING`` or ``NOTE``."""

    where: str
    """Task and split, as in ``mnli test``, or another part of the benchmark."""

    kind: str
    """A name for scripts, such as ``outside_labels``."""

    text: str
    examples: tuple[str, ...] = ()
    """Ids of all the examples that it is about."""


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What the audits of all kinds of benchmarks have in common."""

    benchmark: str
    order: str
    protocol: str
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error: the scores are not valid."""
        return any(finding.severity == ERROR for finding in self.findings)


def notes_of(benchmark: Benchmark) -> list[Finding]:
    """What the benchmark itself says about its files."""
    return [
        Finding(severity=NOTE, where="protocol", kind="note", text=note) for note in benchmark.notes
    ]


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes."""
    return tuple(sorted(findings, key=lambda f: [ERROR, WARNING, NOTE].index(f.severity)))


def listed(counts: Counter[str], most: int = 3) -> str:
    """Texts with their counts, most frequent first: ``'-' (33), 'x' (1), 4 more``."""
    shown = [f"{text!r} ({count})" for text, count in counts.most_common(most)]
    if len(counts) > most:
        shown.append(f"{len(counts) - most} more")
    return ", ".join(shown)
