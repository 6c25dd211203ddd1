"""Standard output and standard error: whatever is written, and whatever becomes of the reader.

A name may hold what a terminal obeys or an encoding lacks, and a pipe's reader may leave. None of
it may end a run of a day.
"""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TextIO

LONGEST_VALUE = 200
"""Characters of a value in a message."""

LONGEST_LINE = 800
"""Characters of a message; more are cut from its middle."""

_UNSAFE = re.compile(
    # controls but line feed and tab; marks of direction, of line ends and without width; halves of
    # characters, as which Python reads names that are no UTF-8
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def shown(text: str) -> str:
    """A text as it may be printed: characters that a terminal would obey are escaped."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def quoted(value: object) -> str:
    """A value for a message: its ``repr``, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # the latter for integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[:LONGEST_VALUE]}... ({len(text)} characters)"


def one_line(message: object) -> str:
    """A message as one line of bounded length, fit to be printed."""
    line = " ".join(shown(str(message).replace("\r", " ")).split())
    if len(line) <= LONGEST_LINE:
        return line
    head, tail = LONGEST_LINE * 2 // 3, LONGEST_LINE // 3
    return f"{line[:head]} ... [{len(line) - head - tail} characters] ... {line[-tail:]}"


def say(text: str, *, end: str = "\n", error: bool = False) -> None:
    """Print a text, safe for terminals, at once; to standard error where ``error`` says so."""
    print(shown(text), end=end, file=sys.stderr if error else sys.stdout, flush=True)


class _Lasting(io.TextIOWrapper):
    """A stream that goes on into nothing once it cannot be written any more."""

    lost: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def make_output_last() -> None:
    """For a command's first line: from here on no text and no reader can make printing fail.

    What the encoding lacks is escaped. A stream that was closed, or whose reader leaves, or whose
    disk is full, takes everything and keeps nothing.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one of the three was closed, and the next file would have got its number
    os.close(descriptor)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, 2)


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        stream = open(descriptor, "w", closefd=False)
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _Lasting):
        return stream
    stream.flush()
    out = _Lasting(
        stream.buffer,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
    )
    _replaced.append(stream)  # or its end would close the buffer
    return out


_replaced: list[TextIO] = []


def lost_output() -> OSError | None:
    """Why standard output could not be written, where a reader that had enough is not why."""
    lost = sys.stdout.lost if isinstance(sys.stdout, _Lasting) else None
    return None if isinstance(lost, BrokenPipeError) else lost
