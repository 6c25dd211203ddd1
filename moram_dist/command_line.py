"""Command lines whose mistakes are one line. Standard library only, as the doctor needs it."""

from __future__ import annotations

import argparse
from typing import NoReturn

from moram_dist.registry import InputError


class Parser(argparse.ArgumentParser):
    """Reports by InputError, in one line, where argparse would print its usage and exit."""

    def __init__(self, command: str, description: str | None) -> None:
        """``command`` as one types it."""
        super().__init__(
            command,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Instead of leaving."""
        raise InputError(message)
