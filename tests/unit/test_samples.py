"""The three shapes of published files, and the one line that each bad file gets."""

from __future__ import annotations

import json

import pytest

from moram_dist.registry import InputError
from moram_dist.tasks.samples import read_samples


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def taken(path):
    return [(s.shape, s.text, s.answers, s.definition) for s in read_samples(path)]


def test_instances(tmp_path):
    content = {
        "Definition": [" Say it. \n"],
        "Positive Examples": [],
        "Instances": [
            {"id": "a", "input": "one\n", "output": ["x", ""]},
            {"input": "two", "output": "y"},
            {"input": "three", "output": ""},
        ],
    }
    assert taken(written(tmp_path / "a.json", content)) == [
        ("instance", "one\n", ("x", ""), "Say it."),
        ("instance", "two", ("y",), "Say it."),
        ("instance", "three", ("",), "Say it."),
    ]
    content["Definition"] = []
    assert taken(written(tmp_path / "a.json", content))[1] == ("instance", "two", ("y",), "")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("record", "shape"),
    [({"sentence": "s", "label": "l"}, "sentence"), ({"prompt": "s", "answer": "l"}, "prompt")],
)
def test_lists(tmp_path, suffix, record, shape):
    content = json.dumps(record) + "\n" if suffix == "jsonl" else [record]
    assert taken(written(tmp_path / f"a.{suffix}", content)) == [(shape, "s", ("l",), "")]


def test_a_record_is_checked_when_it_is_taken(tmp_path):
    records = [{"sentence": "s", "label": "l"}, {"sentence": "s"}]
    samples = read_samples(written(tmp_path / "a.json", records))
    assert next(samples).where == f"{tmp_path / 'a.json'}, record 0"
    with pytest.raises(InputError, match="record 1: no field 'label'; found: 'sentence'"):
        next(samples)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"Definition": []}, "'Instances' must be a list of objects, got null"),
        ({"Definition": "x", "Instances": []}, "'Definition' must be a list of texts"),
        ({"Definition": [1], "Instances": []}, "'Definition' must be a list of texts"),
        ({"Instances": [{"input": "x"}]}, "record 0: no field 'output'; found: 'input'"),
        ({"Instances": [{"output": "x"}]}, "record 0: no field 'input'"),
        ({"Instances": [{"input": "x", "output": []}]}, "record 0: 'output' is an empty list"),
        ({"Instances": ["x"]}, "record 0: expected an object, got a text"),
        ([{"text": "x"}], "record 0: no field 'prompt'; found: 'text'"),
        ([{"prompt": "x", "answer": " "}], "record 0: 'answer' is empty"),
        ([{"sentence": "", "label": "x"}], "record 0: 'sentence' is empty"),
        ("5", "expected a list of objects, got a number"),
        ('{"Instances": [', "malformed JSON"),
    ],
)
def test_bad_files(tmp_path, content, complaint):
    path = written(tmp_path / "a.json", content)
    with pytest.raises(InputError) as caught:
        list(read_samples(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert complaint in message
    assert "\n" not in message


def test_a_protocol_says_which_shapes_it_takes(tmp_path):
    (sample,) = read_samples(written(tmp_path / "a.json", [{"prompt": "p", "answer": "a"}]))
    sample.expect("sentence", "prompt")
    with pytest.raises(
        InputError, match=r"has no template for a complete 'prompt'.*'Instances' or"
    ):
        sample.expect("instance", "sentence")
