"""The report's page: ``page.html`` filled with a ``ReportContents``. It loads no other files.

A model may answer with a script tag, so the templates escape every value. Only the figures are
inserted unescaped: our own code drew them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from eval.column_blocks import BLOCKS
from eval.confusion import UNKNOWN
from eval.continual import HEADLINE
from eval.markup import MINUS, visible
from eval.report.contents import ReportContents
from eval.report.plots import MANY_TASKS
from eval.routing import SILENT
from eval.run_files import ScoredExample
from eval.scoring_modes import ORACLE_NOTE
from eval.templates import templates_in

DASH = "\N{EN DASH}"
"""Shown for unknown values."""

SHOWN_CHARACTERS = 220
"""Longer texts are cut; a click shows the whole text."""

LONGEST_TEXT = 50_000
"""Characters of a whole text; longer texts are cut."""

MOST_EXAMPLES = 2**21
"""Characters of all examples together: a browser must still open the page at once."""

DEFINITIONS = {
    "ap": "mean of the last row: all tasks, after the last one was learned",
    "all_average": "mean of every score on a task already learned, over all rows",
    "mean_diagonal": "mean score on each task right after it was learned",
    "bwt_gem": "mean change of the earlier tasks from right after learning to the end",
    "bwt_sapt": "the same sum of changes, divided by the number of all tasks",
    "bwt_clipped": "bwt_sapt with gains counted as 0",
    "forgetting_max": "mean over the earlier tasks of best score since learned, less the last",
    "fwt_gem": "mean score just before a task is learned, less that of the untouched base",
    "fwt_single": "mean_diagonal less the mean of models trained on one task alone",
    "intransigence_single": "mean of models trained on one task alone, less mean_diagonal",
    "intransigence_joint": "mean of a model trained on all tasks at once, less mean_diagonal",
    "transfer": "mean score on tasks not learned yet, first per task, then over tasks",
    "average": "mean of the whole matrix, tasks not learned yet included",
    "last": "mean of the last row, named so beside transfer and average",
}
"""One line for each sequence metric; eval/continual.py has the formulas and their sources."""


def page(contents: ReportContents, figures: Mapping[str, str]) -> str:
    """The whole document as HTML. ``figures``: name to SVG, as ``plots.figures`` names them."""
    return _TEMPLATES.get_template("page.html").render(
        report=contents, figures=figures, predictions=_that_fit(contents.predictions)
    )


def _that_fit(predictions: Mapping[str, Sequence[ScoredExample]]) -> dict[str, Any]:
    """Tasks and their examples in order, as many as fit into ``MOST_EXAMPLES``."""
    fitting = {}
    room = MOST_EXAMPLES
    for task, examples in predictions.items():
        for one in examples:
            for text in (one.prompt, *one.references, one.prediction):
                room -= len(escape(_shown(text)))
        if room < 0:
            break
        fitting[task] = examples
    return fitting


def _shown(value: Any) -> Any:
    """A value as text, not escaped yet; lists and mappings as JSON, None as a dash."""
    if isinstance(value, Markup):  # from a macro, which has escaped it
        return value
    if value is None:
        return DASH
    if isinstance(value, list | dict):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except (RecursionError, TypeError, ValueError):  # values that YAML can hold and JSON cannot
            value = f"a {type(value).__name__}"
    text = str(value)
    return visible(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …")


def _score(value: float | None) -> str:
    """Two decimals with a true minus sign; a dash for None."""
    return DASH if value is None else f"{value:.2f}".replace("-", MINUS)


_TEMPLATES = templates_in(Path(__file__).parent, _shown)
_TEMPLATES.filters["score"] = _score
_TEMPLATES.globals.update(
    BLOCKS=BLOCKS,
    DASH=DASH,
    DEFINITIONS=DEFINITIONS,
    HEADLINE=HEADLINE,
    MANY_TASKS=MANY_TASKS,
    ORACLE_NOTE=ORACLE_NOTE,
    SHOWN_CHARACTERS=SHOWN_CHARACTERS,
    SILENT=SILENT,
    UNKNOWN=UNKNOWN,
    zip=zip,
)
