"""Make a memory from other memories: drop a task, prune atoms, merge two, or keep the first tasks.

    drop(source, "mood")                   all tasks but one
    prune(source, keep=4, used=weights)    of each task only the atoms that answer most
    merge(first, second)                   the tasks of one memory, then those of another
    branch(source, "place")                the tasks up to one

Each returns an ``EditedMemory``, and ``write`` writes it into a new folder; sources stay as they
are. What no edit touches is copied byte for byte.

Shape letters: N atoms of a linear in the whole memory, K directions, D elements of an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from moram_dist.adapters.directions import beyond
from moram_dist.atoms.manifest import Edit, Manifest, TaskFile
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.files import sha256
from moram_dist.methods import METHODS
from moram_dist.methods.method import Method
from moram_dist.methods.restore import config_of
from moram_dist.registry import InputError, unknown
from moram_dist.use.source import MemorySource

SPANS = (".directions", ".subspace")
"""Endings of tensors that hold what a task adds to the span of older tasks' inputs: orthonormal
rows (K, D), orthogonal to those of the tasks before it."""


@dataclass(frozen=True, kw_only=True)
class EditedTask:
    """A task of a new memory."""

    files: MemoryFiles
    task: TaskFile
    tensors: Mapping[str, Tensor] | None = None
    """In place of those of the file; None: the file is copied."""

    atoms: int | None = None
    """``TaskFile.atoms`` of ``tensors``."""


@dataclass(frozen=True, kw_only=True)
class EditedMemory:
    """A new memory before it is written."""

    manifest: Manifest
    """Without tasks."""

    tasks: tuple[EditedTask, ...]

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in order."""
        return [one.task.name for one in self.tasks]

    @property
    def edit(self) -> Edit:
        """What is done here."""
        return self.manifest.edits[-1]

    def write(self, folder: Path) -> Manifest:
        """Write files and manifest. Raises InputError if a source's file is missing or changed."""
        files, manifest = MemoryFiles(folder), self.manifest
        for one in self.tasks:
            if one.tensors is None:
                manifest = files.take(manifest, one.task, one.files)
                continue
            own = one.task.recogniser
            recogniser = None if own is None else one.files.read(own)
            manifest = files.publish(
                manifest, one.task.name, one.tensors, recogniser, atoms=one.atoms
            )
        return manifest


def drop(source: MemorySource, name: str) -> EditedMemory:
    """All tasks but one.

    With quiet keys and its relatives, later tasks stored only those directions of their inputs that
    earlier ones had not, so the next task takes over those of the dropped one.

    Raises:
        InputError: there is no such task or no other one, or the method mixes its tasks.
    """
    kind = _apart("drop", source)
    if name not in source.tasks:
        raise unknown("task", name, source.tasks)
    if len(source.tasks) == 1:
        raise InputError(f"{source.path} holds one task only: nothing would be left without it")
    at = source.tasks.index(name)
    kept = _copied(source)
    gone = kept.pop(at)
    later = source.tasks[at + 1 :]
    if later:
        spans = _spans(gone.files.read(gone.task))
        if spans:
            kept[at] = _with_spans(kept[at], spans)
    if not later:
        caution = f"the memory before {name}: no task was learned after it"
    elif kind.as_lora == "newest":
        caution = f"the same as if {name} had never been learned: each task was learned alone"
    else:
        caution = (
            f"not a memory that never learned {name}: {', '.join(later)} "
            f"{'was' if len(later) == 1 else 'were'} trained beside what it added"
        )
    return _edited("drop", f"{name} dropped", caution, kept, source)


def prune(source: MemorySource, keep: int, used: Mapping[str, Tensor]) -> EditedMemory:
    """Of each task and linear, the ``keep`` atoms that answer most; among equals the first ones.

    Args:
        source: a memory of ``moram``.
        keep: at least 1.
        used: how much each atom answers (``atom_use``), (N,) for each linear by full name.
    """
    tasks: list[EditedTask] = []
    first = 0
    for one in _copied(source):
        tensors = one.files.read(one.task)
        count = len(tensors[f"{source.manifest.modules[0]}.keys"])
        if count > keep:
            best = {
                name: _largest(used[name][first : first + count], keep)
                for name in source.manifest.modules
            }
            for name, index in best.items():
                for part in ("keys", "values"):
                    tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][index].contiguous()
            one = replace(one, tensors=tensors, atoms=keep)
        tasks.append(one)
        first += count
    return _edited(
        "prune",
        f"pruned to {keep} atoms per task and linear",
        f"not a memory that learned with {keep} atoms per task: those used most were kept, and "
        "they were trained beside those that are gone",
        tasks,
        source,
    )


def check_prunable(source: MemorySource, keep: int) -> None:
    """Raises InputError if ``prune`` would have nothing to do: a method without atoms, or few."""
    if not (METHODS[source.manifest.method].routes and _kind(source).keeps_apart):
        raise InputError(
            f"{source.path}: {source.manifest.method} has no atoms that answer more or less often; "
            "only memories of moram are pruned"
        )
    name = f"{source.manifest.modules[0]}.keys"
    counts = [source.files.shapes(task)[name][0] for task in source.manifest.tasks]
    if keep < 1:
        raise InputError(f"--keep must be at least 1, got {keep}")
    if keep >= max(counts):
        raise InputError(
            f"--keep {keep}: no task of {source.path} has more than {max(counts)} atoms per linear"
        )


