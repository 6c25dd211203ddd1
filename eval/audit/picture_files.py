"""Look at every picture of a benchmark once: its bytes, whether it can be decoded, its size.

Nothing but a digest of a picture is kept, so a hundred thousand pictures take some megabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moram_dist.data.ahead import read_all
from moram_dist.data.picture_files import PictureFolder
from moram_dist.data.tokens import WorkProgress
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark

THREADS = 4
AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """What is known of a picture."""

    digest: bytes = b""
    """Of its bytes; empty if they cannot be read."""

    shorter: int = 0
    """Its shorter edge in pixels; 0 if it cannot be decoded."""

    problem: str = ""
    """Why it cannot be read: one line that names it."""


Looked = Mapping[tuple[Path, str], LookedAt]
"""By the folder and the name of a picture."""


def look_at_pictures(benchmark: Benchmark, say: Callable[[str], None]) -> Looked:
    """Read and decode all pictures of all tasks; ``say`` prints progress every few seconds."""
    folders: dict[Path, PictureFolder] = {}
    places: dict[tuple[Path, str], PictureFolder] = {}
    for task in benchmark.tasks:
        assert isinstance(task.pictures, Path)  # eval.run chooses this audit for files
        folder = folders.setdefault(task.pictures, PictureFolder(task.pictures))
        for example in (*task.train, *task.test):
            places[task.pictures, example.prompt] = folder
    names = [*places]
    found: dict[tuple[Path, str], LookedAt] = {}
    done = WorkProgress("pictures", len(names), say, lambda what: None).started()
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        looked = read_all(partial(_look, places), part, THREADS)
        found |= dict(zip(part, looked, strict=True))
        done(start + len(part))
    return found


def _look(places: Mapping[tuple[Path, str], PictureFolder], place: tuple[Path, str]) -> LookedAt:
    folder, (_, name) = places[place], place
    digest = b""
    try:
        digest = hashlib.sha256(folder.content(name)).digest()
        return LookedAt(digest=digest, shorter=min(folder.open(name).size))
    except InputError as error:
        return LookedAt(digest=digest, problem=str(error))
