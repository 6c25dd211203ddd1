"""sha256 of files; digests of large ones are cached for the user until the file changes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path

from moram_dist.files import sha256, write_atomically
from moram_dist.reading import read_record
from moram_dist.registry import InputError

LARGE = 64 << 20
"""Least size in bytes of a file whose digest is cached; smaller ones hash in under a second."""

SETTLED_S = 2.0
"""A file that changed more recently than this may change again with the same timestamps."""


@dataclass(frozen=True)
class _Kept:
    """A digest and the state of the file at that time."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


def content_digest(path: Path, say: Callable[[str], None]) -> str:
    """Hex sha256 of a file's whole content.

    Args:
        path: the file.
        say: called with one line before a large file is read.

    Raises:
        InputError: it cannot be read.
    """
    try:
        real = path.resolve()
        state = os.stat(real)
        if state.st_size < LARGE:
            return sha256(real)
        key = _Kept(
            str(real), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, ""
        )
        folder = cache_folder()
        name = f"{hashlib.sha256(str(real).encode()).hexdigest()}.json"
        kept = _read(folder / name) if folder else None
        if kept is not None and asdict(kept) | {"sha256": ""} == asdict(key):
            return kept.sha256
        say(f"reading {path} ({state.st_size / 1e9:.1f} GB) to know the base model by its content")
        now = time.time()
        digest = sha256(real)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if folder and now - max(state.st_mtime, state.st_ctime) > SETTLED_S:
        with suppress(OSError):  # without a writable home, the next call reads the file again
            write_atomically(folder / name, dumps(asdict(key) | {"sha256": digest}))
    return digest


def cache_folder() -> Path | None:
    """The folder of digests: ``~/.cache/moram_dist/digests``, or under ``XDG_CACHE_HOME``.

    None for a user without a home, as in some containers.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "moram_dist" / "digests" if os.path.isabs(home) else None


def _read(path: Path) -> _Kept | None:
    try:
        return read_record(path, _Kept)
    except InputError:
        return None
