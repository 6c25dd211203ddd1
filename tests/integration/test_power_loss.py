"""A machine that loses its power costs time, and nothing else: the short form.

The long form, which resumes at many points, is tools/power_loss.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tools.disk import Operation
from tools.power_loss import draw, lost, reference, resumed

pytestmark = pytest.mark.integration
nightly = partial(pytest.param, marks=pytest.mark.nightly)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[list[Operation], Path]:
    return reference(tmp_path_factory.mktemp("power") / "loss")


def test_no_promise_is_broken_at_any_point(undisturbed):
    operations, _ = undisturbed
    assert lost(operations, seed=0) == {}


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("run/memory", "is named in memory.json but missing"),
        nightly("run/predictions", "no such file"),  # scores whose predictions are lost
        nightly(".", "all are lost"),
        nightly("run", "tasks and scores were safe"),
    ],
)
def test_a_sync_that_is_left_out_is_found(undisturbed, folder, said):
    """The test can fail: without the syncs of one folder, promises are broken."""
    operations, _ = undisturbed
    without = [o for o in operations if (o.kind, o.path) != ("sync_folder", folder)]
    assert len(without) < len(operations)
    found = lost(without, seed=0)
    assert any(said in problem for problems in found.values() for problem in problems)


def test_what_is_left_is_resumed(undisturbed, tmp_path):
    operations, expected = undisturbed
    after = [n for n, o in enumerate(operations, 1) if o.to == "run/scores.json"]
    (manifest,) = [n for n, o in enumerate(operations, 1) if o.to == "run/memory/memory.json"][:1]
    points = [*draw(operations, 1, seed=1), (manifest, "none", 0), (after[2] + 1, "some", 0)]
    for number, point in enumerate(points):
        assert resumed(operations, point, tmp_path / f"{number}", expected) == [], point
