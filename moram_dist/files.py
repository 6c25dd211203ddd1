"""Files that are complete or absent: atomic writes, folders, appending, locks, digests, names.

The program writes all its files through this module, so power loss, full disks and planted links
are handled in one place.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from moram_dist.registry import InputError, MachineError

LONGEST_NAME = 120
"""Most bytes of a task's name in a file name; file systems allow 255 for the whole name."""

IN_THE_WAY = frozenset(
    {
        errno.EACCES,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
    }
)
"""Errors caused by a path, and not by a failing machine."""


class WriteError(MachineError, OSError):
    """A file could not be written, for example because the disk is full."""


class NoLocksError(WriteError):
    """The file system cannot lock files, so another attempt would fail as well."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context that turns an OSError into a WriteError: one line with the path and the reason."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"{path} cannot be written: {error.strerror or error}; published tasks are intact; "
            "fix this, then rerun the same command to resume"
        ) from None


def write_atomically(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Replace the whole content of ``path`` by ``content`` (text as UTF-8), or change nothing.

    Writes a temporary file in the same folder, syncs it and renames it; one writer per path.
    Follows no link at either name. After it returns, the file survives a power loss.

    Args:
        path: the file; parent folders are created.
        content: text or bytes.
        private: only the owner can read the file, from its first byte on.

    Raises:
        WriteError: the folder cannot be written, or the disk is full. The old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    make_folder(path.parent)
    with writing(path):
        temporary.unlink(missing_ok=True)  # left by a crash, or put there to be followed
        try:
            with create(temporary, private=private) as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # half a file would take room on a full disk
            raise
        sync_folder(path.parent)  # the new name itself


def create(path: Path, *, private: bool = False) -> BinaryIO:
    """Create a file and open it for writing. Raises OSError if the name is already in use."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600 if private else 0o666), "wb")


def make_folder(path: Path) -> None:
    """Create a folder and its parents; they survive a power loss once this returns.

    Raises:
        WriteError: it cannot be created, or something else has its name.
    """
    with writing(path):
        if path.is_dir():
            return
    make_folder(path.parent)
    with writing(path):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Context with a folder to fill, which gets the name ``path`` at its end, or is removed.

    Raises:
        WriteError: the disk is full, or something else has got the name.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill
    make_folder(partial)
    try:
        yield partial
        with writing(path):
            partial.rename(path)
            sync_folder(path.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Sync a folder's list of names to disk. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_to_append(path: Path, *, private: bool = False) -> BinaryIO:
    """Open a file for reading and appending, unbuffered; create it if missing. Follows no link.

    Raises:
        InputError: the name is a link, folder or device, or opening it is not permitted.
        WriteError: the disk is full, or fails.
    """
    make_folder(path.parent)
    new = not os.path.lexists(path)
    # NONBLOCK: opening a pipe would wait for its other end.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with writing(path):
        try:
            descriptor = os.open(path, flags, 0o600 if private else 0o666)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise
            reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise InputError(f"{path} cannot be opened to be written: {reason}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InputError(f"{path} cannot be opened to be written: it is not a file")
        file = os.fdopen(descriptor, "a+b", buffering=0)
        if private:
            with suppress(OSError):  # an older version's file, on a file system without modes
                os.fchmod(descriptor, 0o600)
        if new:
            sync_folder(path.parent)
        return file


def append(file: BinaryIO, line: bytes) -> None:
    """Append a whole line, or nothing, to a file from ``open_to_append``. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    if file.write(line) != len(line):
        file.truncate(end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(name: str) -> str:
    """A task's name as part of a file name; a digest replaces the end of a very long one."""
    safe = re.sub(r"[^\w.-]", "_", name)
    if len(safe.encode("utf-8")) <= LONGEST_NAME:
        return safe
    begins = safe.encode("utf-8")[: LONGEST_NAME - 9].decode("utf-8", errors="ignore")
    return f"{begins}-{hashlib.sha256(safe.encode('utf-8')).hexdigest()[:8]}"


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[BinaryIO]:
    """Hold an advisory lock on ``path``, created if missing; the system frees it if we die.

    Yields the file, open for reading and appending.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
        InputError: the name is a link, folder or device, or opening it is not permitted.
        WriteError: the disk is full, or (NoLocksError) the file system has no locks.
    """
    with open_to_append(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            never = error.errno in (errno.ENOSYS, errno.EOPNOTSUPP)
            kind = NoLocksError if never else WriteError
            raise kind(f"{path} cannot be locked: {error.strerror}") from None
        yield file
