"""The common style of all figures, and a figure as SVG text.

One colour shows amounts, one accent losses. Figures are drawn at the size at which the report shows
them (72 points per inch), so all text has the same size on the page. They do without pyplot, so
there is no global state and nothing to close.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, QUIET, GRID = "#1c2733", "#66727f", "#e3e8ee"
AMOUNT, LOSS = "#2b6cb0", "#c05621"

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "text.parse_math": False,  # a task may have a dollar sign in its name
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",  # text stays text: it can be selected, and the page chooses the font
    "svg.hashsalt": "moram-dist",  # the same numbers give the same bytes
}

HALF_WIDTH, FULL_WIDTH = 5.0, 10.4
"""Inches: the width of one of the report's two columns, and of the whole page."""


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size in inches; our style applies while it is drawn."""
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        yield Figure(figsize=(width, height), layout=layout)


def svg_text(figure: Figure) -> str:
    """The figure as one ``<svg>`` element without the XML header, for a file or a page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no metadata, so no addresses
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return re.sub(r"^.*?(?=<svg\b)", "", buffer.getvalue(), flags=re.DOTALL)
