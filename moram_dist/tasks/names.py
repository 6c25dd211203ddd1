"""Names of tasks and classes that a person chose, checked before anything is written under them."""

from __future__ import annotations

from unicodedata import category

from moram_dist.registry import InputError
from moram_dist.terminal import quoted


def task_name(name: str, where: str) -> str:
    """``name``, checked to work in file names and in a list with commas.

    Raises:
        InputError: it does not; ``where`` says whose name it is.
    """
    bad = sorted({x for x in name if x in ',/\\:*?"<>|' or not x.isprintable()})
    if bad or name != name.strip(" .") or len(name.encode()) > 100:
        raise InputError(
            f"{where}: task name {quoted(name)} cannot be a file name; use at most 100 letters, "
            "digits, '-' and '_'"
        )
    return name


def class_name(name: object, where: str) -> str:
    """``name``, checked to be a text that can be asked for and stored.

    Raises:
        InputError: not a text, blank, or not UTF-8 (a folder's name can be any
            bytes).
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: a class name must be a text, got {quoted(name)}")
    if any(category(x) in ("Cc", "Cs") for x in name):
        raise InputError(f"{where}: class name {quoted(name)} holds control characters or bytes")
    return name
