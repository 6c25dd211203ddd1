"""The manifest of a memory: what ``memory.json`` says of its method, base, linears and tasks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A published file of tensors."""

    file: str
    sha256: str
    bytes: int
    tensors: int


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The LoRA of another program that a task was made from."""

    sha256: str
    """Of its file of tensors."""

    rank: int
    """The largest of its linears."""


@dataclass(frozen=True, kw_only=True)
class TaskFile(StoredFile):
    """One published task."""

    name: str

    recogniser: StoredFile | None = None
    """Statistics of its training prompts (``recognise.TaskStatistics``); older runs have none."""

    atoms: int | None = None
    """Atoms of each linear that a prune left; None: as many as the method's settings say."""

    imported: Imported | None = None
    """Not learned by a run of this program, but imported; None: learned."""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files of the task."""
        return (self,) if self.recogniser is None else (self, self.recogniser)

    @cached_property
    def line(self) -> str:
        """Its line in ``memory.json``, kept as each new task writes the lines of all."""
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, part in known.items():
            if is_dataclass(part):
                known[name] = vars(part)
        optional = ("atoms", "imported")
        return json.dumps({n: v for n, v in known.items() if v is not None or n not in optional})


@dataclass(frozen=True, kw_only=True)
class Edit:
    """How a memory was made from others (``use.editing``)."""

    command: str
    """drop, prune, merge or branch."""

    what: str
    """What was done, in one line."""

    caution: str
    """What the memory is and is not, in one line that follows "It is"."""

    sources: tuple[str, ...]
    """sha256 of the manifests that it was made from."""

    @property
    def line(self) -> str:
        """For people."""
        return f"Edited by {self.command}: {self.what}. It is {self.caution}."


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The model and method that a memory belongs to, and its tasks."""

    method: str
    settings: dict[str, Any]
    """The method's configuration, from which ``load_memory`` rebuilds the layers."""

    base: dict[str, Any]
    """Identity of the base model: name and fingerprint."""

    modules: list[str]
    """Full names of the adapted linears."""

    tasks: tuple[TaskFile, ...] = ()
    edits: tuple[Edit, ...] = ()
    """Oldest first; none if every task was learned where it stands."""

    version: int = field(default=VERSION)


def as_text(manifest: Manifest) -> str:
    """The content of ``memory.json``, with a line for each task: each new one writes all of them.

    Without what only edited and imported memories have, if it is neither.
    """
    tasks = ",\n    ".join(task.line for task in manifest.tasks)
    others = {name: value for name, value in vars(manifest).items() if name != "tasks"}
    others["edits"] = [vars(edit) for edit in manifest.edits]
    if not manifest.edits:
        del others["edits"]
    head = json.dumps(others, indent=2).removesuffix("\n}")
    return f'{head},\n  "tasks": [\n    {tasks}\n  ]\n}}\n'


def problems(manifest: Manifest) -> Iterator[str]:
    """Values that are of the right type but that this program never writes."""
    for name in ("name", "fingerprint"):
        if not isinstance(manifest.base.get(name), str):
            yield f"base.{name}: should be a text"
    for module, times in Counter(manifest.modules).items():
        if times > 1:
            yield f"modules: names {module!r} {times} times"
    for i, task in enumerate(manifest.tasks):
        if task.atoms is not None and task.atoms < 1:
            yield f"tasks.{i}.atoms: should be at least 1"
        for stored in task.files:
            where = f"tasks.{i}" if stored is task else f"tasks.{i}.recogniser"
            if not re.fullmatch(r"[^/\\\0-\x1f]+\.safetensors", stored.file):
                yield f"{where}.file: {stored.file!r} is not the name of a file in this folder"
            if not re.fullmatch(r"[0-9a-f]{64}", stored.sha256):
                yield f"{where}.sha256: should be 64 hex digits"
            for count in ("bytes", "tensors"):
                if getattr(stored, count) < 0:
                    yield f"{where}.{count}: should not be negative"
    names = [task.name for task in manifest.tasks]
    files = [stored.file for task in manifest.tasks for stored in task.files]
    for kind, values in (("name", names), ("file", files)):
        for value, times in Counter(values).items():
            if times > 1:
                yield f"tasks: {times} have the {kind} {value!r}"
