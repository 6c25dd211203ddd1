"""Convert our records to MLflow's entities. mlflow is imported late because that takes seconds."""

from __future__ import annotations

import json
from typing import Any

from moram_dist.tracking.names import allowed_name, text
from moram_dist.tracking.spool import Operation

MAX_DIGEST = 36  # characters; MLflow refuses longer texts, also for the next three
MAX_DATASET_NAME, MAX_SOURCE, MAX_INPUT_TAG = 500, 60_000, 500


def points(operation: Operation) -> list[Any]:
    """Metrics of a logged step, with the time of logging.

    The time makes a point that is sent twice the same point: a store keeps one per key, step, time
    and value.
    """
    from mlflow.entities import Metric

    return [
        Metric(allowed_name(name), float(value), operation["time"], operation["step"])
        for name, value in operation["metrics"].items()
    ]


def dataset_input(record: dict[str, Any]) -> Any:
    """A DatasetRecord for MLflow's UI; the whole sha256, too long for the digest, is a tag."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=text(record["name"], MAX_DATASET_NAME),
        digest=record["digest"][:MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": text(record["source"], MAX_SOURCE // 6)}),
        profile=json.dumps({"num_rows": record["rows"]}),
    )
    tags = [
        InputTag("mlflow.data.context", record["context"]),
        InputTag("sha256", text(record["digest"], MAX_INPUT_TAG)),
    ]
    return DatasetInput(dataset, tags)
