"""Convert names and texts to ones that MLflow accepts; different ones stay different."""

from __future__ import annotations

import hashlib
import re
import unicodedata

MAX_NAME = 250
"""Most characters in names of metrics, parameters, tags, runs and registered models."""

MAX_EXPERIMENT = 500

DIGITS = 8
"""Digits of the hash that is appended to a changed name."""


def allowed_name(name: str) -> str:
    """``name`` as MLflow accepts it for a metric, parameter or tag: letters, digits, ``_ - . /``.

    Any other character becomes ``_``. If the name changes, a hash of the whole name is appended, so
    that tasks named ``news 1`` and ``news#1``, or in Chinese, have separate curves.
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
    """``value`` as text that any store accepts, at most ``limit`` characters long.

    A shortened text ends with its length and hash, so that different ones stay different.
    """
    whole = str(value)
    mark = f"... [cut, {len(whole)} characters, sha256 {_hash(whole, 16)}]"
    clean = whole.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(clean) <= limit:
        return clean
    return clean[: limit - len(mark)] + mark


def _printable(name: str) -> str:
    """Strip blanks, which some databases ignore; replace control characters etc. by ``_``."""
    return "".join("_" if unicodedata.category(c)[0] == "C" else c for c in name.strip())


def _unique(name: str, clean: str, limit: int) -> str:
    """``clean``; if it differs from ``name`` or is too long, shortened and with a hash."""
    if clean == name and 0 < len(name) <= limit:
        return name
    return f"{(clean or '_')[: limit - DIGITS - 1]}-{_hash(name, DIGITS)}"


def _hash(name: str, digits: int) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
