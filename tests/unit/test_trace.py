"""TRACE: its rules, its files, and the published metrics on its own answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.run import main
from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Decoding, Source
from moram_dist.tasks.trace import ORDERS, TASKS

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "trace"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="the TRACE files are not here")


def trace(data_dir, **fields):
    return BENCHMARKS["trace"](Source(data_dir=data_dir, **fields))


@pytest.fixture
def data_dir(tmp_path):
    """Two tasks of TRACE with four made-up examples a split."""
    for name in ("FOMC", "MeetingBank"):
        (tmp_path / name).mkdir()
        for split in ("train", "eval", "test"):
            records = [{"prompt": f"{name} {split} {i}", "answer": "A"} for i in range(4)]
            (tmp_path / name / f"{split}.json").write_text(json.dumps(records))
    return tmp_path


def test_order_and_rules():
    assert ORDERS["default"] == (
        "C-STANCE",
        "FOMC",
        "MeetingBank",
        "Py150",
        "ScienceQA",
        "NumGLUE-cm",
        "NumGLUE-ds",
        "20Minuten",
    )
    assert [rules.epochs for rules in TASKS.values()] == [2, 1, 3, 2, 1, 2, 2, 3]


def test_tasks_carry_the_protocol(data_dir):
    found = trace(data_dir, order="MeetingBank, FOMC")
    assert (found.name, found.order, found.protocol) == ("trace", "MeetingBank, FOMC", "moram")
    assert found.decoding == Decoding(repetition_penalty=1.2, no_repeat_ngram_size=3)
    meeting, fomc = found.tasks
    assert (meeting.name, meeting.metric, meeting.labels) == ("MeetingBank", "rouge_l_set", ())
    assert (meeting.max_prompt_tokens, meeting.max_answer_tokens) == (4096, 512)
    assert (meeting.truncate_prompt, meeting.epochs) == ("right", 3)
    assert (fomc.name, fomc.metric, fomc.labels) == ("FOMC", "choice", ("A", "B", "C"))
    assert (fomc.max_prompt_tokens, fomc.truncate_prompt, fomc.epochs) == (1024, "left", 1)
    assert [example.id for example in fomc.test] == ["test-0", "test-1", "test-2", "test-3"]
    assert fomc.train[1].prompt == "FOMC train 1"
    assert found.notes == ()


def test_limits(data_dir):
    (task,) = trace(data_dir, order="FOMC", limit_train=3, limit_eval=1).tasks
    assert (len(task.train), len(task.test)) == (3, 1)


def test_a_missing_train_file_is_replaced_by_eval(data_dir):
    (data_dir / "MeetingBank" / "train.json").unlink()
    found = trace(data_dir, order="FOMC,MeetingBank")
    assert found.tasks[1].train[0].prompt == "MeetingBank eval 0"
    assert found.tasks[1].train[0].id == "eval-0"
    assert found.notes == ("MeetingBank: train.json is missing, trained on eval.json",)


def test_missing_files_that_nothing_replaces(data_dir):
    (data_dir / "FOMC" / "test.json").unlink()
    with pytest.raises(InputError, match=r"FOMC/test\.json: no such file"):
        trace(data_dir, order="FOMC")
    for split in ("train", "eval"):
        (data_dir / "MeetingBank" / f"{split}.json").unlink()
    with pytest.raises(InputError, match=r"MeetingBank/train\.json: no such file"):
        trace(data_dir, order="MeetingBank")


def test_replaced_splits(data_dir, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "mine", "answer": "B"}\n')
    splits = {"FOMC": {"train": str(other), "test": "eval"}}
    found = trace(data_dir, order="FOMC", splits=splits)
    (task,) = found.tasks
    assert [(e.id, e.prompt, e.references) for e in task.train] == [("train-0", "mine", ("B",))]
    assert task.test[0].prompt == "FOMC eval 0"
    assert task.test[0].id == "eval-0"
    assert found.notes == (
        f"FOMC: trained on {other} instead of train.json",
        "FOMC: tested on eval.json instead of test.json",
    )


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"order": "defualt"}, "unknown order 'defualt'; did you mean 'default'?"),
        ({"order": "FOMCC"}, "unknown order 'FOMCC'; did you mean 'FOMC'?"),
        ({"order": "FOMC,PY150"}, "unknown task 'PY150'; did you mean 'Py150'?"),
        ({"order": "FOMC,,Py150"}, "unknown task ''"),
        ({"order": ""}, "unknown order ''"),
        ({"order": "FOMC,FOMC"}, "names task 'FOMC' twice"),
        ({"protocol": "moran"}, "unknown protocol of trace 'moran'; did you mean 'moram'?"),
        ({"splits": {"FOMK": {"train": "eval"}}}, "unknown task in splits 'FOMK'; did you mean"),
        ({"splits": {"FOMC": {"trian": "eval"}}}, "split of FOMC 'trian'; did you mean 'train'?"),
        ({"splits": {"FOMC": {"eval": "test"}}}, "unknown split of FOMC 'eval'"),
        ({"splits": {"FOMC": {"train": "evl"}}}, "'evl', which is neither a file nor one of train"),
        ({"limit_train": 0}, "limit on train examples must be at least 1, got 0"),
        ({"limit_eval": -1}, "limit on test examples must be at least 1, got -1"),
    ],
)
def test_bad_sources(data_dir, fields, complaint):
    with pytest.raises(InputError) as caught:
        trace(data_dir, **{"order": "FOMC", **fields})
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_dir_is_needed(tmp_path):
    with pytest.raises(InputError, match="--data_dir"):
        trace(None)
    with pytest.raises(InputError, match="--data_dir: no such folder"):
        trace(tmp_path / "none")


@needs_data
def test_the_published_files():
    found = trace(REAL)
    assert tuple(task.name for task in found.tasks) == ORDERS["default"]
    assert [len(task.test) for task in found.tasks] == [100, 100, 100, 100, 100, 81, 100, 100]
    assert {len(task.train) for task in found.tasks if task.name != "MeetingBank"} == {500}


def rescored(tmp_path, capsys, name, predict):
    """Mean score by the command line, of ``predict(answer)`` for every published test answer."""
    records = json.loads((REAL / name / "test.json").read_text(encoding="utf-8"))
    lines = [
        {
            "id": f"test-{i}",
            "prompt": record["prompt"],
            "references": [record["answer"]],
            "prediction": predict(record["answer"]),
            "score": None,
        }
        for i, record in enumerate(records)
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["rescore", "--predictions", str(path), "--benchmark", "trace", "--task", name]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == len(records)
    assert result["metric"] == TASKS[name].metric
    return result["score"]


# SARI grants too few deletions of n-grams that the simplification keeps some of, see its docstring.
BEST = {name: 100.0 for name in TASKS} | {"20Minuten": 99.60137452292857}
# Of nothing, SARI still counts the deletions.
WORST = {name: 0.0 for name in TASKS} | {"20Minuten": 37.10336267505545}


@needs_data
@pytest.mark.parametrize("name", TASKS)
def test_the_published_answers_score_the_maximum(tmp_path, capsys, name):
    best = rescored(tmp_path, capsys, name, lambda answer: answer)
    assert best == pytest.approx(BEST[name], abs=1e-4)


@needs_data
@pytest.mark.parametrize("name", TASKS)
def test_empty_predictions(tmp_path, capsys, name):
    assert rescored(tmp_path, capsys, name, lambda _: "") == pytest.approx(WORST[name], abs=1e-9)
