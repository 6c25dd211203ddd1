"""Register a sequence as a model in MLflow, with a version and an alias for each finished task."""

from __future__ import annotations

from typing import Any

from moram_dist.tracking.names import model_name


def publish(client: Any, name: str, parent: str, task: int) -> None:
    """Register the memory after task ``task`` as a version with alias ``after_<task>``. Idempotent.

    All versions of a sequence share the folder ``memory`` of the parent's artifacts: a memory after
    fewer tasks is the first files of one after more. The tag ``upto`` is ``load_memory``'s argument
    of that name.
    """
    from mlflow.exceptions import MlflowException

    model = model_name(name)
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    upto = str(task + 1)
    versions = client.search_model_versions(f"name = '{model}'")
    of_task = [v for v in versions if v.run_id == parent and v.tags.get("upto") == upto]
    if not of_task:
        source = f"{client.get_run(parent).info.artifact_uri}/memory"
        made = client.create_model_version(
            model, source, parent, tags={"upto": upto}, await_creation_for=0
        )
        of_task = [made]
    client.set_registered_model_alias(model, f"after_{task:03d}", of_task[0].version)
