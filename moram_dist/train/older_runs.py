"""Resume runs of older versions, which wrote no inputs.json or chose no turns of chats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moram_dist.reading import read_mapping, read_object, record
from moram_dist.registry import InputError
from moram_dist.tasks.task import Decoding
from moram_dist.train.inputs import RunInputs, counts, defaults_of, precision, settings, task_order


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A task in benchmark.json."""

    name: str
    metric: str
    train: int
    test: int
    epochs: float


def differences_from_older(folder: Path, now: RunInputs) -> list[str]:
    """The changes since an older version started the run, one line each.

    It recorded names and order of tasks, numbers of examples, metrics, decoding and precision.
    """
    return [*_of_benchmark(folder / "benchmark.json", now), *_of_precision(folder, now)]


def chose_no_turns(folder: Path) -> bool:
    """Whether a run is of a version without ``loss_turns``, which learned a chat's last turn."""
    try:
        return "loss_turns" not in read_mapping(folder / "run.yaml")["data"]
    except (InputError, KeyError, TypeError):  # no run, or none that ``RunDir.check`` accepts
        return False


def _of_benchmark(path: Path, now: RunInputs) -> Iterator[str]:
    try:
        saved = read_object(path)
        tasks = [record(_Task, task, path) for task in saved["tasks"]]
        decoding = dict(saved["decoding"])
    except (InputError, KeyError, TypeError, ValueError):  # yet another format: cannot compare
        return
    yield from task_order([task.name for task in tasks], [task.name for task in now.tasks])
    before = {task.name: task for task in tasks}
    for task in now.tasks:
        then = before.get(task.name)
        if then is None:
            continue
        if task.train is not None:
            what = f"task {task.name}, train split"
            yield from counts(what, then.train, task.train.examples, same=True)
        what = f"task {task.name}, test split"
        yield from counts(what, then.test, task.test.examples, same=True)
        metric = {"metric": then.metric}, {"metric": task.rules["metric"]}
        yield from settings(*metric, f"task {task.name}", {"metric": None})
    yield from settings(decoding, now.decoding, "decoding", defaults_of(Decoding))


def _of_precision(folder: Path, now: RunInputs) -> list[str]:
    try:
        in_half = read_object(folder / "ds_config.json")["bf16"]["enabled"]
    except (InputError, KeyError, TypeError):
        return []
    return precision("bfloat16" if in_half else "float32", now.precision)
