"""The report: its numbers are those of the metrics, it is safe to open, and half a run has one."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from statistics import mean

import pytest
import yaml

from eval.continual import forgetting_per_task, sequence_metrics
from eval.predictions import predictions_path
from eval.report.page import DEFINITIONS, SHOWN_CHARACTERS
from eval.report.read import flatten
from eval.report.write import write_report
from moram_dist.registry import InputError
from tests.helpers.reported_runs import BASE, LONG, SCORES, TASKS, make_run


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "run")


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_numbers_are_those_of_the_metrics(run_dir):
    index = write_report(run_dir)
    assert index == run_dir / "report" / "index.html"
    page = index.read_text(encoding="utf-8")
    expected = sequence_metrics(SCORES, BASE)
    for name, value in expected.items():
        shown = re.search(rf'<code>{name}</code></td><td class="n">([^<]*)</td>', page)
        assert shown, f"{name} is in the table"
        number = shown[1].replace("\N{MINUS SIGN}", "-")
        assert number == ("\N{EN DASH}" if value is None else f"{value:.2f}")
    assert f"<strong>{expected['ap']:.2f}</strong>" in page
    assert set(expected) == set(DEFINITIONS), "each metric has its line"
    saved = json.loads((run_dir / "report" / "metrics.json").read_text())
    assert saved["metrics"] == expected
    assert saved["average_so_far"][-1] == expected["ap"]


def test_forgetting_per_task_averages_to_the_metric():
    drops = forgetting_per_task(SCORES)
    assert drops == [61.25 - 48.5, 71.5 - 73.25, None]
    assert mean(drops[:-1]) == sequence_metrics(SCORES)["forgetting_max"]
    assert forgetting_per_task([[5.0, None], [None, 4.0]]) == [None, None]
    assert forgetting_per_task([]) == []


def test_page_refers_to_nothing_outside(run_dir):
    write_report(run_dir)
    for path in (run_dir / "report").iterdir():
        content = path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"'<]+", content))
        if path.name == "index.html":  # shown as text, not fetched
            addresses.discard("https://tracking.example/path")
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    page = (run_dir / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\b(src|href)=\"(?!#)", page) and "url(h" not in page
    assert "<link" not in page and "@import" not in page


def test_figures_and_tables_are_files_too(run_dir):
    folder = write_report(run_dir).parent
    names = {"index.html", "matrix.svg", "average.svg", "forgetting.svg", "loss.svg"}
    assert {path.name for path in folder.iterdir()} == names | {"matrix.csv", "metrics.json"}
    figure = (folder / "matrix.svg").read_text()
    assert figure.startswith("<svg") and ">61.2<" in figure and ">73.2<" in figure
    with (folder / "matrix.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["after", *TASKS]
    assert rows[1] == ["base model", "10.0", "11.0", "2.0"]
    assert [[float(v) for v in row[1:]] for row in rows[2:]] == SCORES
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report(run_dir)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_predictions_are_spread_over_the_file_and_open_to_their_whole_text(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert [k for k in range(12) if f"answer 0-{k}<" in page] == [2, 4, 6, 8]
    assert page.count("<details><summary>\N{HORIZONTAL ELLIPSIS} ") == 15
    assert LONG in page and LONG[-SHOWN_CHARACTERS:] + "</summary>" in page
    assert "A | B" in page


def test_a_prediction_may_hold_any_line_break(run_dir):
    path = next((run_dir / "predictions" / "after_002").glob("on_000_*.jsonl"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    lines[0]["prediction"] = "before\u2028between\x85after"  # line ends to Python, not to JSON
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    assert "before\u2028between\x85after" in write_report(run_dir).read_text(encoding="utf-8")


def test_what_the_run_is(run_dir):
    said = text_of(write_report(run_dir).read_text(encoding="utf-8"))
    for part in (
        "moram on trace",
        "order published",
        "seed 7",
        "method.top_k 8",
        "packages.torch 2.13.0",
        '["train.py", "&"]',
        "C-STANCE accuracy 5000 500 000.safetensors " + "0" * 64,
    ):
        assert part in said


def test_many_tasks_are_a_picture_and_a_page_that_opens(tmp_path):
    tasks = [f"task_{i:03d}_of_a_long_sequence" for i in range(400)]
    scores = [[float((3 * t + 7 * i) % 101) for i in range(400)] for t in range(400)]
    folder = make_run(tmp_path / "run", tasks=tasks, scores=scores, base=None, steps_per_task=5)
    index = write_report(folder)
    page = index.read_text(encoding="utf-8")
    assert len(page.encode()) < 5 * 2**20
    for figure in index.parent.glob("*.svg"):
        content = figure.read_text(encoding="utf-8")
        assert content.count("<text") < 200 and content.count("<path") < 2000, figure.name
    assert "data:image/png" in (index.parent / "matrix.svg").read_text(encoding="utf-8")
    said = text_of(page)
    assert "points lost since the best row: 40 of 399 tasks" in said
    assert "200 of 400 tasks; all are in predictions" in said
    assert f"399 {tasks[399]} accuracy {scores[399][399]:.2f}" in said
    with (index.parent / "matrix.csv").open() as file:
        assert len(list(csv.reader(file))) == 401


def test_long_texts_do_not_make_the_page_long(tmp_path):
    folder = make_run(tmp_path / "run")
    path = next((folder / "predictions" / "after_002").glob("on_000_*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    long = [line | {"prompt": "&" * 10**6, "prediction": "<" * 10**6} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in long))
    assert write_report(folder).stat().st_size < 5 * 2**20


def test_a_whole_matrix_has_transfer_average_and_last_by_task(run_dir):
    said = text_of(write_report(run_dir).read_text(encoding="utf-8"))
    *_, third = TASKS
    assert f"C-STANCE FOMC {third} mean Transfer 12.50 3.50 8.00 Average" in said
    average = [mean(row[j] for row in SCORES) for j in range(3)]
    shown = " ".join(f"{value:.2f}" for value in [*average, mean(average)])
    assert f"Average {shown} Last 48.50 73.25 59.00 60.25" in said
    saved = json.loads((run_dir / "report" / "metrics.json").read_text())["columns"]
    assert saved["transfer"] == dict(zip(TASKS, [None, 12.5, 3.5], strict=True))
    assert saved["last"] == dict(zip(TASKS, SCORES[-1], strict=True))


def test_seen_tasks_alone_have_no_such_columns(tmp_path):
    seen = [[v if j <= i else None for j, v in enumerate(row)] for i, row in enumerate(SCORES)]
    run_dir = make_run(tmp_path / "run", scores=seen, base=None)
    assert "Transfer, Average" not in write_report(run_dir).read_text(encoding="utf-8")
    assert "columns" not in json.loads((run_dir / "report" / "metrics.json").read_text())


def test_incomplete_run_has_a_report(tmp_path):
    run_dir = make_run(
        tmp_path / "run", scores=[[61.25, None, None], [None, 71.5, None]], base=None
    )
    for name in ("benchmark.json", "metrics.jsonl", "memory/memory.json"):
        (run_dir / name).unlink()
    page = write_report(run_dir).read_text(encoding="utf-8")
    said = text_of(page)
    assert "2 of 3" in said and "needs more scores" in said and "moram on trace" in said
    assert ">61.2<" in page and ">nan<" not in page and ">None<" not in page
    assert (run_dir / "report" / "matrix.csv").read_text().splitlines()[1] == "C-STANCE,61.25,,"


def test_run_without_a_score_has_a_report(tmp_path):
    run_dir = make_run(tmp_path / "run", scores=[], base=None)
    assert "0 of 3" in text_of(write_report(run_dir).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["run.yaml", "environment.json", "scores.json"])
def test_missing_file_is_named(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(InputError, match=re.escape(str(run_dir / name))) as caught:
        write_report(run_dir)
    assert "\n" not in str(caught.value)
    assert not (run_dir / "report").exists()


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "f": {}}) == {
        "a.b": 1,
        "a.c.d": [1, 2],
        "e": None,
    }


def with_answers(run_dir: Path, **matrices: list[list[float | None]]) -> Path:
    """The run as one with further answer modes."""
    config = yaml.safe_load((run_dir / "run.yaml").read_text())
    config["eval"] = {"answers": ",".join(("generate", *matrices))}
    (run_dir / "run.yaml").write_text(yaml.safe_dump(config))
    saved = json.loads((run_dir / "scores.json").read_text())
    for mode, scores in matrices.items():
        content = {**saved, "scores": scores, "base": None}
        (run_dir / f"scores.{mode}.json").write_text(json.dumps(content))
    return run_dir


LABELS = [[70.0, None, None], [65.0, 75.0, None], [68.75, 63.25, None]]


def test_further_answer_modes_have_their_matrix_and_their_drift(run_dir):
    with_answers(run_dir, constrained=LABELS[::-1], labels=LABELS)
    path = predictions_path(run_dir, 2, 0, TASKS[0], "labels")
    path.write_text(json.dumps({"prediction": "of another mode"}) + "\n")
    page = write_report(run_dir).read_text(encoding="utf-8")
    said = text_of(page)
    assert "How answers were obtained" in said and "format drift" in said
    assert "The scores above are those of generate" in said
    minus, unknown = "\N{MINUS SIGN}", "\N{EN DASH}"
    assert "task generate constrained labels drift" in said
    assert "C-STANCE 48.50 70.00 68.75 20.25" in said
    assert f"FOMC 73.25 {unknown} 63.25 {minus}10.00" in said
    assert f"<b>$Py150$</b> 59.00 {unknown} {unknown} {unknown}" in said
    assert page.count("<h3>") == 2
    assert "of another mode" not in page
    saved = json.loads((run_dir / "report" / "metrics.json").read_text())
    assert saved["metrics"]["ap"] == sequence_metrics(SCORES)["ap"]
    by_mode = {one["answers"]: one["metrics"] for one in saved["metrics_by_way"]}
    assert list(by_mode) == ["generate", "constrained", "labels"]
    assert by_mode["labels"] == sequence_metrics(LABELS, [None] * 3)


def test_one_scoring_mode_needs_no_table_of_modes(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "How answers were obtained" not in page
    assert "metrics_by_way" not in (run_dir / "report" / "metrics.json").read_text()


def test_drift_waits_for_both_modes(run_dir):
    with_answers(run_dir, labels=LABELS[:2])
    said = text_of(write_report(run_dir).read_text(encoding="utf-8"))
    assert "How answers were obtained" in said and "format drift" not in said
    (run_dir / "scores.labels.json").unlink()
    said = text_of(write_report(run_dir).read_text(encoding="utf-8"))
    assert "How answers were obtained" not in said
