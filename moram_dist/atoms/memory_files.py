"""The memory on disk: one immutable safetensors file per task, and a manifest that names them.

    memory/memory.json             method, base model, tasks in order, sha256 per file
    memory/000_C-STANCE.safetensors
    memory/000_C-STANCE.recogniser.safetensors    statistics that identify this task's prompts

A file is written under a temporary name, synced and renamed; the manifest is written last. So a
file that the manifest does not name was never published and is ignored, and one that it names must
be there and complete. Files hold all atoms, not shards: they load on any number of ranks.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from moram_dist.atoms.manifest import (
    VERSION,
    Imported,
    Manifest,
    StoredFile,
    TaskFile,
    as_text,
    problems,
)
from moram_dist.files import safe_name, sha256, write_atomically
from moram_dist.reading import read_json, record
from moram_dist.recognise import TaskStatistics
from moram_dist.registry import InputError

Shape = tuple[int, ...]


class MemoryFiles:
    """The folder ``memory/`` of a run. Reading verifies hashes; writing is atomic."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "memory.json"

    def manifest(self) -> Manifest | None:
        """The published manifest, or None if there is none.

        Raises:
            InputError: the manifest is unreadable, broken or of another version, or names files
                that are not in its folder.
        """
        try:
            mode = self.path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise InputError(f"{str(self.path)!r} cannot be a file's name") from None
        if not stat.S_ISREG(mode):
            raise InputError(f"{self.path} is not a file, or a link to one")
        value = read_json(self.path)
        version = value.get("version") if isinstance(value, dict) else None
        if type(version) is not int or version != VERSION:
            raise InputError(f"{self.path} has version {version!r}; this program reads {VERSION}")
        manifest = record(Manifest, value, self.path)
        for problem in problems(manifest):
            raise InputError(f"{self.path}: {problem}")
        return manifest

    def read(self, stored: StoredFile) -> dict[str, Tensor]:
        """A file's tensors. Raises InputError as ``verify`` does, or if it is not safetensors."""
        path = self.verify(stored)
        with _reading(path):
            return load_file(path)

    def statistics(self, task: TaskFile) -> TaskStatistics:
        """Statistics of a task's prompts. Raises InputError as ``read`` does, or if none exist."""
        if task.recogniser is None:
            raise InputError(f"{self.path} holds no statistics of the prompts of task {task.name}")
        tensors = self.read(task.recogniser)
        return TaskStatistics.from_tensors(tensors, self.folder / task.recogniser.file)

    def shapes(self, stored: StoredFile) -> dict[str, Shape]:
        """Shapes of a file's tensors, by name. Raises InputError as ``read`` does."""
        path = self.verify(stored)
        with _reading(path), safe_open(path, "pt") as tensors:
            found = {n: tuple(tensors.get_slice(n).get_shape()) for n in tensors.keys()}
        if len(found) != stored.tensors:
            raise InputError(f"{path} holds {len(found)} tensors, published were {stored.tensors}")
        return found

    def check(self, stored: StoredFile, expected: Mapping[str, Shape]) -> None:
        """Check that a file holds exactly the ``expected`` tensors, with finite numbers only.

        Raises:
            InputError: as for ``read``, or for the first tensor that is not as expected.
        """
        found, path = self.shapes(stored), self.folder / stored.file
        for name in sorted({*found, *expected}, key=lambda n: (n in found and n in expected, n)):
            if name not in found:
                raise InputError(f"{path} lacks {name}, which the memory's settings ask for")
            if name not in expected:
                raise InputError(f"{path} holds {name}, which the memory's settings do not know")
            if not _fits(found[name], expected[name]):
                raise InputError(
                    f"{path}: {name} is {list(found[name])}, and the model and the memory's "
                    f"settings ask for {[n if n >= 0 else 'any' for n in expected[name]]}"
                )
        with _reading(path), safe_open(path, "pt") as tensors:
            for name in found:
                tensor = tensors.get_tensor(name)
                if not tensor.is_floating_point() or not tensor.isfinite().all():
                    raise InputError(f"{path}: {name} holds something that is no finite number")

    def verify(self, stored: StoredFile) -> Path:
        """Check that a file has its published content, and return its path.

        Raises:
            InputError: the file is missing or is not the one that was published.
        """
        path = self.folder / stored.file
        with _reading(path):
            if not path.exists():
                raise InputError(f"{path} is named in {self.path.name} but missing")
            if path.resolve().parent != self.folder.resolve() or not path.is_file():
                raise InputError(f"{path} is not a file of this folder")
            if (size := path.stat().st_size) != stored.bytes:
                raise InputError(f"{path} has {size:,} bytes, published were {stored.bytes:,}")
            found = sha256(path)
        if found != stored.sha256:
            raise InputError(f"{path} has sha256 {found[:12]}, published was {stored.sha256[:12]}")
        return path

    def publish(
        self,
        manifest: Manifest,
        name: str,
        tensors: Mapping[str, Tensor],
        recogniser: Mapping[str, Tensor] | None = None,
        *,
        atoms: int | None = None,
        imported: Imported | None = None,
    ) -> Manifest:
        """Write the next task's files, then the manifest that names them. Main rank only."""
        file = _file_name(len(manifest.tasks), name)
        stored = self._write(file, tensors)
        entry = TaskFile(name=name, atoms=atoms, imported=imported, **vars(stored))
        manifest = replace(manifest, tasks=(*manifest.tasks, entry))
        if recogniser is None:
            self._name(manifest)
            return manifest
        return self.add_recogniser(manifest, len(manifest.tasks) - 1, recogniser)

    def take(self, manifest: Manifest, task: TaskFile, source: MemoryFiles) -> Manifest:
        """Copy a task of another memory as the next one. Raises InputError as ``verify``."""
        i = len(manifest.tasks)

        def copied(stored: StoredFile, *parts: str) -> str:
            file = _file_name(i, task.name, *parts)
            write_atomically(self.folder / file, source.verify(stored).read_bytes())
            return file

        entry = replace(task, file=copied(task))
        if task.recogniser is not None:
            file = copied(task.recogniser, "recogniser")
            entry = replace(entry, recogniser=replace(task.recogniser, file=file))
        manifest = replace(manifest, tasks=(*manifest.tasks, entry))
        self._name(manifest)
        return manifest

    def add_recogniser(
        self, manifest: Manifest, i: int, recogniser: Mapping[str, Tensor]
    ) -> Manifest:
        """Write the statistics of task i, then the manifest that names them. Main rank only."""
        tasks = [*manifest.tasks]
        stored = self._write(_file_name(i, tasks[i].name, "recogniser"), recogniser)
        tasks[i] = replace(tasks[i], recogniser=stored)
        manifest = replace(manifest, tasks=tuple(tasks))
        self._name(manifest)
        return manifest

    def _write(self, file: str, tensors: Mapping[str, Tensor]) -> StoredFile:
        content = save({k: v.contiguous().cpu() for k, v in sorted(tensors.items())})
        write_atomically(self.folder / file, content)
        return StoredFile(
            file=file,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            tensors=len(tensors),
        )

    def _name(self, manifest: Manifest) -> None:
        write_atomically(self.path, as_text(manifest))


def _file_name(i: int, task: str, *parts: str) -> str:
    return ".".join([f"{i:03d}_{safe_name(task)}", *parts, "safetensors"])


def _fits(found: Shape, expected: Shape) -> bool:
    """Whether the shapes are equal; -1 in ``expected`` matches any size."""
    return len(found) == len(expected) and all(
        n in (-1, size) for size, n in zip(found, expected, strict=True)
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as tensors: {error}") from None
