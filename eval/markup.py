"""Make texts from a run's files safe for pages, Markdown, LaTeX, figures and terminals.

Names of tasks and answers may contain anything: tags, pipes, line breaks, control characters that a
terminal obeys, lone surrogates that no file can hold. Pages escape tags in their templates.
"""

from __future__ import annotations

import re

MINUS = "\N{MINUS SIGN}"
LONGEST_NAME = 44
"""Characters of a name in a figure; longer names are cut."""

# All except tab, line feed and carriage return. Right-to-left marks also reverse their neighbours.
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
    """The text with a mark in place of each invisible character."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def points(value: float | None) -> str:
    """A score or a difference of scores with one decimal and a true minus sign; a dash for None."""
    return "–" if value is None else f"{value:.1f}".replace("-", MINUS)


def one_line(text: str) -> str:
    """The visible text on one line, without runs of white space, for a terminal."""
    return " ".join(visible(text).split())


def figure_text(name: str) -> str:
    """A label of a figure: one line of at most ``LONGEST_NAME`` characters."""
    line = one_line(name)
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"


def markdown_text(text: str) -> str:
    """Part of a line or table cell. ``learning_rate`` stays unchanged: Markdown shows it so."""
    return re.sub(r"[\\`*|<]|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(text))


def latex_text(text: str) -> str:
    """Part of a table cell; needs no LaTeX packages."""
    return "".join(_LATEX.get(c, c) for c in one_line(text))
