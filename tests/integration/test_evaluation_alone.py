"""Rows that a trained run lacks are measured later, on its memory, without training."""

from __future__ import annotations

import json

import pytest

from tests.integration.launching import ROOT, train

pytestmark = pytest.mark.integration

FLAGS = ("--limit_train", "32", "--limit_eval", "8", "--epochs", "4", "--order", "topic,mood")
FLAGS += ("--batch_size", "8", "--dtype", "fp32", "--tracking", "none")
FLAGS += ("--ds_config", ROOT / "ds_configs" / "zero3.json")
FLAGS += ("--preset", "published")


@pytest.mark.parametrize(
    "method", ["moram", pytest.param("sequential_lora", marks=pytest.mark.nightly)]
)
def test_rows_that_are_asked_for_later(tmp_path, method):
    words = (*FLAGS, "--method", method)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(*words, "--eval_rows", "all", "--output_dir", whole, ranks=1).code == 0
    expected = json.loads((whole / "scores.json").read_text())
    assert None not in [*expected["base"], *expected["scores"][0], *expected["scores"][1]]

    assert train(*words, "--eval_rows", "last", "--output_dir", run, ranks=1).code == 0
    assert json.loads((run / "scores.json").read_text())["scores"][0][1] is None
    memory = {path.name: path.read_bytes() for path in (run / "memory").iterdir()}
    again = ("--recipe", run / "run.yaml", "--eval_rows", "all", "--output_dir", run)
    done = train(*again, ranks=1)
    assert done.code == 0, done.out + done.err
    assert " step " not in done.out
    assert json.loads((run / "scores.json").read_text()) == expected
    for path in (whole / "predictions").rglob("*.jsonl"):
        assert (run / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert {path.name: path.read_bytes() for path in (run / "memory").iterdir()} == memory
