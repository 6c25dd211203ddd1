"""Whole runs of the methods that change the data, on two ranks under ZeRO-3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.integration.launching import ROOT, train

pytestmark = pytest.mark.integration

TASKS = ("topic", "mood", "place")
FLAGS = ("--ds_config", ROOT / "ds_configs" / "zero3.json", "--order", ",".join(TASKS))
FLAGS += ("--limit_train", "16", "--limit_eval", "8", "--epochs", "1", "--batch_size", "8")
FLAGS += ("--log_every", "1", "--tracking", "none")
FLAGS += ("--preset", "published")


def run(folder: Path, *flags: str) -> str:
    done = train(*FLAGS, *flags, "--output_dir", folder)
    assert done.code == 0, done.out + done.err
    return done.out


def steps(folder: Path) -> list[str]:
    """The task of each optimizer step."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["task"] for line in found if "train/loss" in line]


def cells(folder: Path) -> dict[tuple[int, int], bytes]:
    """(row, column) -> predictions, where scores.json has a score."""
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    out = {}
    for row, column in ((r, c) for r in range(3) for c in range(3) if scores[r][c] is not None):
        name = f"predictions/after_{row:03d}/on_{column:03d}_{TASKS[column]}.jsonl"
        out[row, column] = (folder / name).read_bytes()
    return out


def memory(folder: Path, i: int) -> bytes:
    return (folder / "memory" / f"{i:03d}_{TASKS[i]}.safetensors").read_bytes()


TRIANGLE = {(row, column) for row in range(3) for column in range(row + 1)}


def test_replay(tmp_path):
    run(tmp_path / "run", "--method", "replay", "--replay_budget", "9")
    # Two steps of 8 for the own 16 examples; with 9 more (9, then 5 and 4) it is 25 examples.
    assert steps(tmp_path / "run") == ["topic"] * 2 + ["mood"] * 4 + ["place"] * 4
    assert cells(tmp_path / "run").keys() == TRIANGLE
    assert len({memory(tmp_path / "run", i) for i in range(3)}) == 3


def test_multitask(tmp_path):
    out = run(tmp_path / "run", "--method", "multitask")
    assert steps(tmp_path / "run") == ["topic"] * 6
    found = cells(tmp_path / "run")
    assert found.keys() == TRIANGLE
    assert found[0, 0] == found[1, 0] == found[2, 0]
    assert found[1, 1] == found[2, 1]
    measured = [line for line in out.splitlines() if "exact_match_normalised" in line]
    assert len(measured) == 3
    assert memory(tmp_path / "run", 0) == memory(tmp_path / "run", 1) == memory(tmp_path / "run", 2)


def test_single_task(tmp_path):
    run(tmp_path / "run", "--method", "single_task", "--eval_rows", "seen")
    assert steps(tmp_path / "run") == [name for name in TASKS for _ in range(2)]
    assert cells(tmp_path / "run").keys() == {(0, 0), (1, 1), (2, 2)}
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["eval"]["eval_rows"] == (
        "diagonal"
    )
    # Two steps of AdamW move no element further than twice the rate of 3e-3: task 1's A is within
    # that of its own start, and so far from task 0's.
    first, second = (
        load_file(tmp_path / "run" / "memory" / f"{i:03d}_{TASKS[i]}.safetensors") for i in (0, 1)
    )
    for name in first:
        if name.endswith("lora_A"):
            assert (first[name] - second[name]).abs().max() > 0.05
    assert "all 3 tasks are done" in run(tmp_path / "run", "--method", "single_task")


def test_in_context(tmp_path):
    flags = ("--method", "in_context", "--demonstrations", "3")
    roomy = run(tmp_path / "roomy", *flags, "--max_prompt_tokens", "128")
    tight = run(tmp_path / "tight", *flags)
    assert "note:" not in roomy
    assert "note: mood is asked with 1.0 of 3 demonstrations on average" in tight
    assert steps(tmp_path / "roomy") == []
    notes = json.loads((tmp_path / "tight" / "benchmark.json").read_text())["notes"]
    assert [note.split()[0] for note in notes] == [*TASKS]
    found = cells(tmp_path / "roomy")
    assert found.keys() == TRIANGLE
    assert found[1, 0] == found[0, 0]
    assert found[1, 0] != cells(tmp_path / "tight")[1, 0]  # the model did read what is before
    assert not list((tmp_path / "roomy").glob("progress/*"))
