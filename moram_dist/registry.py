"""Named entries that users choose from: methods, benchmarks, metrics.

Decorators fill a registry at import. The package's ``__init__`` imports every entry explicitly and
no directory is scanned, so every name can be found by a text search.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """The user's input is wrong. The message is one line and names the flag, file, field or task.

    The commands print it and exit with code 2 before any work starts.
    """


class MachineError(RuntimeError):
    """The machine failed, not the input: a rank died or hangs, a disk is full. One line.

    The commands print it and exit with ``EXIT_CODE``; fix the cause, then rerun to resume.
    """

    EXIT_CODE = 4


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name; it suggests the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"known: {', '.join(names)}" if len(names) <= 20 or not near else ""
    return InputError(f"unknown {kind} {name!r}; {hint}{listed}".strip())


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raises InputError where the flag ``name`` has a value that is not known."""
    if value not in known:
        raise unknown(f"--{name}", value, known)


class Registry(Generic[T]):
    """Entries of one kind by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an entry. Raises ValueError where ``name`` is already taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry. Raises InputError, with the nearest known name, where there is none."""
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
