"""Results of a benchmark: one row per implementation and case, and the environment."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One implementation in one case of a level. None: not counted here."""

    level: str
    case: Mapping[str, Any]
    """Sizes and other properties that distinguish cases, by column."""

    way: str
    error: float | None = None
    """Error of the worst tensor compared with float64, relative to the tensor's largest number."""

    passed: bool = True
    """Whether it agrees with float64; if not, it is not timed."""

    flops: int | None = None
    dispatched: int | None = None
    saved_bytes: int | None = None
    kept_bytes: int | None = None
    least: float | None = None
    """CPU seconds."""

    median: float | None = None
    repeats: int | None = None
    also: Mapping[str, Any] = field(default_factory=dict)
    """Columns that only this level has."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The conditions under which a level was measured."""

    load_before: float
    """Mean number of other processes that needed a core, over a minute."""

    load_after: float
    seconds: float
    """CPU time of this process."""

    compiler_missing: str = ""
    """Why torch.compile was left out."""


@dataclass(frozen=True, kw_only=True)
class BenchResults:
    """All results of the command, on one machine."""

    environment: Mapping[str, Any]
    levels: Mapping[str, Level]
    rows: Sequence[Measurement]

    def with_level(self, name: str, level: Level, rows: Sequence[Measurement]) -> BenchResults:
        """A copy with this level added or replaced."""
        others = [row for row in self.rows if row.level != name]
        return replace(self, levels={**self.levels, name: level}, rows=[*others, *rows])

    def to_json(self) -> str:
        """The text of a results file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> BenchResults:
        """Read the text that ``to_json`` made."""
        content = json.loads(text)
        return BenchResults(
            environment=content["environment"],
            levels={name: Level(**level) for name, level in content["levels"].items()},
            rows=[Measurement(**row) for row in content["rows"]],
        )


def environment() -> dict[str, Any]:
    """Properties of the machine that affect times, without its name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            named = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        named = []
    return named[0] if named else platform.machine()
