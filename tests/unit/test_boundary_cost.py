"""What a task's end costs is counted, as tasks become many: bytes, and calls."""

from __future__ import annotations

import json

import pytest

from eval.continual import Scores
from eval.score_matrix import ScoreMatrix
from moram_dist.tasks.task import Benchmark, Task


def benchmark(num_tasks):
    tasks = tuple(
        Task(name=f"t{i:03d}", metric="exact_match", train=(), test=()) for i in range(num_tasks)
    )
    return Benchmark(name="b", order="o", protocol="p", tasks=tasks)


@pytest.mark.parametrize("num_tasks", [1, 200])
def test_a_cell_costs_as_many_bytes_as_a_matrix_has_numbers(tmp_path, num_tasks):
    matrix = ScoreMatrix(tmp_path / "scores.json", benchmark(num_tasks))
    for row in range(num_tasks - 1):
        matrix.rows[row] = [12.5] * (row + 1) + [None] * (num_tasks - row - 1)
    matrix.set(num_tasks - 1, num_tasks - 1, 50.0)
    text = matrix.path.read_text()
    assert len(text) < 300 + 40 * num_tasks + 6 * num_tasks**2
    assert len(text.splitlines()) == num_tasks + 6
    saved = Scores.load(matrix.path)
    assert [list(row) for row in saved.scores] == matrix.scores and saved.base is None
    matrix.set(-1, 0, 7.0)
    assert Scores.load(matrix.path).base == (7.0, *[None] * (num_tasks - 1))
    assert list(json.loads(text)) == ["tasks", "metrics", "scores"]
