"""Operations for MLflow, written to disk before they are sent: one per line, never rewritten.

A run directory has ``tracking/run.jsonl`` from the main rank, and ``tracking/node_000.jsonl`` and
so on from one rank per node. Each file has one writer; the main rank reads and sends all of them.
They are kept after sending, so that everything can also be sent to another store.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from moram_dist.files import append, open_to_append, writing
from moram_dist.reading import parse_json, record
from moram_dist.registry import InputError
from moram_dist.tracking.operations import KINDS

logger = logging.getLogger(__name__)

FOLDER = "tracking"
MAIN = "run.jsonl"

Operation = dict[str, Any]
"""``do`` is its name, ``time`` is in milliseconds since 1970; other fields depend on ``do``."""


class Spool:
    """A file to which operations are appended. Raises WriteError if the disk fails or is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_to_append(path, private=True)
        with writing(path):
            self._drop_half_a_line()

    def append(self, operation: Operation, *, sync: bool = False) -> None:
        """Append an operation; with ``sync``, it survives a power loss when this returns."""
        text = json.dumps(operation, ensure_ascii=False, allow_nan=False) + "\n"
        # A path may contain surrogates, which UTF-8 cannot encode: write them as JSON escapes.
        text = re.sub("[\ud800-\udfff]", lambda one: rf"\\u{ord(one[0]):x}", text)
        with writing(self._path):
            append(self._file, text.encode("utf-8"))
            if sync:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; nothing may be appended afterwards."""
        self._file.close()

    def _drop_half_a_line(self) -> None:
        """Cut off an incomplete last line, left by a full disk or a crash."""
        size = end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)


def on_disk(path: Path) -> None:
    """Sync a spool: a power loss must not lose operations that are marked as sent."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def spools(run_dir: Path) -> list[Path]:
    """The existing spools, the main rank's first: the others need the run that it opens."""
    folder = run_dir / FOLDER
    main = folder / MAIN
    return [main, *sorted(folder.glob("node_*.jsonl"))] if main.exists() else []


def operations(path: Path, offset: int = 0) -> Iterator[tuple[Operation, int]]:
    """Operations from byte ``offset`` on, each with the byte at which the next line starts."""
    for operation, behind in entries(path, offset):
        if operation is not None:
            yield operation, behind


def entries(path: Path, offset: int = 0) -> Iterator[tuple[Operation | None, int]]:
    """As ``operations``, with None for each damaged line: it, too, has been dealt with."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written
            offset += len(line)
            operation = _operation(line, str(path))
            yield operation, offset
            if operation is None:  # left by a power loss
                logger.warning("%s: the line before byte %d is damaged and skipped", path, offset)


def _operation(line: bytes, place: str) -> Operation | None:
    """The operation in a line; None if ``Spool`` did not write the line."""
    try:
        found = parse_json(line.decode("utf-8"), Path(place))
        kind = KINDS[found["do"]]
        known = {item.name for item in fields(kind)}  # a newer version may write more
        record(kind, {name: value for name, value in found.items() if name in known}, place)
    except (InputError, KeyError, TypeError, UnicodeDecodeError):
        return None
    return found
