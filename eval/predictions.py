"""Predictions on disk: what a model answered, one line an example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moram_dist.metrics import score
from moram_dist.registry import InputError
from moram_dist.tasks.readers import read_records, text_field, texts_field


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answered example. A score that the line holds is not read: it can be computed again."""

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
