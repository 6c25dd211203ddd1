"""Resolve flags and files into settings with every default filled in, and a benchmark."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from moram_dist import config_io
from moram_dist.config import RunConfig
from moram_dist.data.chat import has_chats, no_chats, write_chats
from moram_dist.families import TextFamily, family_of
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.reading import read_mapping
from moram_dist.recognise import RECOGNISERS
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Benchmark, Source
from moram_dist.tasks.task import Task, digest
from moram_dist.train import ds_check
from moram_dist.train import ds_config as ds
from moram_dist.train.older_runs import chose_no_turns
from moram_dist.use.source import MemorySource


def deepspeed_config(
    config: RunConfig, ds_path: Path, world_size: int, *, check: bool = True
) -> dict[str, Any]:
    """DeepSpeed's settings for a resolved configuration.

    Args:
        config: resolved.
        ds_path: DeepSpeed's file.
        world_size: number of ranks.
        check: whether to check the file by DeepSpeed, which takes seconds to import.

    Raises:
        InputError: DeepSpeed or this trainer does not accept the file, or the file and the flags
            disagree.
    """
    assert config.train.batch_size is not None  # resolved
    file = ds.read(ds_path)
    if check:
        ds_check.check(file, path=ds_path)
    return ds.resolve(
        file,
        path=ds_path,
        batch_size=config.train.batch_size,
        world_size=world_size,
        clip=config.train.clip,
        bf16=language_model.resolve_dtype(config.model) == torch.bfloat16,
    )


def resolve(config: RunConfig) -> tuple[RunConfig, Benchmark]:
    """The configuration, completed by the defaults of benchmark and method, and the benchmark.

    Raises:
        InputError: the benchmark refuses its settings or data.
    """
    benchmark = _benchmark(config)
    if has_chats(benchmark):
        config, benchmark = _with_chats(config, benchmark)
    elif config.data.loss_turns is not None:
        raise no_chats(benchmark)
    return _resolved(config, benchmark), benchmark


def _with_chats(config: RunConfig, benchmark: Benchmark) -> tuple[RunConfig, Benchmark]:
    """The configuration with the turns to learn, and the benchmark with its chats written."""
    older = chose_no_turns(config.run_dir)
    turns = config.data.loss_turns or ("last" if older else "all")
    family = family_of(language_model.check(config.model))
    tokenizer = language_model.load_tokenizer(config.model)
    several = isinstance(family, TextFamily) and family.learns_turns
    written = write_chats(benchmark, tokenizer, turns, several=several)
    recorded = None if older and turns == "last" else turns
    data = dataclasses.replace(config.data, loss_turns=recorded)
    return dataclasses.replace(config, data=data), written


def _benchmark(config: RunConfig) -> Benchmark:
    data = config.data
    benchmark = BENCHMARKS[data.benchmark](
        Source(
            **{
                f.name: getattr(data, f.name)
                for f in dataclasses.fields(data)
                if f.name not in ("benchmark", "loss_turns")
            },
            seed=config.train.seed,
        )
    )
    if data.shots is not None and not any(task.pictures for task in benchmark.tasks):
        raise InputError(
            f"--shots counts training pictures of each class, and no task of {benchmark.name} has "
            "pictures"
        )
    lengths = {
        name: value
        for name in ("max_prompt_tokens", "max_answer_tokens")
        if (value := getattr(config.eval, name)) is not None
    }
    if config.eval.answers != "generate" and not any(task.labels for task in benchmark.tasks):
        raise InputError(
            f"--answers {config.eval.answers} chooses among labels, and no task of "
            f"{benchmark.name} has any"
        )
    tasks = tuple(dataclasses.replace(task, **lengths) for task in benchmark.tasks)
    return dataclasses.replace(benchmark, tasks=tasks)


def _resolved(config: RunConfig, benchmark: Benchmark) -> RunConfig:
    method, asked = METHODS[config.method.method], config.eval
    if asked.recall != "all" and not method.keeps_prefixes:
        raise InputError(
            f"--recall {asked.recall}: {config.method.method} does not keep its earlier states; "
            "take --recall all"
        )
    RECOGNISERS[asked.recogniser]
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, order=benchmark.order, protocol=benchmark.protocol),
        train=dataclasses.replace(
            config.train,
            learning_rate=config.train.learning_rate or benchmark.learning_rate,
            batch_size=config.train.batch_size or benchmark.batch_size,
        ),
        eval=dataclasses.replace(
            asked,
            eval_rows=method.eval_rows or asked.eval_rows,
            recall=method.recall or asked.recall,
            recogniser=method.recogniser or asked.recogniser,
            unknown=method.answers_unknown(asked.unknown),  # type: ignore[arg-type]
        ),
    )


def recorded_task(source: MemorySource, name: str) -> Task:
    """A task of a run with its examples.

    Args:
        source: a run directory.
        name: a task that it learned.

    Raises:
        InputError: the examples are not there, or not those that the run recorded.
    """
    assert source.inputs is not None  # every run directory has them
    path = source.path / "run.yaml"
    _, benchmark = resolve(config_io.from_saved(read_mapping(path), path))
    task = next((task for task in benchmark.tasks if task.name == name), None)
    then = next(task for task in source.inputs.tasks if task.name == name)
    for split, known in (("train", then.train), ("test", then.test)):
        examples = getattr(task, split, ())
        if known is not None and digest(examples) != known.digest:
            raise InputError(f"{source.path}: the {split} split of task {name} has changed")
    assert task is not None
    return task


def quiet() -> None:
    """Print only the run's own lines and warnings to the terminal."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
