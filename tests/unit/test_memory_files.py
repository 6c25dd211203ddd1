"""The memory on disk: whole, published last, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace

import pytest
import torch

from moram_dist.atoms import memory_files
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.registry import InputError

EMPTY = Manifest(
    method="moram", settings={"top_k": 4}, base={"name": "tiny", "fingerprint": "f"}, modules=["q"]
)


def atoms(seed, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"q.{kind}": torch.randn(3, size, generator=generator).to(dtype)
        for kind, size in (("values", 5), ("keys", 4))
    }


@pytest.fixture
def files(tmp_path):
    """Two published tasks."""
    files = MemoryFiles(tmp_path / "memory")
    manifest = files.publish(EMPTY, "C-STANCE", atoms(0))
    files.publish(manifest, "20 min/x", atoms(1, torch.float32))
    return files


def error_of(action):
    """The message: one line."""
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_published(tmp_path):
    assert MemoryFiles(tmp_path / "nowhere").manifest() is None


def test_round_trip(files):
    manifest = MemoryFiles(files.folder).manifest()
    assert manifest.settings == EMPTY.settings and manifest.base == EMPTY.base
    assert [task.name for task in manifest.tasks] == ["C-STANCE", "20 min/x"]
    assert [task.file for task in manifest.tasks] == [
        "000_C-STANCE.safetensors",
        "001_20_min_x.safetensors",
    ]
    for i, dtype in enumerate((torch.bfloat16, torch.float32)):
        task = manifest.tasks[i]
        found, expected = files.read(task), atoms(i, dtype)
        assert found.keys() == expected.keys() and task.tensors == 2
        assert all(found[k].dtype == dtype and torch.equal(found[k], expected[k]) for k in found)
        assert task.bytes == (files.folder / task.file).stat().st_size


def test_views_are_written_as_they_look(tmp_path):
    files, whole = MemoryFiles(tmp_path), torch.arange(12.0).reshape(3, 4)
    task = files.publish(EMPTY, "a", {"keys": whole.T, "values": whole[1:]}).tasks[0]
    assert torch.equal(files.read(task)["keys"], whole.T)
    assert torch.equal(files.read(task)["values"], whole[1:])


def test_publishing_leaves_nothing_else_behind(files):
    names = {path.name for path in files.folder.iterdir()}
    assert names == {"memory.json", "000_C-STANCE.safetensors", "001_20_min_x.safetensors"}


def test_a_file_that_is_not_named_is_ignored(files):
    before = files.manifest()
    (files.folder / "002_stray.safetensors").write_bytes(b"half a file")
    assert files.manifest() == before


def test_a_missing_file(files):
    task = files.manifest().tasks[1]
    (files.folder / task.file).unlink()
    assert error_of(lambda: files.read(task)).startswith(str(files.folder / task.file))
    files.read(files.manifest().tasks[0])


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_changed_byte(files, position):
    task = files.manifest().tasks[0]
    path = files.folder / task.file
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    message = error_of(lambda: files.read(task))
    assert message.startswith(str(path)) and task.sha256[:12] in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1, column 2: malformed JSON"),
        ("", "malformed JSON"),
        ("[]", "has version None; this program reads 1"),
        ("{}", "has version None; this program reads 1"),
        ('{"version": 2}', "has version 2; this program reads 1"),
        ('{"version": true}', "has version True; this program reads 1"),
        ('{"version": 1}', "method: field required"),
        ('{"version": 1, "tasks": null}', "method: field required"),
    ],
)
def test_a_broken_manifest(tmp_path, content, said):
    files = MemoryFiles(tmp_path)
    files.path.write_text(content)
    message = error_of(files.manifest)
    assert message.startswith(str(files.path)) and said in message


def test_an_unknown_field_of_the_manifest(files):
    value = json.loads(files.path.read_text()) | {"colour": "blue"}
    files.path.write_text(json.dumps(value))
    assert "colour" in error_of(files.manifest)


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("tasks.0.file", name) for name in (None, "", 0, [], ".", "..", "a.safetensors/", "a")],
        *[("tasks.0.file", f"{name}.safetensors") for name in ("../x", "a\0", "a\n", "/x")],
        *[("tasks.0.file", name) for name in ("/dev/zero", "../memory.json", "a\\b.safetensors")],
        *[("tasks.0.sha256", text) for text in (None, "", "x" * 64, HEX.upper(), HEX + "0", 7)],
        *[("tasks.0.bytes", number) for number in (-1, "3", 1.5, None, True, [])],
        *[("tasks.0.tensors", number) for number in (-1, "3", None)],
        *[("tasks.0.name", name) for name in (None, 3, "20 min/x")],
        *[("base", base) for base in (None, [], {}, {"name": 1, "fingerprint": "f"}, "x")],
        *[("modules", modules) for modules in (None, {}, [1], ["q", "q"], "q")],
        *[("settings", settings) for settings in (None, [], 3)],
        *[("method", method) for method in (None, 3, [])],
        *[("tasks", tasks) for tasks in (None, {}, [None], [[]], "x", 4)],
    ],
)
def test_a_manifest_of_other_types_or_places(files, field, value):
    content = json.loads(files.path.read_text())
    *way, last = field.split(".")
    place = content
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    files.path.write_text(json.dumps(content))
    message = error_of(files.manifest)
    assert message.startswith(f"{files.path}: {field.split('.')[0]}")


@pytest.mark.parametrize("make", ["link", "folder", "dangling", "long"])
def test_a_task_file_that_is_none_of_this_folder(files, tmp_path, make):
    task = files.manifest().tasks[0]
    path = files.folder / task.file
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)  # whole, and not here
    if make == "link":
        path.symlink_to(elsewhere)
    elif make == "folder":
        path.mkdir()
    elif make == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    else:
        task = replace(task, file="x" * 300 + ".safetensors")
    for read in (files.read, files.verify, files.shapes):
        assert str(files.folder / task.file) in error_of(lambda read=read: read(task))


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.symlink_to("x"), os.mkfifo])
def test_a_manifest_that_is_no_file(tmp_path, make):
    files = MemoryFiles(tmp_path)
    make(files.path)
    assert "is not a file" in error_of(files.manifest)


@pytest.mark.parametrize("where", ["a" * 300, "a\0b"])
def test_a_memory_at_no_place(tmp_path, where):
    assert error_of(MemoryFiles(tmp_path / where).manifest)


SHAPES = {"q.keys": (3, 4), "q.values": (3, 5)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q.keys": None}, "lacks q.keys"),
        ({"k.keys": torch.ones(3, 4)}, "holds k.keys"),
        ({"q.keys": torch.ones(4, 4)}, "q.keys is [4, 4], and the model"),
        ({"q.keys": torch.ones(3)}, "q.keys is [3], and"),
        ({"q.keys": torch.full((3, 4), float("nan"))}, "q.keys holds something"),
        ({"q.values": torch.full((3, 5), float("-inf"))}, "q.values holds something"),
        ({"q.values": torch.ones(3, 5, dtype=torch.int64)}, "q.values holds something"),
    ],
)
def test_tensors_that_are_not_those_of_the_settings(tmp_path, changes, said):
    tensors = {name: value for name, value in (atoms(0) | changes).items() if value is not None}
    files = MemoryFiles(tmp_path)
    task = files.publish(EMPTY, "a", tensors).tasks[0]  # its hash is right
    message = error_of(lambda: files.check(task, SHAPES))
    assert str(files.folder / task.file) in message and said in message


def test_tensors_that_are(files):
    for task in files.manifest().tasks:
        files.check(task, SHAPES)


@pytest.mark.parametrize("content", [b"", b"x" * 7, b"\xff" * 64, b"\2" + b"\0" * 7 + b"{}"])
def test_a_file_of_the_right_hash_that_holds_no_such_tensors(files, content):
    task = files.manifest().tasks[0]
    (files.folder / task.file).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    task = replace(task, sha256=digest, bytes=len(content))
    for read in (files.shapes, lambda task: files.check(task, SHAPES)):
        assert str(files.folder / task.file) in error_of(lambda read=read: read(task))


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_while_publishing_keeps_the_old_state(files, monkeypatch, crash_at):
    """Before the task's file is there, and between it and the manifest."""
    before, calls = files.manifest(), []
    write = memory_files.write_atomically

    def crashing(path, content):
        calls.append(path)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(memory_files, "write_atomically", crashing)
    with pytest.raises(KeyboardInterrupt):
        files.publish(before, "third", atoms(2))
    assert files.manifest() == before
    assert torch.equal(files.read(before.tasks[0])["q.keys"], atoms(0)["q.keys"])

    monkeypatch.undo()  # the next attempt replaces what was left
    after = files.publish(before, "third", atoms(3))
    assert files.manifest() == after and len(after.tasks) == 3
    assert torch.equal(files.read(after.tasks[2])["q.keys"], atoms(3)["q.keys"])
