"""What a run says of its recalls: page, files, last lines, tracked metrics."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path

import pytest

from eval.confusion import Confusion, read_confusion
from eval.continual import Scores
from eval.figures import svg_text
from eval.measure.row_metrics import row_metrics
from eval.predictions import predictions_path
from eval.report.plots import confusion_map
from eval.report.write import write_report
from eval.run import main
from eval.score_matrix import score_matrices
from eval.scoring_modes import ScoringMode, saved_scoring_modes
from launch.summary import summary
from moram_dist.config import EvalConfig, RecordConfig, RunConfig
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Task
from tests.helpers.configs import config_of
from tests.helpers.made_up_runs import make_run

TASKS = ["topic", "mood"]
BY_ALL = {(0, 0): [100.0] * 4, (1, 0): [100.0, 0.0, 0.0, 0.0], (1, 1): [100.0, 100.0]}
BY_PREFIX = {(0, 0): [100.0] * 4, (1, 0): [100.0, 100.0, 100.0, 0.0], (1, 1): [100.0, 0.0]}
RECOGNISED = {"topic": ["topic", "topic", "mood", None], "mood": ["mood", "mood"]}
"""None is rejected. So of topic's prompts 50 % were recognised, of all six 4."""

MODES = (
    ScoringMode("generate", "all"),
    ScoringMode("generate", "prefix"),
    ScoringMode("generate", "oracle"),
)


def recognise(run_dir: Path, row: int, suffix: str | None) -> None:
    for column, task in enumerate(TASKS[: row + 1]):
        path = predictions_path(run_dir, row, column, task, suffix)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line, name in zip(lines, RECOGNISED[task], strict=True):
            line |= {"recognised": name} if name else {"recognised": TASKS[0], "rejected": True}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run_dir(tmp_path):
    recalls = "all,prefix,oracle"
    folder = make_run(tmp_path / "run", BY_ALL, tasks=TASKS, recall=recalls)
    for mark, cells in ((".prefix", BY_PREFIX), (".oracle", {**BY_PREFIX, (1, 0): [100.0] * 4})):
        make_run(folder, cells, tasks=TASKS, recall=recalls, mark=mark)
    recognise(folder, 1, "prefix")
    settings = (folder / "run.yaml").read_text()
    asked = "eval:\n  recogniser: means\n  unknown: base\n"
    (folder / "run.yaml").write_text(settings.replace("eval:\n", asked))
    (folder / "environment.json").write_text("{}")
    return folder


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_confusion_by_hand(run_dir):
    found = read_confusion(run_dir, TASKS, 1, "prefix")
    assert found == Confusion(tasks=("topic", "mood"), counts=((2, 1, 1), (0, 2, 0)))
    assert (found.accuracy, found.rejected) == (100 * 4 / 6, 100 / 6)
    assert found.percents() == [[50.0, 25.0, 25.0], [0.0, 100.0, 0.0]]
    assert read_confusion(run_dir, TASKS, 1, None) is None  # nobody was asked
    assert read_confusion(run_dir, TASKS, -1, "prefix") is None
    predictions_path(run_dir, 1, 1, "mood", "prefix").unlink()
    rest = read_confusion(run_dir, TASKS, 1, "prefix")
    assert rest.accuracy == 50.0 and rest.percents()[1] == [None, None, None]
    for name in ("food", 3, ["mood"]):
        path = predictions_path(run_dir, 1, 0, "topic", "prefix")
        path.write_text(json.dumps({"recognised": name}) + "\n")
        with pytest.raises(InputError, match="line 1: recognised: no task that was learned"):
            read_confusion(run_dir, TASKS, 1, "prefix")


def test_recalls_stand_side_by_side_in_the_report(run_dir):
    index = write_report(run_dir)
    page = index.read_text(encoding="utf-8")
    said = text_of(page)
    assert "The scores above are those of recall all" in said
    assert "task recall all recall prefix recall oracle (told the task) topic" in said
    minus = "\N{MINUS SIGN}"
    assert "topic 25.00 75.00 100.00 mood 100.00 50.00 50.00 AP 62.50 62.50 75.00" in said
    assert f"BWT {minus}75.00 {minus}25.00 0.00 forgetting 75.00 25.00 0.00" in said
    assert "drift" not in said and "measured by recall all" in said
    assert "not task-agnostic" in said
    unmarked = re.findall(r"oracle(?! \(told the task\)| is not task-agnostic)", said)
    assert len(unmarked) == 1 and "eval.recall all,prefix,oracle" in said  # the setting itself
    saved = json.loads((index.parent / "metrics.json").read_text())
    by_mode = saved["metrics_by_way"]
    assert [(mode["answers"], mode["recall"]) for mode in by_mode] == [
        ("generate", "all"),
        ("generate", "prefix"),
        ("generate", "oracle"),
    ]
    for mode, name in zip(by_mode, ("scores", "scores.prefix", "scores.oracle"), strict=True):
        assert mode["metrics"] == Scores.load(run_dir / f"{name}.json").sequence_metrics()
    assert by_mode[0]["metrics"] == saved["metrics"]


