"""Intervals against closed forms, their coverage by simulation, and Holm's correction by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.compare.bootstrap import (
    detectable,
    holm,
    interval,
    item_resamples,
    p_value,
    run_resamples,
    standard_error,
)


def normal_items(generator, *shape):
    return generator.standard_normal(shape)


def test_items_agree_with_the_standard_error_of_a_mean():
    generator = np.random.default_rng(1)
    tasks = [3 + 2 * normal_items(generator, 400, 1), 5 * normal_items(generator, 900, 1)]
    draws = item_resamples(tasks, resamples=20_000, seed=0)[:, 0]
    error = math.sqrt(sum(x.var() / len(x) for x in tasks))  # of the bootstrap: no n - 1
    assert draws.mean() == pytest.approx(sum(x.mean() for x in tasks), abs=4 * error / 141)
    assert draws.std() == pytest.approx(error, rel=0.02)  # four times its own standard error
    low, high = interval(draws)
    centre = sum(float(x.mean()) for x in tasks)
    assert low == pytest.approx(centre - 1.96 * error, abs=0.06 * error)
    assert high == pytest.approx(centre + 1.96 * error, abs=0.06 * error)
    assert standard_error([x[:, 0] for x in tasks]) == pytest.approx(error, rel=0.002)


def test_equal_items_are_drawn_for_all_runs():
    x = np.random.default_rng(2).random((300, 1))
    draws = item_resamples([np.hstack([x, x + 1, 2 * x])], resamples=1000, seed=0)
    assert draws[:, 1] == pytest.approx(draws[:, 0] + 1)
    assert draws[:, 2] == pytest.approx(2 * draws[:, 0])
    assert draws[:, 0].std() > 0
    alone = item_resamples([x], resamples=1000, seed=0)
    assert alone[:, 0] == pytest.approx(draws[:, 0])


def test_runs_give_students_interval():
    values = np.array([1.0, 4.0, 2.5, 7.0, 3.5, 5.0, 6.5, 2.0])
    low, high = interval(run_resamples(values, resamples=200_000, seed=0))
    half = 2.3646 * values.std(ddof=1) / math.sqrt(8)  # Student's t, 7 degrees of freedom
    assert (low, high) == (pytest.approx(-half, rel=0.06), pytest.approx(half, rel=0.06))
    assert not run_resamples(values[:1], resamples=10, seed=0).any()


@pytest.mark.parametrize(
    ("runs", "of_run", "of_item", "of_both"),
    [(3, 1.0, 0.5, 0.5), (3, 0.05, 1.0, 1.0), (6, 0.2, 1.0, 0.5), (1, 0.0, 1.0, 1.0)],
)
def test_coverage(runs, of_run, of_item, of_both):
    """The true mean is 0; 95 % intervals may be too wide, as they count the rest twice."""
    generator = np.random.default_rng(3)
    inside, trials = 0, 400
    for trial in range(trials):
        items = (
            of_run * normal_items(generator, 1, runs)
            + of_item * normal_items(generator, 100, 1)
            + of_both * normal_items(generator, 100, runs)
        )
        draws = item_resamples([items], resamples=500, seed=trial).mean(axis=1)
        draws = draws + run_resamples(items.mean(axis=0), resamples=500, seed=trial)
        low, high = interval(draws)
        inside += low <= 0 <= high
    assert 0.92 < inside / trials  # 0.95 less 2.75 of its standard errors


def test_without_the_spread_of_the_spread_coverage_would_fail():
    generator = np.random.default_rng(4)
    inside = 0
    for _ in range(300):
        values = generator.standard_normal(3)
        drawn = values[generator.integers(3, size=(500, 3))].mean(axis=1)
        low, high = interval(drawn)
        inside += low <= 0 <= high
    assert inside / 300 < 0.8


def test_p_value():
    draws = np.array([-1.0] * 3 + [1.0] * 96)
    assert p_value(draws) == pytest.approx(2 * 4 / 100)
    assert p_value(-draws) == pytest.approx(2 * 4 / 100)
    assert p_value(np.zeros(99)) == 1.0
    assert p_value(np.ones(9_999)) == pytest.approx(2 / 10_000)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, and never falling
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_detectable_difference():
    assert detectable(1.0) == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    generator = np.random.default_rng(5)
    found = detectable(1.0) + generator.standard_normal(20_000)  # the true difference, measured
    assert (found > 1.95996).mean() == pytest.approx(0.8, abs=0.01)
