"""Transfer, Average and Last in a comparison: by hand, with intervals, by task, in every file."""

from __future__ import annotations

import csv
import io
import json
from statistics import mean

import numpy as np
import pytest

from eval.compare.blocks import block_tables
from eval.compare.command import compare_runs
from eval.compare.comparison import compare
from eval.compare.contributions import contributions
from eval.compare.runs import read_run_directory, read_runs
from eval.compare.tables import latex, to_csv
from eval.continual import sequence_metrics
from moram_dist.registry import InputError
from tests.helpers.made_up_runs import make_run, noisy_run, random_scores

TASKS = ["topic", "mood", "form"]


def whole_run(folder, right=0.5, *, seed=0, n=40, tasks=TASKS, **names):
    """A run with every cell measured; ``right``: the chance of a right answer in any of them."""
    generator = np.random.default_rng([seed, int(1000 * right)])
    t = len(tasks)
    cells = {(i, j): random_scores(generator, n + j, right) for i in range(t) for j in range(t)}
    return make_run(folder, cells, tasks=tasks, seed=seed, **names)


def test_contributions_add_up_to_the_metrics(tmp_path):
    generator = np.random.default_rng(0)
    cells = {(i, j): [*(100 * generator.random(5 + j))] for i in range(3) for j in range(3)}
    run = read_run_directory(make_run(tmp_path / "a", cells, tasks=TASKS))
    expected = sequence_metrics(run.scores)
    for metric in ("Transfer", "Average", "Last"):
        parts = contributions(run, metric)
        assert sum(items.mean() for items in parts.values()) == pytest.approx(
            expected[metric.lower()]
        )
    transfer = contributions(run, "Transfer")
    assert not transfer["topic"].any() and len(transfer["topic"]) == 5
    first_item = mean([cells[0, 2][0], cells[1, 2][0]])  # before form was learned
    assert transfer["form"][0] == pytest.approx(first_item / 2)


def test_an_estimate_by_hand(tmp_path):
    """Two tasks, so Transfer is one cell, and its interval that of a proportion."""
    cells = {(i, j): [100.0] * 60 + [0.0] * 40 for i in range(2) for j in range(2)}
    cells[0, 1] = [100.0] * 20 + [0.0] * 80
    worse = cells | {(0, 1): [0.0] * 100}
    runs = [
        make_run(tmp_path / "a", cells, tasks=TASKS[:2]),
        make_run(tmp_path / "b", worse, tasks=TASKS[:2], method="lwf"),
    ]
    comparison = compare(read_runs(runs))
    transfer = comparison.estimates["moram", "Transfer"]
    assert transfer.value == pytest.approx(20) and transfer.runs == 1
    assert transfer.error == pytest.approx(100 * (0.2 * 0.8 / 99) ** 0.5)
    assert transfer.items == (pytest.approx(12, abs=1.01), pytest.approx(28, abs=1.01))
    assert comparison.estimates["moram", "Average"].value == pytest.approx((60 + 40) / 2)
    last, ap = (comparison.estimates["moram", metric] for metric in ("Last", "AP"))
    assert last == ap
    found = {one.metric: one.estimate.value for one in comparison.differences}
    assert found == pytest.approx({"AP": 0, "BWT": 0, "Transfer": 20, "Average": 5})


def test_tables_and_files(tmp_path):
    rights = {"moram": 0.8, "lwf": 0.3}
    runs = [
        whole_run(tmp_path / f"{method}{seed}", right, seed=seed, method=method)
        for method, right in rights.items()
        for seed in range(2)
    ]
    text, comparison = compare_runs(runs, resamples="1000")
    assert "| method | runs | sd of AP | AP | BWT | learned | Transfer | Average | Last |" in text
    assert "## Differences of Transfer;" in text and "## Differences of Last" not in text
    assert "| block | method | runs | topic | mood | form | mean |" in text
    matrices = [np.array(read_run_directory(run).scores) for run in runs[:2]]
    columns = [np.mean([m[:j, j].mean() for m in matrices]) for j in (1, 2)]
    shown = " | ".join(f"{value:.1f}" for value in [*columns, np.mean(columns)])
    assert f"| Transfer | moram | 2 |  | {shown} |" in text
    columns = [np.mean([m[:, j].mean() for m in matrices]) for j in range(3)]
    shown = " | ".join(f"{value:.1f}" for value in [*columns, np.mean(columns)])
    assert f"| Average | moram | 2 | {shown} |" in text
    tex = latex(comparison)
    assert "% Transfer, Average and Last by task: mean over runs" in tex
    assert f"Average & moram & 2 & {shown.replace(' | ', ' & ')} " in tex
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert {row["metric"] for row in rows if row["method"] == "lwf"} >= {"Transfer", "Last"}


