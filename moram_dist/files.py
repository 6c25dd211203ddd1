"""Files that are whole or not there: atomic writes, locks, digests, names."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from moram_dist.registry import MachineError


class WriteError(MachineError, OSError):
    """A file could not be written, as on a full disk."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context that turns an OSError into a WriteError: one line with the path and the reason."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written: {error.strerror or error}; what is published is whole: "
            "once this is mended, the same command goes on from there"
        ) from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` (text as UTF-8): all of it, or nothing at all.

    Written under a temporary name in the same folder, synced, then renamed; one writer per path.

    Raises:
        WriteError: the folder cannot be written, or the disk is full. The old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # on a full disk, half a file is in the way
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself
        finally:
            os.close(folder)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(name: str) -> str:
    """A task's name as part of a file name."""
    return re.sub(r"[^\w.-]", "_", name)


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[IO[str]]:
    """Hold an advisory lock on ``path``, made where missing; the system frees it if we die.

    Gives the file, open to be read and added to.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file
