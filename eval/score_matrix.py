"""scores.json: the score on each task after each task.

The main scoring mode has ``scores.json``; each other mode, such as ``labels``, has a file of the
same form, ``scores.labels.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eval.continual import Scores
from eval.scoring_modes import ScoringMode
from moram_dist.files import write_atomically
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark


class ScoreMatrix:
    """R[i, j]: score on task j after task i; row -1 is the untouched base. Null: not measured.

    On disk ``{"tasks", "metrics", "scores": [[row after task 0], ...]}``, with ``"base"`` if the
    base was measured.

    Raises InputError if the file exists but is broken or belongs to other tasks.
    """

    def __init__(self, path: Path, benchmark: Benchmark, *, closed_only: bool = False) -> None:
        """``closed_only``: tasks without labels are never measured and stay null."""
        self.path = path
        self.asked = [bool(task.labels) or not closed_only for task in benchmark.tasks]
        self.tasks = [task.name for task in benchmark.tasks]
        self.metrics = {task.name: task.metric for task in benchmark.tasks}
        self.rows: dict[int, list[float | None]] = {}
        self._texts: dict[int, bytes] = {}
        """Rows as they stand in the file: of a thousand, one changes at a time."""
        if path.exists():
            saved = Scores.load(path)
            if [*saved.tasks] != self.tasks:
                raise InputError(f"{path}: its tasks are not those of this run")
            self.rows = {i: list(row) for i, row in enumerate(saved.scores)}
            if saved.base is not None:
                self.rows[-1] = list(saved.base)

    def set(self, row: int, column: int, score: float) -> None:
        """Record one cell and write the file."""
        self._add_rows(row)
        self.rows[row][column] = score
        self._texts.pop(row, None)
        write_atomically(self.path, b"".join(self._pieces()))

    def fill(self, rows: Mapping[int, Sequence[float | None]]) -> None:
        """Record whole rows and write the file."""
        self._add_rows(max(rows))
        for row, cells in rows.items():
            self.rows[row] = list(cells)
            self._texts.pop(row, None)
        write_atomically(self.path, b"".join(self._pieces()))

    def _add_rows(self, last: int) -> None:
        """Empty rows where there are none, up to ``last``; -1 is the base's."""
        for row in {*range(last + 1), last} - self.rows.keys():
            self.rows[row] = [None] * len(self.tasks)

    def get(self, row: int, column: int) -> float | None:
        """A cell; None if it was not measured."""
        return self.rows[row][column] if row in self.rows else None

    def missing(self, row: int, eval_rows: str) -> list[int]:
        """Columns of a row that ``EvalConfig.eval_rows`` asks for and that are not measured yet."""
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
        """The rows measured so far: after task 0, 1, ..."""
        return [self.rows[i] for i in sorted(self.rows) if i >= 0]

    @property
    def base(self) -> list[float | None] | None:
        """The untouched base's row; None if it was not measured."""
        return self.rows.get(-1)

    def _pieces(self) -> Iterator[bytes]:
        """JSON, one line per field and per row. Joined once: a thousand tasks have megabytes."""
        for row in self.rows.keys() - self._texts.keys():
            self._texts[row] = json.dumps(self.rows[row]).encode()
        tasks, metrics = (json.dumps(v, ensure_ascii=False) for v in (self.tasks, self.metrics))
        yield f'{{\n  "tasks": {tasks},\n  "metrics": {metrics},\n  "scores": ['.encode()
        last = max(self.rows)
        for row in range(last + 1):
            yield b",\n    " if row else b"\n    "
            yield self._texts[row]
        yield b"\n  ]" if last >= 0 else b"]"
        if -1 in self.rows:
            yield b',\n  "base": ' + self._texts[-1]
        yield b"\n}\n"


def score_matrices(
    run_dir: Path, benchmark: Benchmark, modes: Sequence[ScoringMode]
) -> dict[ScoringMode, ScoreMatrix]:
    """The matrix of each scoring mode, in the order of ``modes``; the first is the main mode.

    Raises InputError as ``ScoreMatrix`` does.
    """
    main = modes[0]
    return {
        mode: ScoreMatrix(
            scores_path(run_dir, mode.file_suffix(main)),
            benchmark,
            closed_only=mode.answers != main.answers,
        )
        for mode in modes
    }


def scores_path(run_dir: Path, suffix: str | None = None) -> Path:
    """``scores.json``, or ``scores.labels.json`` for ``ScoringMode.file_suffix`` ``labels``."""
    return run_dir / (f"scores.{suffix}.json" if suffix else "scores.json")
