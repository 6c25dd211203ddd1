"""Whatever lies in a file from outside: its value, or one line that names file and place."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from moram_dist.reading import (
    parse_yaml,
    read_json,
    read_json_lines,
    read_object,
    read_record,
    read_text,
    read_yaml,
    record,
)
from moram_dist.registry import InputError


@dataclass(frozen=True)
class Part:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    name: str
    parts: tuple[Part, ...]
    notes: dict[str, str] | None = None


GOOD = {"name": "a", "parts": [{"size": 3}, {"size": 4, "share": 1}]}


def refused(read, *arguments):
    with pytest.raises(InputError) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_record_is_its_dataclass():
    assert record(Whole, GOOD, "f") == Whole("a", (Part(3), Part(4, 1.0)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "f: name: input should be a valid string"),
        ({"parts": {}}, "f: parts: input should be a valid array"),
        ({"parts": [{"size": "3"}]}, "f: parts.0.size: input should be a valid integer"),
        ({"parts": [{"size": 3, "colour": 1}]}, "f: parts.0.colour: unexpected keyword argument"),
        ({"parts": [{}]}, "f: parts.0.size: field required"),
        ({"notes": {"a": 1}}, "f: notes.a: input should be a valid string"),
        ({"future": 1}, "f: future: unexpected keyword argument"),
        ({"parts": [{"size": True}]}, "f: parts.0.size: input should be a valid integer"),
    ],
)
def test_a_record_that_is_not_as_its_types_say(change, said):
    assert refused(record, Whole, GOOD | change, "f") == said


@pytest.mark.parametrize("value", [None, [], "x", 3, {1: 2}, {"name": "\ud800", "parts": []}])
def test_no_record_at_all(value):
    assert refused(record, Whole, value, "f").startswith("f: ")


def test_files_that_cannot_be_had(tmp_path):
    (tmp_path / "b").write_bytes(b"a\xff")
    assert refused(read_text, tmp_path / "no").endswith("no: no such file")
    assert refused(read_text, tmp_path).endswith("cannot be read: Is a directory")
    assert refused(read_text, tmp_path / "b").endswith("not UTF-8 at byte 1")
    assert "cannot be a file's name" in refused(read_text, tmp_path / "a\0b")
    assert refused(read_text, tmp_path / ("a" * 300)).endswith("File name too long")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, '{"a": 1,}'])
def test_json_that_is_none(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert refused(read_json, path).startswith(f"{path}, line 1")
    assert refused(read_record, path, Whole).startswith(f"{path}, line 1")


def test_json_lines_say_where(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\u2028"}\n\n{')
    lines = read_json_lines(path)
    assert next(lines) == (f"{path}, line 1", {"a": "\u2028"})
    assert refused(next, lines).startswith(f"{path}, line 3, column 2")


def test_an_object_is_no_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([1]))
    assert refused(read_object, path) == f"{path}: expected a JSON object"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2001-99-99", {"a": "2001-99-99"}),
        ("a: 2001-09-09 10:00:00", {"a": "2001-09-09 10:00:00"}),
        ("- &x {b: 1}\n- *x\n- {<<: *x, c: 2}", [{"b": 1}, {"b": 1}, {"b": 1, "c": 2}]),
        ("", None),
    ],
)
def test_yaml(tmp_path, text, value):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert read_yaml(path) == value


BOMB = "a0: &a0 [1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "f: YAML with more than 100,000 values"),
        ("a: &x [*x]", "f: a YAML value holds itself"),
        ("a: " + "9" * 5000, "with too long a number"),
        ("[" * 3000, "nested too deeply"),
        ("{a: " * 3000, "nested too deeply"),
        ("a: [", "f, line 1, column 5: malformed YAML"),
        ("a: \0", "f: malformed YAML"),
        ("? {a: 1}\n: 2", "f, line 1, column 3: malformed YAML: found unhashable key"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !!timestamp x", "f: YAML nested too deeply, with"),
        ("a: !!bool x", "or a value unlike its tag"),
        ("a: !!int x", "or a value unlike its tag"),
        ("a: !!float [1]", "f, line 1"),
    ],
)
def test_hostile_yaml(text, said):
    assert said in refused(parse_yaml, text, "f")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
def test_a_device_is_not_read(device):
    with pytest.raises(InputError, match="is no file but a device"):
        read_text(Path(device))


def test_a_pipe_is_not_waited_for_unless_a_shell_made_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no file but a device, pipe"):
        read_text(tmp_path / "pipe")
    reading, writing = os.pipe()
    os.write(writing, b"text")
    os.close(writing)
    assert read_text(Path(f"/dev/fd/{reading}")) == "text"
    os.close(reading)