def test_the_report_shows_what_was_recognised(run_dir):
    index = write_report(run_dir)
    said = text_of(index.read_text(encoding="utf-8"))
    assert "the recogniser means assigned 66.7 % of all prompts to their own task" in said
    assert "16.7 % to no task ( unknown ); those were answered by the base alone." in said
    saved = json.loads((index.parent / "metrics.json").read_text())
    assert saved["recogniser"] == {"accuracy": 100 * 4 / 6, "rejected": 100 / 6}
    with (index.parent / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["prompts of", "topic", "mood", "unknown"],
        ["topic", "50.0", "25.0", "25.0"],
        ["mood", "0.0", "100.0", "0.0"],
    ]
    figure = (index.parent / "confusion.svg").read_text()
    assert figure.startswith("<svg") and figure.count(">25.0<") == 2 and ">0.0<" not in figure


def test_prefix_may_be_the_first_or_the_only_recall(tmp_path):
    folder = make_run(tmp_path / "run", BY_PREFIX, tasks=TASKS, recall="prefix")
    recognise(folder, 1, None)
    (folder / "environment.json").write_text("{}")
    index = write_report(folder)
    assert (index.parent / "confusion.svg").exists()
    assert "How answers were obtained" not in index.read_text(encoding="utf-8")
    assert "metrics_by_way" not in (index.parent / "metrics.json").read_text()


def test_the_only_recall_may_be_the_oracle(tmp_path):
    folder = make_run(tmp_path / "run", BY_PREFIX, tasks=TASKS, recall="oracle")
    (folder / "environment.json").write_text("{}")
    said = text_of(write_report(folder).read_text(encoding="utf-8"))
    assert "measured by recall oracle (told the task)" in said
    config = RunConfig(
        method=config_of(), eval=EvalConfig(recall="oracle"), record=RecordConfig(tracking="none")
    )
    assert "   recall oracle (told the task)\nreport" in summary(folder, Path("r"), config)


def test_many_tasks_are_a_picture():
    n = 400
    percents = [[100.0 * (j == i) for j in range(n + 1)] for i in range(n)]
    figure = svg_text(confusion_map([f"task_{i}_of_a_long_sequence" for i in range(n)], percents))
    assert figure.count("<text") < 200 and "data:image/png" in figure


