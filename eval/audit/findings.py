"""A finding of an audit, and how severe it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

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


def listed(counts: Counter[str], most: int = 3) -> str:
    """Texts with their counts, most frequent first: ``'-' (33), 'x' (1), 4 more``."""
    shown = [f"{text!r} ({count})" for text, count in counts.most_common(most)]
    if len(counts) > most:
        shown.append(f"{len(counts) - most} more")
    return ", ".join(shown)