def test_each_order_has_its_table(tmp_path):
    sizes = {task: 40 + j for j, task in enumerate(TASKS)}
    generator = np.random.default_rng(0)
    runs = []
    for order, tasks in (("1", TASKS), ("2", TASKS[::-1])):
        cells = {
            (i, j): random_scores(generator, sizes[task], 0.8)
            for i in range(3)
            for j, task in enumerate(tasks)
        }
        runs.append(make_run(tmp_path / order, cells, tasks=tasks, order=order))
    comparison = compare(read_runs(runs), resamples=1000)
    first, second = block_tables(comparison)
    assert first.title.startswith("Transfer, Average and Last by task, order 1")
    assert (first.header[3:], second.header[3:]) == ((*TASKS, "mean"), (*TASKS[::-1], "mean"))
    assert [row[3] == "" for row in second.rows] == [True, False, False]
    both = comparison.estimates["moram", "Transfer"]
    by_hand = [sequence_metrics(read_run_directory(run).scores)["transfer"] for run in runs]
    assert both.value == pytest.approx(mean(by_hand)) and both.runs == 2


def test_runs_without_unseen_tasks(tmp_path):
    two = ["topic", "mood"]
    whole = whole_run(tmp_path / "a", tasks=two, n=200)
    generator = np.random.default_rng(1)
    cells = {(i, j): random_scores(generator, 200 + j, 0.4) for i, j in ((0, 0), (1, 0), (1, 1))}
    seen = make_run(tmp_path / "b", cells, tasks=two, method="ewc")
    text, comparison = compare_runs([whole, seen], resamples="1000")
    assert ("ewc", "Transfer") not in comparison.estimates
    (row,) = [line for line in text.split("\n") if line.startswith("| ewc |")]
    assert row.endswith("| – | – | – |")
    assert not [x for x in comparison.differences if x.metric == "Transfer"]
    assert "| Transfer | moram | 1 |" in text and "| Transfer | ewc |" not in text
    text, _ = compare_runs([noisy_run(tmp_path / "c", 0.5)], resamples="1000")
    assert "Transfer" not in text


def test_lines_hold_the_whole_matrix(tmp_path):
    run = read_run_directory(whole_run(tmp_path / "a"))
    assert run.cells[2] == run.last and run.cells[1][1] == run.learned[1]
    lines = tmp_path / "runs.jsonl"
    lines.write_text(run.to_json() + "\n")
    assert read_runs([lines]) == [run]
    for spoil, complaint in (
        (lambda cells: cells[0].pop(), "cells: not those"),
        (lambda cells: cells[0].__setitem__(1, None), "cells: not those"),
        (lambda cells: cells[0].__setitem__(1, "10"), "numbers of items: not those"),
        (lambda cells: cells[0].__setitem__(1, "1x"), "scores of items: not those"),
    ):
        content = json.loads(run.to_json())
        spoil(content["cells"])
        lines.write_text(json.dumps(content) + "\n")
        with pytest.raises(InputError, match=complaint):
            read_runs([lines])


def test_many_tasks_have_no_table_by_task(tmp_path):
    tasks = [f"task{i:02d}" for i in range(25)]
    run = whole_run(tmp_path / "a", tasks=tasks, n=2)
    text, comparison = compare_runs([run], resamples="1000")
    assert "by task" not in text and ("moram", "Transfer") in comparison.estimates
