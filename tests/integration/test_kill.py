"""A rank that is killed at a bad moment costs time, and nothing else: the short form.

The long form, at moments drawn at random, is tools/kill_test.py; the nightly tests run it.
"""

from __future__ import annotations

import re
import sys

import pytest

from tests.integration.launching import ROOT, run
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
        pytest.param([Moment(1, "after a step", 5)], marks=pytest.mark.nightly),
        [Moment(0, "before publishing", 1), Moment(1, "after loading", 0)],
        pytest.param([half_of_the_manifest], marks=pytest.mark.nightly),
        [Moment(1, "after observing", 1), Moment(1, "before predicting", 2)],
    ],
    ids=["a step", "the memory file, then loading", "the manifest", "observing, then predictions"],
)
def test_a_killed_run_goes_on(reference, tmp_path, moments):
    moments = [m if isinstance(m, Moment) else m(reference.trace) for m in moments]
    outcome = disturbed(tmp_path / "run", moments, reference)
    assert outcome.differs == []
    assert outcome.kills == len(moments)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("flags", [(), ("--change_ranks",)], ids=["same ranks", "other ranks"])
def test_at_random_moments(tmp_path, flags):
    command = (sys.executable, ROOT / "tools" / "kill_test.py", "--runs", "20", *flags)
    done = run(*command, "--folder", tmp_path / "runs", cwd=tmp_path, timeout_s=7000)
    assert done.code == 0, done.out + done.err
    runs, kills, equal = map(int, re.findall(r"(?m)^all +(\d+) +(\d+) +(\d+)$", done.out)[0])
    assert runs == equal == 20 and kills >= 20
