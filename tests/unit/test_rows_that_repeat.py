"""A row of scores whose model is that of an earlier row is copied, and no other is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from eval.measure.harness import Evaluator, predictions_path
from eval.score_matrix import ScoreMatrix
from moram_dist.config import EvalConfig, ModelConfig, RunConfig
from moram_dist.methods import METHODS, Method
from moram_dist.models import language_model
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.configs import config_of
from tests.helpers.context import make_context

BENCHMARK = BENCHMARKS["demo"](Source(limit_train=4, limit_eval=2, order="topic,mood,place,job"))


class Sometimes(Method):
    """Trains on some of the tasks."""

    def __init__(self, trained):
        super().__init__(config_of(), seed=0)
        self.trained = trained

    def training_data(self, benchmark, i):
        return super().training_data(benchmark, i) if self.trained[i] else ()


@pytest.fixture(scope="module")
def base():
    return language_model.load(ModelConfig(), {"zero_optimization": {"stage": 0}})


@pytest.fixture
def evaluator(base, tmp_path, monkeypatch):
    """Makes an evaluator; ``base.generated`` are the prompts that the model got, as text."""

    def make(method, eval_rows="seen", folder=tmp_path / "run", answers="generate"):
        context = make_context(
            config=RunConfig(
                method=config_of(), eval=EvalConfig(eval_rows=eval_rows, answers=answers)
            ),
            benchmark=BENCHMARK,
            method=method,
            engine=SimpleNamespace(module=base.model, eval=base.model.eval),
            base=base,
            folder=folder,
        )
        return Evaluator(context, method.asked(BENCHMARK, lambda task, prompt: True))

    make.generated = []
    generate = base.model.generate

    def spy(*, input_ids, **settings):
        cache = settings.get("past_key_values")
        if not cache or not cache.get_seq_length():  # else it was a prompt before, and goes on
            make.generated += base.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return generate(input_ids=input_ids, **settings)

    monkeypatch.setattr(base.model, "generate", spy)
    return make


def cells(folder):
    """(row, column) -> predictions; equal where a cell was copied."""
    return {
        (row, column): path.read_bytes()
        for row in range(-1, 4)
        for column, task in enumerate(BENCHMARK.tasks)
        if (path := predictions_path(folder, row, column, task.name)).exists()
    }


@pytest.mark.parametrize(
    ("trained", "eval_rows", "measured"),
    [
        ("TTTT", "seen", [1, 2, 3, 4]),
        ("----", "seen", [1, 1, 1, 1]),
        ("T---", "seen", [1, 1, 1, 1]),
        ("T-T-", "seen", [1, 1, 3, 1]),
        ("TTTT", "all", [4, 4, 4, 4, 4]),
        ("----", "all", [4, 0, 0, 0, 0]),
        ("T---", "all", [4, 4, 0, 0, 0]),
        ("T---", "last", [1, 1, 1, 1]),
        ("T-T-", "last", [1, 1, 1, 3]),
        ("TTTT", "last", [1, 1, 1, 4]),
        ("T---", "diagonal", [1, 1, 1, 1]),
        ("TTTT", "diagonal", [1, 1, 1, 1]),
    ],
)
def test_what_is_measured_and_what_is_copied(evaluator, tmp_path, trained, eval_rows, measured):
    evaluate = evaluator(Sometimes([letter == "T" for letter in trained]), eval_rows)
    rows = range(-1 if eval_rows == "all" else 0, 4)
    counts = []
    for row in rows:
        before = len(evaluator.generated)
        evaluate(row)
        counts.append((len(evaluator.generated) - before) // 2)  # two examples a cell
    assert counts == measured
    matrix = ScoreMatrix(tmp_path / "run" / "scores.json", BENCHMARK)
    assert [matrix.missing(row, eval_rows) for row in rows] == [[] for _ in rows]
    found = cells(tmp_path / "run")
    assert found.keys() == {
        (row, column)
        for row in range(-1, 4)
        for column in range(4)
        if matrix.get(row, column) is not None
    }
    for (row, column), predictions in found.items():
        # This model never changes, so that copies and measurements cannot be told apart here.
        assert predictions == found[max(r for r, c in found if c == column), column]
        lines = [json.loads(line) for line in predictions.splitlines()]
        assert matrix.get(row, column) == sum(line["score"] for line in lines) / 2


def test_a_copy_is_what_was_measured_before(evaluator, tmp_path):
    """Not what the model would answer now: the earlier files are changed by hand to see it."""
    evaluate = evaluator(Sometimes([True, False, True, False]))
    evaluate(0)
    path = predictions_path(tmp_path / "run", 0, 0, "topic")
    marked = path.read_text().replace("test-0", "marked")
    path.write_text(marked)
    matrix = evaluate.matrices[evaluate.main_mode]
    matrix.set(0, 0, 12.5)
    for row in (1, 2, 3):
        evaluate(row)
    found = cells(tmp_path / "run")
    assert found[1, 0] == marked.encode()
    assert b"marked" not in found[2, 0] + found[3, 0] + found[1, 1]
    assert found[3, 0] == found[2, 0]
    scores = [matrix.get(row, 0) for row in range(4)]
    assert scores[:2] == [12.5, 12.5]
    assert 12.5 not in scores[2:]


def test_every_mode_is_copied(evaluator, tmp_path):
    evaluate = evaluator(Sometimes([True, False, True, True]), answers="labels,constrained")
    evaluate(0)
    path = predictions_path(tmp_path / "run", 0, 0, "topic", "constrained")
    marked = path.read_bytes().replace(b"test-0", b"marked")
    path.write_bytes(marked)
    evaluate(1)
    copies = [
        predictions_path(tmp_path / "run", 1, 0, "topic", mode).read_bytes()
        for mode in (None, "constrained")
    ]
    assert copies == [cells(tmp_path / "run")[0, 0], marked]


def test_predictions_show_the_question_alone(evaluator, tmp_path):
    """In-context: the model gets demonstrations; the file, and so the metric, does not."""
    method = METHODS["in_context"](config_of("in_context", demonstrations=2), seed=0)
    evaluate = evaluator(method, "last")
    evaluate(1)
    task = BENCHMARK.tasks[1]
    assert len(evaluator.generated) == 2
    for prompt in evaluator.generated:
        assert prompt.count("Mood:") == 3  # two with an answer, one to be answered
        assert prompt.endswith("\nMood:")
    path = predictions_path(tmp_path / "run", 1, 1, task.name)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [example.prompt for example in task.test]
