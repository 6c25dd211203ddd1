"""Ways to spoil values, texts, files and folders, for tools/fuzz.py."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    out: Any = []
    for _ in range(levels):
        out = [out]
    return out


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**63, -(2**63), 10**400),
    *(0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf")),
    *("", " ", "x", "None", "true", "auto", "1e3", "1_000", "0x10", "５", "9" * 5000, "a" * 10_000),
    *("\x1b[31mred", "a\nb", "a\rb", "\ud800", "\x00", "‮abc", "é中😀", "$(touch PWNED)"),
    *("../../etc/passwd", "/dev/full", "/dev/null", "-", "--seed", "a/" * 3000, "%d %s {0}"),
    *([], {}, [None], {"a": 1}, [1, "a"], {"": {"": ""}}, ["x"] * 5000, deep(60)),
)
"""Values of every type that JSON has, including extreme ones."""

TEXTS = [value for value in ODD if isinstance(value, str)]

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n"


def spoil_value(rng: Random, value: Any) -> Any:
    """A copy of plain data with one to three of its parts spoilt."""
    out = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        out = _spoil_one(rng, out)
    return out


def _spoil_one(rng: Random, root: Any) -> Any:
    spots = [spot for spot in _spots(root)]
    if not spots or rng.random() < 0.05:
        return rng.choice(ODD)
    holder, key = rng.choice(spots)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = _retyped(holder[key])
    elif kind == 2 and isinstance(holder, dict):
        name = str(key)
        cut = rng.randrange(len(name) + 1)
        holder[name[:cut] + rng.choice(("x", "", "_", "é")) + name[cut + 1 :]] = holder.pop(key)
    elif kind == 3:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}
    elif kind == 4 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))
    return root


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every position in plain data, as a pair of its container and its key."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    out = [(value, key) for key, _ in items]
    for _, item in items:
        out += _spots(item)
    return out


def _retyped(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return float(value) if value.isdecimal() and value.isascii() else [value]
    return json.dumps(value) if isinstance(value, dict) else dict(enumerate(value))


def spoil_bytes(rng: Random, content: bytes) -> bytes:
    """Text that was cut, damaged or repeated."""
    place = rng.randrange(len(content) + 1)
    other = rng.randrange(len(content) + 1)
    first, last = sorted((place, other))
    parts = {
        "cut": content[:place],
        "gap": content[:first] + content[last:],
        "twice": content[:last] + content[first:],
        "bit": content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)])
        if place < len(content)
        else b"",
        "not UTF-8": content[:place] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80")),
        "control": content[:place] + rng.choice((b"\x00", b"\x1b[2J", b"\r")) + content[place:],
        "mark": b"\xef\xbb\xbf" + content,
        "two bytes each": content.decode("utf-8", "replace").encode("utf-16"),
        "digits": content[:place] + b"9" * 5000 + content[place:],
        "brackets": content[:place] + rng.choice((b"[", b'{"a":')) * 5000,
        "empty": b"",
        "pointer": POINTER,
        "zeros": bytes(len(content)),
    }
    return parts[rng.choice(sorted(parts))]


def spoil_file(rng: Random, path: Path) -> None:
    """Spoil a file: one of its values if it is JSON or YAML, its bytes, or its type."""
    kind = rng.random()
    if kind < 0.15 or not path.is_file():
        _spoil_kind(rng, path)
        return
    content = path.read_bytes()
    if kind < 0.6:
        spoilt = _spoil_parsed(rng, path, content)
        if spoilt is not None:
            path.write_bytes(spoilt)
            return
    path.write_bytes(spoil_bytes(rng, content))


def _spoil_parsed(rng: Random, path: Path, content: bytes) -> bytes | None:
    """The content with a spoilt value, in the same format; None if it cannot be parsed."""
    try:
        if path.suffix == ".json":
            return dump_json(spoil_value(rng, json.loads(content))).encode()
        if path.suffix == ".jsonl":
            lines = content.split(b"\n")
            number = rng.choice([n for n, line in enumerate(lines) if line.strip()])
            lines[number] = dump_json(spoil_value(rng, json.loads(lines[number]))).encode()
            return b"\n".join(lines)
        if path.suffix in (".yaml", ".yml"):
            return dump_yaml(spoil_value(rng, yaml.safe_load(content)))
    except (ValueError, IndexError, yaml.YAMLError):
        return None
    return None


def dump_json(value: Any) -> str:
    """JSON, with Python's extensions such as NaN."""
    return json.dumps(value, skipkeys=True)


def dump_yaml(value: Any) -> bytes:
    """YAML if it can represent the value, otherwise JSON, which YAML parsers also read."""
    try:
        return yaml.safe_dump(value).encode()
    except (ValueError, yaml.YAMLError):
        return dump_json(value).encode()


def _spoil_kind(rng: Random, path: Path) -> None:
    """Replace a file by something else, or remove it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    others: tuple[Callable[[], object], ...] = (
        lambda: None,
        path.mkdir,
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to("/dev/null"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: os.mkfifo(path),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(POINTER),
    )
    rng.choice(others)()


def spoil_folder(rng: Random, folder: Path, names: str = "*") -> None:
    """Spoil one to three files of a folder."""
    files = sorted(path for path in folder.rglob(names) if path.is_file())
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2, 3)))):
        if path.is_file():  # it may have been removed with its folder
            spoil_file(rng, path)
