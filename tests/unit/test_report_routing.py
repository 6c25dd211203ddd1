"""What a run says of whose atoms answer: its page, its files and the tracked metrics."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace

import pytest

from eval import routing
from eval.figures import svg_text
from eval.measure.row_metrics import row_metrics
from eval.report.plots import routing_map
from eval.report.write import write_report
from eval.routing import LinearRouting, TaskRouting, routing_path, to_json
from eval.score_matrix import score_matrices
from eval.scoring_modes import ScoringMode
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Task
from tests.helpers.reported_runs import TASKS, make_run

LINEAR = LinearRouting(
    name="layers.0.<i>q</i>",
    tokens=(10,),
    weight=((7.5,),),
    unanswered=(1,),
    effective=(15.0,),
    atoms=(8,),
    unchosen=(2,),
    cosine=None,
)
FIRST = TaskRouting(tasks=tuple(TASKS[:1]), examples=(4,), linears=(LINEAR,))
SECOND = TaskRouting(
    tasks=tuple(TASKS[:2]),
    examples=(4, 4),
    linears=(
        replace(
            LINEAR,
            tokens=(10, 8),
            weight=((5.0, 3.5), (1.0, 5.0)),
            unanswered=(0, 2),
            effective=(30.0, 8.0),
            atoms=(8, 8),
            unchosen=(0, 3),
            cosine=0.625,
        ),
    ),
)


@pytest.fixture
def run_dir(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "observe").mkdir()
    for row, found in enumerate((FIRST, SECOND)):  # the third row is not observed
        routing_path(folder, row).write_text(to_json(found))
    return folder


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_report_shows_whose_atoms_answer(run_dir):
    index = write_report(run_dir)
    page = index.read_text(encoding="utf-8")
    assert "<i>q</i>" not in page and page.count("<svg") >= 4
    said = text_of(page)
    assert page.index("Scores after each task") < page.index("Tasks whose atoms answer")
    assert "after FOMC and over all linears" in said
    assert "C-STANCE 50.00 0.00 3.00 8 0 FOMC 62.50 25.00 1.00 8 3" in said
    assert "C-STANCE 8 75.00 10.00 1.50 \N{EN DASH} FOMC 16 56.25 12.50 2.00 0.62" in said
    assert "layers.0.<i>q</i> 56.25 12.50 2.00 3 0.62" in said
    figure = (index.parent / "routing.svg").read_text()
    assert all(f">{number}<" in figure for number in ("50.0", "35.0", "15.0", "12.5", "62.5"))
    with (index.parent / "routing.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["linear", "tokens of", "C-STANCE", "FOMC", "silent"]
    assert rows[1:3] == [
        ["", "C-STANCE", "50.0", "35.0", "15.0"],
        ["", "FOMC", "12.5", "62.5", "25.0"],
    ]
    assert rows[3] == ["layers.0.<i>q</i>", "C-STANCE", "50.0", "35.0", "15.0"]
    saved = json.loads((index.parent / "metrics.json").read_text())
    assert saved["routing"] == {"C-STANCE": FIRST.metrics(), "FOMC": SECOND.metrics()}


def test_a_run_that_was_not_observed_shows_nothing(tmp_path):
    index = write_report(make_run(tmp_path / "run"))
    assert "atoms answer" not in index.read_text(encoding="utf-8")
    assert not (index.parent / "routing.csv").exists()
    assert "routing" not in json.loads((index.parent / "metrics.json").read_text())


def test_a_broken_row_is_named(run_dir):
    routing_path(run_dir, 1).write_text("{")
    with pytest.raises(InputError, match=r"after_001\.json"):
        write_report(run_dir)


def test_a_tracker_gets_the_numbers_of_its_row(run_dir):
    tasks = [Task(name=name, metric="accuracy", train=(), test=()) for name in TASKS]
    benchmark = Benchmark(name="b", order="o", protocol="p", tasks=tuple(tasks))
    mode = ScoringMode("generate", "all")
    matrices = score_matrices(run_dir, benchmark, [mode])
    for row, expected in ((0, FIRST.metrics()), (1, SECOND.metrics()), (2, {}), (-1, {})):
        found = row_metrics(run_dir, matrices, row, [mode])
        assert {k: v for k, v in found.items() if k.startswith("routing/")} == expected
    assert expected == {} and SECOND.metrics()["routing/largest_key_cosine"] == 0.625


def test_many_tasks_are_one_picture():
    n = 120
    shares = [[50.0 * (i == j) for j in range(n)] + [50.0] for i in range(n)]
    figure = svg_text(routing_map([f"task_{i}" for i in range(n)], shares))
    assert figure.count("<image") >= 1 and len(figure) < 300_000


def test_the_work_of_a_page_grows_with_its_numbers_only(tmp_path, monkeypatch):
    """Of a thousand tasks the shares are a million numbers, so none is computed for each line."""
    n = 12
    tasks = [f"task_{i}" for i in range(n)]
    folder = make_run(tmp_path / "run", tasks, [[50.0] * n] * n, base=None)
    each = dict.fromkeys(("tokens", "unanswered", "effective", "atoms", "unchosen"), (1,) * n)
    linear = replace(LINEAR, weight=((0.01,) * n,) * n, **each)
    (folder / "observe").mkdir()
    found = TaskRouting(tasks=tuple(tasks), examples=(4,) * n, linears=(linear,))
    routing_path(folder, n - 1).write_text(to_json(found))
    ratio, calls = routing._ratio, []
    monkeypatch.setattr(routing, "_ratio", lambda *a: calls.append(a) or ratio(*a))
    write_report(folder)
    tables = 3  # of all linears, and of the one linear in the page and in the file
    assert n * n < len(calls) <= tables * n * (n + 2)
