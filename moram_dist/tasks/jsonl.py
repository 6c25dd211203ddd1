"""The user's own tasks, from a folder or a YAML list.

A folder holds one subfolder per task, each with one file ``train`` and one ``test`` of a type of
``tasks.record_files`` and records in one of the forms of ``tasks.examples``, such as ``prompt`` and
``answer``. A YAML list gives each task's files and rules::

    - name: tickets
      train: tickets/train.jsonl        # relative to the YAML file
      test: tickets/test.parquet
      metric: choice                    # default exact_match_normalised
      labels: ["A", "B"]
      prompt_field: question            # default prompt
      answer_field: label               # default answer
      epochs: 3                         # default 1
      max_prompt_tokens: 512            # default 1024
      max_answer_tokens: 8              # default 512
    - name: talks
      dataset: owner/name               # on the hub, or a folder of the same form
      subset: en                        # default: the only one
      train: train[:90%]                # splits of the data set; default train and test
      test: train[90%:]
      chat_field: dialogue              # default messages or conversations
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moram_dist.metrics import METRICS
from moram_dist.reading import read_yaml
from moram_dist.registry import InputError, unknown
from moram_dist.tasks.examples import read_examples
from moram_dist.tasks.hub import DataSet
from moram_dist.tasks.names import task_name
from moram_dist.tasks.orders import choose_order
from moram_dist.tasks.record_files import FILE_TYPES, in_words
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Source, Task, TaskRules
from moram_dist.terminal import quoted

_LISTING = "tasks.yaml"
_METRIC = "exact_match_normalised"
_SPLITS = ("train", "test")
_FIELD_KEYS = ("prompt_field", "answer_field", "chat_field")
_TEXT_KEYS = ("name", *_SPLITS, "dataset", "subset", "metric", *_FIELD_KEYS)
_COUNT_KEYS = ("epochs", "max_prompt_tokens", "max_answer_tokens")
_KEYS = (*_TEXT_KEYS, "labels", "separator", *_COUNT_KEYS)
_SEPARATOR = " "


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One task before its files are read."""

    name: str
    train: Path | DataSet
    test: Path | DataSet
    rules: TaskRules
    fields: dict[str, str]

    def read(self, source: Source, notes: list[str]) -> Task:
        """The task; adds what its reader has to say about it to ``notes``."""
        say, fields = notes.append, self.fields
        train = read_examples(
            self.train, split="train", limit=source.limit_train, say=say, **fields
        )
        test = read_examples(self.test, split="test", limit=source.limit_eval, say=say, **fields)
        return Task(name=self.name, train=train, test=test, **asdict(self.rules))


@BENCHMARKS.register("jsonl")
def jsonl(source: Source) -> Benchmark:
    """Read the user's own tasks, in alphabetical order (folder) or in the order listed (YAML).

    ``source.data_dir`` is the folder or the YAML file; a ``tasks.yaml`` in the folder determines
    what is read. Decoding is greedy, without repetition rules.

    Raises:
        InputError: no ``data_dir``, nothing in it, a bad list or file, or an unknown order.
    """
    if source.data_dir is None:
        raise InputError(f"jsonl needs --data_dir, a folder of tasks or a {_LISTING} file")
    if source.protocol not in (None, "default"):
        raise unknown("protocol of jsonl", str(source.protocol), ["default"])
    if source.splits:
        raise InputError(f"splits are for published benchmarks; name the files in {_LISTING}")
    entries = {entry.name: entry for entry in _entries(source.data_dir)}
    order, names = choose_order(
        source.order, named={"default": tuple(entries)}, tasks=tuple(entries)
    )
    notes: list[str] = []
    return Benchmark(
        name="jsonl",
        order=order,
        protocol="default",
        tasks=tuple(entries[name].read(source, notes) for name in names),
        notes=tuple(notes),
    )


