"""Digests of all that defines a run's result, written before its first step.

    inputs.json    per task: rules, and digests of its splits; base, tokenizer, decoding, precision

Every later start compares them. Names of folders and files do not count, content does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moram_dist.config import RunConfig
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.models.identity import BaseIdentity, changes, identify
from moram_dist.models.tokenizer_identity import (
    TokenizerIdentity,
    identify_tokenizer,
    tokenizer_changes,
)
from moram_dist.reading import read_record
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Decoding, Example, Task, TaskRules, digest

VERSION = 1

RESULTS_OF_DEEPSPEED = (
    "bf16.bf16_master_weights_and_grads",
    "bf16.bf16_optimizer_states",
    "communication_data_type",
    "compression_training",
    "progressive_layer_drop",
    "torch_autocast",
    "zero_optimization.zero_quantized_gradients",
    "zero_optimization.zero_quantized_nontrainable_weights",
    "zero_optimization.zero_quantized_weights",
    "zero_optimization.zeropp_loco_param",
)
"""Keys of a DeepSpeed file that change results by more than the order of a sum does. All others
change where and when."""

MOST_SHOWN = 6
"""Differences that a message names; further ones are counted."""

LONGEST_VALUE = 60


@dataclass(frozen=True, kw_only=True)
class SplitDigest:
    """The examples of a task's split, in their order."""

    examples: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """A task as it is learned and measured."""

    name: str
    rules: dict[str, Any]
    """Fields of ``TaskRules``, but those that this run does not use."""

    test: SplitDigest
    train: SplitDigest | None
    """None for a method that looks at no training example."""


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """All that a result depends on, beside the settings in run.yaml."""

    tasks: tuple[TaskInputs, ...]
    """In the order of learning."""

    decoding: dict[str, Any]
    base: BaseIdentity
    tokenizer: TokenizerIdentity
    precision: str
    """float32 or bfloat16: what --dtype auto came to."""

    deepspeed: dict[str, Any]
    """``RESULTS_OF_DEEPSPEED`` as the run's file has them."""

    version: int = VERSION


def gather(
    config: RunConfig,
    benchmark: Benchmark,
    ds_config: Mapping[str, Any],
    tokenizer: Any,
    say: Callable[[str], None],
) -> RunInputs:
    """Digest what is about to be run. Reads every weight of the base once.

    Args:
        config: resolved.
        benchmark: with the lengths that the configuration sets.
        ds_config: resolved.
        tokenizer: as it was loaded.
        say: told of what takes long, in one line.

    Raises:
        InputError: a file of the base is missing or cannot be read.
    """
    source = language_model.source(config.model)
    name = None if source == config.model.model else config.model.model  # the embedded base's
    return RunInputs(
        tasks=tuple(_task(task, config) for task in benchmark.tasks),
        decoding=asdict(benchmark.decoding),
        base=identify(source, name=name, say=say),
        tokenizer=identify_tokenizer(source, tokenizer),
        precision=str(language_model.resolve_dtype(config.model)).removeprefix("torch."),
        deepspeed=dict(_of_deepspeed(ds_config)),
    )


def read_inputs(path: Path) -> RunInputs:
    """The record of a run. Raises InputError where it is damaged or of another version."""
    saved = read_record(path, RunInputs)
    if saved.version != VERSION:
        raise InputError(f"{path} has version {saved.version}; this program reads {VERSION}")
    return saved


def differences(then: RunInputs, now: RunInputs) -> list[str]:
    """What changed between two starts, a line each, each with what it is about first."""
    lines = task_order([task.name for task in then.tasks], [task.name for task in now.tasks])
    before = {task.name: task for task in then.tasks}
    for task in now.tasks:
        if task.name in before:
            lines += _task_differences(before[task.name], task)
    lines += settings(then.decoding, now.decoding, "decoding", defaults_of(Decoding))
    lines += [f"base: {line}" for line in changes(then.base, now.base)]
    lines += [f"tokenizer: {line}" for line in tokenizer_changes(then.tokenizer, now.tokenizer)]
    lines += precision(then.precision, now.precision)
    lines += settings(
        then.deepspeed, now.deepspeed, "--ds_config", dict.fromkeys(RESULTS_OF_DEEPSPEED)
    )
    return lines


def in_one_line(lines: list[str]) -> str:
    """The first differences, and how many more there are."""
    more = len(lines) - MOST_SHOWN
    return "; ".join(lines[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def task_order(then: list[str], now: list[str]) -> list[str]:
    """A line where the tasks are not the same ones in the same order."""
    if then == now:
        return []
    return [f"tasks were {_short(', '.join(then))}; now {_short(', '.join(now))}"]


def precision(then: str, now: str) -> list[str]:
    """A line where the base is computed in another precision."""
    if then == now:
        return []
    flag = {"float32": "fp32", "bfloat16": "bf16"}.get(then, then)
    return [f"precision was {then}, now {now} (--dtype {flag} is as it was)"]


def counts(what: str, then: int, now: int, *, same: bool) -> list[str]:
    """A line where a split has other examples."""
    if then == now and same:
        return []
    other = ", other content or order" if then == now else ""
    return [f"{what}: {then} examples then, {now} now{other}"]


def _task_differences(then: TaskInputs, now: TaskInputs) -> Iterator[str]:
    for split in ("train", "test"):
        a, b = getattr(then, split), getattr(now, split)
        if a is not None and b is not None:
            what = f"task {now.name}, {split} split"
            yield from counts(what, a.examples, b.examples, same=a.digest == b.digest)
    yield from settings(then.rules, now.rules, f"task {now.name}", defaults_of(TaskRules))


def settings(
    then: Mapping[str, Any], now: Mapping[str, Any], where: str, defaults: Mapping[str, Any]
) -> Iterator[str]:
    """A line for each value that differs; what a record is too old to have was the default."""
    for name in sorted(then.keys() | now.keys()):
        if name in then and name not in defaults:
            yield f"{where}: {name} is a setting of another version of this program"
            continue
        before = then.get(name, defaults[name])
        after = now.get(name, defaults[name])
        if before != after:
            was, is_now = (_short(json.dumps(v, ensure_ascii=False)) for v in (before, after))
            other = f"was {was}, now {is_now}" if was != is_now else "is another"
            yield f"{where}: {name} {other}"


def _task(task: Task, config: RunConfig) -> TaskInputs:
    method = METHODS[config.method.method]
    rules = {field.name: _plain(getattr(task, field.name)) for field in fields(TaskRules)}
    if config.train.epochs is not None or not method.trains:
        del rules["epochs"]
    return TaskInputs(
        name=task.name,
        rules=rules,
        test=_split(task.test),
        train=_split(task.train) if method.reads_training_split else None,
    )


def _split(examples: tuple[Example, ...]) -> SplitDigest:
    return SplitDigest(examples=len(examples), digest=digest(examples))


def _of_deepspeed(ds_config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in RESULTS_OF_DEEPSPEED:
        value: Any = ds_config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            yield name, _plain(value)


def defaults_of(kind: Any) -> dict[str, Any]:
    """Field -> its default, as JSON has it, of a dataclass of plain values; None for none."""
    return {f.name: None if f.default is MISSING else _plain(f.default) for f in fields(kind)}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
