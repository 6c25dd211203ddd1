"""Commands of the documents, as a shell runs them."""

from __future__ import annotations

import subprocess
from typing import Any

TIMEOUT_S = 300


def shell(text: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """What bash does with a line or more; ``settings`` are those of ``subprocess.run``."""
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, timeout=TIMEOUT_S, **settings
    )


def words_of(text: str) -> list[str]:
    """The words of a command, as the shell reads them."""
    return shell(f"printf '%s\\0' {text}").stdout.split("\0")[:-1]
