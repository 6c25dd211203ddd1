"""The audit as a command: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json

import pytest

from eval.run import main

TRAIN = [("Is snow white?", "yes"), ("Is grass red?", "no"), ("Is coal black?", "yes")]
TEST = [("Is milk white?", "yes"), ("Is blood blue?", "no")]


@pytest.fixture
def planted(tmp_path):
    """A jsonl benchmark of a clean task and one with a leak, a repeat and a label that is none."""
    lines = {
        "clean/train": TRAIN,
        "clean/test": TEST,
        "planted/train": [*TRAIN, TRAIN[0]],
        "planted/test": [*TEST, TRAIN[2], ("Is a ghost white?", "-")],
    }
    for name, pairs in lines.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        records = (json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs)
        path.write_text("".join(records))
    tasks = [
        {"name": name, "train": f"{name}/train.jsonl", "test": f"{name}/test.jsonl"}
        for name in ("clean", "planted")
    ]
    (tmp_path / "tasks.yaml").write_text(
        json.dumps([{**entry, "labels": ["yes", "no"]} for entry in tasks])
    )
    return ["audit", "--benchmark", "jsonl", "--data_dir", str(tmp_path)]


LINES = [
    "- error: planted test: answers outside the label set: 1 of 4: '-' (1) (test-3)",
    "- error: planted test: prompts that occur in train too: 1 of 4, 1 with the answer (test-2)",
    "- warning: planted train: repeats of an earlier example (prompt and answer): 1 of 4 (train-3)",
    "- warning: planted test: empty predictions that score above 0 by exact_match_normalised: "
    "1 of 4 (test-3)",
]


def test_the_command(planted, tmp_path, capsys):
    out = tmp_path / "audit.md"
    assert main([*planted, "--out", str(out)]) == 0
    printed, progress = capsys.readouterr()
    assert out.read_text() == printed
    assert [line for line in printed.splitlines() if line.startswith("- ")] == LINES
    assert "## Findings: 2 errors, 2 warnings, 0 notes" in printed
    assert progress.splitlines() == ["1/2 clean: findings: 0", "2/2 planted: findings: 4"]
    rows = [[c.strip() for c in x.split("|")[1:-1]] for x in printed.splitlines() if x[:1] == "|"]
    assert rows[0][:3] == ["task", "split", "examples"]
    assert [row[:3] for row in rows[2:]] == [
        ["clean", "train", "3"],
        ["clean", "test", "2"],
        ["planted", "train", "4"],
        ["planted", "test", "4"],
    ]
    assert [row[-2:] for row in rows[2:]] == [
        ["", ""],
        ["100.00", "0.00"],
        ["", ""],
        ["100.00", "25.00"],
    ]


def test_the_command_for_scripts(planted, tmp_path, capsys):
    out = tmp_path / "audit.json"
    assert main([*planted, "--out", str(out), "--strict"]) == 1
    found = json.loads(out.read_text())
    assert found["findings"][0]["examples"] == ["test-3"]
    assert [split["examples"] for split in found["splits"]] == [3, 2, 4, 4]
    assert main([*planted, "--order", "clean", "--strict"]) == 0  # nothing wrong with this one
    assert "0 errors, 0 warnings, 0 notes" in capsys.readouterr().out


def test_the_demo_is_clean(capsys):
    assert main(["audit", "--benchmark", "demo", "--strict"]) == 0
    assert "0 errors, 0 warnings, 0 notes" in capsys.readouterr().out
