"""What is to be told to MLflow, on disk before it is sent: a line an operation, never rewritten.

A run directory has ``tracking/run.jsonl``, of the main rank, and ``tracking/node_000.jsonl`` and
so on, of one rank of each node. Each has one writer; the main rank reads all of them to send them.
They stay when all is sent, so that another store can be told everything too.
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
"""``do`` names it, ``time`` says when, in milliseconds since 1970; the rest is its own."""


class Spool:
    """A file to which operations are added. Raises WriteError where the disk does not take them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_to_append(path, private=True)
        with writing(path):
            self._drop_half_a_line()

    def append(self, operation: Operation, *, sync: bool = False) -> None:
        """Add an operation; with ``sync`` it is on the disk itself when this returns."""
        text = json.dumps(operation, ensure_ascii=False, allow_nan=False) + "\n"
        # A path may hold what UTF-8 cannot: its number stands for it, as text.
        text = re.sub("[\ud800-\udfff]", lambda one: rf"\\u{ord(one[0]):x}", text)
        with writing(self._path):
            append(self._file, text.encode("utf-8"))
            if sync:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing may be added afterwards."""
        self._file.close()

    def _drop_half_a_line(self) -> None:
        """Cut off what a full disk, or a machine that died, left behind the last whole line."""
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
    """Sync a spool: nothing may be acknowledged of it that a machine without power would lose."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def spools(run_dir: Path) -> list[Path]:
    """The files that there are, the main rank's first: the others need the run that it opens."""
    folder = run_dir / FOLDER
    main = folder / MAIN
    return [main, *sorted(folder.glob("node_*.jsonl"))] if main.exists() else []


def operations(path: Path, offset: int = 0) -> Iterator[tuple[Operation, int]]:
    """Whole lines from byte ``offset`` on, each with the byte at which the next one starts."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # it is being written
            offset += len(line)
            operation = _operation(line, str(path))
            if operation is not None:
                yield operation, offset
            else:  # of a disk that lost power
                logger.warning("%s: the line before byte %d is damaged, left out", path, offset)


def _operation(line: bytes, place: str) -> Operation | None:
    """What ``Spool`` wrote as this line; None where it did not."""
    try:
        found = parse_json(line.decode("utf-8"), Path(place))
        kind = KINDS[found["do"]]
        known = {item.name for item in fields(kind)}  # a newer version may say more
        record(kind, {name: value for name, value in found.items() if name in known}, place)
    except (InputError, KeyError, TypeError, UnicodeDecodeError):
        return None
    return found
