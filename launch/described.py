"""The description of a run that a tracker gets, and the files of the run that it keeps."""

from __future__ import annotations

from pathlib import Path

from eval.edited import read_edit
from moram_dist import config_io
from moram_dist.comm import env
from moram_dist.config import RunConfig
from moram_dist.tasks import Benchmark, digest
from moram_dist.tracking import DatasetRecord, RunDescription

DESCRIPTION = (
    "run.yaml",
    "inputs.json",
    "ds_config.json",
    "environment.json",
    "benchmark.json",
    "scores.json",
)
"""Files of a run directory that a tracker keeps in addition to the report."""


def files(run_dir: Path) -> dict[str, list[Path]]:
    """Folder in the tracker -> the files of a complete run that it keeps there."""
    return {"report": [run_dir / "report"], "config": [run_dir / name for name in DESCRIPTION]}


def description(config: RunConfig, benchmark: Benchmark, run_dir: Path) -> RunDescription:
    """The description that a tracker gets before the first step of a run."""
    source = str(config.data.data_dir or benchmark.name)
    edit = read_edit(run_dir)
    return RunDescription(
        name=config.name,
        experiment=benchmark.name,
        run_dir=run_dir,
        # The run directory is a tag: as a parameter it would differ between all runs.
        parameters={
            name: value
            for name, value in config_io.flat(config).items()
            if name != "record.output_dir"
        },
        tags={
            "method": config.method.method,
            "benchmark": benchmark.name,
            "order": benchmark.order,
            "protocol": benchmark.protocol,
            "seed": str(config.train.seed),
            "base": config.model.model,
            "world_size": str(env.world_size()),
        }
        | ({} if edit is None else {"edited": edit.what}),
        datasets=[
            DatasetRecord(
                name=task.name,
                context=context,  # type: ignore[arg-type]
                digest=digest(examples),
                rows=len(examples),
                source=source,
            )
            for task in benchmark.tasks
            for context, examples in (("train", task.train), ("eval", task.test))
        ],
    )
