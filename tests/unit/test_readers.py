"""Reading prompts and answers, and the one line that each bad file gets."""

from __future__ import annotations

import json

import pytest

from moram_dist.registry import InputError
from moram_dist.tasks.examples import read_examples
from moram_dist.tasks.task import Example

RECORDS = [
    {"prompt": "1 + 1 =", "answer": "2"},
    {"prompt": "Grüezi\u2028?", "answer": ["hallo", "hello"], "more": 1},
    {"prompt": "last", "answer": "one"},
]
EXAMPLES = (
    Example("test-0", "1 + 1 =", ("2",)),
    Example("test-1", "Grüezi\u2028?", ("hallo", "hello")),
    Example("test-2", "last", ("one",)),
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_lines(records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n"


def test_reads_a_list(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(RECORDS))
    assert read_examples(path, split="test") == EXAMPLES


def test_reads_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", as_lines(RECORDS))
    assert read_examples(path, split="test") == EXAMPLES


def test_reads_windows_line_ends_blank_lines_and_byte_order_mark(tmp_path):
    text = "\ufeff" + as_lines(RECORDS).replace("\n", "\r\n\r\n")
    assert read_examples(write(tmp_path / "a.jsonl", text), split="test") == EXAMPLES


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_limit_takes_the_first_and_looks_no_further(tmp_path, name):
    records = [*RECORDS[:2], {"bad": 1}]
    text = json.dumps(records) if name == "a.json" else as_lines(records)
    assert read_examples(write(tmp_path / name, text), split="test", limit=2) == EXAMPLES[:2]
    path = write(tmp_path / name, text)
    with pytest.raises(InputError):
        read_examples(path, split="test", limit=3)
    with pytest.raises(InputError, match="at least 1, got 0"):
        read_examples(path, split="test", limit=0)


def test_field_names_are_parameters(tmp_path):
    path = write(tmp_path / "a.json", '[{"q": "why", "a": "so"}]')
    found = read_examples(path, split="train", prompt_field="q", answer_field="a")
    assert found == (Example("train-0", "why", ("so",)),)


BAD = [
    ("a.json", '[{"prompt": "x",\n "answer": }]', "line 2, column 12: malformed JSON"),
    ("a.json", "", "line 1, column 1: malformed JSON"),
    ("a.jsonl", '{"prompt": "x", "answer": "y"}\n\n{"prompt"', "line 3, column 10: malformed JSON"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.json", "[1" + "0" * 5000 + "]", "too long a number"),
    ("a.json", '{"prompt": "x"}', "expected a list of objects, got an object"),
    ("a.json", '["x"]', "record 0: expected an object, got a text"),
    ("a.jsonl", '[{"prompt": "x", "answer": "y"}]', "line 1: expected an object, got a list"),
    ("a.json", '[{"prompt": "x", "answr": "y"}]', "record 0: no field 'answer'; found: 'prompt'"),
    ("a.json", "[{}]", "record 0: expected the fields prompt and answer; or instruction"),
    ("a.jsonl", '\n{"prompt": "x"}', "line 2: no field 'answer'"),
    ("a.json", '[{"prompt": " ", "answer": "y"}]', "record 0: 'prompt' is empty"),
    ("a.json", '[{"prompt": "x", "answer": ""}]', "record 0: 'answer' is empty"),
    ("a.json", '[{"prompt": "x", "answer": []}]', "record 0: 'answer' is an empty list"),
    ("a.json", '[{"prompt": "x", "answer": ["y", ""]}]', "'answer'[1] is empty"),
    ("a.json", '[{"prompt": "x", "answer": ["y", 2]}]', "'answer'[1] must be a text, got a number"),
    ("a.json", '[{"prompt": 5, "answer": "y"}]', "'prompt' must be a text, got a number"),
    ("a.json", '[{"prompt": ["x"], "answer": "y"}]', "'prompt' must be a text, got a list"),
    ("a.json", '[{"prompt": "x", "answer": null}]', "'answer' must be a text, got null"),
    ("a.json", '[{"prompt": "x", "answer": true}]', "must be a text, got true or false"),
    ("a.json", '[{"prompt": "x", "answer": "\\ud800"}]', "half of a surrogate pair"),
    ("a.json", "[]", "holds no examples"),
    ("a.jsonl", "\n \n", "holds no examples"),
    ("a.json", b'[{"prompt": "Gr\xfcezi"}]', "not UTF-8 at byte 15"),
]


@pytest.mark.parametrize(("name", "content", "complaint"), BAD)
def test_bad_files(tmp_path, name, content, complaint):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        read_examples(path, split="train")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert complaint in message
    assert "\n" not in message


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_examples(tmp_path / "none.json", split="train")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_examples(tmp_path / "folder.json", split="train")
