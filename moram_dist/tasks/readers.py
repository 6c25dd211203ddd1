"""Read the records of a data file, and their fields.

A ``.json`` file holds one list of objects, a ``.jsonl`` file one object per line; either may be
packed, with ``.gz`` after its name. Every error is one line that names the file and the record,
counted from 0 as in the examples' ids, or the line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moram_dist.reading import read_json, read_json_lines
from moram_dist.registry import InputError


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a ``.json`` list or of ``.jsonl`` lines, each with its position for messages.

    Blank lines of a ``.jsonl`` file are skipped.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8, malformed, or holds anything but
            objects. An empty file is no error.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".jsonl":
        for where, value in read_json_lines(path):
            yield where, _object(value, where)
    elif kind == ".json":
        yield from check_records(path, read_json(path))
    else:
        raise InputError(f"{path}: expected a name that ends in .json or .jsonl")


def check_records(path: Path, content: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list in a ``.json`` file, each with its position for messages.

    Raises:
        InputError: not a list, or it contains anything but objects.
    """
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of objects, got {kind_of(content)}")
    for index, record in enumerate(content):
        where = f"{path}, record {index}"
        yield where, _object(record, where)


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object, got {kind_of(record)}")
    return record


def text_field(record: dict[str, Any], field: str, where: str, *, empty: bool = False) -> str:
    """A record's text. Raises InputError if missing, not text or, unless ``empty``, blank."""
    return _checked_text(_field(record, field, where), repr(field), where, empty=empty)


def texts_field(
    record: dict[str, Any], field: str, where: str, *, empty: bool = False
) -> tuple[str, ...]:
    """A record's text or nonempty list of texts. Raises InputError as ``text_field`` does."""
    value = _field(record, field, where)
    if not isinstance(value, list):
        return (_checked_text(value, repr(field), where, empty=empty),)
    if not value:
        raise InputError(f"{where}: {field!r} is an empty list")
    return tuple(
        _checked_text(text, f"{field!r}[{index}]", where, empty=empty)
        for index, text in enumerate(value)
    )


def _field(record: dict[str, Any], field: str, where: str) -> Any:
    if field not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where}: no field {field!r}; found: {found}")
    return record[field]


def _checked_text(value: object, name: str, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} must be a text, got {kind_of(value)}")
    if not empty and not value.strip():
        raise InputError(f"{where}: {name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can escape half a character, which UTF-8 cannot store
        raise InputError(f"{where}: {name} holds half of a surrogate pair") from None
    return value


def kind_of(value: object) -> str:
    """The JSON type of a value, for messages."""
    kinds: dict[type, str] = {
        bool: "true or false",
        dict: "an object",
        float: "a number",
        int: "a number",
        list: "a list",
        str: "a text",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)
