"""An edited memory in the lines at a run's end, in its report and in comparisons."""

from __future__ import annotations

import json

import pytest

from eval.compare.runs import _settings as settings_of
from eval.edited import EditRecord, LeftOut, read_edit, scores_before
from eval.report.write import write_report
from launch.summary import summary
from moram_dist.config import EvalConfig, RecordConfig, RunConfig
from moram_dist.registry import InputError
from tests.helpers.configs import config_of
from tests.helpers.reported_runs import SCORES, TASKS, make_run

BEFORE = [[90.0, None, None], [80.0, 70.0, None], [60.0, 50.0, 40.0]]
EDIT = EditRecord(
    command="drop",
    what="mood dropped",
    caution="not a memory that never learned mood",
    sources=("runs/demo",),
    before={"": {"tasks": TASKS, "metrics": dict.fromkeys(TASKS, "accuracy"), "scores": BEFORE}},
    left_out=LeftOut(task="mood", metric="accuracy", before=100.0, after=2.5),
)
LINES = [
    "Made from runs/demo: mood dropped.",
    "It is not a memory that never learned mood.",
    "mood (accuracy): 100.00 before, 2.50 without its atoms",
]
CONFIG = RunConfig(
    method=config_of(), eval=EvalConfig(recall="all"), record=RecordConfig(tracking="none")
)


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "run")
    EDIT.write(folder)
    return folder


def test_it_is_read_as_it_was_written(run):
    assert read_edit(run) == EDIT
    assert list(EDIT.lines) == LINES
    assert [list(row) for row in scores_before(run, EDIT, None).scores] == BEFORE
    assert scores_before(run, EDIT, "all") is None
    assert read_edit(run.parent) is None


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content.pop("what"), "edit.json: what: "),
        (lambda content: content["left_out"].update(after="high"), r"left_out\.after"),
        (lambda content: content.update(before=[]), "edit.json: before: "),
        (lambda content: content["before"].update({"": 3}), "edit.json: expected an object"),
        (lambda content: content["before"][""].pop("scores"), "edit.json: scores is missing"),
    ],
)
def test_a_damaged_one_is_one_line(run, damage, match):
    path = run / "edit.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=match) as error:
        scores_before(run, read_edit(run), None)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=match):
        write_report(run)


def test_the_end_of_a_run_shows_both_matrices(run):
    lines = summary(run, run / "report.html", CONFIG).split("\n")
    first = lines.index(LINES[0])
    assert lines[first : first + 4] == [*LINES, "what it was made from scored:"]
    rows = [line.split()[1:] for line in lines[first + 5 : first + 8]]
    assert rows == [["90.00"], ["80.00", "70.00"], ["60.00", "50.00", "40.00"]]
    after = sum(SCORES[-1]) / 3
    assert f"AP: 50.00 before, {after:.2f} after" in lines


def test_the_report_shows_both_matrices(run):
    page = write_report(run).read_text("utf-8")
    assert "An edited memory" in page and all(line in page for line in LINES)
    assert "Scores before:" in page and page.count("50.00") > 0
    (run / "edit.json").unlink()
    page = write_report(run).read_text("utf-8")
    assert "An edited memory" not in page and "50.00" not in page


def test_a_task_that_was_not_measured_before():
    unknown = LeftOut(task="mood", metric="accuracy", before=None, after=2.5)
    *_, last = EditRecord(**{**vars(EDIT), "left_out": unknown}).lines
    assert last == "mood (accuracy): not measured before, 2.50 without its atoms"


def test_a_comparison_sets_it_apart(run):
    assert settings_of(run)["memory.edited"] == "mood dropped"
    (run / "edit.json").unlink()
    assert "memory.edited" not in settings_of(run)
