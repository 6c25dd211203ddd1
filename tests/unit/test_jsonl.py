"""A person's own tasks: folders, YAML lists, and every way to get them wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moram_dist.registry import InputError
from moram_dist.tasks import BENCHMARKS, Decoding, Source


def jsonl(data_dir, **fields):
    return BENCHMARKS["jsonl"](Source(data_dir=data_dir, **fields))


def write(path, records=({"prompt": "p", "answer": "a"},) * 3):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(list(records)))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    for name, suffix in (("beta", "json"), ("alpha", "jsonl")):
        write(root / name / f"train.{suffix}")
        write(root / name / f"test.{suffix}")
    (root / ".git").mkdir()
    (root / "notes.txt").write_text("no task")
    return root


def test_a_folder(folder):
    found = jsonl(folder, limit_train=2, limit_eval=1)
    assert (found.name, found.order, found.protocol) == ("jsonl", "default", "default")
    assert found.decoding == Decoding()
    assert [task.name for task in found.tasks] == ["alpha", "beta"]
    for task in found.tasks:
        assert task.metric == "exact_match_normalised"
        assert [example.id for example in task.train] == ["train-0", "train-1"]
        assert [example.id for example in task.test] == ["test-0"]


def test_an_order(folder):
    found = jsonl(folder, order="beta,alpha")
    assert found.order == "beta,alpha"
    assert [task.name for task in found.tasks] == ["beta", "alpha"]
    with pytest.raises(InputError, match="unknown task 'betta'; did you mean 'beta'"):
        jsonl(folder, order="alpha,betta")


FULL = """
- name: tickets
  train: data/q.jsonl
  test: data/q.jsonl
  metric: choice
  labels: ["A", "B"]
  prompt_field: q
  answer_field: a
  epochs: 3
  max_prompt_tokens: 64
  max_answer_tokens: 8
- name: alpha
  train: alpha/train.jsonl
  test: alpha/test.jsonl
"""


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_list(folder, as_folder):
    (folder / "tasks.yaml").write_text(FULL)
    write(folder / "data" / "q.jsonl", [{"q": "which", "a": ["A", "B"]}])
    tickets, alpha = jsonl(folder if as_folder else folder / "tasks.yaml").tasks
    assert (tickets.name, tickets.metric, tickets.labels) == ("tickets", "choice", ("A", "B"))
    assert (tickets.epochs, tickets.max_prompt_tokens, tickets.max_answer_tokens) == (3, 64, 8)
    assert tickets.test[0].references == ("A", "B")
    assert (alpha.name, alpha.metric, alpha.epochs) == ("alpha", "exact_match_normalised", 1)


TASK = "- {name: t, train: a.json, test: b.json"  # left open, for one more key

BAD_LISTS = [
    ("- name: t\n  train: a: b", "line 2, column 11: malformed YAML"),
    ("- \x01", "malformed YAML"),
    ("", "expected a list of tasks"),
    ("[]", "expected a list of tasks"),
    ("name: t", "expected a list of tasks"),
    ("- t", "task 0: expected keys and values"),
    ("- {name: t, test: b.json}", "task 0: train is missing"),
    ("- {train: a.json, test: b.json}", "task 0: name is missing"),
    (TASK + ", epoch: 2}", "unknown key 'epoch'; did you mean 'epochs'?"),
    (TASK + ", 5: 2}", "unknown key '5'"),
    (TASK + ", metric: sarri}", "unknown metric 'sarri'; did you mean 'sari'?"),
    (TASK + ", metric: 5}", "metric must be a text (quote it), got 5"),
    (TASK + ", prompt_field: }", "prompt_field must be a text (quote it), got None"),
    (TASK + ", epochs: 0}", "epochs must be a whole number from 1, got 0"),
    (TASK + ", epochs: 1.5}", "epochs must be a whole number from 1, got 1.5"),
    (TASK + ", epochs: true}", "epochs must be a whole number from 1, got True"),
    (TASK + ", max_prompt_tokens: '8'}", "max_prompt_tokens must be a whole number"),
    (TASK + ", labels: A}", "labels must be a list of texts (quote them), got 'A'"),
    (TASK + ", labels: [Yes, No]}", "labels must be a list of texts (quote them), got [True"),
    (TASK + ", metric: choice}", "metric choice needs labels of one character each"),
    (TASK + ", metric: choice, labels: [A, BC]}", "metric choice needs labels of one character"),
    (TASK + "}\n" + TASK + "}", "task 1: name 't' is taken already"),
    (TASK + "}", "a.json: no such file"),
    (TASK + ", epochs: 2001-99-99}", "epochs must be a whole number from 1, got '2001-99-99'"),
    (TASK + ", epochs: " + "9" * 5000 + "}", "with too long a number"),
    (TASK + ", epochs: 0x" + "f" * 5000 + "}", "with too long a number"),
    (TASK + ", metric: " + "x" * 100_000 + "}", "unknown metric"),
    (TASK + ", labels: {a: 1}}", "labels must be a list of texts (quote them), got {'a': 1}"),
    (TASK + ", epochs: " + "[" * 3000, "nested too deeply"),
    (TASK + ", name: u}", "key 'name' is given twice"),
    ("- {name: 2021, train: a.json, test: b.json}", "name must be a text (quote it), got 2021"),
]


@pytest.mark.parametrize(("text", "complaint"), BAD_LISTS)
def test_bad_lists(tmp_path, text, complaint):
    path = tmp_path / "tasks.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        jsonl(path)
    assert str(tmp_path) in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".hidden", "a,b", "a:b", " a", "a\\tb", "x" * 101, "*"]
)
def test_names_that_cannot_be_file_names(tmp_path, name):
    path = tmp_path / "tasks.yaml"
    path.write_text(f'- {{name: "{name}", train: a.json, test: b.json}}')
    with pytest.raises(InputError, match="cannot be a file name"):
        jsonl(path)


def test_a_list_that_is_something_else(tmp_path):
    with pytest.raises(InputError, match="/dev/null: is no file but a device"):
        jsonl(Path("/dev/null"))
    with pytest.raises(InputError, match="no such file or folder"):
        jsonl(tmp_path / ("a" * 300))


def test_bad_folders(folder, tmp_path):
    with pytest.raises(InputError, match="--data_dir"):
        jsonl(None)
    with pytest.raises(InputError, match="--data_dir: no such file or folder"):
        jsonl(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither task folders nor tasks"):
        jsonl(tmp_path / "empty")
    (folder / "beta" / "test.json").unlink()
    with pytest.raises(
        InputError, match=r"beta: expected one file test that ends in \.json,.*found: train\.json$"
    ):
        jsonl(folder)
    for suffix in ("json", "jsonl"):
        write(folder / "beta" / f"test.{suffix}")
    with pytest.raises(InputError, match=r"found: test\.json and test\.jsonl are there$"):
        jsonl(folder)
    (folder / "a,b").mkdir()
    with pytest.raises(InputError, match="cannot be a file name"):
        jsonl(folder)


def test_what_only_published_benchmarks_have(folder):
    with pytest.raises(InputError, match="unknown protocol of jsonl 'moram'"):
        jsonl(folder, protocol="moram")
    with pytest.raises(InputError, match="splits are for published benchmarks"):
        jsonl(folder, splits={"alpha": {"train": "test"}})
