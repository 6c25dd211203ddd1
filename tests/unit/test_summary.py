"""The matrix that a finished run prints."""

import json

import pytest

from launch.summary import summary
from moram_dist.config import RecordConfig, RunConfig
from tests.helpers.configs import config_of

SILENT = RunConfig(method=config_of(), record=RecordConfig(tracking="none"))


def matrix(tmp_path, tasks):
    scores = [[100.0 / (i + 1) if i <= t else None for i in range(len(tasks))] for t in range(2)]
    content = {"tasks": tasks, "metrics": dict.fromkeys(tasks, "m"), "scores": scores}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    lines = summary(tmp_path, tmp_path / "report.html", SILENT).split("\n")
    return [line.rstrip() for line in lines[2:5]]


def test_short_names_head_their_columns(tmp_path):
    assert matrix(tmp_path, ["topic", "mood"]) == [
        "after   topic    mood",
        "topic  100.00",
        "mood   100.00   50.00",
    ]


@pytest.mark.parametrize("count", [4, 15])
def test_long_names_stand_in_rows_only(tmp_path, count):
    names = [f"task{1000 + i}_with_a_name_of_more_than_forty_characters" for i in range(count)]
    head, first, second = matrix(tmp_path, names)
    assert head.split() == ["after", *(str(i + 1) for i in range(count))]
    assert first.split() == ["1", names[0], "100.00"]
    assert second.split() == ["2", names[1], "100.00", "50.00"]
    assert len(head) < 180


def test_many_tasks_are_a_screen_and_not_a_matrix(tmp_path):
    names = [f"task{i:03d}" for i in range(400)]
    scores = [[100.0 if i <= t else None for i in range(400)] for t in range(400)]
    scores[-1][398] = 25.0
    content = {"tasks": names, "metrics": dict.fromkeys(names, "m"), "scores": scores}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    lines = summary(tmp_path, tmp_path / "report.html", SILENT).split("\n")
    assert len(lines) < 60 and max(map(len, lines)) < 120
    assert "the last 40 of 400 tasks" in lines[1]
    assert [line.split() for line in lines[41:43]] == [
        ["100.00", "25.00", "task398"],
        ["100.00", "100.00", "task399"],
    ]
    assert lines[44].startswith("AP 99.81   BWT -0.19")


def test_a_whole_matrix_has_three_blocks_of_columns(tmp_path):
    scores = [[60.0, 10.0, 30.0], [50.0, 70.0, 40.0], [40.0, 61.0, 80.0]]
    tasks = ["topic", "mood", "language"]
    content = {"tasks": tasks, "metrics": dict.fromkeys(tasks, "m"), "scores": scores}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    lines = summary(tmp_path, tmp_path / "report.html", SILENT).split("\n")
    assert lines[2:11] == [
        "after      topic    mood  language",
        "topic      60.00   10.00     30.00",
        "mood       50.00   70.00     40.00",
        "language   40.00   61.00     80.00",
        "",
        "           topic    mood  language    mean",
        "Transfer           10.00     35.00   22.50",
        "Average    50.00   47.00     50.00   49.00",
        "Last       40.00   61.00     80.00   60.33",
    ]
    assert lines[12].startswith("AP 60.33   BWT ") and "Transfer" not in lines[12]


def test_many_tasks_have_the_means_of_the_blocks(tmp_path):
    names = [f"task{i:03d}" for i in range(30)]
    scores = [[100.0 if i <= t else 50.0 for i in range(30)] for t in range(30)]
    content = {"tasks": names, "metrics": dict.fromkeys(names, "m"), "scores": scores}
    (tmp_path / "scores.json").write_text(json.dumps(content))
    said = summary(tmp_path, tmp_path / "report.html", SILENT)
    assert "Transfer 50.00   Average 75.83   Last 100.00" in said


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("sqlite:///x.db", "compare: mlflow ui --backend-store-uri sqlite:///x.db"),
        ("https://me:secret@tracker:5000", "compare: https://tracker:5000"),
    ],
)
def test_the_last_line_says_where_runs_are_compared(tmp_path, uri, line):
    matrix(tmp_path, ["topic", "mood"])
    config = RunConfig(method=config_of(), record=RecordConfig(tracking_uri=uri))
    assert summary(tmp_path, tmp_path / "report.html", config).endswith("\n" + line)
