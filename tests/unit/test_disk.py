"""The disk that may lose what was not synced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moram_dist.files import write_atomically
from tools.disk import Choose, Disk, Operation, recorded, write_down

ROOT = Path(__file__).resolve().parents[2]


def left(*operations, keeps="none", seed=0):
    disk = Disk()
    for operation in operations:
        disk.do(operation)
    return dict(disk.after(Choose(keeps, seed)))


MADE = (Operation("create", "a"), Operation("write", "a", content=b"old"))


def test_what_is_not_synced_may_be_lost():
    assert left(*MADE) == {}
    assert left(*MADE, Operation("sync", "a")) == {}  # POSIX promises no name then
    assert left(*MADE, Operation("sync_folder", ".")) == {"a": b""}
    assert left(*MADE, keeps="all") == {"a": b"old"}
    safe = (*MADE, Operation("sync", "a"), Operation("sync_folder", "."))
    assert left(*safe) == {"a": b"old"}
    assert left(*safe, Operation("remove", "a")) == {"a": b"old"}
    assert left(*safe, Operation("remove", "a"), keeps="all") == {}


def test_a_folder_that_is_lost_takes_with_it_what_is_in_it():
    inside = [
        *(Operation("mkdir", "d"), Operation("create", "d/a")),
        *(Operation("sync", "d/a"), Operation("sync_folder", "d")),
    ]
    assert left(*inside) == {}
    assert left(*inside, Operation("sync_folder", ".")) == {"d": None, "d/a": b""}


def test_a_rename_is_whole_or_not():
    safe = (*MADE, Operation("sync", "a"), Operation("sync_folder", "."))
    renamed = (*safe, Operation("rename", "a", "b"))
    found = [left(*renamed, keeps="some", seed=seed) for seed in range(20)]
    assert {tuple(names) for names in found} == {("a",), ("b",)}


def test_content_that_is_not_synced_may_be_torn():
    operations = [*MADE, Operation("sync", "a"), Operation("sync_folder", ".")]
    operations.append(Operation("write", "a", content=b"old and new"))
    found = {left(*operations, keeps="some", seed=seed)["a"] for seed in range(200)}
    assert {b"old", b"old and new"} < found
    assert all(content.startswith(b"old") and len(content) <= 11 for content in found)
    assert any(content.endswith(b"\0") for content in found)


def test_a_process_is_recorded(tmp_path):
    """In a process of its own, since recording has no end."""
    work = """
import os, sys, tempfile
from pathlib import Path
from moram_dist.files import append, open_to_append, write_atomically
from tools.disk import record
root = Path(sys.argv[1])
record(root / "home", root / "log")
write_atomically(root / "home" / "d" / "a", "one")
write_atomically(root / "home" / "d" / "a", "two")
write_atomically(root / "elsewhere", "not recorded")
with tempfile.TemporaryFile(dir=root / "home"):
    pass
with open(root / "home" / "plain", "w") as file:
    file.write("text")
file = open_to_append(root / "home" / "lines")
append(file, b"line")
(root / "home" / "d" / "a").unlink()
"""
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", work, tmp_path], env=environment, check=True)
    operations = recorded(tmp_path / "log")
    temporary = "d/.a.partial"
    atomically = [
        *(("create", temporary), ("write", temporary), ("sync", temporary)),
        *(("rename", temporary), ("sync_folder", "d")),
    ]
    assert [(done.kind, done.path) for done in operations] == [
        *(("mkdir", "d"), ("sync_folder", ".")),
        *(*atomically, *atomically),
        *(("create", "plain"), ("write", "plain")),
        *(("create", "lines"), ("sync_folder", "."), ("write", "lines")),
        ("remove", "d/a"),
    ]
    assert left(*operations[:-1], keeps="all") == {
        **{"d": None, "d/a": b"two", "plain": b"text", "lines": b"line"}
    }
    assert left(*operations) == {"d": None, "d/a": b"two", "plain": b"", "lines": b""}


def test_what_is_left_is_written_down(tmp_path):
    write_atomically(tmp_path / "x", "")
    write_down(iter([("d", None), ("d/a", b"1")]), tmp_path / "home")
    assert (tmp_path / "home" / "d" / "a").read_bytes() == b"1"


def test_an_unknown_operation_is_an_error():
    with pytest.raises(ValueError, match="unknown operation link"):
        Disk().do(Operation("link", "a"))