def merge(first: MemorySource, second: MemorySource) -> EditedMemory:
    """The tasks of one memory, then those of another.

    Both may have stored the same directions of inputs. A task of the second memory keeps those that
    are not in the span of the tasks before it, so that all stay orthonormal.

    Raises:
        InputError: base, linears, method or settings differ, a task is in both, or the method mixes
            its tasks.
    """
    _apart("merge", first)
    _check_alike(first, second)
    tasks = _copied(first)
    known: dict[str, Tensor] = {}
    for one in tasks:
        for name, rows_KD in _spans(one.files.read(one.task)).items():
            known[name] = torch.cat([known[name], rows_KD]) if name in known else rows_KD
    for one in _copied(second):
        tensors = one.files.read(one.task)
        for name, rows_KD in _spans(tensors).items():
            tensors[name] = beyond(rows_KD, known[name])
            known[name] = torch.cat([known[name], tensors[name]])
        tasks.append(replace(one, tensors=tensors, atoms=one.task.atoms) if known else one)
    return _edited(
        "merge",
        f"{', '.join(first.tasks)} merged with {', '.join(second.tasks)}",
        "not what one sequence of all tasks gives: neither part was trained beside the other",
        tasks,
        first,
        second,
    )


def branch(source: MemorySource, upto: str) -> EditedMemory:
    """The tasks up to one, from which a new run goes on learning.

    Raises:
        InputError: there is no such task, or the method learned all tasks together.
    """
    if not _kind(source).learns_in_sequence:
        raise InputError(
            f"{source.path}: {source.manifest.method} learned all tasks together, so no task is "
            "there to branch after"
        )
    count = source.learned(upto)
    return _edited(
        "branch",
        f"branched after {source.tasks[count - 1]}",
        f"not learned anew: the files of {', '.join(source.tasks[:count])} are copies",
        _copied(source)[:count],
        source,
    )


def _kind(source: MemorySource) -> type[Method]:
    return METHODS[source.manifest.method]


def _apart(command: str, source: MemorySource) -> type[Method]:
    """The method. Raises InputError if its memory is no sum over tasks."""
    kind = _kind(source)
    if not kind.keeps_apart:
        having = ", ".join(name for name in METHODS if METHODS[name].keeps_apart)
        raise InputError(
            f"{command}: {source.manifest.method} mixes what its tasks learned, so no task of "
            f"{source.path} stands alone; methods whose tasks do: {having}"
        )
    return kind


def _check_alike(first: MemorySource, second: MemorySource) -> None:
    """Raises InputError unless one memory can go on with the other's tasks."""
    bases = [source.manifest.base["fingerprint"][:12] for source in (first, second)]
    if bases[0] != bases[1]:
        raise InputError(f"base of {first.path} is {bases[0]}, of {second.path} {bases[1]}")
    own, other = (asdict(config_of(one.manifest, one.files.path)) for one in (first, second))
    for name, value in own.items():  # the method comes first
        if other.get(name) != value:
            raise InputError(
                f"{name} of {first.path} is {value}, of {second.path} {other.get(name)}"
            )
    modules = {*first.manifest.modules} ^ {*second.manifest.modules}
    if modules:
        raise InputError(
            f"{first.path} and {second.path} do not adapt the same linears: only one of them has "
            f"{min(modules)}"
        )
    twice = [name for name in second.tasks if name in first.tasks]
    if twice:
        raise InputError(f"both {first.path} and {second.path} learned task {twice[0]}")


def _copied(source: MemorySource) -> list[EditedTask]:
    return [EditedTask(files=source.files, task=task) for task in source.manifest.tasks]


def _edited(
    command: str,
    what: str,
    caution: str,
    tasks: Sequence[EditedTask],
    *sources: MemorySource,
) -> EditedMemory:
    edit = Edit(
        command=command,
        what=what,
        caution=caution,
        sources=tuple(sha256(source.files.path) for source in sources),
    )
    before = tuple(known for source in sources for known in source.manifest.edits)
    manifest = replace(sources[0].manifest, tasks=(), edits=(*before, edit))
    return EditedMemory(manifest=manifest, tasks=tuple(tasks))


def _spans(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows for name, rows in tensors.items() if name.endswith(SPANS)}


def _with_spans(one: EditedTask, spans: Mapping[str, Tensor]) -> EditedTask:
    """The task with the directions of the task before it in addition to its own."""
    tensors = one.files.read(one.task)
    more = {name: torch.cat([rows_KD, tensors[name]]) for name, rows_KD in spans.items()}
    return replace(one, tensors=tensors | more, atoms=one.task.atoms)


def _largest(used_N: Tensor, keep: int) -> Tensor:
    """Indices of the largest numbers, in ascending order; of equal numbers the first."""
    return used_N.argsort(descending=True, stable=True)[:keep].sort().values
