"""Read the value of a setting by its type, from the text of a flag or from YAML."""

from __future__ import annotations

import math
import re
import types
import typing
import unicodedata
from pathlib import Path
from typing import Any, Literal

from moram_dist.reading import parse_yaml
from moram_dist.registry import InputError
from moram_dist.terminal import quoted


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Convert ``value``, often a string from a flag, to ``kind``. Raises InputError."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    wanted = list(typing.get_args(kind)) if is_union else [kind]
    if type(None) in wanted:
        if value is None or value in ("None", "null", ""):
            return None
        wanted.remove(type(None))
    (target,) = wanted
    if typing.get_origin(target) is Literal:
        target = str  # which one is checked where the section is created
    try:
        out = _as(value, target)
    except (ValueError, TypeError, KeyError, OverflowError):
        name_of = getattr(target, "__name__", str(target))
        raise InputError(
            f"--{name} must be {_NAMES.get(name_of, name_of)}, got {quoted(value)}"
        ) from None
    if isinstance(out, str | Path):
        _check_text(name, str(out))
    if isinstance(out, Path):
        check_path(name, out)
    return out


_BOOLS = {"true": True, "1": True, "false": False, "0": False}
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    "Path": "a path",
}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Limits of file systems for one name and for a whole path, in bytes."""


def _as(value: Any, target: Any) -> Any:
    if target is bool:
        return _BOOLS[str(value).lower()]
    if target is int:
        number = _finite(value)
        return int(number) if number == int(number) else _refuse()
    if target is float:
        return _finite(value)
    if target in (str, Path):
        if isinstance(value, bool):  # YAML's true, for a field whose values include "true"
            value = str(value).lower()
        return target(value) if isinstance(value, str | int | float | Path) else _refuse()
    parsed = parse_yaml(value, "its text") if isinstance(value, str) else value
    if not isinstance(parsed, dict) or not all(
        isinstance(v, dict) and all(isinstance(x, str) for x in v.values()) for v in parsed.values()
    ):
        _refuse()
    return parsed


def _finite(value: Any) -> float:
    """A finite number in plain notation; Python also reads "1_000" and digits of other scripts."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        _refuse()
    number = float(value)
    return number if math.isfinite(number) else _refuse()


def _refuse() -> Any:
    raise ValueError


def _check_text(name: str, text: str) -> None:
    bad = next((x for x in text if unicodedata.category(x) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        what = "is not UTF-8" if unicodedata.category(bad) == "Cs" else f"holds {bad!r}"
        raise InputError(f"--{name} {what}: {quoted(text)}")


def check_path(name: str, path: Path) -> None:
    """Raises InputError where a path is not UTF-8, or too long for file systems."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        raise InputError(f"--{name} is not UTF-8: {quoted(str(path))}")
    longest = max((len(part.encode()) for part in path.parts), default=0)
    if longest > _LONGEST_NAME or len(str(path).encode()) > _LONGEST_PATH:
        raise InputError(
            f"--{name} is longer than a path can be ({_LONGEST_NAME} bytes for each name, "
            f"{_LONGEST_PATH} in all): {quoted(str(path))}"
        )
