"""``RUN/tracking.json``: the ids of a run in MLflow, and how far its store has got."""

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
    """What the file holds."""

    store: str
    """Address of the store, without its password."""

    parent: str | None
    tasks: dict[str, str]
    """A task's index to the id of its run."""

    sent: dict[str, int]
    """A spool's name to the bytes of it that the store has."""

    tags: dict[str, str] = field(default_factory=dict)


def read_ids(run_dir: Path) -> dict[str, Any] | None:
    """What a run directory's file holds; None where there is none.

    None too, said in one line, where it is not whole: the store is asked for its content.
    """
    path = run_dir / IDS_FILE
    if not path.exists():
        return None
    try:
        return asdict(read_record(path, Ids))
    except InputError as error:
        logger.warning("%s: made anew", error)
        return None


def write_ids(run_dir: Path, ids: dict[str, Any]) -> None:
    """Replace the file. Raises WriteError."""
    write_atomically(run_dir / IDS_FILE, json.dumps(ids, indent=2) + "\n", private=True)
