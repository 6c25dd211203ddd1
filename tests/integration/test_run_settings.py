"""Short runs on two ranks: methods, stages, precisions, a benchmark's own files."""

from __future__ import annotations

import json
import math

import pytest
import torch

from moram_dist.models.language_model import dtype_notes
from tests.integration.launching import ROOT, train
from tests.integration.test_run import (
    SMALL,
    STEPS,
    UNTRACKED,
    ZERO3,
    evaluated,
    losses,
    ok,
    refused,
)

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("method", "stage"), [("sequential_lora", "zero2"), ("zero_shot", "zero3"), ("moram", "zero2")]
)
def test_methods(tmp_path, capsys, method, stage):
    flags = ("--method", method, "--ds_config", ROOT / "ds_configs" / f"{stage}.json")
    flags += (*SMALL, *UNTRACKED, "--order", "topic,mood", "--eval_rows", "all")
    ok(train(*flags, "--output_dir", tmp_path / "run"))
    assert not list(tmp_path.rglob("*.db"))
    saved = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [len(row) for row in (saved["base"], *saved["scores"])] == [2, 2, 2]
    assert None not in [score for row in (saved["base"], *saved["scores"]) for score in row]
    names = {p.name for p in (tmp_path / "run" / "predictions" / "base").iterdir()}
    assert names == {"on_000_topic.jsonl", "on_001_mood.jsonl"}
    found = evaluated("metrics", "--scores", tmp_path / "run" / "scores.json", capsys=capsys)
    assert found["fwt_gem"] == pytest.approx(saved["scores"][0][1] - saved["base"][1])
    steps = 0 if method == "zero_shot" else 2 * STEPS
    assert [step for _, step, _ in losses(tmp_path / "run")] == [*range(steps)]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    flags = (*SMALL, *ZERO3, *UNTRACKED, "--order", "topic,mood", "--learning_rate", "1e30")
    complaint = refused(train(*flags, "--output_dir", tmp_path / "run"), code=3)
    assert "in task topic at step 1 on examples train-" in complaint
    assert not list((tmp_path / "run").glob("memory/*"))
    assert not (tmp_path / "run" / "scores.json").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--dtype", "bf16", *ZERO3),
        ("--ds_config", ROOT / "ds_configs" / "zero3_offload.json"),
    ],
    ids=["bf16", "offload"],
)
def test_precision_and_offload(tmp_path, flags):
    flags = (*SMALL, *UNTRACKED, "--order", "topic", *flags)
    done = train(*flags, "--output_dir", tmp_path / "run")
    ok(done)
    for note in dtype_notes(torch.bfloat16):  # where this CPU has no instructions for it
        assert (f"note: {note}" in done.out) == ("bf16" in flags)
    found = losses(tmp_path / "run")
    assert len(found) == STEPS
    assert all(math.isfinite(loss) for *_, loss in found)
    ds_config = json.loads((tmp_path / "run" / "ds_config.json").read_text())
    assert ds_config["bf16"]["enabled"] == ("bf16" in flags)


def test_trace(shared, tmp_path):
    flags = ("--benchmark", "trace", "--data_dir", shared / "data" / "trace", *ZERO3, *UNTRACKED)
    flags += ("--model", shared / "models" / "t0-llama-5m", "--order", "FOMC,NumGLUE-cm")
    flags += ("--limit_train", "8", "--limit_eval", "2", "--max_answer_tokens", "4")
    ok(train(*flags, "--output_dir", tmp_path / "run"))
    saved = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert saved["metrics"] == {"FOMC": "choice", "NumGLUE-cm": "math_answer"}
    assert len(losses(tmp_path / "run")) == 1 + 2  # epochs of the protocol
    benchmark = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert (benchmark["protocol"], benchmark["decoding"]["no_repeat_ngram_size"]) == ("moram", 3)
