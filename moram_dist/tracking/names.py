"""Names and texts as MLflow accepts them: different ones stay different."""

from __future__ import annotations

import hashlib
import re
import unicodedata

MAX_NAME = 250
"""Characters of a metric, parameter, tag, run or registered model; databases hold no more."""

MAX_EXPERIMENT = 500

DIGITS = 8
"""Of the hash that stands for what a name has lost."""


def allowed_name(name: str) -> str:
    """``name`` as MLflow accepts it for a metric, parameter or tag: letters, digits, ``_ - . /``.

    Any other character becomes ``_``. Where anything is lost, a hash of the whole name follows, so
    that tasks named ``news 1`` and ``news#1``, or in Chinese, stay two curves.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    clean = re.sub(r"[^A-Za-z0-9_.\-/]|^\.\.", "_", "/".join(parts))
    return _unique(name, clean, MAX_NAME)


def experiment_name(name: str) -> str:
    """``name`` as MLflow accepts it for an experiment: any text without control characters."""
    return _unique(name, _printable(name), MAX_EXPERIMENT)


def run_name(name: str) -> str:
    """``name`` as MLflow accepts it for a run."""
    return _unique(name, _printable(name), MAX_NAME)


def model_name(name: str) -> str:
    """``name`` as MLflow accepts it for a registered model, and in a search for one."""
    clean = re.sub(r"[/:'\"`%?#\\]|^\.\.|^\.$", "_", _printable(name))
    return _unique(name, clean, MAX_NAME)


def text(value: object, limit: int) -> str:
    """``value`` as text that any store takes, of at most ``limit`` characters.

    A cut text says how long it was and what it hashed to, so that two of them stay different.
    """
    whole = str(value)
    mark = f"... [cut, {len(whole)} characters, sha256 {_hash(whole, 16)}]"
    clean = whole.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(clean) <= limit:
        return clean
    return clean[: limit - len(mark)] + mark


def _printable(name: str) -> str:
    """No blanks around, which some databases ignore; ``_`` for control characters and the like."""
    return "".join("_" if unicodedata.category(c)[0] == "C" else c for c in name.strip())


def _unique(name: str, clean: str, limit: int) -> str:
    """``clean``, or where it is not ``name`` any more, as much as is allowed and a hash."""
    if clean == name and 0 < len(name) <= limit:
        return name
    return f"{(clean or '_')[: limit - DIGITS - 1]}-{_hash(name, DIGITS)}"


def _hash(name: str, digits: int) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
