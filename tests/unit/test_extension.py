"""DeepSpeed's extension: every build is announced, and a killed one holds up nobody.

A real ninja builds a file instead; what asks for it is what torch calls.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import ninja
import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from moram_dist.comm import extension
from moram_dist.registry import MachineError

pytestmark = pytest.mark.slow  # waits on locks of builds

_forks = multiprocessing.get_context("fork")


def loader(place: Path, command: str = "touch $out") -> Callable[[], None]:
    """Builds as torch does: writes ninja's file, takes the lock, runs ninja."""

    def load() -> None:
        rule = f"rule make\n  command = {command}\nbuild made: make\n"
        if not (place / "build.ninja").exists() or (place / "build.ninja").read_text() != rule:
            (place / "build.ninja").write_text(rule)
        baton = FileBaton(str(place / "lock"))
        assert baton.try_acquire()
        try:
            cpp_extension._run_ninja_build(str(place), False, "Error building extension")
        finally:
            baton.release()

    return load


def started(place: Path, command: str) -> multiprocessing.process.BaseProcess:
    process = _forks.Process(target=extension.build, args=(place, loader(place, command)))
    process.start()
    return process


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(extension, "SILENT_S", 0.3)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def works_in(place: Path) -> list[str]:
    found = {p.name: extension._link(p / "cwd") for p in extension._processes()}
    return [name for name, cwd in found.items() if cwd == str(place)]


def test_whatever_is_built_is_announced_and_nothing_else(tmp_path, capfd):
    for command, announced in [("touch $out", 1), ("touch $out", 0), ("touch  $out", 1)]:
        extension.build(tmp_path, loader(tmp_path, command))
        assert capfd.readouterr().err.count("building extension") == announced
    (tmp_path / "made").unlink()
    extension.build(tmp_path, loader(tmp_path))
    assert "building" in capfd.readouterr().err
    assert (tmp_path / "made").exists() and not (tmp_path / "lock").exists()


def test_a_long_build_says_that_it_goes_on(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(extension, "AGAIN_S", 0.1)
    calls: list[None] = []
    extension.build(tmp_path, loader(tmp_path, "sleep 1 && touch $out"), lambda: calls.append(None))
    assert f"still building {tmp_path.name} (" in capfd.readouterr().err
    assert calls  # the watchdog is told, too


@pytest.mark.parametrize("flags", ["", " -j2 --jobserver-auth=97,98"])
def test_a_build_that_fails_is_one_line(tmp_path, monkeypatch, flags):
    """Under make as well, whose flags name a job server that ninja cannot reach."""
    monkeypatch.setenv("MAKEFLAGS", flags)
    (tmp_path / "said").write_text("made.cpp:3: error: no such thing\nmade.cpp:4: and more\n")
    command = "cat said; false"
    with pytest.raises(MachineError, match=r"in .*: made\.cpp:3: error: no such thing$") as error:
        extension.build(tmp_path, loader(tmp_path, command))
    assert "\n" not in str(error.value) and os.environ["MAKEFLAGS"] == flags


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot be built in .*: .*Not a directory"):
        extension.build(tmp_path / "file" / "inside", loader(tmp_path / "file" / "inside"))


@pytest.mark.parametrize("age_s", [0, 3600])
def test_a_lock_without_an_owner_is_removed_however_young(tmp_path, capfd, age_s):
    lock = tmp_path / "lock"
    lock.touch()
    os.utime(lock, (time.time() - age_s,) * 2)
    extension.build(tmp_path, loader(tmp_path))
    assert f"removing {lock}: left by a build that was killed" in capfd.readouterr().err


@pytest.mark.parametrize("age_s", [0, 3600])
def test_a_lock_whose_owner_lives_is_waited_for_however_old(tmp_path, capfd, age_s):
    """Of a program that knows nothing of our lock."""
    process = _forks.Process(target=loader(tmp_path, "sleep 2 && touch $out"))
    process.start()
    until((tmp_path / "lock").exists)
    os.utime(tmp_path / "lock", (time.time() - age_s,) * 2)
    assert extension.held_by(tmp_path) == f"process {process.pid}"
    extension.build(tmp_path, loader(tmp_path, "sleep 2 && touch $out"))
    said = capfd.readouterr().err
    assert f"waiting for the build in {tmp_path} by process {process.pid} ..." in said
    assert "removing" not in said and "building" not in said
    process.join()
    assert process.exitcode == 0


def test_two_runs_build_once(tmp_path, capfd):
    command = "sleep 2 && echo once >> log && touch $out"
    first = started(tmp_path, command)
    until((tmp_path / "lock").exists)
    extension.build(tmp_path, loader(tmp_path, command))
    first.join()
    said = capfd.readouterr().err
    assert f"waiting for the build in {tmp_path} by process {first.pid} on " in said
    assert (tmp_path / "log").read_text() == "once\n"


def test_after_a_kill_in_the_middle_the_next_goes_on_at_once(tmp_path, capfd):
    command = "test -e again || sleep 3600; touch $out"
    killed = started(tmp_path, command)
    until(lambda: works_in(tmp_path))
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert (tmp_path / "lock").exists()
    (tmp_path / "again").touch()
    extension.build(tmp_path, loader(tmp_path, command))
    assert "removing" in capfd.readouterr().err
    assert (tmp_path / "made").exists()
    assert not works_in(tmp_path)


def test_every_extension_of_the_process_is_guarded(tmp_path, capfd, monkeypatch):
    """Through torch's own function: what it compiles is what its arguments say."""
    monkeypatch.setattr(cpp_extension, "_jit_compile", cpp_extension._jit_compile)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    extension.guard(lambda: None)
    extension.guard(lambda: None)
    stale = tmp_path / "tiny" / "lock"
    stale.parent.mkdir()
    stale.touch()
    (tmp_path / "tiny.cpp").write_text("int main() { return 0; }\n")
    source = str(tmp_path / "tiny.cpp")
    cpp_extension.load("tiny", [source], is_python_module=False, is_standalone=True)
    said = capfd.readouterr().err
    assert f"removing {stale}" in said
    assert said.count(f"building extension tiny in {stale.parent}") == 1


def test_the_installed_ninja_comes_before_any_other(tmp_path, monkeypatch):
    """Two versions would each build anew what the other has built."""
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setattr(cpp_extension, "_jit_compile", cpp_extension._jit_compile)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("ninja") == str(other)
    extension.guard(lambda: None)
    extension.guard(lambda: None)
    assert shutil.which("ninja") == str(Path(ninja.BIN_DIR, "ninja"))
    assert os.environ["PATH"].count(ninja.BIN_DIR + os.pathsep + str(tmp_path)) == 1
