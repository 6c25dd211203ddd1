"""The record of an import, beside its memory.

imported.json    the base, the rules by which the tasks were measured, and the figures
memory/          the memory, as in a run
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moram_dist.files import write_atomically
from moram_dist.reading import read_record
from moram_dist.registry import InputError

IMPORTED = "imported.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a model does on the test examples of a task."""

    score: float
    loss: float
    """Mean per answer token, in nats."""

    divergence: float
    """Mean KL per answer token from the LoRA alone, in nats."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A LoRA before and after its import."""

    task: str
    examples: int
    metric: str
    base: Figures
    alone: Figures
    """The LoRA on the base."""

    together: Figures
    """The memory, with recall ``all``."""

    recognised: Figures
    """The memory, with recall ``prefix``."""


@dataclass(frozen=True, kw_only=True)
class ImportedMemory:
    """``imported.json``."""

    model: str
    """Folder or hub id of the base."""

    dtype: str
    """In which it was measured, as torch calls it: ``bfloat16``."""

    rules: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Fields of ``TaskRules`` for each task; empty if nothing was measured."""

    decoding: dict[str, Any] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    version: int = VERSION


def read_imported(folder: Path) -> ImportedMemory:
    """Read ``imported.json``. Raises InputError if it is damaged or of another version."""
    found = read_record(folder / IMPORTED, ImportedMemory)
    if found.version != VERSION:
        raise InputError(
            f"{folder / IMPORTED} has version {found.version}; this program: {VERSION}"
        )
    return found


def write_imported(folder: Path, made: ImportedMemory) -> None:
    """Write ``imported.json``."""
    write_atomically(folder / IMPORTED, json.dumps(asdict(made), indent=2) + "\n")
