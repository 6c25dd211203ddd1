"""Look into folders of pictures. Whatever cannot be listed is an InputError, not a stack trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from moram_dist.registry import InputError

PICTURES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Suffixes of picture files, in lower case; anything else beside pictures is ignored."""


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of a folder's subfolders and of its files, both sorted, without hidden ones.

    Raises:
        InputError: the folder does not exist or cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: cannot be listed: {reason}") from None
    return sorted(folders), sorted(files)


def below(folder: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, nearest first, at most ``depth`` levels down."""
    level = [folder]
    while level:
        yield from level
        if depth == 0:
            return
        depth -= 1
        level = [place / name for place in level for name in entries(place)[0]]


def pictures_in(folder: Path) -> list[str]:
    """Names of the picture files directly in a folder, sorted."""
    return [name for name in entries(folder)[1] if name.lower().endswith(PICTURES)]


def shortly(names: list[str]) -> str:
    """Some names for a message: all, or the first eight."""
    return ", ".join([*names[:8], *(["..."] if names[8:] else [])]) or "nothing"
