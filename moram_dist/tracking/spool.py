"""What is to be told to MLflow, on disk before it is sent: a line an operation, never rewritten.

A run directory has ``tracking/run.jsonl``, of the main rank, and ``tracking/node_000.jsonl`` and
so on, of one rank of each node. Each has one writer; the main rank reads all of them to send them.
They stay when all is sent, so that another store can be told everything too.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moram_dist.files import writing

logger = logging.getLogger(__name__)

FOLDER = "tracking"
MAIN = "run.jsonl"

Operation = dict[str, Any]
"""``do`` names it, ``time`` says when, in milliseconds since 1970; the rest is its own."""


class Spool:
    """A file to which operations are added. Raises WriteError where the disk does not take them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)  # a line is one write: whole, or not there
            self._drop_half_a_line()

    def append(self, operation: Operation, *, sync: bool = False) -> None:
        """Add an operation; with ``sync`` it is on the disk itself when this returns."""
        text = json.dumps(operation, ensure_ascii=False, allow_nan=False) + "\n"
        line = text.encode("utf-8")
        with writing(self._path):
            if self._file.write(line) != len(line):
                self._drop_half_a_line()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
            try:
                yield json.loads(line), offset
            except ValueError:  # of a disk that lost power
                logger.warning("%s: the line before byte %d is damaged, left out", path, offset)
