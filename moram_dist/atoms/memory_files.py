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
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from moram_dist.files import safe_name, sha256, write_atomically
from moram_dist.reading import read_json, record
from moram_dist.registry import InputError

VERSION = 1

Shape = tuple[int, ...]


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
        for problem in _problems(manifest):
            raise InputError(f"{self.path}: {problem}")
        return manifest

    def read(self, task: TaskFile) -> dict[str, Tensor]:
        """A task's tensors. Raises InputError as ``verify`` does, or where it holds no tensors."""
        path = self.verify(task)
        with _reading(path):
            return load_file(path)

    def shapes(self, task: TaskFile) -> dict[str, Shape]:
        """Shapes of a task's tensors, by name. Raises InputError as ``read`` does."""
        path = self.verify(task)
        with _reading(path), safe_open(path, "pt") as tensors:
            found = {n: tuple(tensors.get_slice(n).get_shape()) for n in tensors.keys()}
        if len(found) != task.tensors:
            raise InputError(f"{path} holds {len(found)} tensors, published were {task.tensors}")
        return found

    def check(self, task: TaskFile, expected: Mapping[str, Shape]) -> None:
        """Whether a task's file holds what ``expected`` says, in numbers that are finite.

        Raises:
            InputError: as ``read`` does, or the first tensor that is not as expected.
        """
        found, path = self.shapes(task), self.folder / task.file
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

    def verify(self, task: TaskFile) -> Path:
        """Where a task's file is, once its content is known to be what was published.

        Raises:
            InputError: the file is missing or is not the one that was published.
        """
        path = self.folder / task.file
        with _reading(path):
            if not path.exists():
                raise InputError(f"{path} is named in {self.path.name} but missing")
            if path.resolve().parent != self.folder.resolve() or not path.is_file():
                raise InputError(f"{path} is not a file of this folder")
            if (size := path.stat().st_size) != task.bytes:
                raise InputError(f"{path} has {size:,} bytes, published were {task.bytes:,}")
            found = sha256(path)
        if found != task.sha256:
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


def _fits(found: Shape, expected: Shape) -> bool:
    """Whether they are equal, where -1 is expected of any number."""
    return len(found) == len(expected) and all(
        n in (-1, size) for size, n in zip(found, expected, strict=True)
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what may be wrong with a file into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as tensors: {error}") from None


def _problems(manifest: Manifest) -> Iterator[str]:
    """What no manifest of this program says, though it is of the right types."""
    for name in ("name", "fingerprint"):
        if not isinstance(manifest.base.get(name), str):
            yield f"base.{name}: should be a text"
    for module, times in Counter(manifest.modules).items():
        if times > 1:
            yield f"modules: names {module!r} {times} times"
    for i, task in enumerate(manifest.tasks):
        if not re.fullmatch(r"[^/\\\0-\x1f]+\.safetensors", task.file):
            yield f"tasks.{i}.file: {task.file!r} is not the name of a memory file in this folder"
        if not re.fullmatch(r"[0-9a-f]{64}", task.sha256):
            yield f"tasks.{i}.sha256: should be 64 hex digits"
        for count in ("bytes", "tensors"):
            if getattr(task, count) < 0:
                yield f"tasks.{i}.{count}: should not be negative"
    for kind in ("name", "file"):
        for value, times in Counter(getattr(task, kind) for task in manifest.tasks).items():
            if times > 1:
                yield f"tasks: {times} have the {kind} {value!r}"
