"""However a command ends early, it says one line and gives the code that says whose fault it is."""

from __future__ import annotations

import errno
import os

import pytest

from moram_dist import command_line
from moram_dist.command_line import run_command
from moram_dist.registry import InputError, MachineError

PASSWORD = "geheim-5813"


def raises(error):
    def main(words):
        raise error

    return main


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("--top_k\nis wrong"), 2, "error: --top_k is wrong"),
        (MachineError("a rank died"), 4, "error: a rank died"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 4, "error: out of memory"),
        (OSError(errno.ENOSPC, "No space left", "r/x"), 4, "error: r/x: No space left"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "aaa"),
            2,
            "error: File name too long: aaa",
        ),
        (InputError("\x1b[31mred"), 2, "error: \\x1b[31mred"),
        (InputError(f"http://me:{PASSWORD}@host/x"), 2, "error: http://host/x"),
    ],
)
def test_what_is_known_is_one_line_and_leaves_no_file(capsys, here, error, code, said):
    assert run_command(raises(error), []) == code
    assert capsys.readouterr().err == said + "\n"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.ENOENT, "No such file", "a")])
def test_a_fault_of_the_program_keeps_its_trace_back_in_a_file(capsys, here, error):
    assert run_command(raises(error), []) == 1
    (kept,) = here.glob("crash_*.log")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {type(error).__name__}: ")
    assert line.endswith(f"not of your input); the trace-back is in {kept}")
    assert "in main" in kept.read_text() and "Traceback" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_no_password_is_kept(capsys, here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert run_command(raises(RuntimeError(f"no answer with {PASSWORD}")), []) == 1
    (kept,) = here.glob("crash_*.log")
    assert PASSWORD not in kept.read_text() + capsys.readouterr().err


def test_a_run_keeps_it_in_its_own_folder_under_its_rank(capsys, here, monkeypatch):
    (here / "run").mkdir()
    monkeypatch.setenv("RANK", "3")
    assert command_line.say_crash(ValueError("x"), here / "run", " (rank 3)") == 1
    assert len(list((here / "run").glob("crash_*_rank3.log"))) == 1
    assert capsys.readouterr().err.startswith("error (rank 3): ValueError: x (a fault")


def test_a_link_in_its_place_is_not_followed(capsys, here, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line.time, "strftime", lambda form: "now")
    monkeypatch.setattr(command_line.tempfile, "gettempdir", lambda: str(tmp_path))
    (here / "crash_now.log").symlink_to(tmp_path / "other")
    assert run_command(raises(ValueError("x")), []) == 1
    assert not (tmp_path / "other").exists()
    assert f"is in {tmp_path}/crash_now.log" in capsys.readouterr().err


def test_where_no_folder_takes_it_it_is_printed(capsys, monkeypatch):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command_line.os, "open", full)
    assert run_command(raises(ValueError("x")), []) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "the trace-back is above" in said.splitlines()[-1]


def test_a_folder_that_is_gone(capsys, here):
    here.rmdir()
    assert run_command(raises(ValueError("x")), []) == 1
    assert "the trace-back is in /" in capsys.readouterr().err


def test_a_word_that_is_no_utf8(capsys):
    assert run_command(raises(ValueError("not reached")), ["--x", "r_\udcff"]) == 2
    assert capsys.readouterr().err.startswith("error: not UTF-8: 'r_\\udcff'")
