"""Templates of HTML pages that escape every value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates_in(folder: Path, finalize: Callable[[Any], Any] | None) -> Environment:
    """The templates of a folder. A name that nobody set is an error.

    Args:
        folder: with the files.
        finalize: turns each value into what is shown; None: as it is.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
