"""Find and open pictures by name: a file, or a row of a file with many pictures."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath
from threading import Lock

from PIL import Image

from moram_dist.command_line import MACHINE
from moram_dist.data.picture_bytes import opened, to_rgb
from moram_dist.data.picture_rows import NAMED, Rows, open_rows
from moram_dist.registry import InputError

OPEN_FILES = 4
"""Files with many pictures that a folder keeps open, or unpacked."""

MOST_BYTES = 2**28
"""Most bytes of a file with one picture."""


class PictureFolder:
    """The pictures below a folder, in RGB. Thread-safe.

    A name is a path relative to the folder, or ``<file>#<row>`` with the row counted from 0: in an
    idx file (``...idx3-ubyte``, also ``.gz``), a binary file of CIFAR-10 or CIFAR-100 (``.bin``) or
    a ``.parquet`` file. Files with many pictures that were used last stay open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = lru_cache(maxsize=OPEN_FILES)(open_rows)
        self._lock = Lock()  # so that several threads do not unpack the same file

    def open(self, name: str) -> Image.Image:
        """The picture in RGB; EXIF rotation is ignored.

        Raises:
            InputError: the name leaves the folder, there is no such file or row, or it cannot be
                read as a picture. One line that names the picture.
        """
        with blamed_on(self.folder / name):
            if found := self._row(name):
                rows, row = found
                return rows.picture(row)
            return to_rgb(_read(self.folder / name))

    def content(self, name: str) -> bytes:
        """The bytes of a picture: those of its file, or of its row without the label.

        Raises:
            InputError: as ``open``, except that nothing is decoded.
        """
        with blamed_on(self.folder / name):
            if found := self._row(name):
                rows, row = found
                return rows.content(row)
            return _read(self.folder / name)

    def check(self, name: str) -> None:
        """Open a picture's file and read its header, or find its row, and decode nothing.

        Raises:
            InputError: as ``open``, where this much shows it.
        """
        with blamed_on(self.folder / name):
            if self._row(name) is None:
                _check_kind(self.folder / name)
                with open(self.folder / name, "rb") as file:
                    opened(file)

    def _row(self, name: str) -> tuple[Rows, int] | None:
        """The file and the row of a name; None if the picture is a file of its own."""
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise InputError("a picture's name may not leave its folder")
        found = NAMED.fullmatch(name)
        if not found:
            return None
        path, row = self.folder / found[1], int(found[2])
        _check_kind(path)
        with self._lock:
            rows = self._rows(path)
        if row >= rows.count:
            raise InputError(f"the file has {rows.count} rows, counted from 0")
        return rows, row


def open_picture(folder: Path, name: str) -> Image.Image:
    """One picture in RGB, by a name as in ``PictureFolder``. Raises InputError as that does."""
    return PictureFolder(folder).open(name)


def _read(path: Path) -> bytes:
    """A file's bytes. Read whole, so that a false size in its header reserves no memory."""
    size = _check_kind(path)
    if size > MOST_BYTES:
        raise InputError(f"{size:,} bytes, and {MOST_BYTES:,} are the most of a picture")
    return path.read_bytes()


def _check_kind(path: Path) -> int:
    """A file's size. Raises InputError on a folder, or on a device or pipe, which may not end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("is no file but a folder, device, pipe or socket")
    return status.st_size


@contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Turn whatever is raised inside into an InputError of one line that begins with ``path``.

    Decoders raise whatever they stumble over. Only the machine's own failures stay as they are: no
    memory, or a full or broken disk.
    """
    where = str(path) if str(path).isprintable() else ascii(str(path))
    try:
        yield
    except MemoryError:
        raise
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except OSError as error:
        if error.errno in MACHINE:
            raise
        said = error.strerror or " ".join(str(error).split()) or "damaged"
        raise InputError(f"{where}: cannot be read: {said}") from None
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{where}: cannot be read: {said}") from None
