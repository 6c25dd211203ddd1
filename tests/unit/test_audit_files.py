"""The audit of files beside the examples: spare splits, label lists, odd keys; published data."""

from __future__ import annotations

import json

import pytest

from eval.audit.files import check_files
from eval.run import main


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def instances(pairs, **header):
    return {"Definition": [], "Instances": [{"input": p, "output": a} for p, a in pairs], **header}


def test_files(tmp_path):
    mnli, other = tmp_path / "mnli", tmp_path / "group" / "MNLI"
    write(mnli / "train.json", instances([("a", "yes"), ("b", "no")], _provenance="elsewhere"))
    write(mnli / "test.json", instances([("c", "-"), ("d", "yes")]))
    write(tmp_path / "cb" / "test.json", instances([("f", "no")], _provenance="a", Source="b"))
    write(tmp_path / "cb" / "train.json", instances([("g", "no")], _provenance="a"))
    write(mnli / "dev.json", instances([("c", "-"), ("e", "yes")]))
    write(mnli / "labels.json", ["yes", "no", "True"])
    write(other / "train.json", [{"id": 0, "prompt": "a", "answer": "x"}])
    write(other / "test.json", [{"id": 0, "prompt": "b", "answer": "y"}])
    write(other / "eval.json", [{"id": 7, "prompt": "a", "answer": "x"}])
    (other / "broken.json").write_text("{")
    write(tmp_path / "not_asked_for" / "test.json", [{"prompt": "a", "answer": "x"}] * 2)
    write(tmp_path / "not_asked_for" / "dev.json", [{"prompt": "a", "answer": "x"}])
    found = [(f.severity, f.where, f.kind, f.text) for f in check_files(tmp_path, ["mnli", "cb"])]
    broken = found.pop(0)
    assert broken[:3] == ("warning", "MNLI files", "unreadable")
    assert "broken.json, line 1" in broken[3]
    assert found == [
        (
            "warning",
            "MNLI files",
            "spare_split",
            "1 of the 1 records of eval.json are also in train.json",
        ),
        (
            "warning",
            "mnli files",
            "spare_split",
            "1 of the 2 records of dev.json are also in test.json",
        ),
        ("warning", "mnli files", "label_list", "labels.json lacks the answers '-' (1)"),
        (
            "warning",
            "mnli files",
            "label_list",
            "labels.json has labels that no record has as its answer: 'True'",
        ),
        (
            "note",
            "files",
            "odd_key",
            "2 of 5 files lack the key '_provenance': mnli/dev.json, mnli/test.json",
        ),
        ("note", "files", "odd_key", "1 of 5 files have the key 'Source': cb/test.json"),
    ]
    assert check_files(None, ["mnli"]) == []


@pytest.mark.parametrize(
    ("content", "kind", "text"),
    [
        ("{", "unreadable", "malformed JSON"),
        ('{"a": 1}', "label_list", "is not a list but an object"),
    ],
)
def test_a_label_list_that_is_none(tmp_path, content, kind, text):
    write(tmp_path / "cb" / "test.json", instances([("a", "yes")]))
    (tmp_path / "cb" / "labels.json").write_text(content)
    (found,) = check_files(tmp_path, ["cb"])
    assert (found.severity, found.where, found.kind) == ("warning", "cb files", kind)
    assert text in found.text


def test_published_data(shared, tmp_path):
    """What is wrong with it, seen in the files themselves; docs/data_audit.md has all of it."""
    out = tmp_path / "audit.json"
    data = str(shared / "data" / "long_sequence")
    command = ["audit", "--benchmark", "long_sequence", "--data_dir", data, "--out", str(out)]
    assert main([*command, "--protocol", "sapt", "--order", "mnli,qqp", "--strict"]) == 1
    found = json.loads(out.read_text())["findings"]
    assert [(f["severity"], f["where"], f["text"]) for f in found if f["kind"] != "truncated"] == [
        ("error", "mnli test", "answers outside the label set: 38 of 2000: '-' (38)"),
        (
            "warning",
            "mnli test",
            "empty predictions that score above 0 by exact_match_normalised: 38 of 2000",
        ),
        ("warning", "mnli files", "200 of the 200 records of dev.json are also in test.json"),
        ("warning", "mnli files", "labels.json lacks the answers '-' (38)"),
        ("warning", "qqp files", "200 of the 200 records of dev.json are also in test.json"),
        ("warning", "qqp files", "labels.json lacks the answers 'no' (2493), 'yes' (1507)"),
        (
            "warning",
            "qqp files",
            "labels.json has labels that no record has as its answer: 'False', 'True'",
        ),
    ]
    data = str(shared / "data" / "trace")
    command = ["audit", "--benchmark", "trace", "--data_dir", data, "--out", str(out)]
    assert main([*command, "--order", "FOMC,NumGLUE-cm"]) == 0
    found = {f["kind"]: f for f in json.loads(out.read_text())["findings"]}
    assert (found["leak"]["where"], found["leak"]["examples"]) == ("FOMC test", ["test-51"])
    assert found["repeated"]["text"].endswith("244 of 500")
    assert (
        found["spare_split"]["text"] == "16 of the 100 records of eval.json are also in test.json"
    )
