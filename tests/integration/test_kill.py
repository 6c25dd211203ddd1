"""A rank that is killed at a bad moment costs time, and nothing else: the short form.

The long form, at moments drawn at random, is tools/kill_test.py.
"""

from __future__ import annotations

import pytest

from tools.kill_test import Moment, UndisturbedRun, disturbed, undisturbed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> UndisturbedRun:
    return undisturbed(tmp_path_factory.mktemp("kill") / "undisturbed")


def half_of_the_manifest(trace: list[Moment]) -> Moment:
    """Of the second task: it is the second file that publishing writes."""
    begun = trace.index(Moment(0, "before publishing", 1))
    return [m for m in trace[begun:] if m.kind == "half of a file written"][1]


@pytest.mark.parametrize(
    "moments",
    [
        [Moment(1, "after a step", 5)],
        [Moment(0, "before publishing", 1), Moment(1, "after loading", 0)],
        [half_of_the_manifest],
        [Moment(1, "before predicting", 2)],
    ],
    ids=["a step", "the memory file, then loading", "the manifest", "predictions"],
)
def test_a_killed_run_goes_on(reference, tmp_path, moments):
    moments = [m if isinstance(m, Moment) else m(reference.trace) for m in moments]
    outcome = disturbed(tmp_path / "run", moments, reference)
    assert outcome.differs == []
    assert outcome.kills == len(moments)
