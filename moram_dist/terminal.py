"""Standard output and standard error that cannot fail, whatever is written and whoever reads.

A name may contain terminal commands or characters outside the encoding, and the reader of a pipe
may exit. None of that may end a run that takes a day.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

LONGEST_VALUE = 200
"""Most characters of a value in a message."""

LONGEST_LINE = 800
"""Most characters of a message; a longer one is cut in the middle."""

COLOURS = ("1;34", "1;33", "1;32", "1;35", "1;36", "1;31")
"""Codes of the colours that number texts."""

_UNSAFE = re.compile(
    # control characters except line feed and tab; direction marks, line separators, zero-width
    # characters; surrogates, as which Python reads file names that are not UTF-8
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def shown(text: str) -> str:
    """A text with all characters escaped that a terminal would obey."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def quoted(value: object) -> str:
    """A value for a message: its ``repr``, shortened if long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # the latter for integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[:LONGEST_VALUE]}... ({len(text)} characters)"


def one_line(message: object) -> str:
    """A message as one line of bounded length, safe to print."""
    line = " ".join(shown(str(message).replace("\r", " ")).split())
    if len(line) <= LONGEST_LINE:
        return line
    head, tail = LONGEST_LINE * 2 // 3, LONGEST_LINE // 3
    return f"{line[:head]} ... [{len(line) - head - tail} characters] ... {line[-tail:]}"


def has_colour() -> bool:
    """Whether standard output shows colours: a terminal, unless NO_COLOR or FORCE_COLOR decide."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def marked(parts: Iterable[tuple[str, bool]]) -> str:
    """Texts as one, with ``[[`` and ``]]`` around those that are marked."""
    return "".join(f"[[{text}]]" if mark else text for text, mark in parts)


def say_marked(parts: Sequence[tuple[str, bool]]) -> None:
    """Print texts as one, the marked ones in colour or, where there is none, as ``marked`` does."""
    if not has_colour():
        say(marked(parts))
        return
    print("".join(_green(text) if mark else shown(text) for text, mark in parts), flush=True)


def _green(text: str) -> str:
    return _coloured(shown(text), "1;32")


def _coloured(text: str, code: str) -> str:
    # Each line by itself, since pagers forget a colour at the end of one.
    return "\n".join(f"\x1b[{code}m{line}\x1b[0m" for line in text.split("\n"))


def say_numbered(parts: Sequence[tuple[str, int | None]]) -> None:
    """Print texts as one, those with a number in its colour.

    Where there are no colours, or not enough, ``[2:text]`` marks a text with the number 2.
    """
    colour = has_colour()
    enough = colour and all(number is None or number <= len(COLOURS) for _, number in parts)
    out = []
    for text, number in parts:
        text = shown(text)
        if number is not None and not enough:
            text = f"[{number}:{text}]"
        if number is not None and colour:
            text = _coloured(text, COLOURS[(number - 1) % len(COLOURS)])
        out.append(text)
    print("".join(out), flush=True)


def say(text: str, *, end: str = "\n", error: bool = False) -> None:
    """Print a text, safe for terminals, and flush; to standard error if ``error``."""
    print(shown(text), end=end, file=sys.stderr if error else sys.stdout, flush=True)


class _Lasting(io.TextIOWrapper):
    """A stream that discards all text after a write has failed."""

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
    """Make printing unable to fail; to be called first in a command.

    Characters outside the encoding are escaped. A stream discards all text if it is closed, its
    reader exits or its disk is full.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one of the three was closed; the next opened file would get its number
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
    _replaced.append(stream)  # if it were collected, it would close the buffer
    return out


_replaced: list[TextIO] = []


def lost_output() -> OSError | None:
    """The error that stopped standard output; None if it works or its reader merely exited."""
    lost = sys.stdout.lost if isinstance(sys.stdout, _Lasting) else None
    return None if isinstance(lost, BrokenPipeError) else lost
