"""A T5 through the command, on two ranks: it learns, stops, goes on, and is restored."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM

from moram_dist import load_memory
from moram_dist.config import ModelConfig
from moram_dist.models.language_model import load_tokenizer
from moram_dist.tasks import BENCHMARKS, Source
from tests.helpers.answers import generate_batch
from tests.helpers.tiny_t5 import save_tiny_t5
from tests.integration.launching import ROOT, train

pytestmark = pytest.mark.integration

TASKS = ("topic", "mood")
STEPS = 8  # of each task: 32 examples, 8 a step, twice
FLAGS = ("--limit_train", "32", "--limit_eval", "4", "--epochs", "2", "--order", ",".join(TASKS))
FLAGS += ("--batch_size", "8", "--micro_batch_size", "2", "--log_every", "1", "--dtype", "fp32")
FLAGS += ("--learning_rate", "0.02", "--answers", "generate,labels,constrained")
FLAGS += ("--gradient_checkpointing", "true", "--tracking", "none")
FLAGS += ("--ds_config", ROOT / "ds_configs" / "zero3.json")
FLAGS += ("--preset", "published")


def lines(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def losses(folder: Path) -> list[float]:
    return [line["train/loss"] for line in lines(folder / "metrics.jsonl") if "train/loss" in line]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("memory/*"), *folder.glob("predictions/*/*"), folder / "scores.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_t5_learns_goes_on_and_is_restored(tmp_path):
    # With dropout of its own, as published T5s have.
    model = save_tiny_t5(tmp_path / "model", dropout_rate=0.1)
    flags = (*FLAGS, "--model", model)

    whole = tmp_path / "whole"
    done = train(*flags, "--output_dir", whole)
    assert done.code == 0, done.out + done.err
    found = losses(whole)
    assert len(found) == 2 * STEPS
    assert sum(found[STEPS - 3 : STEPS]) < 0.8 * sum(found[:3])

    def stop_in_the_second_task(pids: list[int]) -> bool:
        if len(losses(tmp_path / "stopped")) < STEPS + 3:
            return False
        os.kill(pids[0], signal.SIGTERM)
        return True

    flags_again = (*flags, "--output_dir", tmp_path / "stopped")
    done = train(*flags_again, meanwhile=stop_in_the_second_task)
    assert done.code == 75, done.out + done.err
    done = train(*flags_again)
    assert done.code == 0, done.out + done.err
    assert "task mood resumes after step" in done.out
    assert losses(tmp_path / "stopped") == found
    assert contents(tmp_path / "stopped") == contents(whole)

    tokenizer = load_tokenizer(ModelConfig(model=str(model)))
    demo = BENCHMARKS["demo"](Source(order=",".join(TASKS), limit_eval=4))
    plain = AutoModelForSeq2SeqLM.from_pretrained(model, dtype="float32")
    load_memory(plain, whole)
    for j, task in enumerate(demo.tasks):
        answers = generate_batch(plain, tokenizer, task.test, task, demo.decoding)
        path = whole / f"predictions/after_001/on_{j:03d}_{task.name}.jsonl"
        assert answers == [line["prediction"] for line in lines(path)]
        of_labels = lines(path.with_suffix(".labels.jsonl"))
        assert {line["prediction"] for line in of_labels} <= set(task.labels)
        assert all(set(line["log_likelihoods"]) == set(task.labels) for line in of_labels)