def _entries(data_dir: Path) -> list[_Entry]:
    if not os.path.exists(
        data_dir
    ):  # unlike Path.exists, it returns False for names that are too long
        raise InputError(
            f"--data_dir: no such file or folder: {data_dir} (a {_LISTING} names data sets of the "
            "hub: dataset)"
        )
    if not data_dir.is_dir():
        return _listed(data_dir)
    if (data_dir / _LISTING).is_file():
        return _listed(data_dir / _LISTING)
    folders = sorted(
        path for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not folders:
        raise InputError(f"--data_dir: {data_dir} holds neither task folders nor {_LISTING}")
    return [
        _Entry(
            name=task_name(folder.name, str(data_dir)),
            train=_split_file(folder, "train"),
            test=_split_file(folder, "test"),
            rules=TaskRules(metric=_METRIC, separator=_SEPARATOR),
            fields={},
        )
        for folder in folders
    ]


def _split_file(folder: Path, split: str) -> Path:
    files = [path for suffix in FILE_TYPES if (path := folder / f"{split}{suffix}").exists()]
    if len(files) == 1:
        return files[0]
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    listed = ", ".join([*there[:8], *(["..."] if there[8:] else [])]) or "nothing"
    found = f"{in_words([path.name for path in files], 'and')} are there" if files else listed
    raise InputError(
        f"{folder}: expected one file {split} that ends in {in_words(FILE_TYPES)}; found: {found}"
    )


def _listed(path: Path) -> list[_Entry]:
    listing = read_yaml(path)
    if not isinstance(listing, list) or not listing:
        raise InputError(f"{path}: expected a list of tasks")
    entries: list[_Entry] = []
    for index, item in enumerate(listing):
        entry = _listed_entry(item, path, f"{path}, task {index}")
        if any(entry.name == other.name for other in entries):
            raise InputError(f"{path}, task {index}: name {entry.name!r} is taken already")
        entries.append(entry)
    return entries


def _listed_entry(item: Any, path: Path, where: str) -> _Entry:
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected keys and values, such as 'name: ...'")
    for key, value in item.items():
        if key not in _KEYS:
            raise InputError(f"{where}: {unknown('key', str(key), _KEYS)}")
        if key in _TEXT_KEYS and not (isinstance(value, str) and value):
            raise InputError(f"{where}: {key} must be a text (quote it), got {quoted(value)}")
        if key == "separator" and not isinstance(value, str):
            raise InputError(f"{where}: separator must be a text (quote it), got {quoted(value)}")
        if key in _COUNT_KEYS and (type(value) is not int or value < 1):
            raise InputError(f"{where}: {key} must be a whole number from 1, got {quoted(value)}")
    for key in ("name",) if "dataset" in item else ("name", *_SPLITS):
        if key not in item:
            raise InputError(f"{where}: {key} is missing")
    if "subset" in item and "dataset" not in item:
        raise InputError(f"{where}: subset is a part of a data set; name that: dataset")
    if "chat_field" in item and not {"prompt_field", "answer_field"}.isdisjoint(item):
        raise InputError(f"{where}: chat_field names a whole chat; leave the other fields out")
    rules = TaskRules(
        metric=_metric(item, where),
        labels=_labels(item, where),
        separator=item.get("separator", _SEPARATOR),
        **{key: item[key] for key in _COUNT_KEYS if key in item},
    )
    if rules.metric == "choice" and {len(label) for label in rules.labels} != {1}:
        raise InputError(f"{where}: metric choice needs labels of one character each")
    train, test = (_source(item, split, path.parent) for split in _SPLITS)
    return _Entry(
        name=task_name(item["name"], where),
        train=train,
        test=test,
        rules=rules,
        fields={key: item[key] for key in _FIELD_KEYS if key in item},
    )


def _source(item: dict[str, Any], split: str, folder: Path) -> Path | DataSet:
    """What a listed task reads for a split. Paths are relative to ``folder``."""
    if "dataset" not in item:
        return folder / item[split]
    named = item["dataset"]
    source = str(folder / named) if os.path.isdir(folder / named) else named
    return DataSet(source, item.get("subset"), item.get(split, split))


def _metric(item: dict[str, Any], where: str) -> str:
    metric = item.get("metric", _METRIC)
    if metric not in set(METRICS):
        raise InputError(f"{where}: {unknown('metric', metric, METRICS)}")
    return metric


def _labels(item: dict[str, Any], where: str) -> tuple[str, ...]:
    labels = item.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(x, str) and x for x in labels):
        raise InputError(
            f"{where}: labels must be a list of texts (quote them), got {quoted(labels)}"
        )
    return tuple(labels)
