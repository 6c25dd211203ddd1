"""Short runs of the demo of pictures: killed and resumed, on one rank, and as typed."""

from __future__ import annotations

import pytest

from tests.integration.launching import ROOT, launcher, run, train
from tools.kill_test import Moment, UndisturbedRun, close, disturbed, results, undisturbed

pytestmark = pytest.mark.integration

FLAGS = ("--benchmark", "demo_images", "--order", "shapes,dots")
STEPS = 4  # of each task: 32 pictures, 8 a step


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> UndisturbedRun:
    """Two tasks on two ranks, by the recommended settings."""
    return undisturbed(tmp_path_factory.mktemp("demo") / "undisturbed", *FLAGS)


@pytest.mark.nightly
def test_a_killed_run_resumes_with_the_same_bits(reference, tmp_path):
    assert len(reference.results["losses"]) == 2 * STEPS
    outcome = disturbed(tmp_path / "run", [Moment(1, "after a step", 5)], reference)
    assert (outcome.differs, outcome.kills) == ([], 1)


def test_one_rank_agrees(reference, tmp_path):
    done = train(*reference.flags, "--output_dir", tmp_path / "run", ranks=1)
    assert done.code == 0, done.out + done.err
    found = results(tmp_path / "run")
    assert close(found["losses"], reference.results["losses"])
    answers = {name for name in reference.results if name.startswith(("predictions", "scores"))}
    # Six rows and columns: two tasks after each of them and before, by two recalls.
    assert len(answers) > 8
    assert all(found[name] == reference.results[name] for name in answers)


@pytest.mark.nightly
def test_as_typed(tmp_path):
    """The command of the documents, with ZeRO-3 by the real launcher, on fewer pictures."""
    words = (*FLAGS, "--limit_train", "32", "--limit_eval", "8", "--epochs", "2")
    zero3 = ("--ds_config", ROOT / "ds_configs" / "zero3.json")
    done = run(*launcher(*words, *zero3, "--output_dir", tmp_path / "run"), cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert "recall prefix" in done.out and "report:" in done.out
    assert (tmp_path / "run" / "report" / "matrix.svg").is_file()
