"""Answers that a row takes from an earlier one, because the same tasks gave them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from eval.measure.earlier import EarlierAnswers
from eval.measure.harness import Evaluator
from eval.measure.recall import Portion
from eval.predictions import predictions_path
from moram_dist.config import EvalConfig, ModelConfig, RunConfig
from moram_dist.methods import Method
from moram_dist.models import language_model
from moram_dist.recognise import Recognised
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.configs import config_of
from tests.helpers.context import make_context

BENCHMARK = BENCHMARKS["demo"](Source(order="topic,mood,place", limit_train=4, limit_eval=3))


@pytest.fixture(scope="module")
def base():
    return language_model.load(ModelConfig(), {"zero_optimization": {"stage": 0}})


@pytest.fixture
def evaluator(base, tmp_path):
    """Makes an evaluator on the same folder; the model and the method never change."""

    def make(recall, answers="labels", unknown="all"):
        context = make_context(
            config=RunConfig(
                method=config_of(), eval=EvalConfig(answers=answers, recall=recall, unknown=unknown)
            ),
            benchmark=BENCHMARK,
            method=Method(config_of(), seed=0),
            engine=SimpleNamespace(module=base.model, eval=base.model.eval),
            base=base,
            folder=tmp_path,
        )
        return Evaluator(context, BENCHMARK)

    return make


def spied(evaluate):
    """Lets an evaluator note what is answered: (column, number of tasks, examples)."""
    work = []
    answers = evaluate._answers

    def spy(cell, portion, *rest, **more):
        work.append((cell.column, portion.state(cell.row), portion.examples))
        return answers(cell, portion, *rest, **more)

    evaluate._answers = spy
    return work


def mark(folder, row, column, mode=None):
    """Changes an answer on disk, to see where it goes."""
    path = predictions_path(folder, row, column, BENCHMARK.tasks[column].name, mode)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["prediction"] = "marked"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder, row, column, mode=None):
    path = predictions_path(folder, row, column, BENCHMARK.tasks[column].name, mode)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_oracle_answers_each_column_once(evaluator, tmp_path):
    evaluate = evaluator("oracle")
    work = spied(evaluate)
    for row in range(3):
        evaluate(row)
    assert work == [(i, i + 1, (0, 1, 2)) for i in range(3)]
    for column in range(3):
        assert read(tmp_path, 2, column) == read(tmp_path, column, column)


def test_all_is_measured_in_each_row(evaluator):
    evaluate = evaluator("all")
    work = spied(evaluate)
    for row in range(3):
        evaluate(row)
    assert [(column, state) for column, state, _ in work] == [
        (0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)
    ]  # fmt: skip


RECOGNISED = {  # (row, column) -> the task of each example, and ? if it resembles none
    (0, 0): ("0", "0", "0?"),
    (1, 0): ("0", "1", "0?"),
    (2, 0): ("0", "1", "0"),
    (1, 1): ("1", "1", "1"),
    (2, 1): ("1", "2", "0"),
    (2, 2): ("2", "2", "2"),
}


@pytest.mark.parametrize(
    ("unknown", "work"),
    [
        (
            "all",
            [
                [(0, 1, (0, 1, 2))],
                [(0, 2, (1, 2)), (1, 2, (0, 1, 2))],
                # Example 2 of column 0 is answered by task 0 alone now: the row before had both.
                [(1, 3, (1,)), (2, 3, (0, 1, 2)), (0, 1, (2,)), (1, 1, (2,))],
            ],
        ),
        (
            "base",
            [
                [(0, 1, (0, 1)), (0, 0, (2,))],
                [(0, 2, (1,)), (1, 2, (0, 1, 2))],
                [(1, 3, (1,)), (2, 3, (0, 1, 2)), (0, 1, (2,)), (1, 1, (2,))],
            ],
        ),
    ],
)
def test_prefix_answers_what_is_recognised_anew(evaluator, tmp_path, unknown, work):
    done = []
    for row in range(3):
        evaluate = evaluator("prefix", unknown=unknown)  # as after a restart
        evaluate.prefixes._recognised = lambda row, column: {
            i: Recognised(int(one[0]), not one.endswith("?"))
            for i, one in enumerate(RECOGNISED[row, column])
        }
        done.append(spied(evaluate))
        evaluate(row)
        if row == 0:
            mark(tmp_path, 0, 0)
    assert [sorted(row) for row in done] == [sorted(row) for row in work]
    assert [read(tmp_path, row, 0)[0]["prediction"] for row in range(3)] == ["marked"] * 3
    assert read(tmp_path, 1, 0)[0]["score"] == 0
    recognised = [line["recognised"] for line in read(tmp_path, 2, 1)]
    assert recognised == ["mood", "place", "topic"]


def test_all_modes_of_a_line_or_none(evaluator, tmp_path):
    first = evaluator("oracle", answers="labels,constrained")
    first(0)
    mark(tmp_path, 0, 0, "constrained")
    path = predictions_path(tmp_path, 0, 0, "topic")
    path.write_text(path.read_text().replace("test-0", "other"))
    evaluate = evaluator("oracle", answers="labels,constrained")
    work = spied(evaluate)
    evaluate(1)
    assert (0, 1, (0, 1, 2)) in work  # the file holds other examples
    assert "marked" not in [line["prediction"] for line in read(tmp_path, 1, 0, "constrained")]
    assert [line["id"] for line in read(tmp_path, 1, 0)] == ["test-0", "test-1", "test-2"]


def test_state_is_a_number():
    assert Portion(0, "prefix", None, (0,)).state(4) == 5
    assert Portion(0, "prefix", 0, (0,)).state(4) == 0


def test_nothing_is_earlier_than_the_first_row(evaluator):
    evaluate = evaluator("oracle")
    cells = list(evaluate._cells(0, {0: evaluate.modes}, "oracle"))
    assert isinstance(evaluate.earlier, EarlierAnswers)
    assert [(dict(cell.taken), len(cell.portions)) for cell in cells] == [({}, 1)]
