"""Printing cannot fail, and nothing that is printed is obeyed by a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moram_dist.terminal import LONGEST_LINE, one_line, shown

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain, häßlich, 中文 and 😀\n\ttab", "plain, häßlich, 中文 and 😀\n\ttab"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08\x7f\x9b1m\x00", "a\\rb\\x08\\x7f\\x9b1m\\x00"),
        ("abc\u202edef\u2066", "abc\\u202edef\\u2066"),
        ("r_\udcff", "r_\\udcff"),
        ("one\u2028two\u200b", "one\\u2028two\\u200b"),
    ],
)
def test_controls_are_escaped_and_letters_are_not(text, printed):
    assert shown(text) == printed
    assert shown(printed) == printed


def test_a_message_is_one_line_of_bounded_length():
    assert one_line("a\n b\r\nc") == "a b c"
    long = one_line("first " + "x" * 1_000_000 + " last")
    assert long.startswith("first x") and long.endswith("x last")
    assert len(long) < LONGEST_LINE + 50 and "999212 characters" in long


SCRIPT = """
import sys
from moram_dist.command_line import run_command
from moram_dist.terminal import make_output_last, say
def main(words):
    for number in range(20_000):
        say(f"{number} d\\xfcnn \\udcff \\u4e2d")
    print("raw \\u4e2d")
    open("done", "w").close()
make_output_last()
sys.exit(run_command(main, []))
"""


def python(tmp_path, command, **environment):
    """Runs SCRIPT in a shell line, with its place written as $PY."""
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PY": f"{sys.executable} script.py"}
        | environment,
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_an_encoding_that_lacks_characters(tmp_path, encoding):
    done = python(tmp_path, "$PY", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(b"0 d") and b"\\udcff" in first
    assert last == ("raw 中".encode() if encoding.startswith("utf-8") else rb"raw \u4e2d")


def test_a_reader_that_leaves_ends_nothing_and_nothing_is_said(tmp_path):
    done = python(tmp_path, "$PY | head -n 1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").exists()


def test_output_that_cannot_be_written_is_said_at_the_end(tmp_path):
    done = python(tmp_path, "$PY > /dev/full")
    assert done.returncode == 4 and (tmp_path / "done").exists()
    assert done.stderr == b"error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_were_closed(tmp_path, closed):
    assert python(tmp_path, f"$PY {closed}").returncode == 0
    assert (tmp_path / "done").read_bytes() == b""  # no line went into a file of that number
