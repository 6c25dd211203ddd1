"""Run directories as training leaves them, made of given item scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TASKS = ["topic", "mood"]


def make_run(
    folder: Path,
    cells: dict[tuple[int, int], list[float]],
    *,
    tasks: list[str],
    method: str = "moram",
    order: str = "1",
    seed: int = 0,
    rate: float = 1e-3,
    answers: str | None = None,
    recall: str | None = None,
    mark: str = "",
    base: str = "f00d",
    benchmark: str = "standard_cl",
    protocol: str = "default",
    questions: str = "",
) -> Path:
    """A finished run. ``cells``: item scores of (row, column); ``mark`` as in ``.labels``."""
    (folder / "memory").mkdir(parents=True, exist_ok=True)
    config = {
        "method": {"method": method},
        "train": {"seed": seed, "learning_rate": rate},
        "eval": {k: v for k, v in (("answers", answers), ("recall", recall)) if v},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    identity = {"name": "models/small", "fingerprint": base}
    content = {"name": benchmark, "order": order, "protocol": protocol}
    matrix = [
        [
            sum(cells[row, column]) / len(cells[row, column]) if (row, column) in cells else None
            for column in range(len(tasks))
        ]
        for row in range(len(tasks))
    ]
    scores = {"tasks": tasks, "metrics": dict.fromkeys(tasks, "accuracy"), "scores": matrix}
    for name, value in {
        "memory/memory.json": {"base": identity, "tasks": []},
        "benchmark.json": content,
        f"scores{mark}.json": scores,
    }.items():
        (folder / name).write_text(json.dumps(value))
    for (row, column), items in cells.items():
        path = folder / f"predictions/after_{row:03d}/on_{column:03d}_{tasks[column]}{mark}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "id": f"test-{i}",
                "prompt": f"{tasks[column]} {i}{questions}",
                "references": ["A"],
                "prediction": "A",
                "score": score,
            }
            for i, score in enumerate(items)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def random_scores(generator: np.random.Generator, n: int, right: float) -> list[float]:
    """0 or 100, the latter with the chance ``right``."""
    return [100.0 * bool(generator.random() < right) for _ in range(n)]


def noisy_run(folder: Path, right: float, *, seed: int = 0, n: int = 200, **names: Any) -> Path:
    """Two tasks of n items; ``right``: the chance of a right answer."""
    generator = np.random.default_rng([seed, int(1000 * right)])
    cells = {cell: random_scores(generator, n, right) for cell in ((0, 0), (1, 0), (1, 1))}
    return make_run(folder, cells, tasks=TASKS, seed=seed, **names)