def test_a_report_is_not_written_through_a_link(run_dir, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run_dir / "report").symlink_to(elsewhere)
    assert main(["report", "--run", str(run_dir)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "report is a link" in err
    assert not [*elsewhere.iterdir()]


def test_the_last_lines_have_a_row_for_each_recall(run_dir):
    record = RecordConfig(tracking="none")
    config = RunConfig(
        method=config_of(), eval=EvalConfig(recall="all,prefix,oracle"), record=record
    )
    lines = summary(run_dir, Path("page"), config).split("\n")
    assert lines[-6:] == [
        "                                       AP         BWT  forgetting",
        "recall all                          62.50      -75.00       75.00",
        "recall prefix                       62.50      -25.00       25.00",
        "recall oracle (told the task)       75.00        0.00        0.00",
        "recognised: 66.67 % of prompts as their own task's, 16.67 % as no task's",
        "report:  page",
    ]
    one = summary(run_dir, Path("page"), RunConfig(method=config_of(), record=record)).split("\n")
    assert one[-2:] == ["AP 62.50   BWT -75.00   forgetting 75.00", "report:  page"]


def test_commands_read_the_files_of_any_scoring_mode(run_dir, capsys):
    assert main(["metrics", "--scores", str(run_dir / "scores.oracle.json")]) == 0
    assert json.loads(capsys.readouterr().out)["ap"] == 75.0
    path = predictions_path(run_dir, 1, 0, "topic", "prefix")
    command = ["rescore", "--predictions", str(path), "--metric", "exact_match_normalised"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 100.0


def test_what_is_tracked_of_a_row(run_dir):
    tasks = tuple(Task(name=name, metric="accuracy", train=(), test=()) for name in TASKS)
    benchmark = Benchmark(name="b", order="o", protocol="p", tasks=tasks)
    matrices = score_matrices(run_dir, benchmark, MODES)
    first, prefix, oracle = MODES
    metrics = row_metrics(run_dir, matrices, 1, [first])
    assert (metrics["score/topic"], metrics["average_so_far"], metrics["ap"]) == (25.0, 62.5, 62.5)
    assert not [name for name in metrics if "/" in name and not name.startswith("score/")]
    assert row_metrics(run_dir, matrices, 1, [prefix]) == {
        "recall_prefix/average_so_far": 62.5,
        "recall_prefix/ap": 62.5,
        "recall_prefix/bwt_gem": -25.0,
        "recall_prefix/forgetting_max": 25.0,
        "recogniser/accuracy": 100 * 4 / 6,
        "recogniser/rejected": 100 / 6,
    }
    assert row_metrics(run_dir, matrices, 1, MODES) == {
        **metrics,
        **row_metrics(run_dir, matrices, 1, [prefix]),
        **row_metrics(run_dir, matrices, 1, [oracle]),
    }
    assert "recall_oracle_told_the_task/ap" in row_metrics(run_dir, matrices, 1, [oracle])
    assert row_metrics(run_dir, matrices, 0, [oracle]) == {
        "recall_oracle_told_the_task/average_so_far": 100.0
    }
    assert row_metrics(run_dir, matrices, -1, [prefix, oracle]) == {}
    assert ScoringMode("labels", "all").metric_prefix(prefix) == "answers_labels.recall_all"


def test_what_is_tracked_of_a_whole_matrix(tmp_path):
    """Three tasks: nothing more after the second, and at the end the blocks by mode and column."""
    names = ["topic", "mood", "form"]
    whole = [[60.0, 10.0, 30.0], [50.0, 70.0, 40.0], [40.0, 61.0, 80.0]]
    seen = [[row[j] if j <= i else None for j in range(3)] for i, row in enumerate(whole)]
    tasks = tuple(Task(name=name, metric="accuracy", train=(), test=()) for name in names)
    benchmark = Benchmark(name="b", order="o", protocol="p", tasks=tasks)
    for name, scores in (("scores", whole), ("scores.prefix", whole), ("scores.oracle", seen)):
        content = {"tasks": names, "metrics": dict.fromkeys(names, "accuracy"), "scores": scores}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    matrices = score_matrices(tmp_path, benchmark, MODES)
    found = row_metrics(tmp_path, matrices, 2, MODES)
    assert [found[name] for name in ("transfer", "average", "last")] == [22.5, 49.0, 181 / 3]
    assert {name: value for name, value in found.items() if "_on/" in name} == {
        "transfer_on/mood": 10.0,
        "transfer_on/form": 35.0,
        "average_on/topic": 50.0,
        "average_on/mood": 47.0,
        "average_on/form": 50.0,
    }
    assert (found["recall_prefix/transfer"], found["recall_prefix/average"]) == (22.5, 49.0)
    assert "recall_oracle_told_the_task/last" not in found
    del matrices[MODES[0]].rows[2]
    assert not [n for n in row_metrics(tmp_path, matrices, 1, MODES[:1]) if n.startswith("trans")]


def test_the_last_lines_have_the_blocks_of_each_recall(tmp_path):
    whole = {(0, 0): [100.0], (0, 1): [0.0], (1, 0): [100.0], (1, 1): [100.0]}
    for mark in ("", ".prefix"):
        make_run(tmp_path, whole, tasks=TASKS, recall="all,prefix", mark=mark)
    asked = EvalConfig(recall="all,prefix")
    record = RecordConfig(tracking="none")
    config = RunConfig(method=config_of(), eval=asked, record=record)
    lines = [line.split() for line in summary(tmp_path, tmp_path / "x", config).split("\n")]
    assert "AP BWT forgetting Transfer Average Last".split() in lines
    assert "recall prefix 100.00 0.00 0.00 0.00 75.00 100.00".split() in lines


def test_scoring_modes_of_a_run_that_an_older_version_began():
    path = Path("run.yaml")
    assert saved_scoring_modes({}, path) == (ScoringMode("generate", "all"),)
    assert saved_scoring_modes({"eval.answers": "labels,generate"}, path) == (
        ScoringMode("labels", "all"),
        ScoringMode("generate", "all"),
    )
    with pytest.raises(InputError, match=r"^run\.yaml: unknown --recall 'prefx'; did you mean"):
        saved_scoring_modes({"eval.recall": "prefx"}, path)
