"""What is written is whole, on disk, and where it was meant to be."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from moram_dist import files
from moram_dist.files import (
    WriteError,
    exclusive_lock,
    make_folder,
    open_to_append,
    safe_name,
    write_atomically,
)
from moram_dist.registry import InputError


@pytest.fixture
def synced(monkeypatch):
    """Folders and files that were synced, in order."""
    paths, sync = [], os.fsync

    def recorded(descriptor):
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return paths


def test_a_new_folder_is_named_on_disk_before_anything_is_in_it(tmp_path, synced):
    write_atomically(tmp_path / "run" / "predictions" / "base" / "a.json", "x")
    run = tmp_path / "run"
    predictions = run / "predictions"
    folders = [tmp_path, run, predictions]
    content = predictions / "base" / ".a.json.partial"
    assert synced == [str(path) for path in (*folders, content, predictions / "base")]


def test_a_folder_that_is_there_is_not_synced_again(tmp_path, synced):
    make_folder(tmp_path)
    assert synced == []


def test_a_new_file_to_append_to_has_its_name_on_disk(tmp_path, synced):
    open_to_append(tmp_path / "a.jsonl").close()
    open_to_append(tmp_path / "a.jsonl").close()
    assert synced == [str(tmp_path)]


@pytest.mark.parametrize("name", ["a", ".a.partial"])
def test_no_link_is_followed(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / name).symlink_to(victim)
    write_atomically(tmp_path / "a", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "victim"}


def test_a_folder_may_be_reached_by_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to("scratch")
    write_atomically(tmp_path / "runs" / "a" / "b", "x")
    assert (tmp_path / "scratch" / "a" / "b").read_text() == "x"


def test_private_from_the_first_byte(tmp_path, monkeypatch):
    modes, sync = [], os.fsync

    def recorded(descriptor):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        sync(descriptor)

    (tmp_path / "a").write_text("of an older version")
    monkeypatch.setattr(os, "fsync", recorded)
    write_atomically(tmp_path / "a", "secret", private=True)
    assert modes[0] == stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    (tmp_path / "b").write_text("of an older version")
    open_to_append(tmp_path / "b", private=True).close()
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


def as_folder(path):
    path.mkdir()


def as_link(path):
    (path.parent / "victim").write_text("precious")
    path.symlink_to(path.parent / "victim")


def as_dangling_link(path):
    path.symlink_to(path.parent / "nowhere")


def as_pipe(path):
    os.mkfifo(path)


def as_socket(path):
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("make", [as_folder, as_link, as_dangling_link, as_pipe, as_socket])
def test_what_is_no_file_is_not_appended_to(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(InputError, match=r"/a cannot be opened to be written: ") as error:
        with exclusive_lock(tmp_path / "a", wait=False):
            raise AssertionError
    assert "\n" not in str(error.value)
    assert not (tmp_path / "nowhere").exists()


def test_devices_are_not_appended_to():
    with pytest.raises(InputError, match="not a file"):
        open_to_append(files.Path("/dev/null"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, code):
    (tmp_path / "a").write_text("old")

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=f"/a cannot be written: {os.strerror(code)}"):
        write_atomically(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with pytest.raises(WriteError, match=os.strerror(code)):
        with exclusive_lock(tmp_path / ".lock"):
            raise AssertionError


@pytest.mark.parametrize("name", ["file/a/b", "x" * 300 + "/a"])
def test_a_folder_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        write_atomically(tmp_path / name, "x")


def test_names_of_tasks():
    assert safe_name("20 min/x") == "20_min_x"
    assert safe_name("名前-1.5") == "名前-1.5"
    long = [safe_name("名" * 400 + end) for end in "ab"]
    assert long[0] != long[1] and all(len(name.encode()) <= files.LONGEST_NAME for name in long)
    assert safe_name("\udcff/..") == "__.."
