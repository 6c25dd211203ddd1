"""Figures of a comparison: intervals of AP, and forgetting over the sequence of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.compare.comparison import Comparison, Estimate, forgetting_curve
from eval.continual import MatrixEntry
from eval.figures import FULL_WIDTH, HALF_WIDTH, INK, QUIET, canvas
from eval.markup import figure_text

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b7791f", "#2c7a7b", "#b83280", "#4a5568")
MARKERS = "os^Dvp"


def figures(comparison: Comparison) -> dict[str, Figure]:
    """The figures ``ap`` and ``forgetting``, by file name; each only if it was measured."""
    found = {}
    if comparison.by_order:
        labels = [group.label for group in comparison.groups]
        mean = {label: one for (label, name), one in comparison.estimates.items() if name == "AP"}
        found["ap"] = ap_intervals(labels, comparison.orders, mean, comparison.by_order)
    curves = {group.label: forgetting_curve(group) for group in comparison.groups}
    if any(value is not None for curve in curves.values() for value in curve[1:]):
        found["forgetting"] = forgetting_curves(curves)
    return found


def ap_intervals(
    labels: Sequence[str],
    orders: Sequence[str],
    mean: Mapping[str, Estimate],
    by_order: Mapping[tuple[str, str], Estimate],
) -> Figure:
    """AP per method: each order with its interval over items, the mean with that over runs too."""
    shown = [label for label in labels if label in mean]
    step = 0.8 / (len(orders) + 1)
    named: set[str] = set()
    with canvas(FULL_WIDTH, 1.2 + (0.2 + 0.16 * len(orders)) * len(shown)) as figure:
        axes = figure.subplots()
        for row, label in enumerate(shown):
            series = [("mean, items and runs", mean[label], mean[label].both, INK, "D")]
            for k, order in enumerate(orders):
                if (label, order) in by_order:
                    one = by_order[label, order]
                    colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
                    series.append(
                        (f"order {figure_text(order)}, items", one, one.items, colour, marker)
                    )
            for k, (name, one, (low, high), colour, marker) in enumerate(series):
                y = row - 0.4 + step * (k + 0.5)
                axes.plot([low, high], [y, y], color=colour, linewidth=1.6, zorder=2)
                axes.plot(
                    [one.value],
                    [y],
                    marker=marker,
                    color=colour,
                    markersize=4.5,
                    linestyle="",
                    label=None if name in named else name,
                )
                named.add(name)
        axes.set_yticks(range(len(shown)), [figure_text(label) for label in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("AP: mean score on all tasks after the last, 95 % intervals")
        axes.grid(axis="x")
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def forgetting_curves(curves: Mapping[str, Sequence[MatrixEntry]]) -> Figure:
    """Points lost on earlier tasks after each task; a gap where that is unknown."""
    with canvas(FULL_WIDTH - HALF_WIDTH / 2, 3.4) as figure:
        axes = figure.subplots()
        for k, (label, curve) in enumerate(curves.items()):
            values = [math.nan if value is None else value for value in curve]
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=COLOURS[k % len(COLOURS)],
                marker=MARKERS[k % len(MARKERS)],
                markersize=4.5,
                linewidth=1.6,
                linestyle="-" if k < len(COLOURS) else "--",
                label=figure_text(label),
            )
        axes.axhline(0, color=QUIET, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("points lost on earlier tasks")
        axes.grid(axis="y")
        figure.legend(loc="outside right upper", frameon=False)
    return figure
