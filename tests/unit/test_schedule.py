"""The learning rate over a task."""

from __future__ import annotations

import pytest

from moram_dist.train.schedule import learning_rate


def rates(total, schedule, warmup_ratio=0.0, peak=2.0):
    return [
        learning_rate(step, total, peak=peak, schedule=schedule, warmup_ratio=warmup_ratio)
        for step in range(total)
    ]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2, 2, 2, 2]),
        ("linear", [2, 1.5, 1, 0.5]),
        ("cosine", [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]),
    ],
)
def test_without_warm_up(schedule, expected):
    assert rates(4, schedule) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "tail"),
    [
        ("constant", [2, 2, 2, 2]),
        ("linear", [2, 1.5, 1, 0.5]),
        ("cosine", [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]),
    ],
)
def test_warm_up_climbs_to_the_peak_and_the_schedule_follows(schedule, tail):
    assert rates(8, schedule, warmup_ratio=0.5) == pytest.approx([0.5, 1, 1.5, 2, *tail])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.3, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_step_learns_and_none_beyond_the_peak(total, warmup_ratio, schedule):
    found = rates(total, schedule, warmup_ratio)
    assert all(0 < rate <= 2 for rate in found)
    assert max(found) == 2
