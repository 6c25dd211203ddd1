"""A trained run is asked: answers equal the predictions of its evaluation."""

from __future__ import annotations

import json

import pytest

from launch.generate import main
from tests.integration.launching import ROOT, train

pytestmark = pytest.mark.integration

FLAGS = ("--limit_train", "48", "--limit_eval", "8", "--epochs", "3", "--order", "topic,mood")
FLAGS += ("--dtype", "fp32", "--tracking", "none", "--recall", "prefix,all")
FLAGS += ("--ds_config", ROOT / "ds_configs" / "zero3.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("using") / "run"
    done = train(*FLAGS, "--output_dir", folder, ranks=1)
    assert done.code == 0, done.out + done.err
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("recall", ["prefix", "all"])
@pytest.mark.parametrize(
    ("row", "column", "task"), [(1, 0, "topic"), (1, 1, "mood"), (0, 0, "topic")]
)
def test_answers_are_the_predictions_of_the_run(run, tmp_path, row, column, task, recall):
    """Of the whole memory (row 1) and as it was after its first task (row 0)."""
    mark = "" if recall == "prefix" else ".all"
    file = run / "predictions" / f"after_{row:03d}" / f"on_{column:03d}_{task}{mark}.jsonl"
    words = [str(run), "--file", str(file), "--out", str(tmp_path / "out.jsonl")]
    assert main([*words, "--upto", str(row + 1), "--recall", recall, "--task", task]) == 0
    found, expected = lines(tmp_path / "out.jsonl"), lines(file)
    assert len({line["prediction"] for line in expected}) > 1
    for mine, its in zip(found, expected, strict=True):
        assert mine["prediction"] == its["prediction"]
        assert mine.get("recognised") == (None if its.get("rejected") else its.get("recognised"))


def test_a_single_prompt_gives_the_prediction_too(run, capsys):
    file = run / "predictions" / "after_001" / "on_001_mood.jsonl"
    for line in lines(file)[:3]:
        assert main([str(run), "--prompt", line["prompt"], "--task", "mood"]) == 0
        assert capsys.readouterr().out == line["prediction"] + "\n"
