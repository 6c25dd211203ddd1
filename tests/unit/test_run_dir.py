"""The run directory: what it may hold. Who else refuses what is in tests/integration/."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from moram_dist.config import RecordConfig, RunConfig
from moram_dist.files import WriteError
from moram_dist.registry import InputError
from moram_dist.train.run_dir import RunDir
from tests.helpers.configs import config_of


def check(path):
    RunDir(path).check(RunConfig(method=config_of(), record=RecordConfig(output_dir=path)))


def refused(path):
    """The one line."""
    with pytest.raises(InputError) as error:
        check(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSYS, InputError), (errno.EOPNOTSUPP, InputError), (errno.ENOLCK, WriteError)],
)
def test_a_file_system_without_locks_is_wrong_input(tmp_path, monkeypatch, code, kind):
    """Another attempt would fail as well; where locks are short, it may not."""

    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(kind, match="cannot be locked"), RunDir(tmp_path).locked():
        pass


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    first, second = RunDir(tmp_path), RunDir(tmp_path)
    with first.locked():
        with pytest.raises(InputError, match=r"in use by another run \(process \d+ on "):
            with second.locked():
                raise AssertionError("two runs hold one folder")
    with second.locked():
        pass


def test_a_folder_is_made_when_work_starts_and_not_before(tmp_path):
    folder = tmp_path / "runs" / "a"
    check(folder)
    assert [*tmp_path.iterdir()] == []
    with RunDir(folder).locked():
        assert (folder / ".lock").exists()
    check(folder)


def test_what_an_earlier_process_left_is_synced_before_work_starts(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    (folder / "memory").mkdir(parents=True)
    synced, sync = set(), os.fsync

    def recorded(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    with RunDir(folder).locked():
        assert {str(path) for path in (tmp_path, folder, folder / "memory")} <= synced


def test_a_folder_may_be_a_link_itself(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to("scratch")
    check(tmp_path / "run")
    with RunDir(tmp_path / "run").locked():
        assert (tmp_path / "scratch" / ".lock").exists()


@pytest.mark.parametrize(
    "name",
    [
        *(".lock", ".run.yaml.partial", "run.yaml", "metrics.jsonl", "tracking/run.jsonl"),
        *("memory", "predictions", "report"),
        *("predictions/after_000", "memory/memory.json", "progress/x"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_links_are_refused(tmp_path, name, there):
    victim = tmp_path / "victim"
    if there:
        victim.write_text("precious")
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    assert f"{name} is a link" in refused(tmp_path / "run")
    assert victim.read_text() == "precious" if there else not victim.exists()


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        (".lock", Path.mkdir, "is not a file"),
        ("scores.json", Path.mkdir, "is not a file"),
        ("metrics.jsonl", Path.mkdir, "is not a file"),
        ("run.yaml", Path.mkdir, "is not a file"),
        ("memory/000_a.safetensors", Path.mkdir, "is not a file"),
        (".lock", os.mkfifo, "is not a file"),
        ("run.yaml", os.mkfifo, "is not a file"),
        ("tracking/run.jsonl", os.mkfifo, "is not a file"),
        ("memory", Path.touch, "is not a folder"),
        ("predictions", Path.touch, "is not a folder"),
    ],
)
def test_what_is_not_of_its_kind_is_refused(tmp_path, name, make, said):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    make(path)
    assert f"{name} {said}" in refused(tmp_path)


def test_a_lock_that_is_no_file_is_one_line(tmp_path):
    """Put there between the check and the work."""
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"\.lock cannot be opened"):
        with RunDir(tmp_path).locked():
            raise AssertionError


@pytest.mark.parametrize(
    "name", ["file/run", "dangling", "loop/run", "x" * 256, "x/" * 2100, "a\0b"]
)
def test_a_place_where_no_folder_can_be(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="--output_dir") as error:
        check(tmp_path / name)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, InputError),
        (errno.EROFS, InputError),
        (errno.ENOSPC, WriteError),
        (errno.EDQUOT, WriteError),
        (errno.EIO, WriteError),
    ],
)
def test_a_folder_that_takes_no_files(tmp_path, monkeypatch, code, kind):
    def refuses(**_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    with pytest.raises(kind, match=f"cannot write: {os.strerror(code)}"):
        check(tmp_path / "run")
