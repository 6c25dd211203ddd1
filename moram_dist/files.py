"""Files that are whole or not there: atomic writes, digests, names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from moram_dist.registry import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` (text as UTF-8): all of it, or nothing at all.

    Written under a temporary name in the same folder, synced, then renamed; one writer per path.

    Raises:
        OSError: the folder cannot be written, or the disk is full. The old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
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


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        InputError: missing, unreadable, not UTF-8, or not JSON (with the position).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {error.lineno} column {error.colno}: not valid JSON: {error.msg}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
