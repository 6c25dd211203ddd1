"""scores.json: what was measured of each task after each task.

Where a cell is measured in several ways (``eval.ways``), the first has scores.json and each other,
such as ``labels``, a scores.labels.json of the same form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from eval.continual import Scores
from eval.ways import Way
from moram_dist.files import write_atomically
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark


class ScoreMatrix:
    """R[i, j]: score on task j after task i; row -1 is the untouched base. Null: not measured.

    On disk ``{"tasks", "metrics", "scores": [[row after task 0], ...]}``, and ``"base"`` where the
    base was measured.

    Raises InputError where the file is there and is not whole or of other tasks.
    """

    def __init__(self, path: Path, benchmark: Benchmark, *, closed_only: bool = False) -> None:
        """``closed_only``: tasks without labels are never asked for, and stay null."""
        self.path = path
        self.asked = [bool(task.labels) or not closed_only for task in benchmark.tasks]
        self.tasks = [task.name for task in benchmark.tasks]
        self.metrics = {task.name: task.metric for task in benchmark.tasks}
        self.rows: dict[int, list[float | None]] = {}
        if path.exists():
            saved = Scores.load(path)
            if [*saved.tasks] != self.tasks:
                raise InputError(f"{path}: its tasks are not those of this run")
            self.rows = {i: list(row) for i, row in enumerate(saved.scores)}
            if saved.base is not None:
                self.rows[-1] = list(saved.base)

    def set(self, row: int, column: int, score: float) -> None:
        """Record one cell and write the file."""
        empty: list[float | None] = [None] * len(self.tasks)
        for earlier in range(row + 1):
            self.rows.setdefault(earlier, list(empty))
        self.rows.setdefault(row, list(empty))[column] = score
        value: dict[str, object] = {
            "tasks": self.tasks,
            "metrics": self.metrics,
            "scores": self.scores,
        }
        if -1 in self.rows:
            value["base"] = self.rows[-1]
        write_atomically(self.path, _as_text(value))

    def get(self, row: int, column: int) -> float | None:
        """A cell, None where it was not measured."""
        return self.rows[row][column] if row in self.rows else None

    def missing(self, row: int, eval_rows: str) -> list[int]:
        """Columns of a row that ``EvalConfig.eval_rows`` asks for and that are not there."""
        last = len(self.tasks) - 1
        if row < 0:
            wanted = range(last + 1) if eval_rows == "all" else range(0)
        elif eval_rows == "diagonal" or (eval_rows == "last" and row < last):
            wanted = range(row, row + 1)
        else:
            wanted = range(last + 1) if eval_rows == "all" else range(row + 1)
        return [c for c in wanted if self.asked[c] and self.get(row, c) is None]

    @property
    def scores(self) -> list[list[float | None]]:
        """Rows after task 0, 1, ... as far as they go."""
        return [self.rows[i] for i in sorted(self.rows) if i >= 0]

    @property
    def base(self) -> list[float | None] | None:
        """The untouched base's row."""
        return self.rows.get(-1)


def _as_text(value: dict[str, object]) -> str:
    """JSON with a line for each field and each row: thousands of cells are written at each one."""

    def text(part: object) -> str:
        return json.dumps(part, ensure_ascii=False)

    fields = []
    for name, part in value.items():
        rows = part if name == "scores" and isinstance(part, list) else []
        lines = ",\n".join(f"    {text(row)}" for row in rows)
        fields.append(f'  "{name}": ' + (f"[\n{lines}\n  ]" if lines else text(part)))
    return "{\n" + ",\n".join(fields) + "\n}\n"


def score_matrices(
    run_dir: Path, benchmark: Benchmark, ways: Sequence[Way]
) -> dict[Way, ScoreMatrix]:
    """The matrix of each way of measuring, the first one's first.

    Raises InputError as ``ScoreMatrix`` does.
    """
    first = ways[0]
    return {
        way: ScoreMatrix(
            scores_path(run_dir, way.differs(first)),
            benchmark,
            closed_only=way.answers != first.answers,
        )
        for way in ways
    }


def scores_path(run_dir: Path, way: str | None = None) -> Path:
    """``scores.json``, or ``scores.labels.json`` of a further way (``Way.differs``)."""
    return run_dir / (f"scores.{way}.json" if way else "scores.json")
