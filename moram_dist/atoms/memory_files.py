"""The memory on disk: one immutable safetensors file a task, and a manifest that names them.

    memory/memory.json             what the memory belongs to, its tasks in order, sha256 per file
    memory/000_C-STANCE.safetensors

A file is written under a temporary name, synced and renamed; the manifest comes last. So a file
that the manifest does not name was never published and is ignored, and one that it names must be
there, whole. Files hold whole atoms, not shards: they load at any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from moram_dist.files import safe_name, sha256, write_atomically
from moram_dist.reading import read_json
from moram_dist.registry import InputError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """One published task."""

    name: str
    file: str
    sha256: str
    bytes: int
    tensors: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a memory belongs to and what is in it."""

    method: str
    settings: dict[str, Any]
    """The method's configuration: what ``load_memory`` rebuilds the layers from."""

    base: dict[str, Any]
    """Identity of the base model: name and fingerprint."""

    modules: list[str]
    """Full names of the adapted linears."""

    tasks: tuple[TaskFile, ...] = ()
    version: int = field(default=VERSION)


class MemoryFiles:
    """The folder ``memory/`` of a run. Reading verifies hashes; writing is atomic."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "memory.json"

    def manifest(self) -> Manifest | None:
        """What is published, None where nothing is.

        Raises:
            InputError: the manifest is unreadable, broken or of another version.
        """
        if not self.path.exists():
            return None
        value = read_json(self.path)
        if not isinstance(value, dict) or value.get("version") != VERSION:
            found = value.get("version") if isinstance(value, dict) else None
            raise InputError(f"{self.path} has version {found}; this program reads {VERSION}")
        try:
            tasks = tuple(TaskFile(**task) for task in value.pop("tasks"))
            return Manifest(tasks=tasks, **value)
        except (TypeError, KeyError) as error:
            raise InputError(f"{self.path} is not a memory manifest: {error}") from None

    def read(self, task: TaskFile) -> dict[str, Tensor]:
        """A task's tensors. Raises InputError as ``verify`` does."""
        return load_file(self.verify(task))

    def verify(self, task: TaskFile) -> Path:
        """Where a task's file is, once its content is known to be what was published.

        Raises:
            InputError: the file is missing or is not the one that was published.
        """
        path = self.folder / task.file
        if not path.exists():
            raise InputError(f"{path} is named in {self.path.name} but missing")
        if (found := sha256(path)) != task.sha256:
            raise InputError(f"{path} has sha256 {found[:12]}, published was {task.sha256[:12]}")
        return path

    def publish(self, manifest: Manifest, name: str, tensors: Mapping[str, Tensor]) -> Manifest:
        """Write the next task's file, then the manifest that names it. Main rank only."""
        file = f"{len(manifest.tasks):03d}_{safe_name(name)}.safetensors"
        content = save({k: v.contiguous().cpu() for k, v in sorted(tensors.items())})
        write_atomically(self.folder / file, content)
        entry = TaskFile(
            name=name,
            file=file,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            tensors=len(tensors),
        )
        manifest = replace(manifest, tasks=(*manifest.tasks, entry))
        write_atomically(self.path, json.dumps(asdict(manifest), indent=2))
        return manifest
