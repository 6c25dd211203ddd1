"""The evaluator with several answer modes: what is on disk, and what is never done again."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest

from eval.measure.harness import Evaluator
from eval.score_matrix import score_matrices
from eval.scoring_modes import ScoringMode, scoring_modes
from moram_dist.adapters.prefix import Prefix
from moram_dist.config import EvalConfig, ModelConfig, RunConfig
from moram_dist.families import answer_batch, family_of_model
from moram_dist.models.language_model import Base, load_tokenizer
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark, Example, Task
from moram_dist.tracking import Tracker
from tests.helpers.answers import generate_batch
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.tiny import tiny_model

LABELS = ("food", "animal", "tool")


def make_task(name: str, labels: tuple[str, ...]) -> Task:
    examples = tuple(
        Example(f"test-{i}", f"{name} {'very ' * (i % 3)}{i}:", (LABELS[i % 3],)) for i in range(7)
    )
    return Task(
        name=name,
        metric="exact_match_normalised",
        train=(),
        test=examples,
        labels=labels,
        max_prompt_tokens=40,
        max_answer_tokens=3,
        separator=" ",
    )


BENCHMARK = Benchmark(
    name="b",
    order="o",
    protocol="p",
    tasks=(make_task("closed", LABELS), make_task("open", ()), make_task("late", LABELS)),
)


@pytest.fixture(scope="module")
def base() -> Base:
    tokenizer = load_tokenizer(ModelConfig())
    model = tiny_model()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return Base(model, tokenizer, None, family_of_model(model))


class Logged(Tracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence: list[tuple[dict[str, float], int]] = []

    def log_sequence(self, metrics, learned):
        self.sequence.append((metrics, learned))


def evaluator(base: Base, run_dir: Path, answers: str, **settings) -> Evaluator:
    context = make_context(
        config=RunConfig(
            method=config_of(), eval=EvalConfig(answers=answers, eval_batch_size=3, **settings)
        ),
        benchmark=BENCHMARK,
        method=types.SimpleNamespace(
            in_step=False, prefix=Prefix(), learns=lambda benchmark, i: True
        ),
        engine=types.SimpleNamespace(module=base.model, eval=base.model.eval),
        base=base,
        folder=run_dir,
        tracker=Logged(),
    )
    return Evaluator(context, BENCHMARK)


def read(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_mode_has_its_matrix_and_its_predictions(base, tmp_path):
    evaluate = evaluator(base, tmp_path, "generate,labels,labels_mean,constrained")
    evaluate(0)
    evaluate(1)
    folder = tmp_path / "predictions" / "after_001"
    further = ("labels", "labels_mean", "constrained")
    assert {path.name for path in folder.iterdir()} == {
        *("on_000_closed.jsonl", "on_001_open.jsonl"),
        *(f"on_000_closed.{mode}.jsonl" for mode in further),
    }
    task = BENCHMARK.tasks[0]
    freely = generate_batch(base.model, base.tokenizer, task.test, task, BENCHMARK.decoding)
    assert [line["prediction"] for line in read(folder / "on_000_closed.jsonl")] == freely
    expected = answer_batch(
        further, base.model, base.tokenizer, task.test, task, BENCHMARK.decoding
    )
    for mode in further:
        found = read(folder / f"on_000_closed.{mode}.jsonl")
        assert [line["id"] for line in found] == [example.id for example in task.test]
        assert [line["prediction"] for line in found] == [one.text for one in expected[mode]]
        assert {line["prediction"] for line in found} <= {*LABELS}
        for line, one in zip(found, expected[mode], strict=True):
            assert line["score"] == 100.0 * (line["prediction"] in line["references"])
            if mode == "constrained":
                assert "log_likelihoods" not in line
            else:
                assert line["log_likelihoods"] == pytest.approx(one.log_likelihoods, abs=1e-4)
        mean = sum(line["score"] for line in found) / len(found)
        saved = json.loads((tmp_path / f"scores.{mode}.json").read_text())
        assert saved["scores"] == [[mean, None, None], [mean, None, None]]
    main = json.loads((tmp_path / "scores.json").read_text())
    assert main["scores"][1][1] is not None
    logged = evaluate.tracker.sequence[-1][0]  # type: ignore[attr-defined]
    assert logged["score/closed"] == main["scores"][1][0]


def test_the_first_mode_counts_and_open_tasks_are_generated(base, tmp_path):
    evaluator(base, tmp_path, "labels,generate")(1)
    folder = tmp_path / "predictions" / "after_001"
    assert {path.name for path in folder.iterdir()} == {
        *("on_000_closed.jsonl", "on_000_closed.generate.jsonl", "on_001_open.jsonl"),
    }
    assert "log_likelihoods" in read(folder / "on_000_closed.jsonl")[0]
    assert "log_likelihoods" not in read(folder / "on_001_open.jsonl")[0]
    assert None not in json.loads((tmp_path / "scores.json").read_text())["scores"][1][:2]
    further = json.loads((tmp_path / "scores.generate.json").read_text())
    assert [score is None for score in further["scores"][1]] == [False, True, True]


def test_a_finished_cell_is_not_done_again_in_any_mode(base, tmp_path, monkeypatch):
    asked = []

    def counted(modes, model, tokenizer, examples, task, *args, **kwargs):
        asked.append((task.name, tuple(modes), len(examples)))
        return answer_batch(modes, model, tokenizer, examples, task, *args, **kwargs)

    monkeypatch.setattr("eval.measure.harness.answer_batch", counted)
    answers = "generate,labels"
    evaluator(base, tmp_path, answers)(2)
    assert {(name, modes) for name, modes, _ in asked} == {
        ("closed", ("generate", "labels")),
        ("open", ("generate",)),
        ("late", ("generate", "labels")),
    }
    asked.clear()
    evaluator(base, tmp_path, answers)(2)
    assert not asked

    saved = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    path = tmp_path / "scores.labels.json"  # as after a stop between the modes of one cell
    content = json.loads(path.read_text())
    content["scores"][2][2] = None
    path.write_text(json.dumps(content))
    evaluate = evaluator(base, tmp_path, answers)
    evaluate(2)
    assert {(name, modes) for name, modes, _ in asked} == {("late", ("labels",))}
    assert sum(count for *_, count in asked) == 7
    assert {path: path.read_bytes() for path in saved} == saved
    assert not evaluate.tracker.sequence  # type: ignore[attr-defined]  # logged once


def test_what_one_recall_answered_no_other_asks_again(base, tmp_path, monkeypatch):
    asked = []

    def counted(modes, model, tokenizer, examples, task, *args, **kwargs):
        asked.append((task.name, len(examples)))
        return answer_batch(modes, model, tokenizer, examples, task, *args, **kwargs)

    monkeypatch.setattr("eval.measure.harness.answer_batch", counted)
    evaluator(base, tmp_path, "labels", recall="oracle,all")(1)
    count = {name: sum(n for task, n in asked if task == name) for name, _ in asked}
    # After the second task the first one's prefix is another model; the second one's is not.
    assert count == {"closed": 14, "open": 7}
    folder = tmp_path / "predictions" / "after_001"
    newest = (folder / "on_001_open.jsonl").read_bytes()
    assert newest == (folder / "on_001_open.all.jsonl").read_bytes()


def test_rows_ask_the_same_of_every_mode(tmp_path):
    config = EvalConfig(answers="generate,labels", recall="prefix,all")
    matrices = score_matrices(tmp_path, BENCHMARK, scoring_modes(config))
    assert [matrix.path.name for matrix in matrices.values()] == [
        "scores.json",
        "scores.all.json",
        "scores.labels.json",
        "scores.labels.all.json",
    ]
    found = [[m.missing(row, "all") for row in (-1, 0)] for m in matrices.values()]
    assert found == [[[0, 1, 2]] * 2] * 2 + [[[0, 2]] * 2] * 2
    labels = matrices[ScoringMode("labels", "all")]
    assert labels.missing(1, "last") == []  # the newest task has no labels


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ("label", "unknown --answers 'label'; did you mean 'labels'"),
        ("", "unknown --answers ''"),
        ("labels,generate,labels", "--answers names labels twice"),
        ("labels, generate", "unknown --answers ' generate'"),
    ],
)
def test_bad_modes(answers, complaint):
    with pytest.raises(InputError, match=complaint):
        EvalConfig(answers=answers)
