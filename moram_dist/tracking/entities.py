"""Our records as MLflow's entities. mlflow is imported inside, as that takes seconds."""

from __future__ import annotations

import json
import time
from typing import Any

from moram_dist.tracking.names import allowed_name
from moram_dist.tracking.tracker import DatasetRecord

MAX_DIGEST = 36  # characters; MLflow refuses a longer one


def points(metrics: dict[str, float], step: int) -> list[Any]:
    """Metrics as MLflow's entities, stamped now."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(allowed_name(name), value, now, step) for name, value in metrics.items()]


def dataset_input(record: DatasetRecord) -> Any:
    """A record as MLflow's UI shows it; the whole sha256 is in a tag, as its digest is shorter."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=record.name,
        digest=record.digest[:MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": record.source}),
        profile=json.dumps({"num_rows": record.rows}),
    )
    tags = [InputTag("mlflow.data.context", record.context), InputTag("sha256", record.digest)]
    return DatasetInput(dataset, tags)
