"""Predictions on disk: a model's answers, one line per example."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moram_dist.files import safe_name, write_atomically
from moram_dist.metrics import score
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records, text_field, texts_field


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answered example. The line's score is not read: it can be recomputed."""

    id: str
    prompt: str
    references: tuple[str, ...]
    prediction: str


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """The predictions of a ``.jsonl`` file, in its order.

    Raises:
        InputError: the file cannot be read, is malformed or empty, or a line lacks a field.
    """
    predictions = tuple(
        Prediction(
            id=text_field(record, "id", where),
            prompt=text_field(record, "prompt", where),
            references=texts_field(record, "references", where),
            prediction=text_field(record, "prediction", where, empty=True),
        )
        for where, record in read_records(path)
    )
    if not predictions:
        raise InputError(f"{path}: holds no predictions")
    return predictions


def mean_score(
    predictions: tuple[Prediction, ...], *, metric: str, labels: tuple[str, ...] = ()
) -> float:
    """Mean of the per-example scores, 0 to 100.

    Raises:
        InputError: no metric of that name, or labels that it cannot use.
    """
    return sum(
        score(
            metric,
            prompt=one.prompt,
            prediction=one.prediction,
            references=one.references,
            labels=labels,
        )
        for one in predictions
    ) / len(predictions)


def predictions_path(
    run_dir: Path, row: int, column: int, name: str, suffix: str | None = None
) -> Path:
    """``predictions/after_002/on_000_C-STANCE.jsonl``; row -1 is ``base``.

    ``suffix`` is that of a further scoring mode (``ScoringMode.file_suffix``), as in
    ``on_000_C-STANCE.labels.jsonl``.
    """
    after = f"after_{row:03d}" if row >= 0 else "base"
    ending = f".{suffix}.jsonl" if suffix else ".jsonl"
    return run_dir / "predictions" / after / f"on_{column:03d}_{safe_name(name)}{ending}"


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(path, text)
