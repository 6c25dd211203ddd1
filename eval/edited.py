"""edit.json: how the memory of a run was made from others, and what they scored.

command, what, caution    as the memory's manifest says
sources                   run directories that it was made from
before                    their scores on the same tasks: a matrix for each scoring mode
left_out                  the score on a dropped task, before and after
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.continual import Scores
from moram_dist.files import write_atomically
from moram_dist.reading import read_object, record

EDIT = "edit.json"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The score on a task that was dropped."""

    task: str
    metric: str
    before: float | None
    """In the last row of the run; None if it was not measured."""

    after: float
    """Of the memory without the task."""


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """The content of ``edit.json``."""

    command: str
    what: str
    caution: str
    sources: tuple[str, ...]
    before: Mapping[str, Any]
    """``ScoringMode.file_suffix``, empty for the main mode -> the content of a ``scores.json``. Row
    t is that of the same task in its source; a cell is null if it was not measured there."""

    left_out: LeftOut | None = None
    other_classes: bool = False
    """Whether scores before were among other classes."""

    @property
    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        yield f"Made from {' and '.join(self.sources)}: {self.what}."
        yield f"It is {self.caution}."
        if self.left_out is not None:
            one = self.left_out
            before = "not measured" if one.before is None else f"{one.before:.2f}"
            yield f"{one.task} ({one.metric}): {before} before, {one.after:.2f} without its atoms"
        if self.other_classes:
            yield "The classes of all tasks compete and were others before: do not compare scores."

    def write(self, run_dir: Path) -> None:
        """Write it into a run directory."""
        write_atomically(run_dir / EDIT, json.dumps(asdict(self), indent=2, ensure_ascii=False))


def read_edit(run_dir: Path) -> EditRecord | None:
    """How a run's memory was made; None if it was learned. Raises InputError if it is broken."""
    path = run_dir / EDIT
    if not os.path.exists(path):
        return None
    return record(EditRecord, read_object(path), path)


def scores_before(run_dir: Path, edit: EditRecord, suffix: str | None) -> Scores | None:
    """The scores of the sources in one scoring mode; None without any. InputError: broken."""
    content = edit.before.get(suffix or "")
    return None if content is None else Scores.of(content, run_dir / EDIT)
