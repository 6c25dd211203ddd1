"""Simulate a disk that may lose unsynced data: record operations on files, replay up to a point.

The model guarantees no more than POSIX. A file's content is safe once the file is synced; a name
(created, renamed, removed) once its folder is. Every other change may be kept or lost independently
of the rest, and content may be torn: a part is there, and the rest is missing or zeros.
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Dice = random.Random


@dataclass(frozen=True)
class Operation:
    """An operation of a process. Paths are relative to the recorded folder."""

    kind: str
    """mkdir, create, write, sync, sync_folder, rename, or remove."""

    path: str
    to: str = ""
    """The new name, of a rename."""

    content: bytes = b""
    """The whole content of the file after a write."""


def record(root: Path, log: Path) -> None:
    """Append this process's operations on files below ``root`` to ``log`` from now on.

    Wraps functions of ``os`` and ``open`` until the process ends.
    """
    _Recorder(root.resolve(), log).install()


def recorded(log: Path) -> list[Operation]:
    """Read the operations of a log, in order."""
    operations = []
    with log.open("rb") as file:
        while True:
            try:
                operations.append(Operation(*pickle.load(file)))
            except EOFError:
                return operations


class _Recorder:
    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self.log = log.open("ab", buffering=0)
        self.written: dict[str, bytes] = {}
        """Files that were opened for writing -> their content when last checked."""

    def install(self) -> None:
        os.open = self._opening(os.open, lambda flags: flags & (os.O_WRONLY | os.O_RDWR))
        opens = self._opening(io.open, lambda mode: isinstance(mode, str) and {*mode} & {*"wax+"})
        io.open = builtins.open = opens
        self._around("mkdir", lambda path, *_: ("mkdir", path))
        self._around("unlink", lambda path: ("remove", path))
        self._around("remove", lambda path: ("remove", path))
        self._around("rmdir", lambda path: ("remove", path))
        self._around("rename", lambda path, to: ("rename", path, to))
        self._around("replace", lambda path, to: ("rename", path, to))
        self._around("fsync", self._sync)

    def _inside(self, path: Any) -> str | None:
        """A path relative to the root; None if it is not below the root."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        full = os.path.abspath(os.fspath(path))
        inside = os.path.commonpath([self.root, full]) == str(self.root)
        return os.path.relpath(full, self.root) if inside else None

    def _note(self, kind: str, path: str, to: str = "", content: bytes = b"") -> None:
        self.log.write(pickle.dumps((kind, path, to, content)))

    def _look(self) -> None:
        """Record all writes since the last check."""
        for path, before in self.written.items():
            descriptor = _open(self.root / path, os.O_RDONLY)
            with os.fdopen(descriptor, "rb") as file:
                content = file.read()
            if content != before:
                self.written[path] = content
                self._note("write", path, content=content)

    def _opening(
        self, opened: Callable[..., Any], to_write: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        def wrapper(path: Any, how: Any = "r", *args: Any, **kwargs: Any) -> Any:
            how = kwargs.get("mode", how)
            inside = None if isinstance(path, int) or not to_write(how) else self._inside(path)
            if inside is None or os.path.isdir(path):
                return opened(path, *([how] if "mode" not in kwargs else []), *args, **kwargs)
            self._look()
            there = os.path.lexists(path)
            out = opened(path, *([how] if "mode" not in kwargs else []), *args, **kwargs)
            if not there:
                self._note("create", inside)
            self.written.setdefault(inside, b"")
            self._look()
            return out

        return wrapper

    def _around(self, name: str, describe: Callable[..., tuple[Any, ...] | None]) -> None:
        function = getattr(os, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            what = describe(*args)
            paths = [self._inside(path) for path in what[1:]] if what else []
            if what is None or None in paths:
                return function(*args, **kwargs)
            self._look()
            out = function(*args, **kwargs)
            first, to, *_ = [*(path for path in paths if path is not None), ""]
            if what[0] in ("remove", "rename"):
                content = self.written.pop(first, None)
                if content is not None and to:
                    self.written[to] = content
            self._note(what[0], first, to)
            return out

        setattr(os, name, wrapper)

    def _sync(self, descriptor: Any) -> tuple[Any, ...]:
        folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        return ("sync_folder" if folder else "sync", descriptor)


_open = os.open


@dataclass
class File:
    """A file's current content, and its safe content."""

    content: bytes = b""
    safe: bytes = b""

    def after(self, choose: Choose) -> bytes:
        """The content after a power loss."""
        return self.content if self.content == self.safe else choose.content(self)


@dataclass
class Folder:
    """A folder's current names, its safe names, and the changes since, each kept whole or lost."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, change: dict[str, File | Folder | None]) -> None:
        """Add names, or remove those with None."""
        self.changes.append(change)
        _apply(self.names, change)

    def sync(self) -> None:
        """Make the current names safe."""
        self.safe = dict(self.names)
        self.changes = []

    def after(self, choose: Choose) -> dict[str, File | Folder]:
        """The names after a power loss."""
        left = dict(self.safe)
        for change in self.changes:
            if choose.kept():
                _apply(left, change)
        return left


def _apply(names: dict[str, File | Folder], change: dict[str, File | Folder | None]) -> None:
    for name, to in change.items():
        if to is None:
            names.pop(name, None)
        else:
            names[name] = to


class Choose:
    """What a power loss keeps: ``all`` (as if the process was killed), ``none`` or ``some``."""

    def __init__(self, keeps: str, seed: int = 0) -> None:
        self.keeps = keeps
        self.dice = random.Random(seed)

    def kept(self) -> bool:
        """Whether one change of a folder is kept."""
        return self.keeps == "all" or (self.keeps != "none" and self.dice.random() < 0.5)

    def content(self, file: File) -> bytes:
        """The remaining content of a file whose content is not safe."""
        if self.keeps == "all" or (self.keeps == "some" and self.dice.random() < 0.3):
            return file.content
        if self.keeps == "none" or self.dice.random() < 0.3:
            return file.safe
        begins = len(file.safe) if file.content.startswith(file.safe) else 0
        cut = self.dice.randint(begins, len(file.content))
        zeros = self.dice.choice([0, len(file.content) - cut])
        return file.content[:cut] + b"\0" * zeros


class Disk:
    """The recorded folder after some operations. It existed and was empty before the first."""

    def __init__(self) -> None:
        self.root = Folder()

    def do(self, operation: Operation) -> None:
        """Carry out one operation."""
        folder, name = self._find(operation.path)
        match operation.kind:
            case "mkdir":
                folder.change({name: Folder()})
            case "create":
                folder.change({name: File()})
            case "write":
                self._file(operation.path).content = operation.content
            case "sync":
                file = self._file(operation.path)
                file.safe = file.content
            case "sync_folder":
                target = folder.names[name] if name else self.root
                assert isinstance(target, Folder)
                target.sync()
            case "rename":
                other, to = self._find(operation.to)
                assert other is folder, "a rename from one folder to another"
                folder.change({name: None, to: folder.names[name]})
            case "remove":
                folder.change({name: None})
            case kind:
                raise ValueError(f"unknown operation {kind}")

    def after(self, choose: Choose) -> Iterator[tuple[str, bytes | None]]:
        """Paths and contents after a power loss, None for a folder; parents come first."""
        yield from _walk(self.root, "", choose)

    def _find(self, path: str) -> tuple[Folder, str]:
        """The folder that contains a path, and the name in it."""
        *parents, name = Path(path).parts or ("",)
        folder = self.root
        for parent in parents:
            inner = folder.names[parent]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def _file(self, path: str) -> File:
        folder, name = self._find(path)
        file = folder.names[name]
        assert isinstance(file, File)
        return file


def _walk(folder: Folder, path: str, choose: Choose) -> Iterator[tuple[str, bytes | None]]:
    for name, found in folder.after(choose).items():
        inner = os.path.join(path, name)
        if isinstance(found, File):
            yield inner, found.after(choose)
        else:
            yield inner, None
            yield from _walk(found, inner, choose)


def write_down(entries: Iterator[tuple[str, bytes | None]], root: Path) -> None:
    """Create the new folder ``root`` and write the entries left by a power loss into it."""
    root.mkdir(parents=True)
    for path, content in entries:
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
