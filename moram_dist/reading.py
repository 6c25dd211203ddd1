"""Read files from outside. Every mistake in one is an InputError with the file and the position.

All JSON and YAML that a person, another program or a crash may have written is parsed here: one
module handles all errors that parsers raise, and hostile input.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import stat
import typing
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from moram_dist.registry import InputError

T = TypeVar("T")

MOST_UNPACKED = 2**32
"""Most bytes of an unpacked ``.gz`` file, which is read into memory."""

MOST_YAML_VALUES = 100_000
"""Most values in a YAML file with its aliases expanded, however few bytes they take."""


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without a byte order mark; that of a ``.gz`` file is unpacked.

    Raises InputError where it cannot be read.
    """
    try:
        _check_kind(path)
        if path.suffix == ".gz":
            return _unpacked(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except ValueError:  # a name with a null byte
        raise InputError(f"{str(path)!r}: cannot be a file's name") from None


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_UNPACKED + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: no whole gzip file: {error}") from None
    if len(content) > MOST_UNPACKED:
        raise InputError(f"{path}: more than {MOST_UNPACKED:,} bytes unpacked; split the file")
    return content


def _check_kind(path: Path) -> None:
    """Raises InputError on devices, which may have no end, and pipes, which may have no writer."""
    mode = path.stat().st_mode
    of_a_shell = stat.S_ISFIFO(mode) and path.is_relative_to("/dev")  # <(...)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or of_a_shell):
        raise InputError(f"{path}: is no file but a device, pipe or socket")


def read_json(path: Path, *, unique: bool = False) -> Any:
    """The value in a JSON file. Raises InputError as ``read_text`` and ``parse_json`` do."""
    return parse_json(read_text(path), path, unique=unique)


def parse_json(text: str, path: Path, *, first_line: int = 1, unique: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: the file, or one line of it.
        path: the file, for messages.
        first_line: number of the text's first line in the file.
        unique: refuse an object that holds a key twice; otherwise the last one counts.

    Raises:
        InputError: malformed; the message gives line and column.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except _TwiceError as error:
        raise InputError(f"{path}: key {error.args[0]!r} is given twice") from None
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"{path}, line {line}, column {error.colno}: malformed JSON: {error.msg}"
        ) from None
    except (RecursionError, ValueError):  # the latter for integers of thousands of digits
        raise InputError(
            f"{path}, line {first_line}: JSON nested too deeply or with too long a number"
        ) from None


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a ``.jsonl`` file, each with its file and line for messages. Skips blank lines.

    Raises:
        InputError: as ``read_text`` and ``parse_json`` do.
    """
    # Not splitlines: it also splits at characters that texts may contain.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", parse_json(line, path, first_line=number)


class _TwiceError(Exception):
    """An object holds a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _TwiceError(key)
        out[key] = value
    return out


def read_object(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError where the file holds anything else."""
    value = read_json(path, unique=unique)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def record(kind: type[T], value: Any, where: str | Path) -> T:
    """Convert a JSON value to the dataclass ``kind``: all fields present and typed, none unknown.

    Args:
        kind: a dataclass; its fields may be dataclasses, tuples, lists and mappings of these.
        value: the parsed JSON.
        where: the file and position, for the message.

    Raises:
        InputError: names the first field that does not match its type.
    """
    # Validated as JSON: strict mode then takes a list for a tuple and an object for a dataclass,
    # but does not take "1" for a number.
    try:
        return _adapter(typing.cast(Any, kind)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{where}: {field + ': ' if field else ''}{first['msg'].lower()}"
        ) from None
    except (RecursionError, ValueError, TypeError):
        raise InputError(f"{where}: not a record that this program writes") from None


def read_record(path: Path, kind: type[T]) -> T:
    """A JSON file as a dataclass. Raises InputError as ``read_json`` and ``record`` do."""
    return record(kind, read_json(path), path)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    for each in _dataclasses_in(kind):
        each.__pydantic_config__ = ConfigDict(extra="forbid")
    return TypeAdapter(kind)


def _dataclasses_in(kind: Any) -> Iterator[Any]:
    """``kind`` and the dataclasses in the types of its fields."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from _dataclasses_in(hint)
    for part in typing.get_args(kind):
        yield from _dataclasses_in(part)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file. Raises InputError as ``read_text`` and ``parse_yaml`` do."""
    return parse_yaml(read_text(path), path)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises InputError with the file and the position of the mistake."""
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping of names to values")
    return value


def parse_yaml(text: str, where: str | Path) -> Any:
    """Parse YAML. Dates stay text.

    Raises:
        InputError: malformed, nested too deeply, a number too long to read, a key given twice, a
            value that contains itself, or over ``MOST_YAML_VALUES`` values, aliases expanded.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, where)
        _refuse_twice(node, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not a text that YAML can hold"
        raise InputError(f"{where}{place}: malformed YAML: {problem}") from None
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise InputError(
            f"{where}: YAML nested too deeply, with too long a number, or a value unlike its tag"
        ) from None


class _Loader(yaml.SafeLoader):
    """Reads plain values only; a date stays text."""


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    if abs(value) >= 2**63:
        raise ValueError("in base 16 a number may have digits without end")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _count(node: yaml.Node, counted: dict[int, int | None], where: str | Path) -> int:
    """Number of values in a node, with aliases expanded."""
    known = counted.get(id(node), 0)
    if known is None:
        raise InputError(f"{where}: a YAML value holds itself")
    if known:
        return known
    counted[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    total = 1 + sum(_count(part, counted, where) for part in parts)
    if total > MOST_YAML_VALUES:
        raise InputError(f"{where}: YAML with more than {MOST_YAML_VALUES:,} values")
    counted[id(node)] = total
    return total


def _refuse_twice(node: yaml.Node, where: str | Path) -> None:
    """Raises InputError where a mapping gives a key twice; YAML would take the last one."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise InputError(f"{where}, line {line}: key {key.value!r} is given twice")
                seen.add(key.value)
            _refuse_twice(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _refuse_twice(part, where)
