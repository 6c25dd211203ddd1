"""Uncertainty of a mean over runs and test items: bootstrap, p values, detectable differences.

Every quantity here is linear in item scores, ``sum over tasks of the mean over the task's items``,
and then a mean over runs. Its error therefore has two parts, which are resampled separately and
added:

* items: another test set of the same size. Items are resampled within each task, once for all runs
  together, because all runs answered the same items.
* runs: another seed or order. Runs are resampled. A few runs give a poor estimate of their spread,
  so each resample draws the spread too; otherwise a 95 % interval over three runs would cover the
  truth only 73 % of the time.

Source: Efron and Tibshirani 1993 (percentile bootstrap); Owen 2007, arXiv:0712.1111 (two crossed
factors); Holm 1979 (many comparisons). Letters: B resamples, N items of a task, R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8
CHUNK = 250
"""Resamples drawn at a time, so that their counts stay in the cache."""


def item_resamples(tasks_NR: Sequence[Array], *, resamples: int, seed: int) -> Array:
    """The score of each run on resampled items.

    Args:
        tasks_NR: per task, the contribution of each of N items to each of R runs.
            N differs by task.
        resamples: B.
        seed: of the draw. Equal seeds and numbers of items draw the same items, so differences of
            two columns are paired, whether in one call or two.

    Returns:
        (B, R), sums over tasks of means over drawn items.
    """
    generator = np.random.default_rng(seed)
    scores_BR = np.zeros((resamples, tasks_NR[0].shape[1]))
    for task_NR in tasks_NR:
        n = len(task_NR)
        for start in range(0, resamples, CHUNK):
            b = min(CHUNK, resamples - start)
            drawn = generator.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
            counts_BN = np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n)
            scores_BR[start : start + b] += counts_BN @ task_NR / n
    return scores_BR


def run_resamples(values_R: Array, *, resamples: int, seed: int) -> Array:
    """Deviations of the mean over resampled runs from the mean over these runs.

    The variance of the mean of R resampled runs is too small by the factor (R - 1) / R. Dividing by
    a chi-square with R - 1 degrees of freedom corrects that and turns a normal deviation into
    Student's t. One run says nothing about other runs: its deviations are 0, and the caller must
    say so.

    Args:
        values_R: one value per run.
        resamples: B.
        seed: of the draw.

    Returns:
        (B,), deviations around 0.
    """
    r = len(values_R)
    if r == 1:
        return np.zeros(resamples)
    generator = np.random.default_rng(seed)
    drawn_BR = generator.integers(r, size=(resamples, r))
    deviations_B: Array = (values_R - values_R.mean())[drawn_BR].mean(axis=1)
    return deviations_B * np.sqrt(r / generator.chisquare(r - 1, size=resamples))


def interval(draws_B: Array) -> tuple[float, float]:
    """The middle 95 % of the resamples."""
    low, high = np.quantile(draws_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_value(draws_B: Array) -> float:
    """Two-sided: twice the share of resampled differences that have the other sign or are 0."""
    other = min((draws_B <= 0).sum(), (draws_B >= 0).sum())
    return min(1.0, 2 * (float(other) + 1) / (len(draws_B) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values after Holm's correction for multiple comparisons, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def standard_error(tasks_N: Sequence[Array]) -> float:
    """Standard error over items of a sum over tasks of means over items.

    A task with a single item has no known variance and counts as 0.
    """
    return float(
        np.sqrt(sum(items.var(ddof=1) / len(items) for items in tasks_N if len(items) > 1))
    )


def detectable(error: float) -> float:
    """The smallest true difference detected at 5 % (two-sided) with power 80 %."""
    normal = NormalDist()
    return (normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * error
