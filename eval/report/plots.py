"""Figures of one run's report: pure functions of numbers that return a Figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.confusion import UNKNOWN
from eval.figures import AMOUNT, FULL_WIDTH, HALF_WIDTH, INK, LOSS, QUIET, canvas
from eval.markup import figure_text
from eval.report.contents import ReportContents
from eval.routing import SILENT

AMOUNTS = LinearSegmentedColormap.from_list("amounts", ["#f3f7fc", "#a9cbe8", "#2b6cb0", "#153e6b"])

Matrix = Sequence[Sequence[float | None]]
"""Row i, column j: score on task j after training on task i, 0 to 100; None where not measured."""

MANY_TASKS = 50
"""With more tasks a cell is too small for a number: the matrix is one picture, only some names are
shown, and bars show only the tasks that lost most, so the figures of any run take a second."""

MOST_NAMES = 40

LARGEST_LOSS = 1e30


def figures(report: ReportContents) -> dict[str, Figure]:
    """The figures of a report by file name.

    ``matrix``, ``average`` and ``forgetting``; ``confusion`` if a recogniser ran, ``routing`` if
    atoms were observed, ``loss`` if there is a curve.
    """
    matrix = report.main.matrix
    found = {
        "matrix": heat_map(matrix.tasks, matrix.scores, matrix.base),
        "average": average_curve(report.average),
        "forgetting": forgetting_bars(matrix.tasks, report.forgetting),
    }
    if report.recognition is not None:
        confusion = report.recognition.confusion
        found["confusion"] = confusion_map(confusion.tasks, confusion.percents())
    if report.routing:
        found["routing"] = routing_map(report.routing[-1].tasks, report.routing[-1].shares)
    if report.curve:
        steps = [point.step for point in report.curve]
        losses = [point.loss for point in report.curve]
        names = [point.task or "" for point in report.curve]
        found["loss"] = loss_curve(steps, losses, names)
    return found


def heat_map(
    tasks: Sequence[str], scores: Matrix, base: Sequence[float | None] | None = None
) -> Figure:
    """The score matrix: one row after each task, one column per task; see ``MANY_TASKS``.

    Args:
        tasks: names in the order of learning.
        scores: rows so far, at most one per task.
        base: scores of the untouched base model, drawn as a first row.
    """
    labels = [f"after {name}" for name in tasks[: len(scores)]]
    rows = list(scores)
    if base is not None:
        labels.insert(0, "base model")
        rows.insert(0, base)
    return _map(labels, tasks, rows, "score on")


def confusion_map(tasks: Sequence[str], percents: Matrix) -> Figure:
    """The recogniser's confusion matrix: one row per task of the prompts, drawn as ``heat_map``.

    Args:
        tasks: names in the order of learning.
        percents: a row for each task, a column for each task and a last one for prompts
            recognised as no task's. Cells of 0 stay blank.
    """
    labels = [f"prompts of {name}" for name in tasks]
    shown = [[None if value == 0 else value for value in row] for row in percents]
    return _map(labels, [*tasks, UNKNOWN], shown, "recognised as")


def routing_map(tasks: Sequence[str], percents: Matrix) -> Figure:
    """Whose atoms answer: one row per task of the test tokens, drawn as ``heat_map``.

    Args:
        tasks: names in the order of learning.
        percents: a row for each task, a column for each task's atoms and a last one for weight
            that is silenced.
    """
    return _map([f"tokens of {name}" for name in tasks], [*tasks, SILENT], percents, "atoms of")


def _map(labels: Sequence[str], columns: Sequence[str], rows: Matrix, title: str) -> Figure:
    grid = [[math.nan if value is None else value for value in row] for row in rows]
    many = len(columns) > MANY_TASKS
    height = FULL_WIDTH if many else 1.0 + 0.38 * max(len(grid), 1)
    longest = max((len(figure_text(name)) for name in columns), default=0)
    height += 0.06 * max(longest - 30, 0)  # slanted names take height, which few rows do not have
    with canvas(FULL_WIDTH, height) as figure:
        axes = figure.subplots()
        if grid and many:
            extent = (0, len(columns), len(grid), 0)
            image = axes.imshow(
                grid,
                cmap=AMOUNTS,
                vmin=0,
                vmax=100,
                extent=extent,
                aspect="auto",
                interpolation="nearest",
            )
            figure.colorbar(image, ax=axes, shrink=0.4, aspect=40)
        elif grid:
            axes.pcolormesh(grid, cmap=AMOUNTS, vmin=0, vmax=100, edgecolors="white", linewidth=1.5)
        for i, row in enumerate([] if many else grid):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    colour = "white" if value > 58 else INK  # equal contrast about there
                    axes.text(j + 0.5, i + 0.5, f"{value:.1f}", ha="center", va="center", c=colour)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(max(len(grid), 1), 0)
        named = _thinned(len(columns))
        _name_ticks(axes, [columns[j] for j in named], [j + 0.5 for j in named], FULL_WIDTH - 2)
        named = _thinned(len(labels))
        axes.set_yticks([i + 0.5 for i in named], [figure_text(labels[i]) for i in named])
        axes.set_xlabel(title)
        axes.spines[:].set_visible(False)
    return figure


def average_curve(averages: Sequence[float | None]) -> Figure:
    """Mean score over the tasks learned so far, by their number; a gap where it is unknown."""
    with canvas(HALF_WIDTH, 2.7) as figure:
        axes = figure.subplots()
        learned = range(1, len(averages) + 1)
        known = [math.nan if value is None else value for value in averages]
        axes.plot(learned, known, color=AMOUNT, marker="o", markersize=5, linewidth=1.8)
        every = 1 + len(known) // 10  # numbers side by side would touch
        for x, y in zip(learned, known, strict=True):
            if not math.isnan(y) and (len(known) - x) % every == 0:  # the newest always has one
                axes.annotate(f"{y:.1f}", (x, y), (0, 7), textcoords="offset points", ha="center")
        axes.set_xlim(0.5, max(len(averages), 1) + 0.5)
        axes.set_ylim(0, 105)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("average score")
        axes.grid(axis="y")
    return figure


def forgetting_bars(tasks: Sequence[str], drops: Sequence[float | None]) -> Figure:
    """Points that each task lost since its best row; unknown ones are left out.

    If there are many tasks, only those that lost most are shown.
    """
    known = [(name, drop) for name, drop in zip(tasks, drops, strict=False) if drop is not None]
    measured = len(known)
    if measured > MANY_TASKS:
        known = sorted(known, key=lambda one: -one[1])[:MOST_NAMES]
    with canvas(HALF_WIDTH, max(2.7, 0.8 + 0.26 * len(known))) as figure:
        axes = figure.subplots()
        values = [drop for _, drop in known]
        colours = [LOSS if value > 0 else AMOUNT for value in values]
        bars = axes.barh(range(len(known)), values, height=0.62, color=colours)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.set_yticks(range(len(known)), [figure_text(name) for name, _ in known])
        axes.axvline(0, color=QUIET, linewidth=0.8)
        # At least 10 points wide, so that a small change does not look like a catastrophe; beyond
        # the bars there is room for their numbers, and few bars stay as thin as many.
        low, high = min([0.0, *values]), max([10.0, *values])
        room = 0.12 * (high - low)
        axes.set_xlim(low - room if low < 0 else 0, high + room)
        axes.set_ylim(max(len(known), 5) - 0.5, -0.5)
        shown = f": {len(known)} of {measured} tasks" if len(known) < measured else ""
        axes.set_xlabel(f"points lost since the best row{shown}")
        axes.grid(axis="x")
    return figure


def loss_curve(steps: Sequence[int], losses: Sequence[float], tasks: Sequence[str]) -> Figure:
    """Training loss over global steps, with a line and a name where each task begins.

    Many long names would leave no room for the curve; tasks are numbered then.

    Args:
        steps: global optimizer steps, rising.
        losses: one per step; values that an axis cannot show, such as NaN, leave a gap.
        tasks: the name of the task of each step.
    """
    with canvas(FULL_WIDTH, 2.3) as figure:
        axes = figure.subplots()
        shown = [loss if abs(loss) < LARGEST_LOSS else math.nan for loss in losses]
        axes.plot(steps, shown, color=AMOUNT, linewidth=1.2)
        begins = [k for k in range(len(tasks)) if k == 0 or tasks[k] != tasks[k - 1]]
        crowded = len(begins) > 8
        numbered = crowded and max(map(len, tasks)) > 16
        for number in _thinned(len(begins)):
            k = begins[number]
            axes.axvline(steps[k], color=QUIET, linewidth=0.6, linestyle=(0, (3, 3)))
            axes.annotate(
                f"{number + 1}" if numbered else figure_text(tasks[k]),
                (steps[k], 1.0),
                (3, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=QUIET,
                fontsize=8,
                rotation=30 if crowded and not numbered else 0,
            )
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss")
        axes.grid(axis="y")
    return figure


def _thinned(number: int) -> range:
    """Evenly spaced indices of ``number`` items: all up to ``MANY_TASKS``, else ``MOST_NAMES``."""
    return range(0, number, 1 if number <= MANY_TASKS else 1 + (number - 1) // MOST_NAMES)


def _name_ticks(axes, names: Sequence[str], places: Sequence[float], room: float) -> None:
    """Label the horizontal axis; names are slanted if they do not fit into ``room`` inches."""
    names = [figure_text(name) for name in names]
    letter = 0.085  # inches, of a 9 point sans-serif
    slanted = any(len(name) * letter > room / max(len(names), 1) for name in names)
    turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(places, names, **turn)
