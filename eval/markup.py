"""Names and texts of a run's files as part of HTML, Markdown, LaTeX and figures.

A task may have any name and a model may say anything: tags, pipes, line breaks, control characters
that a terminal obeys, half characters that no file can hold.
"""

from __future__ import annotations

import html
import re

MINUS = "\N{MINUS SIGN}"
LONGEST_NAME = 44
"""Characters of a name in a figure."""

# But for tab, line feed and carriage return. Right-to-left marks turn what stands beside them.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LATEX = {c: f"\\{c}" for c in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    MINUS: "$-$",
    "–": "--",
}


def visible(text: str) -> str:
    """The text, with a mark for each character that is none to a reader."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same without line breaks and runs of white space, fit for a terminal."""
    return " ".join(visible(text).split())


def html_text(text: str) -> str:
    """As part of a page, outside of tags and inside of quoted attributes."""
    return html.escape(visible(text))


def figure_text(name: str) -> str:
    """As a label of a figure: one line, and not a long one."""
    line = one_line(name)
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"


def markdown_text(text: str) -> str:
    """As part of a line or of a table's cell. ``learning_rate`` stays as it is: so it is shown."""
    return re.sub(r"[\\`*|<]|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(text))


def latex_text(text: str) -> str:
    """As part of a table's cell, without packages."""
    return "".join(_LATEX.get(c, c) for c in one_line(text))
