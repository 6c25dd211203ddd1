"""The operations of a spool, one per line; any other line is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moram_dist.tracking.tracker import DatasetRecord, Status


@dataclass(frozen=True, kw_only=True)
class _Operation:
    do: str
    time: int


@dataclass(frozen=True, kw_only=True)
class _Open(_Operation):
    sequence: str
    name: str
    experiment: str
    run_directory: str
    parameters: dict[str, str]
    tags: dict[str, str]
    datasets: list[DatasetRecord]


@dataclass(frozen=True, kw_only=True)
class _BeginTask(_Operation):
    task: int
    name: str


@dataclass(frozen=True, kw_only=True)
class _Log(_Operation):
    task: int | None
    step: int
    metrics: dict[str, float | Literal["nan", "inf", "-inf"]]


@dataclass(frozen=True, kw_only=True)
class _Attach(_Operation):
    paths: list[str]
    folder: str


@dataclass(frozen=True, kw_only=True)
class _Publish(_Operation):
    task: int
    name: str


@dataclass(frozen=True, kw_only=True)
class _End(_Operation):
    task: int | None
    status: Status
    whole: bool


KINDS: dict[str, type] = {
    "open": _Open,
    "begin_task": _BeginTask,
    "log": _Log,
    "attach": _Attach,
    "publish": _Publish,
    "end": _End,
}
"""The classes by the value of ``do``."""
