"""Digests of everything that determines a run's result, written before its first step.

    inputs.json    per task: rules, and digests of its splits; base, tokenizer, decoding, precision

Every later start compares them, by content and not by names of folders and files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from moram_dist.config import RunConfig
from moram_dist.families.pictures import PictureReader
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
"""Keys of a DeepSpeed file that change results by more than the order of sums. All others change
only where and when something is computed."""

MOST_SHOWN = 6
"""Most differences that a message names; further ones are counted."""

LONGEST_VALUE = 60


@dataclass(frozen=True, kw_only=True)
class SplitDigest:
    """Number and digest of the examples in a task's split; their order counts."""

    examples: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """The rules and data of a task in this run."""

    name: str
    rules: dict[str, Any]
    """Fields of ``TaskRules`` that this run uses."""

    test: SplitDigest
    train: SplitDigest | None
    """None for a method that reads no training examples."""


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Everything that determines a result, in addition to the settings in run.yaml."""

    tasks: tuple[TaskInputs, ...]
    """In the order of learning."""

    decoding: dict[str, Any]
    base: BaseIdentity
    tokenizer: TokenizerIdentity
    precision: str
    """float32 or bfloat16, after resolving --dtype auto."""

    deepspeed: dict[str, Any]
    """The values of ``RESULTS_OF_DEEPSPEED`` in the run's file."""

    pictures: dict[str, Any] = field(default_factory=dict)
    """How pictures become pixels (``data.pictures.Pixels``), for a model that reads pictures."""

    version: int = VERSION


def gather(
    config: RunConfig,
    benchmark: Benchmark,
    ds_config: Mapping[str, Any],
    tokenizer: Any,
    say: Callable[[str], None],
) -> RunInputs:
    """Digest the inputs of a run. Reads every weight of the base once.

    Args:
        config: resolved.
        benchmark: with the lengths that the configuration sets.
        ds_config: resolved.
        tokenizer: as loaded; or its identity, if that is known to hold.
        say: called with one line before long work.

    Raises:
        InputError: a file of the base is missing or cannot be read.
    """
    source = language_model.source(config.model)
    name = None if source == config.model.model else config.model.model  # the embedded base's
    return RunInputs(
        tasks=tuple(task_inputs(task, config) for task in benchmark.tasks),
        decoding=asdict(benchmark.decoding),
        base=identify(source, name=name, say=say),
        tokenizer=(
            tokenizer
            if isinstance(tokenizer, TokenizerIdentity)
            else identify_tokenizer(source, tokenizer)
        ),
        precision=str(language_model.resolve_dtype(config.model)).removeprefix("torch."),
        deepspeed=dict(_of_deepspeed(ds_config)),
        pictures=_plain(asdict(tokenizer.pixels)) if isinstance(tokenizer, PictureReader) else {},
    )


def read_inputs(path: Path) -> RunInputs:
    """Read a run's record. Raises InputError where it is damaged or of another version."""
    saved = read_record(path, RunInputs)
    if saved.version != VERSION:
        raise InputError(f"{path} has version {saved.version}; this program reads {VERSION}")
    return saved


def differences(then: RunInputs, now: RunInputs) -> list[str]:
    """The changes between two starts, one line each, which begins with the subject."""
    lines = task_order([task.name for task in then.tasks], [task.name for task in now.tasks])
    before = {task.name: task for task in then.tasks}
    for task in now.tasks:
        if task.name in before:
            lines += _task_differences(before[task.name], task)
    lines += settings(then.decoding, now.decoding, "decoding", defaults_of(Decoding))
    lines += [f"base: {line}" for line in changes(then.base, now.base)]
    lines += [f"tokenizer: {line}" for line in tokenizer_changes(then.tokenizer, now.tokenizer)]
    names = then.pictures.keys() | now.pictures.keys()
    lines += settings(then.pictures, now.pictures, "pictures", dict.fromkeys(names))
    lines += precision(then.precision, now.precision)
    lines += settings(
        then.deepspeed, now.deepspeed, "--ds_config", dict.fromkeys(RESULTS_OF_DEEPSPEED)
    )
    return lines


def in_one_line(lines: list[str]) -> str:
    """The first differences, and the number of further ones."""
    more = len(lines) - MOST_SHOWN
    return "; ".join(lines[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def task_order(then: list[str], now: list[str]) -> list[str]:
    """One line if the tasks or their order differ."""
    if then == now:
        return []
    return [f"tasks were {_short(', '.join(then))}; now {_short(', '.join(now))}"]


def precision(then: str, now: str) -> list[str]:
    """One line if the base has another precision."""
    if then == now:
        return []
    flag = {"float32": "fp32", "bfloat16": "bf16"}.get(then, then)
    return [f"precision was {then}, now {now} (--dtype {flag} is as it was)"]


def counts(what: str, then: int, now: int, *, same: bool) -> list[str]:
    """One line if a split has other examples."""
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
    """One line per value that differs; values missing in an old record count as defaults."""
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


def task_inputs(task: Task, config: RunConfig) -> TaskInputs:
    """The digests of a task in a run of a resolved configuration."""
    method = METHODS[config.method.method]
    rules = {item.name: _plain(getattr(task, item.name)) for item in fields(TaskRules)}
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
    """Field -> default as a JSON value, for a dataclass of plain values; None without a default."""
    return {f.name: None if f.default is MISSING else _plain(f.default) for f in fields(kind)}


def _plain(value: Any) -> Any:
    """The value after a round trip through JSON."""
    return json.loads(json.dumps(value))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
