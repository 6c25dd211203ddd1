"""``RUN/tracking.json``: the ids of a run in MLflow, and how much its store has received."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moram_dist.files import write_atomically
from moram_dist.reading import read_record
from moram_dist.registry import InputError

logger = logging.getLogger(__name__)

IDS_FILE = "tracking.json"


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Content of the file."""

    store: str
    """Address of the store, without its password."""

    parent: str | None
    tasks: dict[str, str]
    """Task index -> id of its run."""

    sent: dict[str, int]
    """Spool name -> number of its bytes that the store has received."""

    tags: dict[str, str] = field(default_factory=dict)


def read_ids(run_dir: Path) -> dict[str, Any] | None:
    """Read a run directory's file; None if there is none.

    Also None, with a warning, if it is damaged: the store is then searched for the ids.
    """
    path = run_dir / IDS_FILE
    if not path.exists():
        return None
    try:
        return asdict(read_record(path, Ids))
    except InputError as error:
        logger.warning("%s: recreated", error)
        return None


def write_ids(run_dir: Path, ids: dict[str, Any]) -> None:
    """Replace the file. Raises WriteError."""
    write_atomically(run_dir / IDS_FILE, json.dumps(ids, indent=2) + "\n", private=True)
